"""Cgroups of version 2: one directory in one hierarchy."""

from __future__ import annotations

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
from runtime.cgroups.hierarchy import KNOWN_V2, fault, make_directories, missing_directories
from runtime.cgroups.paths import count_cpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Self

    from runtime.cgroups.counters import Read
    from runtime.cgroups.hierarchy import CgroupRoot
    from runtime.cgroups.metrics import HostStats
    from runtime.cgroups.paths import Location
    from runtime.cgroups.watch import OOMWatch, Reactor, UsageMark

_log = get_logger("cgroup")


class CgroupV2(Cgroup):
    """``directories`` and ``own`` have one entry, named "" (the whole hierarchy)."""

    mode = "v2"

    @classmethod
    def create(
        cls, root: CgroupRoot, location: Location, resources: Mapping[str, Any] | None
    ) -> Self:
        """Make the directories that are missing, hand the controllers down, set the limits.

        In a cgroup that existed before no limit is set but that of swap (see
        :func:`runtime.cgroups.settings.swap_setting`).
        """
        parsed = cgroup_resources.parse(resources)
        directory = _directory(root, location)
        made: tuple[str, ...] = ()
        try:
            try:
                made = tuple(make_directories(root.path, directory[len(root.path) :]))
            except OSError as error:
                raise fault(f"create cgroup {directory}", error) from error
            enable_controllers(root, directory)
            group = cls(root, location.directory, {"": directory}, {"": made}, unit=location.unit)
            if made and made[-1] == directory:
                settings = cgroup_limits.v2_settings(parsed, group._current)
                require_controllers(settings, group._controllers())
            else:
                settings = cgroup_limits.swap_setting(parsed, group._current)
                group._oom_baseline = counters.v2_oom_kills(directory)
            apply.apply(
                root,
                [(setting, f"{directory}/{setting.file}") for setting in settings],
                restorable=not made,
            )
        except BaseException:
            roll_back([made])
            raise
        return group

    @classmethod
    def plan(cls, root: CgroupRoot, location: Location) -> dict[str, Any]:
        """See :class:`Cgroup`."""
        directory = _directory(root, location)
        own = {"": missing_directories(root.path, directory[len(root.path) :])}
        return cls(root, location.directory, {"": directory}, own, unit=location.unit).to_json()

    def open_dir_fd(self) -> int:
        """See :class:`Cgroup`.  Raises Failed or its kin."""
        try:
            return os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise fault(f"open cgroup {self._directory}", error) from error

    def cpus(self) -> str | None:
        """See :class:`Cgroup`."""
        found = (self._text(f"{each}/cpuset.cpus.effective") for each in self._ancestry())
        return next((text.strip() for text in found if text.strip()), None)

    def cpu_count(self) -> int | None:
        """See :class:`Cgroup`.  Where the cpuset isn't handed down, an ancestor's holds."""
        for directory in self._ancestry():
            try:
                return count_cpus(self._root.read(f"{directory}/cpuset.cpus.effective"))
            except (OSError, ValueError):
                continue
        return None

    def cpu_quota(self) -> tuple[int, int] | None:
        """See :class:`Cgroup`."""
        found: tuple[int, int] | None = None
        for directory in self._ancestry():
            words = self._text(f"{directory}/cpu.max").split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
                quota, period = int(words[0]), int(words[1])
                if period and (found is None or quota * found[1] < found[0] * period):
                    found = quota, period
        return found

    def memory_limit(self) -> int | None:
        """See :class:`Cgroup`."""
        limits = [
            limit
            for directory in self._ancestry()
            if (limit := counters.parse_limit(self._text(f"{directory}/memory.max"))) is not None
        ]
        return min(limits, default=None)

    def update(self, resources: Mapping[str, Any]) -> None:
        """See :class:`Cgroup`.  In a cgroup that isn't owned only swap's limit is changed."""
        parsed = cgroup_resources.parse(resources)
        with self._update_lock:
            if self.owned:
                settings = cgroup_limits.v2_settings(parsed, self._current)
                require_controllers(settings, self._controllers())
                if parsed.check_before_update:
                    usage = counters.parse_number(self._current("memory.current") or "")
                    refuse_below_usage(parsed.memory_limit, usage)
            else:
                settings = cgroup_limits.swap_setting(parsed, self._current)
            apply.apply(
                self._root,
                [(setting, f"{self._directory}/{setting.file}") for setting in settings],
            )

    def stats(self, brief: Read | None = None) -> HostStats:
        """See :class:`Cgroup`."""
        stats = counters.read_v2(self._directory, self.memory_limit(), brief)
        return without_baseline(stats, self._oom_baseline)

    def oom_kills(self) -> int:
        """See :class:`Cgroup`.  Counts the cgroups below too (memory.events is hierarchical)."""
        return max(counters.v2_oom_kills(self._directory) - self._oom_baseline, 0)

    def watch_oom(self, reactor: Reactor, callback: Callable[[int], object]) -> OOMWatch:
        """See :class:`Cgroup`."""
        from runtime.cgroups import watch

        if self._current("memory.events") is None:
            raise Unsupported(f"{self._directory} has no memory controller to watch for oom")
        return watch.watch_v2(reactor, self._directory, self._oom_baseline, callback)

    def memory_usage(self) -> int | None:
        """See :class:`Cgroup`."""
        text = self._current("memory.current")
        return int(text) if text is not None and text.isdigit() else None

    def watch_usage(
        self, reactor: Reactor, low: int, high: int, callback: Callable[[], object]
    ) -> UsageMark:
        """See :class:`Cgroup`."""
        from runtime.cgroups import watch

        if not self.owned:
            raise Unsupported(f"{self._directory} is not ours to set marks in")
        return watch.mark_v2(self._root, reactor, self._directory, high, callback)

    @property
    def _directory(self) -> str:
        return self._directories[""]

    def _current(self, file: str) -> str | None:
        try:
            return self._root.read(f"{self._directory}/{file}")
        except OSError:
            return None

    def _controllers(self) -> dict[str, bool]:
        """Those available here; files named cgroup.* are always there."""
        names = (self._current("cgroup.controllers") or "").split()
        return dict.fromkeys(["cgroup", *names], True)

    def _ancestry(self) -> Iterator[str]:
        path = self._directory
        while path.startswith(self._root.path):
            yield path
            if path == self._root.path:
                return
            path = path.rpartition("/")[0]


