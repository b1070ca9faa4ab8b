"""What a shim counts: calls, events, starts and OOM kills of containers, how long stages took.

A few small tables, written at each call and read when somebody asks.  Names that come from outside
are bounded in number, so that no caller makes them grow.
"""

from __future__ import annotations

import threading
import time

from runtime.task.events import TaskDeleted, TaskOOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from runtime.task.events import Event

#: Upper bounds in seconds of the latency histogram, from an answer out of memory to a slow boot.
BOUNDS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)
#: Container names that are counted by themselves; a pod's further ones are counted together.
MAX_NAMES: Final = 64
#: Characters of a name; Kubernetes has fewer.
MAX_NAME: Final = 253
OTHER: Final = "other"


class _Calls:
    """The calls of one method: how many had which code, and how long they took."""

    __slots__ = ("buckets", "codes", "seconds")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0


class Counters:
    """All of a process's counters.  Thread-safe; its lock is a leaf, and nothing blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, _Calls] = {}  # guarded by _lock
        self._names: dict[str, str] = {}  # guarded by _lock; container id -> container name
        self._starts: dict[str, int] = {}  # guarded by _lock; by container name
        self._ooms: dict[str, int] = {}  # guarded by _lock; likewise
        self._stages: dict[str, list[float]] = {}  # guarded by _lock; name -> count, sum, last

    def called(self, method: str, code: int, seconds: float) -> None:
        """A call of ``method``, which the caller knows to be one of ours, was handled."""
        index = 0
        while index < len(BOUNDS) and seconds > BOUNDS[index]:
            index += 1
        with self._lock:
            calls = self._calls.get(method)
            if calls is None:
                calls = self._calls[method] = _Calls()
            calls.codes[code] = calls.codes.get(code, 0) + 1
            calls.buckets[index] += 1
            calls.seconds += seconds

    def created(self, container_id: str, name: str) -> None:
        """A container was created; ``name`` is the pod's for it, the same after a restart."""
        name = name[:MAX_NAME]
        with self._lock:
            if name not in self._starts and len(self._starts) >= MAX_NAMES:
                name = OTHER
            self._names[container_id] = name
            self._starts[name] = self._starts.get(name, 0) + 1

    def happened(self, event: Event) -> None:
        """For each event that is published; a leaf, as publishing is."""
        if isinstance(event, TaskOOM):
            with self._lock:
                name = self._names.get(event.container_id, OTHER)
                self._ooms[name] = self._ooms.get(name, 0) + 1
        elif isinstance(event, TaskDeleted) and event.id in ("", event.container_id):
            with self._lock:
                self._names.pop(event.container_id, None)

    def took(self, stage: str, seconds: float) -> None:
        """A stage, whose name is one of the code's own, took so long."""
        with self._lock:
            figures = self._stages.setdefault(stage, [0, 0.0, 0.0])
            figures[0] += 1
            figures[1] += seconds
            figures[2] = seconds

    # -- stages.Observer ------------------------------------------------------------------

    def begin(self, name: str) -> tuple[str, float]:
        return name, time.monotonic()

    def end(self, begun: Any, error: BaseException | None) -> None:
        name, since = begun
        if error is None:
            self.took(name, time.monotonic() - since)

    def snapshot(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        with self._lock:
            return {
                "bounds": list(BOUNDS),
                "rpcs": {
                    method: {
                        "codes": {str(code): n for code, n in calls.codes.items()},
                        "buckets": list(calls.buckets),
                        "seconds": calls.seconds,
                    }
                    for method, calls in self._calls.items()
                },
                "starts": dict(self._starts),
                "oomKills": dict(self._ooms),
                "stages": {name: list(figures) for name, figures in self._stages.items()},
            }
