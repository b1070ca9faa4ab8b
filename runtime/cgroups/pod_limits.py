"""Limits that change while containers run: a container's own, and its pod's, which are their sums.

Owns where each limit goes, and that an update succeeds as a whole or not at all.  The cgroup writes
them; ``task/pod_memory.py`` enforces a container's own memory limit.
"""

from __future__ import annotations

import threading

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from runtime.cgroups.pod_cpus import PodCpus
from runtime.cgroups.resources import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from runtime.cgroups.cgroup import Cgroup

_PERIOD: Final = 100000

_log = get_logger("limits")


class Limits:
    """What one container may use (``linux.resources``).  Thread-safe."""

    def __init__(self) -> None:
        self._updating = threading.Lock()  # held while cgroup files are written
        self._lock = threading.Lock()
        self._resources: Mapping[str, Any] = {}  # guarded by _lock
        self._memory: int | None = None  # guarded by _lock
        self._pids: int | None = None  # guarded by _lock

    def set(self, resources: Mapping[str, Any]) -> None:
        """They are these from now on.  Raises InvalidRequest."""
        wanted = parse(resources)
        limit = wanted.memory_limit
        with self._lock:
            self._resources = resources
            self._pids = wanted.pids_limit
            self._memory = limit if limit is not None and limit > 0 else None

    @property
    def resources(self) -> Mapping[str, Any]:
        """As ``linux.resources``."""
        with self._lock:
            return self._resources

    @property
    def pids(self) -> int | None:
        """How many processes there may be; -1 for any number."""
        with self._lock:
            return self._pids

    @property
    def memory(self) -> int | None:
        """The memory limit in bytes."""
        with self._lock:
            return self._memory

    def update(
        self,
        resources: Mapping[str, Any],
        cgroup: Cgroup | None,
        own: Cgroup | None,
        pod: PodLimits | None,
    ) -> None:
        """Change those that ``resources`` names, all or none of them.

        ``cgroup`` is the sandbox's, if this is its first container.  Another's go to its ``own``,
        empty cgroup, where they can be seen; what the sandbox's limits are the sums of
        follows.  Raises what :meth:`Cgroup.update` does.
        """
        with self._updating:
            with self._lock:
                old = self._resources
            new = merged(old, resources)
            parse(new)
            if cgroup is not None:
                cgroup.update(resources)
                if pod is not None:
                    pod.replaced(resources)
                if own is not None and (seen := shown(resources)):
                    _show(own, seen)
            elif own is not None and pod is not None:
                pod.update_member(old, new, own, resources)
            elif own is not None:
                own.update(resources)
            self.set(new)


class PodLimits:
    """The limits of a sandbox that are the sums of its containers'.  Thread-safe."""

    def __init__(
        self, cgroup: Cgroup, sums: Mapping[str, Any], first: Cgroup | None = None
    ) -> None:
        self._cgroup = cgroup
        self.cpus = PodCpus(cgroup, first)
        self._lock = threading.Lock()
        self._sums = sums  # guarded by _lock

    def update_member(
        self,
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        own: Cgroup,
        resources: Mapping[str, Any],
    ) -> None:
        """One container's limits go from ``old`` to ``new`` by ``resources``; see ``update``."""
        cpus, before = parse(resources).cpus, self.cpus.of(own)
        if cpus:
            self.cpus.set(own, cpus)
            others = {k: v for k, v in resources["cpu"].items() if k != "cpus"}
            resources = {**resources, "cpu": others}
        try:
            self.update(lambda sums: shifted(sums, old, new), own, resources)
        except BaseException:
            if cpus:
                self._restore_cpus(own, before)
            raise

    def _restore_cpus(self, own: Cgroup, cpus: str) -> None:
        try:
            self.cpus.set(own, cpus)
        except RuntimeFault as fault:
            _log.warning("limit.not_restored", cgroup=self._cgroup.path, error=str(fault))

    def update(
        self,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        own: Cgroup,
        resources: Mapping[str, Any],
    ) -> None:
        """Set the limits of a container's own cgroup, and those of the sandbox as they follow.

        All or none.  ``change`` says which of the sums are to have which value.  Raises what
        :meth:`Cgroup.update` does.
        """
        with self._lock:
            changed = change(self._sums)
            before = {
                name: {key: self._sums[name][key] for key in section}
                for name, section in changed.items()
            }
            if changed:
                self._cgroup.update(changed)
            try:
                own.update(resources)
            except BaseException:
                if changed:
                    self._restore(before)
                raise
            self._sums = merged(self._sums, changed)

    def replaced(self, resources: Mapping[str, Any]) -> None:
        """Somebody has set the sandbox's limits themselves."""
        with self._lock:
            self._sums = merged(self._sums, resources)
        if cpus := parse(resources).cpus:
            self.cpus.replaced(cpus)

    def _restore(self, before: Mapping[str, Any]) -> None:
        try:
            self._cgroup.update(before)
        except RuntimeFault as fault:
            _log.warning("limit.not_restored", cgroup=self._cgroup.path, error=str(fault))


