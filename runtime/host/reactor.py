"""One epoll thread that watches file descriptors and runs timers for the whole process.

Owns the epoll descriptor, the timers and the order of callbacks.  Doesn't own the descriptors that
it watches, and doesn't know what they are: pidfds, pending calls and stdio all look alike.

The thread sleeps without a time-out while no timer is pending, so an idle pod causes no wake-ups.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from _thread import get_ident
from heapq import heapify, heappop, heappush

from runtime.base.errors import Failed
from runtime.base.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Companion(Protocol):
        """What has threads of its own that are held still with the reactor."""

        def freeze(self) -> str:
            """End them; why that can't be, or nothing."""

        def thaw(self) -> None: ...


_log = get_logger("reactor")

# Reported by the kernel whether asked for or not.
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_EDGE_MODES = select.EPOLLET | select.EPOLLONESHOT
_BATCH = 64
_COMPACT_FROM = 64


class Watch:
    """A descriptor that is being watched; made by :meth:`Reactor.watch`.  Thread-safe."""

    __slots__ = ("_active", "_callback", "_events", "_reactor", "fd")

    def __init__(
        self, reactor: Reactor, fd: int, events: int, callback: Callable[[int], object]
    ) -> None:
        self.fd = fd
        self._reactor = reactor
        self._callback = callback
        self._events = events  # guarded by Reactor._lock
        self._active = True  # guarded by Reactor._lock

    def modify(self, events: int) -> None:
        """Watch for other events from now on (0: only errors and hang-up).

        No effect once the watch is cancelled.  Raises OSError if the descriptor was closed.
        """
        self._reactor._modify(self, events)

    def cancel(self) -> None:
        """Stop watching; idempotent, from any thread.  Does not close the descriptor.

        No run of the callback is dispatched after this returned.  Only a run that the reactor
        dispatched before and is executing at this very moment goes on; an owner that closes the
        descriptor from another thread guards the callback's body with a lock of its own.
        Cancel before closing: a duplicate of the descriptor would keep it in the epoll set.
        """
        self._reactor._cancel(self)


class Timer:
    """A call that is due later; made by :meth:`Reactor.call_later`.  Thread-safe."""

    __slots__ = ("_fn", "_order", "_reactor", "when")

    def __init__(
        self, reactor: Reactor, when: float, order: int, fn: Callable[[], object] | None
    ) -> None:
        self.when = when
        self._order = order
        self._reactor = reactor
        self._fn = fn  # guarded by Reactor._lock; None once run or cancelled

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._order) < (other.when, other._order)

    def cancel(self) -> None:
        """Don't run it; idempotent, from any thread.  A run that has begun goes on."""
        self._reactor._cancel_timer(self)


