"""What to start and in what surroundings, and the check that this makes sense."""

from __future__ import annotations

import os
from types import MappingProxyType

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.host.linux import CLONE_NEWNS, CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NAMESPACES = {  # CLONE_NEW*
    0x80: "time",
    0x20000: "mount",
    0x2000000: "cgroup",
    0x4000000: "uts",
    0x8000000: "ipc",
    0x10000000: "user",
    0x20000000: "pid",
    0x40000000: "network",
}


_MAX_FD = 1 << 16


_NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_")


_EMPTY: Mapping[Any, Any] = MappingProxyType({})


# clone(2) has no bit for a time namespace.
_CLONEABLE = sum(NAMESPACES) & ~0x80


class IdMap(Record):
    """A range of ids: ``size`` ids from ``container_id`` inside are ``host_id`` on outside."""

    container_id: int
    host_id: int
    size: int


class SpawnSpec(Record):
    """What to start, and in what surroundings.

    Namespaces, cgroups and credentials are taken in this order: ``cgroup_procs``, ``join``,
    ``cgroup_fd`` together with ``namespaces``, maps, ``gid``, ``uid``, ``ambient_caps``.
    """

    path: str
    """Executed as it stands; PATH isn't searched."""
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    """None: ours, without what systemd meant for us alone."""
    cwd: str | None = None
    fds: Mapping[int, int] = _EMPTY
    """The child's number -> our descriptor.  0 to 2 default to the null device; no other
    descriptor reaches the child."""
    keep: tuple[int, ...] = ()
    """Our descriptors that it has, by our numbers, until it executes: ``path`` may lead through
    ``/proc/self/fd``.  Above all of the child's numbers."""
    namespaces: int = 0
    """CLONE_NEW* of those to be made."""
    join: tuple[tuple[int, int], ...] = ()
    """(descriptor, CLONE_NEW*) of those to be entered, in order, before any is made."""
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()
    uid: int | None = None
    gid: int | None = None
    ambient_caps: int = 0
    """Bit set of capability numbers."""
    cgroup_procs: tuple[str, ...] = ()
    """Files that the future child writes "0" to (cgroup v1).  ``tasks`` does the same as
    ``cgroup.procs`` and spares waiting for an RCU grace period."""
    cgroup_fd: int | None = None
    """A cgroup v2 directory."""
    private_mounts: bool = False
    """Nothing that is mounted in the new mount namespace gets out of it; wants CLONE_NEWNS."""
    setsid: bool = False
    controlling_tty: int | None = None
    """The child's number of a terminal; wants ``setsid``."""
    pdeathsig: int = 0
    """The signal that the child gets when this process ends."""
    drop_groups: bool = False
    """Without supplementary groups, which in a user namespace are the host's all the same.  Kept
    where we aren't allowed to."""
    fd_room: int = 0
    """Descriptors that the child's table has room for from the start.  One that grows in a process
    of several threads waits for an RCU grace period, 10 to 20 ms."""
    no_membarrier: bool = False
    """Best effort: have it, and what it executes, refused to register for private membarriers
    (membarrier(2)).  runsc's processes do so at their start and wait 10 to 20 ms for that."""
    oom_score_adj: int | None = None
    """Best effort: kept as it is where we aren't allowed to change it."""
    rlimits: Mapping[int, tuple[int, int]] = _EMPTY
    """Soft and hard limits, -1 for none.  Cut down to what we are allowed to set."""


def check(spec: SpawnSpec) -> None:
    if not spec.argv:
        raise InvalidRequest("argv", f"is empty, to spawn {spec.path}")
    for number, fd in spec.fds.items():
        if not 0 <= number < _MAX_FD or fd < 0:
            raise InvalidRequest("fds", f"{number} from {fd} is out of range")
    for fd, kind in spec.join:
        if fd < 0 or kind not in NAMESPACES:
            raise InvalidRequest("join", f"descriptor {fd} with namespace type {kind:#x}")
    if spec.namespaces & ~_CLONEABLE:
        raise InvalidRequest("namespaces", f"{spec.namespaces:#x} cannot be made")
    if spec.ambient_caps < 0 or spec.ambient_caps >> 64:
        raise InvalidRequest("ambient_caps", f"{spec.ambient_caps:#x} is out of range")
    if spec.private_mounts and not spec.namespaces & CLONE_NEWNS:
        raise InvalidRequest("private_mounts", "want a new mount namespace")
    if (spec.uid_maps or spec.gid_maps) and not spec.namespaces & CLONE_NEWUSER:
        raise InvalidRequest("uid_maps", "id maps want a new user namespace")


def environment(env: Mapping[str, str] | None) -> tuple[str, ...]:
    if env is None:
        ours = os.environ
        env = {name: ours[name] for name in ours if not name.startswith(_NOT_INHERITED)}
    for name in env:
        if not name or "=" in name:
            raise InvalidRequest("env", f"{name!r} is no name of a variable")
    return tuple(f"{name}={value}" for name, value in env.items())
