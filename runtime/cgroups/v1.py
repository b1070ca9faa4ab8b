"""Cgroups of version 1: a directory in every controller's hierarchy."""

from __future__ import annotations

import errno
import os

from runtime.base.errors import Unsupported
from runtime.base.log import get_logger
from runtime.cgroups import apply, counters
from runtime.cgroups import resources as cgroup_resources
from runtime.cgroups import settings as cgroup_limits
from runtime.cgroups.cgroup import (
    Cgroup,
    refuse_below_usage,
    require_controllers,
    roll_back,
    without_baseline,
)
from runtime.cgroups.hierarchy import fault, make_directories, missing_directories
from runtime.cgroups.paths import count_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from runtime.cgroups.counters import Read
    from runtime.cgroups.hierarchy import CgroupRoot
    from runtime.cgroups.metrics import HostStats
    from runtime.cgroups.paths import Location
    from runtime.cgroups.watch import OOMWatch, Reactor, UsageMark

_log = get_logger("cgroup")


class CgroupV1(Cgroup):
    """``directories`` maps each mounted controller that we know to our directory in it."""

    mode = "v1"

    @classmethod
    def create(
        cls, root: CgroupRoot, location: Location, resources: Mapping[str, Any] | None
    ) -> CgroupV1:
        """Make the directories that are missing and set their limits.

        A controller is set up only if its directory is new.  One that the host doesn't have is
        an error only if something is asked of it; runsc wants cpu and memory in any case.
        """
        settings = cgroup_limits.v1_settings(cgroup_resources.parse(resources))
        mounts = root.mounts()
        if not mounts:
            raise Unsupported(f"no cgroup hierarchy is mounted below {root.path}")
        require_controllers(settings, mounts)
        directories = _directories(root, location, mounts)
        # Looked up before anything is made: controllers may be mounted together.
        absent = [name for name, path in directories.items() if not os.path.isdir(path)]
        made: dict[str, tuple[str, ...]] = {}  # by directory
        own: dict[str, tuple[str, ...]] = {}
        asked = {setting.controller for setting in settings}
        try:
            for name in absent:
                path = directories[name]
                if path not in made:
                    try:
                        below = path[len(mounts[name]) :]
                        made[path] = tuple(make_directories(mounts[name], below))
                    except OSError as error:
                        # A container's mounts may be read-only for some controllers.
                        if error.errno == errno.EROFS and name not in asked | {"cpu", "memory"}:
                            _log.info("controller.skipped", controller=name, error="read-only")
                            del directories[name]
                            continue
                        raise fault(f"create cgroup {path}", error) from error
                own[name] = made[path]
            if "cpuset" in directories:
                # One that was there may be empty as well, as mkdir leaves it.
                fill_cpuset(root, mounts["cpuset"], own.get("cpuset", (directories["cpuset"],)))
            writes = [
                (setting, f"{directories[setting.controller]}/{setting.file}")
                for setting in settings
                if setting.controller in own
            ]
            apply.apply(root, writes, restorable=False)
        except BaseException:
            roll_back(made.values())
            raise
        group = cls(root, location.directory, directories, own, unit=location.unit)
        if "memory" in directories and "memory" not in own:
            group._oom_baseline = counters.v1_oom_kills(directories["memory"])
        return group

    @classmethod
    def plan(cls, root: CgroupRoot, location: Location) -> dict[str, Any]:
        """See :class:`Cgroup`."""
        mounts = root.mounts()
        directories = _directories(root, location, mounts)
        own = {
            name: missing_directories(mounts[name], path[len(mounts[name]) :])
            for name, path in directories.items()
        }
        return cls(root, location.directory, directories, own, unit=location.unit).to_json()

    @property
    def join_files(self) -> tuple[str, ...]:
        """See :class:`Cgroup`.  Controllers mounted together are joined once."""
        paths = dict.fromkeys(self._directories.values())
        return tuple(f"{path}/tasks" for path in paths)

    def cpus(self) -> str | None:
        """See :class:`Cgroup`."""
        path = self._directories.get("cpuset")
        return (self._text(f"{path}/cpuset.cpus").strip() or None) if path else None

    def cpu_count(self) -> int | None:
        """See :class:`Cgroup`."""
        path = self._directories.get("cpuset")
        for file in ("cpuset.cpus", "cpuset.effective_cpus"):
            try:
                return count_cpus(self._root.read(f"{path}/{file}"))
            except (OSError, ValueError):
                continue
        return None

    def cpu_quota(self) -> tuple[int, int] | None:
        """See :class:`Cgroup`."""
        found: tuple[int, int] | None = None
        for directory in self._ancestry("cpu"):
            quota = self._number(f"{directory}/cpu.cfs_quota_us")
            period = self._number(f"{directory}/cpu.cfs_period_us")
            if quota > 0 and period > 0 and (found is None or quota * found[1] < found[0] * period):
                found = quota, period
        return found

    def memory_limit(self) -> int | None:
        """See :class:`Cgroup`."""
        limits = [
            limit
            for directory in self._ancestry("memory")
            if (limit := counters.parse_limit(self._text(f"{directory}/memory.limit_in_bytes")))
            is not None
        ]
        return min(limits, default=None)

    def update(self, resources: Mapping[str, Any]) -> None:
        """See :class:`Cgroup`."""
        parsed = cgroup_resources.parse(resources)
        settings = cgroup_limits.v1_settings(parsed)
        require_controllers(settings, self._directories)
        with self._update_lock:
            if parsed.check_before_update and "memory" in self._own:
                usage = self._number(f"{self._directories['memory']}/memory.usage_in_bytes")
                refuse_below_usage(parsed.memory_limit, usage)
            apply.apply(
                self._root,
                [
                    (setting, f"{self._directories[setting.controller]}/{setting.file}")
                    for setting in settings
                    if setting.controller in self._own
                ],
            )

    def stats(self, brief: Read | None = None) -> HostStats:
        """See :class:`Cgroup`."""
        stats = counters.read_v1(self._directories, brief)
        return without_baseline(stats, self._oom_baseline)

    def oom_kills(self) -> int:
        """See :class:`Cgroup`."""
        path = self._directories.get("memory")
        return max(counters.v1_oom_kills(path) - self._oom_baseline, 0) if path else 0

    def watch_oom(self, reactor: Reactor, callback: Callable[[int], object]) -> OOMWatch:
        """See :class:`Cgroup`."""
        from runtime.cgroups import watch

        path = self._directories.get("memory")
        if path is None:
            raise Unsupported("this host has no memory cgroup controller to watch for oom")
        return watch.watch_v1(reactor, path, self._oom_baseline, callback)

    def memory_usage(self) -> int | None:
        """See :class:`Cgroup`."""
        value = self._number(f"{self._directories.get('memory')}/memory.usage_in_bytes")
        return value if value >= 0 else None

    def watch_usage(
        self, reactor: Reactor, low: int, high: int, callback: Callable[[], object]
    ) -> UsageMark:
        """See :class:`Cgroup`."""
        from runtime.cgroups import watch

        path = self._directories.get("memory")
        if path is None:
            raise Unsupported("this host has no memory cgroup controller to watch")
        return watch.mark_v1(reactor, path, low, high, callback)

    def _number(self, path: str) -> int:
        try:
            return int(self._text(path))
        except ValueError:
            return -1

    def _ancestry(self, controller: str) -> Iterator[str]:
        """Our directory and those above it, up to the mount point."""
        path = self._directories.get(controller)
        mount = self._root.mounts().get(controller)
        while path is not None and mount is not None and path.startswith(mount):
            yield path
            if path == mount:
                return
            path = path.rpartition("/")[0]


def _directories(root: CgroupRoot, location: Location, mounts: Mapping[str, str]) -> dict[str, str]:
    if location.directory.startswith("/"):
        return {name: mount + location.directory for name, mount in mounts.items()}
    own = root.own_paths()
    return {
        name: f"{mount}{own.get(name, '/').rstrip('/')}/{location.directory}"
        for name, mount in mounts.items()
    }


def fill_cpuset(root: CgroupRoot, mount: str, made: Sequence[str]) -> None:
    """Give cpuset directories that are empty, topmost first, their parent's CPUs and memory nodes.

    The kernel leaves both empty, and no process can join then.  Ancestors that somebody left
    empty are filled too, as runsc does.  Raises Failed or its kin.
    """
    for file in ("cpuset.cpus", "cpuset.mems"):
        try:
            for directory in made:
                _fill(root, mount, directory, file)
        except OSError as error:
            raise fault(f"set {file} of {made[-1]}", error) from error


def _fill(root: CgroupRoot, mount: str, directory: str, file: str) -> str:
    value = root.read(f"{directory}/{file}")
    if not value and directory != mount:
        value = _fill(root, mount, directory.rpartition("/")[0], file)
        root.write(f"{directory}/{file}", value)
    return value
