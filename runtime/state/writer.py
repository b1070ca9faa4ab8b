"""All that is written of containers to the disk: runsc's state file, and our record beside it.

Owns when either is written, under which lock, and what follows if it can't be.  No other module
calls ``runsc_state.save`` or ``shim_record.save``, which own the two formats.

runsc's file is written when the container is created, started, paused or resumed: everything else
runsc finds out by asking the sentry.  Our record is written before the sandbox is spawned and when
it is up, and then whenever something comes to be known that a later process can't ask for: the
exit, the network, other limits.
"""

from __future__ import annotations

import os
import time

from runtime.base.errors import Failed, RuntimeFault, reason
from runtime.base.log import get_logger
from runtime.cgroups import oom_score
from runtime.sandbox.gofer_mounts import mount_hints
from runtime.state import runsc_state, shim_record
from runtime.state.lock import StateLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bundle.spec import Spec
    from runtime.cgroups.factory import Cgroup
    from runtime.runsc.flags import Settings
    from runtime.runsc.release import Generation
    from runtime.sandbox.boot_params import BootParams
    from runtime.sandbox.gofer import Gofer
    from runtime.sandbox.sandbox import Sandbox
    from runtime.state.runsc_state import RunscState
    from runtime.state.shim_record import ContainerRecord

#: Seconds that a change of status waits for somebody else's lock: a start must not hang on it.
_PATIENCE = 0.5
#: What runsc takes from CRI's annotations to name the pod in its metrics.
_POD_NAME = "io.kubernetes.cri.sandbox-name"
_POD_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"

#: How Go calls machines.
_GO_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

_log = get_logger("state")


class StateKeeper:
    """The state file of a container that this process made or goes on with, until its end.

    One thread at a time.
    """

    def __init__(self, root: str, container_id: str, sandbox_id: str) -> None:
        self._root = root
        self._id = container_id
        self.lock = StateLock(root, container_id, sandbox_id)
        self._raw: Mapping[str, Any] | None = None

    def reserve(self) -> None:
        """Take the id: no other process can create a container of it.

        Raises AlreadyExists, DeadlineExceeded, OSError.
        """
        self.lock.acquire_for_new()

    def created(self, raw: Mapping[str, Any]) -> None:
        """Write the container down as created, and let go of the lock.  Raises OSError."""
        self._raw = raw
        runsc_state.save(self.lock, raw)
        self.lock.release()

    def resume(self, raw: Mapping[str, Any]) -> None:
        """Go on with a file that another process wrote."""
        self._raw = raw

    def changed(self, status: str, **members: Any) -> None:
        """Write another status down, and what else has changed.

        Never raises: a container runs without its file, too.
        """
        if self._raw is None or (self._raw["status"] == status and not members):
            return
        self._raw = {**self._raw, "status": status, **members}
        try:
            if self.lock.held:
                runsc_state.save(self.lock, self._raw)
                return
            with self.lock.acquire(_PATIENCE):
                runsc_state.save(self.lock, self._raw)
        except (RuntimeFault, OSError) as fault:
            _log.warning("state.not_written", container=self._id, status=status, error=str(fault))

    @property
    def sandbox(self) -> Mapping[str, Any]:
        """The part about the sandbox, of which each of its containers has a copy."""
        assert self._raw is not None
        found: Mapping[str, Any] = self._raw["sandbox"]
        return found


def rewrite(lock: StateLock, state: RunscState, status: str) -> RunscState:
    """Write another status into the file of a container that another process made.

    The caller holds ``lock`` and has read ``state`` under it.  Returns what is written now.
    Raises OSError.
    """
    changed = state.with_status(status)
    runsc_state.save(lock, changed.raw)
    return changed


def record(root: str, known: ContainerRecord, *, locator: bool = False) -> None:
    """Write down what a clean-up needs that can't ask us; see :func:`shim_record.save`.

    Raises Failed.
    """
    try:
        shim_record.save(root, known, locator=locator)
    except OSError as error:
        raise Failed(f"record of container {known.id!r}: {root}: {reason(error)}") from None


def attempt(what: str, container_id: str, write: Callable[[], None]) -> None:
    """Write down what no operation depends on, such as an exit: a failure is logged.

    Never raises.
    """
    try:
        write()
    except (RuntimeFault, OSError) as fault:
        _log.warning(f"{what}.not_recorded", container=container_id, error=str(fault))