def shown(resources: Mapping[str, Any]) -> dict[str, Any]:
    """What of a container's limits its own, empty cgroup has from the start.  Pure.

    Those that cAdvisor reads; they bind nobody there.
    """
    cpu, memory = _section(resources, "cpu"), _section(resources, "memory")
    limits = {
        "cpu": {key: cpu[key] for key in ("shares", "quota", "period") if cpu.get(key)},
        "memory": {key: memory[key] for key in ("limit",) if memory.get(key)},
    }
    if "quota" not in limits["cpu"]:
        limits["cpu"].pop("period", None)
    return {name: section for name, section in limits.items() if section}


def create_own(
    make: Callable[[Mapping[str, Any]], Cgroup | None], resources: Mapping[str, Any]
) -> Cgroup | None:
    """A container's own, empty cgroup; ``make`` makes it with the limits that it is given.

    A limit that can't be shown (v1: a quota beyond the pod's; a controller that the host doesn't
    have) is a warning, as it binds nobody there.  Raises what ``make`` does without limits.
    """
    limits = shown(resources)
    if not limits:
        return make({})
    try:
        return make(limits)
    except RuntimeFault as fault:
        _log.warning("limit.not_shown", error=str(fault))
        return make({})


def _show(own: Cgroup, limits: Mapping[str, Any]) -> None:
    try:
        own.update(limits)
    except RuntimeFault as fault:
        _log.warning("limit.not_shown", cgroup=own.path, error=str(fault))


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``linux.resources`` after an update: what it doesn't name stays.  Pure."""
    result = dict(old)
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = {**result[name], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            result[name] = value
    return result


def shifted(
    sums: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """The sections of a pod's limits that change when one container's go from old to new.  Pure.

    A limit that the pod doesn't have stays absent: some container of it is not limited.  One
    that the container loses is lifted from the pod.
    """
    changed: dict[str, Any] = {}
    memory, cpu = _section(sums, "memory"), _section(sums, "cpu")
    limit = _number(memory, "limit")
    if limit > 0:
        before = _number(_section(old, "memory"), "limit")
        after = _number(_section(new, "memory"), "limit")
        if before != after:
            total = limit - max(before, 0) + after if after > 0 else -1
            changed["memory"] = {"limit": max(total, after)}
    values: dict[str, int] = {}
    quota, period = _number(cpu, "quota"), _number(cpu, "period") or _PERIOD
    if quota > 0:
        a, b = _cpu_time(old, period), _cpu_time(new, period)
        if a != b:
            values["quota"] = max(quota - max(a, 0) + b, b) if b > 0 else -1
    shares = _number(cpu, "shares")
    if shares > 0:
        a, b = (_number(_section(each, "cpu"), "shares") for each in (old, new))
        if a != b:
            values["shares"] = max(shares - a + b, 2)
    if values:
        changed["cpu"] = values
    return changed


def _section(resources: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = resources.get(name)
    return found if isinstance(found, dict) else {}


def _number(section: Mapping[str, Any], key: str) -> int:
    found = section.get(key)
    return found if isinstance(found, int) else 0


def _cpu_time(resources: Mapping[str, Any], period: int) -> int:
    """A container's quota for a period of that length; 0 if it has none."""
    cpu = _section(resources, "cpu")
    quota = _number(cpu, "quota")
    return quota * period // (_number(cpu, "period") or _PERIOD) if quota > 0 else 0
