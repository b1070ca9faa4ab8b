"""What cgroups of both versions have in common: identity, ownership, update, removal, JSON.

Doesn't know the names of limits or statistics, which differ between the versions.
"""

from __future__ import annotations

import os
import threading

from runtime.base.errors import Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.base.log import get_logger
from runtime.cgroups import remove as cgroup_remove
from runtime.cgroups.hierarchy import CgroupDenied, CgroupRoot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, Self

    from runtime.cgroups.counters import Read
    from runtime.cgroups.metrics import HostStats
    from runtime.cgroups.paths import Location
    from runtime.cgroups.settings import Setting
    from runtime.cgroups.watch import OOMWatch, Reactor, UsageMark

_log = get_logger("cgroup")


class Cgroup:
    """One cgroup, in all hierarchies that the host has.  Thread-safe.

    What was made by :func:`runtime.cgroups.factory.create` is *owned*: only there are limits set,
    and only that is removed.  A cgroup that existed before (a pod's, made by the kubelet) is joined
    and read.
    """

    mode = ""

    def __init__(
        self,
        root: CgroupRoot,
        path: str,
        directories: Mapping[str, str],
        own: Mapping[str, tuple[str, ...]],
        *,
        unit: str = "",
        oom_baseline: int = 0,
    ) -> None:
        self.path = path
        self.unit = unit
        self._root = root
        self._directories = dict(directories)
        self._own = dict(own)
        self._oom_baseline = oom_baseline
        self._update_lock = threading.Lock()  # serialises updates

    # -- what the versions differ in --------------------------------------------------------

    @classmethod
    def plan(cls, root: CgroupRoot, location: Location) -> dict[str, Any]:
        """See :func:`runtime.cgroups.factory.plan`."""
        raise NotImplementedError

    @classmethod
    def create(cls, root: CgroupRoot, location: Location, resources: Any) -> Self:
        """See :func:`runtime.cgroups.factory.create`."""
        raise NotImplementedError

    @property
    def join_files(self) -> tuple[str, ...]:
        """v1: the files to write "0" to, in this order, to move oneself in.  v2: empty."""
        return ()

    def open_dir_fd(self) -> int | None:
        """v2: a new descriptor of the directory, for CLONE_INTO_CGROUP; the caller closes it."""
        return None

    def cpus(self) -> str | None:
        """The list of CPUs that the cpuset allows; None if there is no cpuset."""
        raise NotImplementedError

    def cpu_count(self) -> int | None:
        """How many CPUs the cpuset allows; None if there is no cpuset."""
        raise NotImplementedError

    def cpu_quota(self) -> tuple[int, int] | None:
        """The tightest (quota, period) of this cgroup and its ancestors in us; None: none."""
        raise NotImplementedError

    def memory_limit(self) -> int | None:
        """The lowest memory limit of this cgroup and its ancestors in bytes; None: none."""
        raise NotImplementedError

    def update(self, resources: Mapping[str, Any]) -> None:
        """Change the limits that ``linux.resources`` names, all of them or none.

        Nothing happens in a cgroup that isn't owned, as in runsc.  Raises InvalidRequest,
        Unsupported (no such controller or file on this host) or Failed; then the files written
        before the failure are as they were.
        """
        raise NotImplementedError

    def stats(self, brief: Read | None = None) -> HostStats:
        """All counters.  Missing files count as zero; a removed cgroup gives zeros.

        ``brief`` reads a file, as ``counters.read_text`` or :class:`counters.KeptFiles` do.  With
        it there are CPU, memory and processes alone, in a third of the time or less: peaks, swap,
        I/O, huge pages, pressure and the limit of processes are left as if there were none.
        """
        raise NotImplementedError

    def oom_kills(self) -> int:
        """Processes that the kernel killed for memory, since this object was created.

        Read afresh, so it may be asked right before an exit is published.
        """
        raise NotImplementedError

    def watch_oom(self, reactor: Reactor, callback: Callable[[int], object]) -> OOMWatch:
        """Call ``callback(oom_kills)`` in the reactor's thread whenever that number grows.

        The watch must be cancelled before the reactor is dropped.  Raises Failed or its kin, and
        Unsupported where there is no memory controller.
        """
        raise NotImplementedError

    def memory_usage(self) -> int | None:
        """Bytes in use now, also by the cgroups below; None if that can't be read."""
        raise NotImplementedError

    def watch_usage(
        self, reactor: Reactor, low: int, high: int, callback: Callable[[], object]
    ) -> UsageMark:
        """Call ``callback()`` in the reactor's thread when use leaves ``low`` to ``high`` bytes.

        v2 tells of ``high`` only, and only in a cgroup that is owned.  Cancel it once it has
        called, and before the reactor is dropped.  Raises Failed or its kin, and Unsupported
        where there are no such marks.
        """
        raise NotImplementedError

    def _text(self, path: str) -> str:
        """A file's contents, or nothing."""
        try:
            return self._root.read(path)
        except OSError:
            return ""

    # -- what they share ---------------------------------------------------------------------

    @property
    def owned(self) -> bool:
        """Was (any part of) the cgroup made by us?"""
        return any(self._own.values())

    def require_joinable(self) -> None:
        """Raise CgroupDenied if processes of ours may not join it, which somebody else made."""
        for directory in dict.fromkeys(self._directories.values()):
            path = f"{directory}/cgroup.procs"
            if os.path.exists(path) and not os.access(path, os.W_OK, effective_ids=True):
                raise CgroupDenied(f"join cgroup {directory}: not allowed")

    def remove(self, timeout: float = 5.0) -> None:
        """Remove what we made, parents included unless others use them; idempotent.

        Processes that are about to vanish are waited for, ``timeout`` seconds at most.  Raises
        Failed if the cgroup is in use after that.
        """
        cgroup_remove.remove_owned(self._own.values(), timeout)

    def to_json(self) -> dict[str, Any]:
        """For the state file; :func:`runtime.cgroups.factory.from_json` reads it."""
        return {
            "mode": self.mode,
            "path": self.path,
            "unit": self.unit,
            "directories": dict(self._directories),
            "own": {name: list(paths) for name, paths in self._own.items()},
            "oom_baseline": self._oom_baseline,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: CgroupRoot) -> Self:
        """Raises InvalidRequest."""
        directories = data.get("directories")
        if not isinstance(directories, dict):
            raise InvalidRequest("cgroup.directories", "not an object")
        names = [str(name) for name in directories]
        paths = cgroup_remove.check_directories("cgroup.directories", list(directories.values()))
        path, unit, baseline = data.get("path"), data.get("unit", ""), data.get("oom_baseline", 0)
        if not isinstance(path, str) or not isinstance(unit, str) or not isinstance(baseline, int):
            raise InvalidRequest("cgroup", "path, unit or oom_baseline has a wrong type")
        return cls(
            root,
            path,
            dict(zip(names, paths, strict=True)),
            cgroup_remove.owned_from_json(data),
            unit=unit,
            oom_baseline=baseline,
        )


def require_controllers(settings: Sequence[Setting], present: Mapping[str, object]) -> None:
    """Raises Unsupported if a limit is asked of a controller that isn't ``present``."""
    for setting in settings:
        if setting.controller not in present and not setting.optional:
            raise Unsupported(
                f"{setting.field}: the {setting.controller} cgroup controller is not available"
            )


def refuse_below_usage(limit: int | None, usage: int) -> None:
    """OCI's checkBeforeUpdate.  Raises Failed."""
    if limit is not None and 0 < limit < usage:
        raise Failed(f"linux.resources.memory.limit: {limit} is below the present usage of {usage}")


def without_baseline(stats: HostStats, baseline: int) -> HostStats:
    """Take off the OOM kills that happened before the cgroup was ours to use."""
    if not baseline:
        return stats
    events = stats.memory_events
    return stats.replace(memory_events=events.replace(oom_kill=max(events.oom_kill - baseline, 0)))


def roll_back(made: Iterable[tuple[str, ...]]) -> None:
    """Remove the directories of a creation that failed; never raises a domain exception."""
    try:
        cgroup_remove.remove_owned(made, 0.0)
    except RuntimeFault as error:
        _log.warning("cgroup.not_rolled_back", error=str(error))
