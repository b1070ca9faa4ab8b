"""Keeps what a process wrote into a FIFO until it is read, and shows its end to a late reader.

Owns a reader of the FIFO that never reads (see ``fifo.open_output``), and puts a writer in its
place if there is no reader when the last writer closes: containerd is away, or hasn't come yet.
Without a writer the FIFO couldn't be opened.  containerd's client would wait for one until the
process is deleted, and CRI deletes an exec only after it has seen the end of its output; or the
client would give up as soon as it learns that the process is over (Go client ``cio``: Cancel).
"""

from __future__ import annotations

import os
import select
import threading

from runtime.base.log import get_logger
from runtime.host import linux
from shim.stdio.fifo import to_writer, unread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor, Timer, Watch

#: Seconds until a reader that has not read all is looked after, and the most that grows to.
_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0

_log = get_logger("stdio")


class Keeper:
    """One FIFO's.  Thread-safe; nothing blocks.

    Nothing is polled for long: the kernel tells when the last writer has closed, and when somebody
    opens the FIFO.  Only a reader that is there and slow is looked after, every two seconds in the
    end, and a FIFO whose opening the kernel can't watch, for want of inotify instances.
    """

    def __init__(
        self,
        fd: int,
        reactor: Reactor,
        watch_openings: Callable[[str], int] = linux.watch_openings,
    ) -> None:
        """Take over ``fd``, a reader that was opened before the process's writer.

        ``watch_openings`` makes an inotify descriptor, or raises OSError where there is none left.
        """
        self._reactor = reactor
        self._watch_openings = watch_openings
        self._lock = threading.Lock()
        self._fd = fd  # guarded by _lock; the reader, or the writer in its place; -1 once taken
        self._openings = -1  # guarded by _lock; an inotify descriptor
        self._watch: Watch | None = None  # guarded by _lock
        self._timer: Timer | None = None  # guarded by _lock
        self._delay = _FIRST_LOOK  # guarded by _lock
        # Hang-up is told without being asked for: the last writer has closed.
        self._watch = reactor.watch(fd, 0, self._look)

    def take(self) -> int:
        """The descriptor, which is the caller's from here on; -1 if its end has been shown."""
        with self._lock:
            self._disarm_locked()
            fd, self._fd = self._fd, -1
        return fd

    def unread(self) -> int:
        """Bytes that nobody has read yet."""
        with self._lock:
            return unread(self._fd) if self._fd >= 0 else 0

    def close(self) -> None:
        """Let go of whatever is unread; idempotent."""
        fd = self.take()
        if fd >= 0:
            os.close(fd)

    # -- in the reactor's thread -------------------------------------------------------------

    def _look(self, _mask: int = 0) -> None:
        """No process writes any more, or somebody came: is there something left, and a reader?"""
        with self._lock:
            if self._fd < 0:
                return
            self._disarm_locked()
            try:
                if unread(self._fd):
                    self._hold_locked()
                else:
                    self._end_locked()
            except OSError as error:
                # What is left is kept, if for longer than it need be.
                _log.warning("output.look_failed", error=error.strerror)
                self._disarm_locked()
                self._look_later_locked()

    def _hold_locked(self) -> None:
        writer = self._write_locked()
        if not _is_read(writer) and self._await_reader_locked():
            return
        # It reads to the end only once nobody can write.
        self._fd = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(writer)
        self._look_later_locked()

    def _end_locked(self) -> None:
        """Nothing is left to read: show the end to the reader, or to the next one that comes."""
        writer = self._write_locked()
        if not _is_read(writer):
            if self._delay < _LAST_LOOK:
                # Mostly the reader has seen the end and left, and a delete is on its way: it would
                # be held up by the closing of an inotify descriptor, for which the kernel waits.
                self._look_later_locked()
                return
            if self._await_reader_locked():
                return
        self._fd = -1
        os.close(writer)

    def _write_locked(self) -> int:
        # Without our reader the kernel tells whether there is another.
        self._fd = to_writer(self._fd)
        return self._fd

    def _await_reader_locked(self) -> bool:
        """Look again when somebody opens the FIFO for reading; False if that has happened."""
        try:
            self._openings = self._watch_openings(f"/proc/self/fd/{self._fd}")
        except OSError as error:
            _log.debug("opening.unwatched", error=error.strerror)
            self._look_later_locked()
            return True
        self._watch = self._reactor.watch(self._openings, select.EPOLLIN, self._look)
        if not _is_read(self._fd):
            return True
        self._disarm_locked()  # somebody came in between
        return False

    def _look_later_locked(self) -> None:
        self._timer = self._reactor.call_later(self._delay, self._look)
        self._delay = min(2 * self._delay, _LAST_LOOK)

    def _disarm_locked(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._openings >= 0:
            os.close(self._openings)
            self._openings = -1


def _is_read(writer: int) -> bool:
    """Whether the FIFO has a reader."""
    poll = select.poll()
    poll.register(writer, 0)
    return not any(mask & select.POLLERR for _, mask in poll.poll(0))
