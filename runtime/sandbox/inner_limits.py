"""A container's own limits in the cgroup file systems that the sentry shows it.

Programs such as the JVM size themselves by them.  They are only shown: the host's cgroups and the
shim enforce them.  ``pids.max``, which the sentry would enforce, can't be written from outside
(runsc, pkg/sentry/fsimpl/cgroupfs, ``newControllerWritableFile``).
"""

from __future__ import annotations

from runtime.base.errors import Failed
from runtime.cgroups.resources import parse
from runtime.runsc import control_results
from runtime.runsc.urpc import DEFAULT_TIMEOUT
from runtime.sandbox import cgroup_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from runtime.runsc.control import Control
    from runtime.sandbox.boot_params import BootParams

_NO_BYTES: Final = (1 << 63) - 1


def files(resources: Mapping[str, Any]) -> dict[str, str]:
    """What to write where for ``linux.resources``: values by the names of cgroup v1's files.

    A limit of which nothing is said is left alone, one that is lifted shows as none.
    """
    wanted = parse(resources)
    found = {}
    if wanted.memory_limit:
        limit = wanted.memory_limit
        found["memory.limit_in_bytes"] = str(limit if limit > 0 else _NO_BYTES)
    if wanted.cpu_quota:
        found["cpu.cfs_quota_us"] = str(max(wanted.cpu_quota, -1))
    if wanted.cpu_period:
        found["cpu.cfs_period_us"] = str(wanted.cpu_period)
    if wanted.cpu_shares:
        found["cpu.shares"] = str(wanted.cpu_shares)
    return found


def show(control: Control, params: BootParams, resources: Mapping[str, Any]) -> None:
    """Tell the sentry what a container's limits are, once that has been started.

    A pause container looks at none, and one without cgroups of its own can't.  Raises what a call
    to the sentry does.
    """
    spec = params.spec
    if spec.container_type == "sandbox":
        return
    wanted = files(resources)
    if wanted and cgroup_mounts.counts(spec, params.driver.generation):
        write(control, params.id, wanted)


def write(
    control: Control, cid: str, wanted: Mapping[str, str], timeout: float = DEFAULT_TIMEOUT
) -> None:
    """Write files of a container's cgroups in the sandbox.  Raises Failed, or as ``show`` does."""
    args = [
        {
            "file": {"controller": name.partition(".")[0], "path": f"/{cid}", "name": name},
            "value": value,
        }
        for name, value in wanted.items()
    ]
    found = control.call("Cgroups.WriteControlFiles", {"args": args}, (), timeout)
    fault = control_results.cgroup_fault(found, len(args))
    if fault:
        raise Failed(f"cgroup of {cid!r} in the sandbox: {fault}")