class Reactor:
    """The loop.  All methods are thread-safe and none blocks, but for :meth:`stop`.

    Callbacks run one at a time in the reactor's thread and must not block.  One that raises is
    logged; its watch is dropped, so that a broken callback can't spin.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wakefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakefd, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._ident = 0  # the thread's, once it runs
        self._lock = threading.Lock()
        self._watches: dict[int, Watch] = {}  # guarded by _lock
        # Descriptors that lost their watch since the present poll began: an event for one of
        # them may belong to the old watch although the number is watched anew.
        self._stale: set[int] = set()  # guarded by _lock
        self._soon: list[Callable[[], object]] = []  # guarded by _lock
        self._timers: list[Timer] = []  # guarded by _lock; a heap
        self._dead_timers = 0  # guarded by _lock; cancelled ones still in the heap
        self._order = 0  # guarded by _lock
        self._wake_at: float | None = 0.0  # guarded by _lock; when the poll ends by itself
        self._woken = False  # guarded by _lock; the eventfd is already written
        self._stopped = False  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._frozen = False  # guarded by _lock
        self._companions: list[Companion] = []  # guarded by _lock

    def start(self) -> None:
        """Start the thread.  Watches and timers may have been added before."""
        self._thread = threading.Thread(target=self._run, name="reactor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and drop all that is still watched or due; idempotent.

        Waits for the callback that runs now, unless it is that callback which calls.
        """
        with self._lock:
            self._stopped = True
            self._wake_locked()
        thread = self._thread
        if thread is None:
            self._close()
        elif self._ident != get_ident():
            thread.join()

    def accompany(self, part: Companion) -> None:
        """Have ``part`` freeze and thaw with this reactor from now on; from any thread."""
        with self._lock:
            self._companions.append(part)

    def leave(self, part: Companion) -> None:
        """It has nothing to be frozen any more; idempotent."""
        with self._lock:
            if part in self._companions:
                self._companions.remove(part)

    def freeze(self) -> str:
        """End the thread between two rounds, and keep all that is watched or due for :meth:`thaw`.

        Waits for the callbacks that run now.  Not to be called by one of them.  Its companions
        follow; returns why one of them can't be frozen, or nothing.
        """
        with self._lock:
            self._frozen = True
            self._wake_locked()
            companions = list(self._companions)
        thread = self._thread
        if thread is not None:
            thread.join()
            self._thread, self._ident = None, 0
        for part in companions:
            if why := part.freeze():
                return why
        return ""

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process with the descriptors; idempotent."""
        with self._lock:
            if not self._frozen:
                return
            self._frozen = False
            companions = list(self._companions)
        self.start()
        for part in companions:
            part.thaw()

    def inside(self) -> bool:
        """Is the caller a callback of this reactor?"""
        return self._ident == get_ident()

    def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> Watch:
        """Call ``callback(mask)`` whenever one of ``events`` (``select.EPOLL*``) holds for ``fd``.

        Level-triggered: it is called again for as long as the condition lasts.  A descriptor can
        have one watch; ``os.dup`` it for a second one.

        Raises OSError (EPERM for regular files, EEXIST if it is watched already, EBADF) and
        Failed once the reactor is stopped.
        """
        if events & _EDGE_MODES:
            raise ValueError("watches are level-triggered")
        watch = Watch(self, fd, events, callback)
        with self._lock:
            if self._stopped:
                raise Failed("reactor is stopped")
            self._epoll.register(fd, events)
            # The kernel accepted it, so a watch left under this number is one whose
            # descriptor was closed without cancel().
            old = self._watches.get(fd)
            if old is not None:
                old._active = False
                self._stale.add(fd)
            self._watches[fd] = watch
        return watch

    def call_soon(self, fn: Callable[[], object]) -> None:
        """Run ``fn()`` in the reactor's thread, in the order of the calls.

        Dropped without a word once the reactor is stopped.
        """
        with self._lock:
            if self._stopped:
                return
            self._soon.append(fn)
            self._wake_locked()

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Timer:
        """Run ``fn()`` in the reactor's thread once ``seconds`` have passed (1 ms granularity)."""
        when = time.monotonic() + max(seconds, 0.0)
        with self._lock:
            self._order += 1
            if self._stopped:
                return Timer(self, when, self._order, None)
            timer = Timer(self, when, self._order, fn)
            heappush(self._timers, timer)
            if self._wake_at is None or when < self._wake_at:
                self._wake_locked()
        return timer

    # -- for Watch and Timer ---------------------------------------------------------------

    def _modify(self, watch: Watch, events: int) -> None:
        if events & _EDGE_MODES:
            raise ValueError("watches are level-triggered")
        with self._lock:
            if watch._active and watch._events != events:
                self._epoll.modify(watch.fd, events)
                watch._events = events

    def _cancel(self, watch: Watch) -> None:
        with self._lock:
            self._cancel_locked(watch)

    def _cancel_locked(self, watch: Watch) -> None:
        if not watch._active:
            return
        watch._active = False
        del self._watches[watch.fd]
        self._stale.add(watch.fd)
        try:
            self._epoll.unregister(watch.fd)
        except OSError as error:
            # Closed before it was cancelled: the kernel has dropped it by itself.
            if error.errno not in (errno.EBADF, errno.ENOENT):
                raise

    def _cancel_timer(self, timer: Timer) -> None:
        with self._lock:
            if timer._fn is None:
                return
            timer._fn = None
            self._dead_timers += 1
            timers = self._timers
            if self._dead_timers > _COMPACT_FROM and self._dead_timers * 2 > len(timers):
                timers[:] = [each for each in timers if each._fn is not None]
                heapify(timers)
                self._dead_timers = 0
            while timers and timers[0]._fn is None:
                heappop(timers)
                self._dead_timers -= 1

    # -- the thread ------------------------------------------------------------------------

    def _wake_locked(self) -> None:
        # From inside a callback nothing sleeps, and one pending wake-up is enough.
        if self._woken or self._closed or self._ident == get_ident():
            return
        self._woken = True
        os.eventfd_write(self._wakefd, 1)

    def _run(self) -> None:
        self._ident = get_ident()
        frozen = False
        try:
            while True:
                with self._lock:
                    if self._stopped:
                        return
                    if self._frozen:
                        frozen = True
                        return
                    self._stale.clear()
                    timeout = self._timeout_locked()
                ready = self._epoll.poll(timeout, _BATCH)
                with self._lock:
                    # Until the next poll everything is looked at anyway: no wake-ups needed.
                    self._wake_at = 0.0
                    soon, self._soon = self._soon, []
                for fn in soon:
                    self._guarded(fn)
                self._run_timers()
                for fd, mask in ready:
                    self._dispatch(fd, mask)
        finally:
            if not frozen:
                self._close()

    def _timeout_locked(self) -> float | None:
        """How long to poll; notes when the poll will end so that others know when to wake us."""
        if self._soon:
            self._wake_at = 0.0
            return 0.0
        if not self._timers:
            self._wake_at = None
            return None
        self._wake_at = self._timers[0].when
        return max(self._wake_at - time.monotonic(), 0.0)

    def _run_timers(self) -> None:
        # A timer that is added meanwhile waits for the next turn, so that a chain of
        # call_later(0) doesn't keep descriptors from being served.
        due: list[Timer] = []
        with self._lock:
            if not self._timers:
                return
            now = time.monotonic()
            while self._timers and self._timers[0].when <= now:
                due.append(heappop(self._timers))
        for timer in due:
            with self._lock:
                fn, timer._fn = timer._fn, None
                if fn is None:
                    self._dead_timers -= 1
            if fn is not None:
                self._guarded(fn)

    def _dispatch(self, fd: int, mask: int) -> None:
        if fd == self._wakefd:
            with self._lock:
                os.eventfd_read(self._wakefd)
                self._woken = False
            return
        with self._lock:
            watch = self._watches.get(fd)
            if watch is None or fd in self._stale or self._stopped:
                return
            mask &= watch._events | _ALWAYS
        if mask and not self._guarded(watch._callback, mask):
            watch.cancel()

    def _guarded(self, fn: Callable[..., object], *arguments: object) -> bool:
        try:
            fn(*arguments)
        except Exception:
            name = getattr(fn, "__qualname__", repr(fn))
            _log.exception("callback.failed", callback=name)
            return False
        return True

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = self._stopped = True
            for watch in self._watches.values():
                watch._active = False
            for timer in self._timers:
                timer._fn = None
            self._watches.clear()
            self._timers.clear()
            self._soon.clear()
            self._epoll.close()
            os.close(self._wakefd)
