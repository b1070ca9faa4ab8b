"""The cgroups that sandboxes run in: create, join, limit, measure, remove.

The front of ``cgroups/``: other rooms import this module, and ``remove.py``, which a clean-up loads
alone.  The code of the version that the host doesn't use is never loaded.
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.base.log import get_logger
from runtime.cgroups import paths as cgroup_path
from runtime.cgroups import remove
from runtime.cgroups.hierarchy import CgroupDenied, CgroupRoot
from runtime.cgroups.paths import derive_parent
from runtime.host.privilege import SYS_ADMIN, holds_over_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.cgroups.cgroup import Cgroup as Cgroup
    from runtime.cgroups.paths import Location
    from runtime.cgroups.watch import OOMWatch as OOMWatch

__all__ = [
    "CgroupDenied",
    "CgroupRoot",
    "create",
    "create_if_allowed",
    "derive_parent",
    "directories_of",
    "from_json",
    "hands_down",
    "host_mode",
    "limits_of",
    "of_process",
    "plan",
]

_log = get_logger("cgroup")


def host_mode(root: CgroupRoot | None = None) -> str:
    """``v2`` if /sys/fs/cgroup is the v2 hierarchy, else ``v1``, also for a hybrid host."""
    return (root or CgroupRoot()).mode


def create(
    path: str,
    resources: Mapping[str, Any] | None,
    *,
    systemd: bool = False,
    root: CgroupRoot | None = None,
) -> Cgroup:
    """Make the cgroup ``path`` (OCI's ``linux.cgroupsPath``) with limits (``linux.resources``).

    Follows gVisor's runsc/cgroup: where the cgroup exists already it is used as it is, and
    belongs to somebody else.  systemd's form ``slice:prefix:name`` is a scope that systemd is
    asked for, on cgroup v2; on v1, and where systemd doesn't run, it is the directory that it
    would make.  ``systemd`` insists on that form, and on v2 on systemd.

    Raises InvalidRequest naming the field; Unsupported for a limit that this host can't set;
    CgroupDenied where we may not make cgroups; Failed.  Nothing is left behind then.
    """
    root = root or CgroupRoot()
    location = cgroup_path.locate(path, systemd=systemd)
    return _driver(root, location, systemd).create(root, location, resources)


def create_if_allowed(
    path: str,
    resources: Mapping[str, Any] | None,
    *,
    systemd: bool = False,
    root: CgroupRoot | None = None,
    proc: str = "/proc",
) -> Cgroup | None:
    """The same, or None where this process is not privileged and may not make it.

    A container without limits is better than none for a rootless caller, or for one who sees the
    cgroups read-only; for the host's root a refusal is a failure.
    """
    try:
        group = create(path, resources, systemd=systemd, root=root)
        if not group.owned:
            group.require_joinable()
        return group
    except CgroupDenied as denied:
        if holds_over_host(SYS_ADMIN, proc=proc):
            raise
        _log.warning("cgroup.denied", path=path, error=str(denied))
        return None


def plan(path: str, *, systemd: bool = False, root: CgroupRoot | None = None) -> dict[str, Any]:
    """What ``to_json`` of the cgroup would say if it were made now.

    Written down before :func:`create`, it lets a clean-up find what a killed shim had made.
    Raises InvalidRequest.
    """
    root = root or CgroupRoot()
    location = cgroup_path.locate(path, systemd=systemd)
    return _driver(root, location, systemd).plan(root, location)


def from_json(data: Mapping[str, Any], root: CgroupRoot | None = None) -> Cgroup:
    """The cgroup that ``to_json`` described.  Raises InvalidRequest."""
    mode = data.get("mode")
    if mode not in ("v1", "v2"):
        raise InvalidRequest("cgroup.mode", f"{mode!r} is neither v1 nor v2")
    version = _version(mode)
    if data.get("driver") == remove.SYSTEMD:
        from runtime.cgroups.systemd import CgroupSystemd

        version = CgroupSystemd
    return version.from_json(data, root or CgroupRoot())


def directories_of(pid: int, root: CgroupRoot | None = None) -> dict[str, str]:
    """The directories of a process's cgroup by controller; on v2 there is one, named "".

    Empty once the process is gone.
    """
    root = root or CgroupRoot()
    return _directories(root, _paths_of(pid, root))


def _paths_of(pid: int, root: CgroupRoot) -> Mapping[str, str]:
    try:
        return root.own_paths(pid)
    except Failed:
        return {}


def _directories(root: CgroupRoot, paths: Mapping[str, str]) -> dict[str, str]:
    return {
        name: mount + ("" if paths[name] == "/" else paths[name])
        for name, mount in root.mounts().items()
        if name in paths
    }


def of_process(pid: int, root: CgroupRoot | None = None) -> Cgroup:
    """The cgroup that a process is in, to be read: it belongs to whoever made it."""
    root = root or CgroupRoot()
    # Looked at once, as the process may end in between.
    paths = _paths_of(pid, root)
    directories = _directories(root, paths)
    path = next(iter(paths.values()), "/") if directories else "/"
    data = {"mode": root.mode, "path": path, "directories": directories, "own": {}}
    return from_json(data, root)


def hands_down(directory: str, root: CgroupRoot | None = None) -> bool:
    """v2: whether a cgroup exists and has controllers enabled for its children."""
    root = root or CgroupRoot()
    try:
        return bool(root.read(f"{root.path}{directory}/cgroup.subtree_control"))
    except OSError:
        return False


def limits_of(directory: str, root: CgroupRoot | None = None) -> Mapping[str, Mapping[str, int]]:
    """v2: the limits of memory and CPU time that stand in a cgroup, like ``linux.resources``."""
    root = root or CgroupRoot()
    found: dict[str, Mapping[str, int]] = {}
    try:
        limit = root.read(f"{root.path}{directory}/memory.max").strip()
        quota, _, period = root.read(f"{root.path}{directory}/cpu.max").strip().partition(" ")
    except OSError:
        return found  # no such cgroup yet, or without controllers
    if limit.isdecimal():
        found["memory"] = {"limit": int(limit)}
    if quota.isdecimal() and period.isdecimal():
        found["cpu"] = {"quota": int(quota), "period": int(period)}
    return found


def _version(mode: str) -> type[Cgroup]:
    if mode == "v2":
        from runtime.cgroups.v2 import CgroupV2

        return CgroupV2
    from runtime.cgroups.v1 import CgroupV1

    return CgroupV1


def _driver(root: CgroupRoot, location: Location, systemd: bool) -> type[Cgroup]:
    """Who makes the cgroup: we ourselves, or systemd for us."""
    if location.unit and root.mode == "v2":
        # Looked up without loading what talks to it.
        if os.path.isdir(root.systemd):
            from runtime.cgroups.systemd import CgroupSystemd

            return CgroupSystemd
        if systemd:
            raise Unsupported("systemd's cgroup driver is asked for, but systemd doesn't run here")
    return _version(root.mode)
