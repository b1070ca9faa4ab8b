"""Passes on what an exec writes, from a pipe of ours to the client's FIFO.

Jobs that an exec leaves behind hold its output open.  If that were the FIFO, the client would see
no end before theirs, and the sentry can't be told to close it; a pipe of ours can be left to them.
The kernel moves the pages (splice(2)), none of the output is copied.
"""

from __future__ import annotations

import os
import select
import threading

from runtime.base.log import get_logger
from shim.stdio.fifo import unread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.reactor import Reactor, Watch

#: Bytes moved by one call, and calls in one turn of the reactor, which has others to serve.
_CHUNK = 1 << 20
_TURNS = 16
#: Seconds after which what couldn't be watched is looked at again.
_AGAIN = 0.05

_log = get_logger("stdio")


class Relay:
    """One output.  Thread-safe; only :meth:`drain` blocks.

    It ends, and closes the FIFO, when the pipe's last writer has closed and all is passed on.
    """

    def __init__(self, sink: int, reactor: Reactor) -> None:
        """Take over ``sink``, a non-blocking writer of the FIFO, unless it raises."""
        self._reactor = reactor
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sink = sink  # guarded by _lock
        self._watch: Watch | None = None  # guarded by _lock
        self._full = False  # guarded by _lock; whether the FIFO is what is waited for
        self._source, writer = os.pipe2(os.O_CLOEXEC)  # _source is guarded by _lock
        try:
            self._watch = reactor.watch(self._source, select.EPOLLIN, self._look)
        except BaseException:
            os.close(self._source)
            os.close(writer)
            raise
        #: For the process: the caller's to close.
        self.writer = writer

    def unread(self) -> int:
        """Bytes that the FIFO doesn't have yet."""
        with self._lock:
            return unread(self._source) if self._source >= 0 else 0

    def drain(self, timeout: float) -> bool:
        """Wait until the last writer has closed and all is passed on; whether that happened."""
        return self._ended.wait(max(timeout, 0.0))

    def close(self) -> None:
        """Pass on what the FIFO has room for, and close; writers that are left get EPIPE."""
        with self._lock:
            if self._source >= 0:
                self._move_locked()
                self._close_locked()

    # -- in the reactor's thread -------------------------------------------------------------

    def _look(self, _mask: int) -> None:
        with self._lock:
            if self._source < 0:
                return
            if not self._move_locked():
                self._close_locked()
                return
            full = unread(self._source) > 0 and not _has_room(self._sink)
            if full != self._full or self._watch is None:
                self._wait_locked(full)

    def _move_locked(self) -> bool:
        """Move what can be moved; False at the end."""
        try:
            for _ in range(_TURNS):
                if not os.splice(self._source, self._sink, _CHUNK, flags=os.SPLICE_F_NONBLOCK):
                    return False
        except BlockingIOError:
            pass
        except OSError as error:
            # The process is to see that it can't write, as it would without us.
            _log.warning("output.failed", error=error.strerror)
            return False
        return True

    def _wait_locked(self, full: bool) -> None:
        """Watch the one end that matters: a hang-up is told of whatever is asked for."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._full = full
        fd, events = (self._sink, select.EPOLLOUT) if full else (self._source, select.EPOLLIN)
        try:
            self._watch = self._reactor.watch(fd, events, self._look)
        except OSError as error:
            # The host is short of memory; what waits is not to be lost for that.
            _log.warning("output.unwatched", error=error.strerror)
            self._reactor.call_later(_AGAIN, lambda: self._look(0))

    def _close_locked(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        # The FIFO first: its keeper is to have seen that by the time a writer sees EPIPE.
        os.close(self._sink)
        os.close(self._source)
        self._source = self._sink = -1
        self._ended.set()


def _has_room(sink: int) -> bool:
    poll = select.poll()
    poll.register(sink, select.POLLOUT)
    return bool(poll.poll(0))
