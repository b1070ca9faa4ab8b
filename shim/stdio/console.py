"""A pseudo-terminal whose other side is a process in the sandbox, and the pump that feeds it.

Owns the pty pair, and the stdin and stdout descriptors that it is given.  Knows nothing of where
these come from, nor of how signals reach the process.

The slave keeps the kernel's default settings (ONLCR among them), as with containerd's runc shim:
the client at the far end has its own terminal in raw mode and expects CR LF.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import threading

from runtime.base.errors import Failed, ResourceExhausted, reason
from runtime.base.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor, Watch

CHUNK = 32 * 1024
SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGWINCH = 1, 2, 3, 20, 28
_SIGNAL_OF = ((termios.VINTR, SIGINT), (termios.VQUIT, SIGQUIT), (termios.VSUSP, SIGTSTP))
_LFLAG, _CC = 3, 6  # fields of what tcgetattr returns
_DISABLED = b"\0"
# asm-generic/ioctls.h; Python's termios has no names for them.
_TIOCVHANGUP, _TIOCGPTPEER = 0x5437, 0x5441
#: Seconds for all that a session wrote before its leader's end, and between two tries to mark it.
_FINISH_TIMEOUT = 1.0
_MARK_INTERVAL = 0.05

_log = get_logger("console")


class Console:
    """Copies ``source`` to the terminal and the terminal to ``sink`` until the far side is closed.

    At most one chunk is held in each direction; while it can't be written nothing more is read.
    EOF of ``source`` ends the input and leaves the terminal open.  When the slave's last holder
    has closed it and all output is written, ``sink`` is closed, so that its reader sees EOF.  The
    same follows :meth:`finish`, whoever still holds the slave.

    All methods are thread-safe and only :meth:`drain` blocks.  ``on_signal`` is called without
    locks held, often in the reactor's thread, and must not block.
    """

    def __init__(
        self, *, reactor: Reactor, source: int = -1, sink: int = -1, emulate_signals: bool = False
    ) -> None:
        """Open the pair and start to copy.  Takes over ``source`` and ``sink`` (-1: none), both
        in non-blocking mode, but leaves them to the caller if it raises.

        ``emulate_signals``: nobody on the host has this terminal as its controlling one, so that
        the kernel turns neither ^C nor a change of size into a signal, and we have to.

        Raises ResourceExhausted if the host has no more terminals, or Failed.
        """
        try:
            self._master, self._slave = os.openpty()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise ResourceExhausted(f"open terminal: {reason(error)}") from error
            raise Failed(f"open terminal: {reason(error)}") from error
        os.set_blocking(self._master, False)
        self.on_signal: Callable[[int], None] | None = None
        self._reactor = reactor
        self._emulate = emulate_signals
        self._lock = threading.Lock()
        self._source = source  # guarded by _lock
        self._sink = sink  # guarded by _lock
        self._source_plain = False  # guarded by _lock; a regular file, which epoll refuses
        self._source_called = False  # guarded by _lock; such a one is about to be read
        self._input = b""  # guarded by _lock; read from source, not yet in the terminal
        self._output = b""  # guarded by _lock; read from the terminal, not yet in sink
        self._literal = False  # guarded by _lock; the next input byte is quoted by VLNEXT
        self._hung_up = False  # guarded by _lock; the far side is closed and all is read
        # What follows the last output that counts, once the session's leader has ended, and what
        # was read of it so far.
        self._mark = b""  # guarded by _lock
        self._marked = b""  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._watches: dict[str, Watch] = {}  # guarded by _lock
        self._done = threading.Event()
        with self._lock:
            try:
                self._rearm_locked()
            except BaseException:
                self._source = self._sink = -1
                self._close_locked()
                raise

    @property
    def slave(self) -> int:
        """The process's side, or -1 once :meth:`release_slave` was called."""
        return self._slave

    def release_slave(self) -> None:
        """Close our copy of the process's side, now that the process has its own; idempotent."""
        with self._lock:
            self._close_slave_locked()

    def resize(self, width: int, height: int) -> None:
        """Set the size in characters, each of which must fit 16 bits."""
        with self._lock:
            if self._closed:
                return
            blank = struct.pack("HHHH", 0, 0, 0, 0)
            rows, columns, _, _ = struct.unpack(
                "HHHH", fcntl.ioctl(self._master, termios.TIOCGWINSZ, blank)
            )
            if (columns, rows) == (width, height):
                return  # the kernel sends no SIGWINCH for that either
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        if self._emulate:
            self._signal(SIGWINCH)

    def finish(self) -> None:
        """Pass on what was written until now, then hang up: the session's leader has ended.

        Like the kernel, which takes the terminal from a session whose leader ends, whatever jobs
        it leaves behind (``disassociate_ctty``, drivers/tty/tty_jobctrl.c).  What has been written
        reaches us by a detour through a queue of the kernel's; so we write a mark behind it and
        read until that comes.  Idempotent; doesn't block.
        """
        with self._lock:
            if self._closed or self._hung_up or self._mark:
                return
            self._input = b""
            self._close_source_locked()
            try:
                if self._slave < 0:
                    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
                    self._slave = fcntl.ioctl(self._master, _TIOCGPTPEER, flags)
                os.set_blocking(self._slave, False)
            except OSError as error:
                _log.warning("terminal.finish_failed", error=error.strerror)
                self._hang_up_locked()
                return
            # Digits, which no setting of a terminal changes.
            self._mark = b"\0" + str(int.from_bytes(os.urandom(12), "big")).encode()
            self._rearm_locked()
        self._write_mark()
        self._reactor.call_later(_FINISH_TIMEOUT, self._give_up)

    def waiting(self) -> int:
        """Bytes that are read from the terminal and not yet written."""
        with self._lock:
            return 0 if self._closed else len(self._output)

    def drain(self, timeout: float) -> bool:
        """Wait until all output is written and nobody has the far side open; did that happen?"""
        return self._done.wait(max(timeout, 0.0))

    def close(self) -> None:
        """Hang up and close everything; idempotent.  Output not yet written is lost."""
        with self._lock:
            if self._closed:
                return
            alive = not self._hung_up
            self._close_locked()
        if alive and self._emulate:
            self._signal(SIGHUP)

    # -- the end of a session ----------------------------------------------------------------

    def _write_mark(self) -> None:
        """Write the mark, or try again later if the terminal is full or stopped (^S)."""
        with self._lock:
            if self._closed or self._hung_up or not self._mark:
                return
            try:
                written = os.write(self._slave, self._mark)
            except BlockingIOError:
                written = 0
            except OSError:
                self._hang_up_locked()
                return
            if 0 < written < len(self._mark):
                self._mark = self._mark[:written]  # as good a mark, or nearly
                return
        if not written:
            self._reactor.call_later(_MARK_INTERVAL, self._write_mark)

    def _give_up(self) -> None:
        """Hang up a terminal whose mark doesn't come, as its output was stopped."""
        with self._lock:
            if self._closed or self._hung_up:
                return
            if self._output:
                # Its reader takes his time; whoever waits for that has a limit of his own.
                self._reactor.call_later(_FINISH_TIMEOUT, self._give_up)
                return
            _log.debug("terminal.mark_lost")
            self._hang_up_locked()

    def _hang_up_locked(self) -> None:
        """Let the far side go: what is there to be written is all that will be."""
        self._hung_up = True
        self._output += self._marked
        self._marked = b""
        if self._slave >= 0:
            try:
                fcntl.ioctl(self._slave, _TIOCVHANGUP)
            except OSError as error:
                _log.debug("terminal.hangup_failed", error=error.strerror)
            self._close_slave_locked()
        self._flush_locked()
        self._rearm_locked()

    # -- the pump, in the reactor's thread ---------------------------------------------------

    def _source_ready(self, _mask: int = 0) -> None:
        signals: list[int] = []
        with self._lock:
            self._source_called = False
            if self._closed or self._source < 0 or self._input or self._hung_up:
                return
            try:
                data = os.read(self._source, CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("stdin.failed", error=error.strerror)
                data = b""
            if data:
                self._input = data
                if self._emulate:
                    signals = self._signals_locked(data)
                self._feed_locked()
            else:
                self._close_source_locked()
            self._rearm_locked()
        for signo in signals:
            self._signal(signo)

    def _master_ready(self, mask: int) -> None:
        with self._lock:
            if self._closed or self._hung_up:
                return
            if self._input:
                self._feed_locked()
            if mask & (select.EPOLLIN | select.EPOLLHUP) and not self._output:
                self._fetch_locked()
            if mask & select.EPOLLHUP:
                self._input = b""  # there is nobody to take it
                self._close_source_locked()
            self._rearm_locked()

    def _sink_ready(self, _mask: int) -> None:
        with self._lock:
            if self._closed:
                return
            self._flush_locked()
            self._rearm_locked()

    def _fetch_locked(self) -> None:
        try:
            self._output = os.read(self._master, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                _log.warning("terminal.failed", error=error.strerror)
            self._output = b""
        if not self._output:
            self._hung_up = True
            self._output, self._marked = self._marked, b""
        elif self._mark:
            self._look_for_mark_locked()
            return
        self._flush_locked()

    def _look_for_mark_locked(self) -> None:
        """Keep back what may be the beginning of the mark, and hang up behind what precedes it."""
        data = self._marked + self._output
        at = data.find(self._mark)
        if at >= 0:
            self._output, self._marked = data[:at], b""
            self._hang_up_locked()
            return
        kept = next(
            (n for n in range(len(self._mark) - 1, 0, -1) if data.endswith(self._mark[:n])), 0
        )
        self._output, self._marked = data[: len(data) - kept], data[len(data) - kept :]
        self._flush_locked()

    def _feed_locked(self) -> None:
        """Write what we can of the pending input to the terminal."""
        try:
            while self._input:
                self._input = self._input[os.write(self._master, self._input) :]
        except BlockingIOError:
            pass
        except OSError:
            self._input = b""  # hung up; reading will tell

    def _flush_locked(self) -> None:
        """Write what we can of the pending output; once it has all gone, see about the end."""
        try:
            while self._output and self._sink >= 0:
                self._output = self._output[os.write(self._sink, self._output) :]
        except BlockingIOError:
            return
        except OSError as error:
            # A process must not hang because its log can't be written: go on without.
            _log.warning("stdout.failed", error=error.strerror)
            self._close_sink_locked()
        if self._sink < 0:
            self._output = b""
        if self._hung_up:
            self._close_source_locked()
            self._close_sink_locked()
            self._done.set()

    def _rearm_locked(self) -> None:
        """Watch for just what can be used now.

        Hang-up and errors are reported whatever one asks for, so what can't be used isn't watched
        at all: else a closed far side would spin for as long as ``sink`` is full.
        """
        read, write = select.EPOLLIN, select.EPOLLOUT
        live = not self._hung_up
        master = (0 if self._output else read) | (write if self._input else 0)
        self._watch_locked("master", self._master, master if live else 0, self._master_ready)
        self._watch_locked("sink", self._sink, write if self._output else 0, self._sink_ready)
        wanted = live and self._source >= 0 and not self._input
        if not self._source_plain:
            events = read if wanted else 0
            try:
                self._watch_locked("source", self._source, events, self._source_ready)
            except PermissionError:
                self._source_plain = True
        if self._source_plain and wanted and not self._source_called:
            self._source_called = True
            self._reactor.call_soon(self._source_ready)

    def _watch_locked(
        self, name: str, fd: int, events: int, callback: Callable[[int], object]
    ) -> None:
        watch = self._watches.get(name)
        if events and fd >= 0:
            if watch is None:
                self._watches[name] = self._reactor.watch(fd, events, callback)
            else:
                watch.modify(events)
        elif watch is not None:
            del self._watches[name]
            watch.cancel()

    # -- signals -----------------------------------------------------------------------------

    def _signals_locked(self, data: bytes) -> list[int]:
        """Which signals the line discipline would send for this input (``drivers/tty/n_tty.c``)."""
        settings = termios.tcgetattr(self._master)  # of a master: the slave's
        flags, characters = settings[_LFLAG], settings[_CC]
        if not flags & termios.ISIG:
            self._literal = False
            return []
        wanted = {
            characters[index][0]: signo
            for index, signo in _SIGNAL_OF
            if characters[index] != _DISABLED
        }
        quote = characters[termios.VLNEXT][0] if flags & termios.IEXTEN else 0
        if not self._literal and not any(value in data for value in (*wanted, quote) if value):
            return []
        signals: list[int] = []
        for value in data:
            if self._literal:
                self._literal = False
            elif value and value == quote:
                self._literal = True
            elif value in wanted:
                signals.append(wanted[value])
        return signals

    def _signal(self, signo: int) -> None:
        on_signal = self.on_signal
        if on_signal is not None:
            on_signal(signo)

    # -- closing -----------------------------------------------------------------------------

    def _close_source_locked(self) -> None:
        self._watch_locked("source", -1, 0, self._source_ready)
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def _close_sink_locked(self) -> None:
        self._watch_locked("sink", -1, 0, self._sink_ready)
        if self._sink >= 0:
            os.close(self._sink)
            self._sink = -1

    def _close_slave_locked(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    def _close_locked(self) -> None:
        self._closed = True
        self._watch_locked("master", -1, 0, self._master_ready)
        self._close_source_locked()
        self._close_sink_locked()
        self._close_slave_locked()
        os.close(self._master)
        self._input = self._output = b""
