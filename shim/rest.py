"""Has a forked shim share its memory with the fork server again, once it has worked.

Owns when.  What is given back, and how, is ``runtime/native/pages.c``'s.
"""

from __future__ import annotations

import threading
import time

from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor

#: Seconds from the last call until memory is given back, and at most from the first.
DELAY, MOST = 3.0, 15.0


class Rest:
    """Knows whether the shim has worked since memory was given back.  Thread-safe."""

    def __init__(
        self,
        reactor: Reactor,
        give_back: Callable[[], int] = linux.give_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor = reactor
        self._give_back = give_back
        self._clock = clock
        self._lock = threading.Lock()
        #: When the first call came since memory was given back, and the last; guarded by _lock.
        self._first: float | None = None
        self._last = 0.0

    def worked(self) -> None:
        """There was a call.  Never blocks."""
        with self._lock:
            self._last = self._clock()
            if self._first is not None:
                return
            self._first = self._last
        self._reactor.call_later(DELAY, self._look)

    def _look(self) -> None:
        """In the reactor's thread: a shim that isn't called isn't woken again."""
        with self._lock:
            now = self._clock()
            first = now if self._first is None else self._first
            due = min(self._last + DELAY, first + MOST)
            if now >= due:
                self._first = None
        if now < due:
            self._reactor.call_later(due - now, self._look)
        else:
            self._give_back()
