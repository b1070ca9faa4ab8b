"""Threads for calls that block: one thread per running call, reused when it is idle.

Owns the threads.  There is no upper bound and no queue behind busy threads, so a call that hangs
can't keep another one (a Kill, say) from running.  Calls wait for a thread only where the host has
none left.
"""

from __future__ import annotations

import threading
import time

from runtime.base.errors import ResourceExhausted
from runtime.base.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger("workers")

MAX_IDLE = 2
#: Seconds after which a thread is tried for again.
RETRY = 0.1


class Workers:
    """A set of threads that grows on demand and parks at most ``MAX_IDLE`` idle ones.

    Parked threads wait without a time-out.  All of them are daemon threads.  Thread-safe.
    """

    def __init__(
        self,
        name: str = "worker",
        call_later: Callable[[float, Callable[[], None]], object] = lambda *_: None,
    ) -> None:
        """``call_later`` runs a function in so many seconds, for what waits for a thread.

        Without it only a thread that has become free does.
        """
        self._call_later = call_later
        self._name = name
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # a parked thread may go on
        self._quiet = threading.Condition(self._lock)  # nothing runs and nothing is queued
        self._handed: list[Callable[[], object]] = []  # guarded by _lock; each has a parked taker
        self._parked = 0  # guarded by _lock
        self._running = 0  # guarded by _lock; calls that were submitted and haven't returned
        self._started = 0  # guarded by _lock; only for names
        self._stopped = False  # guarded by _lock
        self._waiting: list[Callable[[], object]] = []  # guarded by _lock; for want of a thread
        self._retrying = False  # guarded by _lock

    def submit(self, fn: Callable[[], object]) -> bool:
        """Run ``fn()`` in a thread: at once, or if there is none to be had, when there is one.

        Never fails and never blocks, so it's for the reactor.  An exception that the call raises
        is logged.  False if it has to wait.
        """
        try:
            self.submit_now(fn)
        except ResourceExhausted as fault:
            with self._lock:
                self._waiting.append(fn)
                self._running += 1
                retrying, self._retrying = self._retrying, True
            _log.warning("call.waits", error=str(fault))
            if not retrying:
                self._call_later(RETRY, self._retry)
            return False
        return True

    def _retry(self) -> None:
        """Hand what waits to threads, as far as there are any."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._retrying = False
                    return
                fn = self._waiting.pop(0)
            try:
                self.submit_now(fn)
            except ResourceExhausted:
                with self._lock:
                    self._waiting.insert(0, fn)
                self._call_later(RETRY, self._retry)
                return
            self._finished()  # of waiting

    def submit_now(self, fn: Callable[[], object]) -> None:
        """Run ``fn()`` in a thread, at once.  An exception that it raises is logged.

        Never blocks for other calls.  Raises ResourceExhausted if no thread can be made.
        """
        with self._lock:
            self._running += 1
            if self._parked > len(self._handed):
                self._handed.append(fn)
                self._work.notify()
                return
            self._started += 1
            name = f"{self._name}-{self._started}"
        thread = threading.Thread(target=self._run, args=([fn],), name=name, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._finished()
            raise ResourceExhausted(f"{self._name} thread: {error}") from error

    def drain(self, timeout: float) -> bool:
        """Wait until no submitted call is left, at most ``timeout`` seconds; was that so?

        Must not be called from a worker.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._running:
                left = deadline - time.monotonic()
                if left <= 0 or not self._quiet.wait(left):
                    return not self._running
            return True

    def freeze(self, timeout: float) -> bool:
        """End all threads if no call is left, within ``timeout`` seconds; was that so?

        Calls that come nevertheless get new ones.  ``thaw`` has threads parked again.
        """
        deadline = time.monotonic() + timeout
        if not self.drain(timeout):
            return False
        self.stop()
        with self._lock:
            while self._parked:
                left = deadline - time.monotonic()
                if left <= 0 or not self._quiet.wait(left):
                    break
            return not self._parked and not self._running

    def thaw(self) -> None:
        """Park threads again, maybe in another process."""
        with self._lock:
            self._stopped = False

    def stop(self) -> None:
        """Let the parked threads end, and park none any more.  Doesn't wait; idempotent."""
        with self._lock:
            self._stopped = True
            self._work.notify_all()

    def _run(self, first: list[Callable[[], object]]) -> None:
        # A list, since the Thread object holds its arguments for as long as the thread lives:
        # a call and what its closure keeps alive must not stay behind in a parked thread.
        fn: Callable[[], object] | None = first.pop()
        while fn is not None:
            try:
                fn()
            except Exception:
                name = getattr(fn, "__qualname__", repr(fn))
                _log.exception("call.failed", call=name)
            fn = None
            self._finished()
            fn = self._next()

    def _finished(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self._quiet.notify_all()

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._handed:
                return self._handed.pop(0)
            if self._waiting:
                return self._waiting.pop(0)
            if self._parked >= MAX_IDLE or self._stopped:
                return None
            self._parked += 1
            try:
                while not self._handed and not self._stopped:
                    self._work.wait()
                return self._handed.pop(0) if self._handed else None
            finally:
                self._parked -= 1
                if not self._parked:
                    self._quiet.notify_all()
