"""Cgroups of version 2 that systemd makes: transient scopes.

Owns how a scope is kept alive and how limits reach both systemd and the kernel.  systemd wants a
process to start a scope with, and takes an empty one away at once, with all counters in it.  So
each gets a process that does nothing (``sleep``) until the scope is removed: the cgroup of a
container in a pod, which is empty otherwise, stays for those who look for it, and the count of
OOM kills can still be read when a sandbox has died.
"""

from __future__ import annotations

import os

from runtime.base.errors import DeadlineExceeded, Failed, RuntimeFault, Unsupported
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.cgroups import apply
from runtime.cgroups import remove as cgroup_remove
from runtime.cgroups import resources as cgroup_resources
from runtime.cgroups import settings as cgroup_limits
from runtime.cgroups.cgroup import refuse_below_usage, require_controllers
from runtime.cgroups.counters import parse_number
from runtime.cgroups.v2 import CgroupV2
from runtime.host import systemd
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec
from runtime.host.systemd import _INFINITY, Manager, UnitExists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final, Self

    from runtime.cgroups.hierarchy import CgroupRoot
    from runtime.cgroups.paths import Location
    from runtime.cgroups.settings import Setting
    from runtime.host.spawn import Child
    from runtime.host.systemd import Property

_log = get_logger("cgroup")

#: Seconds that systemd gets for a job, on a host that starts many pods at once.
JOB_TIMEOUT = 30.0
#: Longer than any host is up; not every sleep knows ``infinity``.
_FOREVER = "2147483647"
_SLEEP = ("/bin/sleep", "/usr/bin/sleep", "/run/current-system/sw/bin/sleep")