def timestamp(nanoseconds: int) -> str:
    """A point in time, in nanoseconds since the epoch, as Go's encoding/json has it."""
    t = time.gmtime(nanoseconds // 1_000_000_000)
    return (
        f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
        f".{nanoseconds % 1_000_000_000:09}Z"
    )


def absolute(spec: Spec) -> dict[str, Any]:
    """The spec with its paths on the host absolute, as runsc writes it down."""
    raw = {**spec.raw, "root": {**spec.raw["root"], "path": spec.root_path}}
    if any(mount.is_bind for mount in spec.mounts):
        raw["mounts"] = [
            {**each, "source": mount.source} if mount.is_bind else each
            for each, mount in zip(spec.raw["mounts"], spec.mounts, strict=True)
        ]
    return raw


def describe_sandbox(
    params: BootParams,
    sandbox: Sandbox,
    *,
    cgroup: Cgroup | None,
    registered: Mapping[str, Any] | None,
    started: int,
) -> dict[str, Any]:
    """The part of a root container's state about its sandbox, which was booted by ``params``.

    Fields that a release doesn't know, its decoder leaves out.  ``registered`` is what the sentry
    says of its metrics, for a metric server.  ``started`` is in nanoseconds.
    """
    annotations, settings = params.spec.annotations, sandbox.settings
    body: dict[str, Any] = {
        "id": sandbox.id,
        "podName": annotations.get(_POD_NAME, ""),
        "namespace": annotations.get(_POD_NAMESPACE, ""),
        "pid": sandbox.pid,
        "uid": sandbox.uid,
        "gid": sandbox.gid,
        "cgroup": runsc_state.cgroup_json(cgroup.to_json() if cgroup is not None else None),
        "originalOomScoreAdj": oom_score.own_score(),
        "registeredMetrics": registered,
        "metricMetadata": _metric_metadata(params.driver.generation, settings),
        "metricServerAddress": settings.metric_server,
        "mountHints": {"mounts": mount_hints(annotations)},
        "startTime": timestamp(started),
    }
    if not sandbox.control_address.startswith("\0"):
        body["controlSocketPath"] = sandbox.control_address
    return body


def _metric_metadata(generation: Generation, settings: Settings) -> dict[str, str]:
    """The labels of a sandbox's metrics (gVisor runsc/config/config.go, MetricMetadata)."""
    machine = os.uname().machine
    defaults = generation.global_flags
    return {
        "version": generation.version,
        "network": settings.network,
        "platform": settings.platform or generation.default_platform,
        "numcores": str(os.cpu_count() or 0),
        "coretags": "true" if settings.boolean("enable-core-tags") else "false",
        "overlay": settings.effective.get("overlay2") or defaults.get("overlay2") or "none",
        "fsmode": "directfs" if settings.directfs else "goferfs",
        "cpuarch": _GO_MACHINES.get(machine, machine),
        # What runsc was built with, and what its builders try out: nobody tells.
        "go": "",
        "experiment": "",
    }


def describe(
    params: BootParams,
    root: str,
    *,
    sandbox: Mapping[str, Any],
    gofer: Gofer,
    own_cgroup: Cgroup | None,
    created: int,
) -> dict[str, Any]:
    """The state of a created container as runsc has it.  ``created`` is in nanoseconds."""
    body: dict[str, Any] = {
        "id": params.id,
        "spec": absolute(params.spec),
        "bundleDir": params.spec.bundle,
        "createdAt": timestamp(created),
        "owner": os.environ.get("USER", ""),
        "consoleSocket": "",
        "status": "created",
        "goferPid": gofer.pid,
        "sandbox": sandbox,
        "compatCgroup": runsc_state.cgroup_json(
            own_cgroup.to_json() if own_cgroup is not None else None
        ),
        "saver": {
            "rootDir": root,
            "id": {"sandboxId": sandbox["id"], "containerId": params.id},
        },
    }
    if params.driver.generation.mount_confs:
        body["goferMountConfs"] = confs_json(gofer)
    return body


def confs_json(gofer: Gofer) -> list[dict[str, Any]]:
    """How a gofer's mounts are made up, in runsc's form."""
    return [conf.to_json() for conf in gofer.plan.confs]