def _directory(root: CgroupRoot, location: Location) -> str:
    if location.directory.startswith("/"):
        return root.path + location.directory
    # Our own cgroup holds processes and so can't have children with controllers; runsc takes
    # its parent too.
    parent = root.own_paths().get("", "/").rpartition("/")[0]
    return f"{root.path}{parent}/{location.directory}"


def enable_controllers(root: CgroupRoot, directory: str) -> None:
    """Hand all controllers that we know down from the root to ``directory``'s parent.

    A parent that refuses (it holds processes of its own, or isn't ours to change) is no error
    here: whether a controller is missed shows when a limit of it is set.
    """
    path = root.path
    for element in directory[len(root.path) :].strip("/").split("/"):
        try:
            available = root.read(f"{path}/cgroup.controllers").split()
            enabled = root.read(f"{path}/cgroup.subtree_control").split()
        except OSError:
            available, enabled = [], []
        wanted = [name for name in KNOWN_V2 if name in available and name not in enabled]
        control = f"{path}/cgroup.subtree_control"
        if wanted and not _enable(root, control, wanted):
            for name in wanted:
                _enable(root, control, [name])
        path = f"{path}/{element}"


def _enable(root: CgroupRoot, control: str, names: list[str]) -> bool:
    try:
        root.write(control, " ".join(f"+{name}" for name in names))
    except OSError as error:
        if len(names) == 1:
            _log.info("controller.not_enabled", file=control, controller=names[0], error=str(error))
        return False
    return True