class CgroupSystemd(CgroupV2):
    """A scope.  Where a unit or directory of its name is there before, it belongs to others."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        self._holder: Child | None = None

    @classmethod
    def create(
        cls, root: CgroupRoot, location: Location, resources: Mapping[str, Any] | None
    ) -> Self:
        """Start the scope with what limits systemd knows, then set all of them in its files.

        Raises as :func:`runtime.cgroups.factory.create` does; then there is no scope.
        """
        parsed = cgroup_resources.parse(resources)
        directory = root.path + location.directory
        settings = cgroup_limits.v2_settings(parsed, lambda file: None)
        if os.path.isdir(directory):
            return super().create(root, location, resources)
        holder = _park()
        try:
            started = _start(location, settings, holder.pid)
        except BaseException:
            _end(holder)
            raise
        if not started:
            # Somebody else was quicker.
            _end(holder)
            return super().create(root, location, resources)
        group = cls(
            root, location.directory, {"": directory}, {"": (directory,)}, unit=location.unit
        )
        group._holder = holder
        try:
            if not os.path.isdir(directory):
                raise Failed(f"systemd has started {location.unit}, but there is no {directory}")
            settings = cgroup_limits.v2_settings(parsed, group._current)
            require_controllers(settings, group._controllers())
            apply.apply(
                root,
                [(setting, f"{directory}/{setting.file}") for setting in settings],
                restorable=False,
            )
        except BaseException:
            try:
                group.remove()
            except RuntimeFault as fault:
                _log.warning("cgroup.not_rolled_back", error=str(fault))
            raise
        return group

    @classmethod
    def plan(cls, root: CgroupRoot, location: Location) -> dict[str, Any]:
        """See :class:`Cgroup`."""
        directory = root.path + location.directory
        own = () if os.path.isdir(directory) else (directory,)
        group = cls(root, location.directory, {"": directory}, {"": own}, unit=location.unit)
        return group.to_json()

    def to_json(self) -> dict[str, Any]:
        """See :class:`Cgroup`."""
        return {**super().to_json(), "driver": cgroup_remove.SYSTEMD}

    def update(self, resources: Mapping[str, Any]) -> None:
        """See :class:`Cgroup`.  What the kernel takes is told to systemd, too."""
        if not self.owned:
            super().update(resources)
            return
        parsed = cgroup_resources.parse(resources)
        with self._update_lock:
            settings = cgroup_limits.v2_settings(parsed, self._current)
            require_controllers(settings, self._controllers())
            if parsed.check_before_update:
                usage = parse_number(self._current("memory.current") or "")
                refuse_below_usage(parsed.memory_limit, usage)
            undo = apply.apply(
                self._root,
                [(setting, f"{self._directory}/{setting.file}") for setting in settings],
            )
            properties = limit_properties(settings)
            if not properties:
                return
            try:
                with Manager.connect(JOB_TIMEOUT) as manager:
                    manager.set_properties(self.unit, properties)
            except BaseException:
                undo()
                raise

    def remove(self, timeout: float = 5.0) -> None:
        """See :class:`Cgroup`.  Ends what is still in it."""
        holder, self._holder = self._holder, None
        try:
            if self.owned:
                cgroup_remove.stop_scope(self.unit, timeout)
        finally:
            if holder is not None:
                _end(holder)
        super().remove(timeout)


def _start(location: Location, settings: list[cgroup_limits.Setting], pid: int) -> bool:
    """Start the scope; False if there is one of its name already."""
    properties = systemd.scope_properties(location.unit, location.slice, pid)
    properties += limit_properties(settings)
    with Manager.connect(JOB_TIMEOUT) as manager:
        for attempt in range(2):
            try:
                manager.start_scope(location.unit, properties)
                return True
            except UnitExists:
                if attempt == 0:
                    # One that failed keeps its name until somebody says that it was noticed.
                    manager.reset_failed(location.unit)
    return False


def _park() -> Child:
    """A process that waits for ever.  Raises Unsupported if there is no ``sleep``, Failed."""
    path = next((path for path in _SLEEP if os.access(path, os.X_OK)), None)
    if path is None:
        raise Unsupported(f"a scope of systemd needs one of {', '.join(_SLEEP)}")
    return spawn(SpawnSpec(path=path, argv=("sleep", _FOREVER), env={}, cwd="/", setsid=True))


def _end(holder: Child) -> None:
    holder.kill(SIGKILL)
    try:
        holder.wait(1.0)
    except DeadlineExceeded as fault:
        _log.warning("scope.holder_left", pid=holder.pid, error=str(fault))
    holder.close()


_AMOUNTS: Final = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}


_IO: Final = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}


def limit_properties(settings: Sequence[Setting]) -> list[Property]:
    """The limits of v2 that systemd knows, in its terms.  Pure.

    Told to systemd, they survive its going over the unit.  Others (huge pages, bursts) are files
    that it leaves alone.
    """
    found: list[Property] = []
    throttles: dict[str, list[tuple[str, int]]] = {}
    for setting in settings:
        file, value = setting.file, setting.value
        if file in _AMOUNTS and _is_amount(value):
            found.append((_AMOUNTS[file], ("t", _amount(value))))
        elif file == "cpu.max":
            found += _quota(value)
        elif file in ("cpuset.cpus", "cpuset.mems"):
            name = "AllowedCPUs" if file == "cpuset.cpus" else "AllowedMemoryNodes"
            found.append((name, ("ay", _bits(value))))
        elif file == "io.weight" and value.isdigit():
            found.append(("IOWeight", ("t", int(value))))
        elif file == "io.max" and setting.key:
            kind, _, rate = value.rpartition(" ")[2].partition("=")
            if kind in _IO and _is_amount(rate):
                entry = (f"/dev/block/{setting.key}", _amount(rate))
                throttles.setdefault(_IO[kind], []).append(entry)
    found += [(name, ("a(st)", entries)) for name, entries in throttles.items()]
    return found


def _is_amount(text: str) -> bool:
    return text == "max" or text.isdigit()


def _amount(text: str) -> int:
    return _INFINITY if text == "max" else int(text)


def _quota(value: str) -> list[Property]:
    quota, _, period = value.partition(" ")
    if not _is_amount(quota) or not period.isdigit() or not int(period):
        return []
    per_second = _INFINITY
    if quota != "max":
        # systemd keeps whole percents; more is better than less, as runc has it.
        percents = -(-int(quota) * 100 // int(period))
        per_second = percents * 10000
    return [
        ("CPUQuotaPerSecUSec", ("t", per_second)),
        ("CPUQuotaPeriodUSec", ("t", int(period))),
    ]


def _bits(text: str) -> list[int]:
    """A list of CPUs or nodes as bits, the lowest first.  Raises Failed."""
    mask = 0
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            low, high = int(first), int(last or first)
            if not 0 <= low <= high < 1 << 16:
                raise ValueError
            mask |= ((1 << (high - low + 1)) - 1) << low
    except ValueError:
        raise Failed(f"{text!r} is not a list of cpus or memory nodes") from None
    return list(mask.to_bytes((mask.bit_length() + 7) // 8, "little"))
