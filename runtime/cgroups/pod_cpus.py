"""Which CPUs a pod's sandbox may run on, where its containers name some (``cpuset.cpus``).

Owns one rule.  The sandbox's threads belong to all its containers.  Once each workload names CPUs,
the sandbox is bound to the CPUs that they name together; until then to those of the pod.  So a
pod's only workload is bound as it would be by itself.
"""

from __future__ import annotations

import threading

from runtime.base.errors import InvalidRequest, RuntimeFault
from runtime.base.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    from runtime.cgroups.cgroup import Cgroup

#: More than any kernel knows.
_MOST_CPUS: Final = 1 << 13

_log = get_logger("limits")


class PodCpus:
    """The CPUs of one sandbox.  Thread-safe.

    ``cgroup`` is the sandbox's, ``first`` its first container's own, empty one, if there is one.
    Nothing is written before a container names CPUs, nor in a cgroup that isn't owned.
    """

    def __init__(self, cgroup: Cgroup, first: Cgroup | None) -> None:
        self._cgroup = cgroup
        self._first = first
        self._lock = threading.Lock()
        self._named: dict[str, tuple[Cgroup, str]] = {}  # guarded by _lock; by its cgroup's path
        self._whole = ""  # guarded by _lock; the pod's, known from the first binding on
        self._now = ""  # guarded by _lock; what the sandbox is bound to

    def set(self, own: Cgroup, cpus: str) -> None:
        """A container whose own cgroup this is names these CPUs, or none.

        Raises InvalidRequest, and what :meth:`Cgroup.update` does; then it is as it was.
        """
        parse_cpus(cpus)
        with self._lock:
            before = self._named.get(own.path)
            self._named[own.path] = own, cpus
            try:
                self._bind_locked()
            except BaseException:
                if before is None:
                    del self._named[own.path]
                else:
                    self._named[own.path] = before
                self._try_locked()
                raise

    def of(self, own: Cgroup) -> str:
        """What a container names."""
        with self._lock:
            return self._named.get(own.path, (own, ""))[1]

    def leave(self, own: Cgroup) -> None:
        """A container is gone, its cgroup removed.  Never raises."""
        with self._lock:
            if self._named.pop(own.path, None) is not None and self._named:
                self._try_locked()

    def replaced(self, cpus: str) -> None:
        """Somebody has bound the sandbox themselves; its containers' lists go on from there."""
        with self._lock:
            self._whole = self._now = cpus

    def _try_locked(self) -> None:
        try:
            self._bind_locked()
        except RuntimeFault as fault:
            _log.warning("cpus.not_bound", cgroup=self._cgroup.path, error=str(fault))

    def _bind_locked(self) -> None:
        if not self._now:
            if not any(cpus for _, cpus in self._named.values()):
                return
            self._now = self._whole = (self._cgroup.cpus() or "").strip()
        wanted = sandbox_cpus(self._whole, [cpus for _, cpus in self._named.values()])
        # v1: a cgroup's CPUs must be its parent's at every moment.
        self._write_locked(union([self._now, wanted]))
        if self._first is not None:
            self._first.update(_limit(wanted))
        for own, cpus in self._named.values():
            own.update(_limit(cpus or wanted))
        self._write_locked(wanted)

    def _write_locked(self, cpus: str) -> None:
        if cpus != self._now:
            self._cgroup.update(_limit(cpus))
            self._now = cpus


def sandbox_cpus(whole: str, named: Iterable[str]) -> str:
    """The CPUs of a sandbox whose workloads name these; ``whole`` are the pod's.  Pure."""
    each = list(named)
    return union(each) if each and all(each) else whole


def union(lists: Iterable[str]) -> str:
    """The CPUs of all lists as one, in ascending order.  Raises InvalidRequest."""
    return ",".join(map(str, sorted(set().union(*map(parse_cpus, lists)))))


def parse_cpus(text: str) -> set[int]:
    """The CPUs that a list such as ``0-2,7`` names.  Raises InvalidRequest."""
    found: set[int] = set()
    try:
        for part in filter(None, (part.strip() for part in text.split(","))):
            first, _, last = part.partition("-")
            low, high = int(first), int(last or first)
            if not 0 <= low <= high < _MOST_CPUS:
                raise ValueError
            found.update(range(low, high + 1))
    except ValueError:
        raise InvalidRequest(
            "linux.resources.cpu.cpus", f"{text[:200]!r} is not a list of cpus"
        ) from None
    return found


def _limit(cpus: str) -> Mapping[str, Any]:
    return {"cpu": {"cpus": cpus}}
