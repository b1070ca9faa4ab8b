"""Makes sure that killed processes end.

A process outlives SIGKILL for as long as it waits for a server that doesn't answer.  Owns when
this is checked; ``bundle/fuse.py`` owns what can be done.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.host.pids import ProcessHandle
    from runtime.host.reactor import Reactor
    from runtime.sandbox.boot_params import BootParams

#: Seconds for what was killed to end: far more than a busy host needs.
PATIENCE = 2.0
#: How often is looked: a process may wait in several file systems, one after the other.
_LOOKS = 5


class Watchdog:
    """Looks whether processes that were killed end.  From any thread."""

    def __init__(
        self,
        reactor: Reactor,
        members: Callable[[], Iterable[BootParams]],
        children: Callable[[], Iterable[ProcessHandle]],
    ) -> None:
        """``members`` are a sandbox's containers, ``children`` its processes; from any thread."""
        self._reactor = reactor
        self._members = members
        self._children = children
        self._lock = threading.Lock()
        self._looks = 0  # guarded by _lock; how many are to come

    def killed(self) -> None:
        """Processes were killed: see to it that they end."""
        with self._lock:
            idle, self._looks = not self._looks, _LOOKS
        if idle:
            self._reactor.call_later(PATIENCE, self._look)

    def _look(self) -> None:
        with self._lock:
            ended = all(child.poll() is not None for child in self._children())
            self._looks = 0 if ended else self._looks - 1
            if not self._looks:
                return
        from runtime.bundle.fuse import abort_hanging

        specs = [params.spec.raw for params in self._members()]
        # A thread of its own, as a table of mounts may be long; it is rarely needed.
        threading.Thread(target=abort_hanging, args=(specs,), name="watchdog", daemon=True).start()
        self._reactor.call_later(PATIENCE, self._look)
