"""Has a forked shim share its memory with the fork server again, once it has worked.

Owns when.  What is given back, and how, is ``runtime/native/pages.c``'s.
"""

from __future__ import annotations

import threading

from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor

#: Seconds from a call until memory is given back; those that come meanwhile count as one.
DELAY = 3.0


class Rest:
    """Knows whether the shim has worked since memory was given back.  Thread-safe."""

    def __init__(self, reactor: Reactor, give_back: Callable[[], int] = linux.give_back) -> None:
        self._reactor = reactor
        self._give_back = give_back
        self._lock = threading.Lock()
        self._due = False  # guarded by _lock

    def worked(self) -> None:
        """There was a call.  Never blocks."""
        with self._lock:
            if self._due:
                return
            self._due = True
        self._reactor.call_later(DELAY, self._rest)

    def _rest(self) -> None:
        """In the reactor's thread: a shim that isn't called isn't woken again."""
        with self._lock:
            self._due = False
        self._give_back()
