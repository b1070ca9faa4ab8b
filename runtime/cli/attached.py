"""An attached process: copies its streams, forwards our signals, waits for its end.

Owns the one loop in which that happens, and the user's terminal while it is raw.  A sentry gets no
descriptor of the user's: it would make it non-blocking for every process that shares it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import threading
import time
import tty

from runtime.base.errors import InvalidRequest, NotFound, RuntimeFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds without output after which a process that has ended counts as one that is done: what it
#: left in the background may hold its output for ever.
QUIET = 0.3
_CHUNK = 65536
FORWARDED = tuple(
    int(number)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGWINCH,
    )
)
_WINCH = int(signal.SIGWINCH)
#: The characters by which a terminal asks for a signal: index in termios' cc, signal.
_KEYS = (
    (termios.VINTR, int(signal.SIGINT)),
    (termios.VQUIT, int(signal.SIGQUIT)),
    (termios.VSUSP, int(signal.SIGTSTP)),
)


class CopiedStream:
    """One direction: from a descriptor to another.

    ``close_target`` has that closed once the source has ended, ``close_source`` the source once
    nobody takes what comes of it, by which its writer learns so.
    """

    def __init__(
        self,
        source: int,
        target: int,
        *,
        seen: Callable[[bytes], None] | None = None,
        close_target: bool = False,
        close_source: bool = False,
        is_input: bool = False,
    ) -> None:
        self.source, self.target = source, target
        self.seen = seen
        self.close_target = close_target
        self.close_source = close_source
        #: Whether it goes to the process, and so doesn't matter once that has ended.
        self.is_input = is_input
        self.waiting = b""
        self.open = True

    def end(self) -> None:
        self.open = False
        if self.close_target and not self.waiting:
            os.close(self.target)
            self.close_target = False

    def read(self) -> None:
        try:
            data = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal whose other side is closed
            data = b""
        if not data:
            self.end()
            return
        if self.seen is not None:
            self.seen(data)
        self.waiting += data
        self.write()

    def write(self) -> None:
        """Write as much as is taken now."""
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.target, self.waiting) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self.waiting = b""
            if self.open and self.close_source:
                os.close(self.source)
            self.open = False
        if not self.open:
            self.end()


def run(
    wait: Callable[[], int],
    on_signal: Callable[[int], None],
    streams: Iterable[CopiedStream] = (),
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Copy until ``wait``, which is called in a thread, returns; its result, or what it raised.

    ``on_signal`` is called for each signal that came, by its number; ``ready`` once they are
    caught.  For the main thread.
    """
    outcome: list[int | BaseException] = []
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def waiting() -> None:
        try:
            outcome.append(wait())
        except BaseException as error:
            outcome.append(error)
        os.write(waker, b"\0")

    with _Signals(waker):
        ready()
        thread = threading.Thread(target=waiting, name="wait", daemon=True)
        thread.start()
        _copy(list(streams), woken, on_signal, outcome)
        thread.join()
    os.close(woken)
    os.close(waker)
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _copy(
    streams: list[CopiedStream],
    woken: int,
    on_signal: Callable[[int], None],
    outcome: list[int | BaseException],
) -> None:
    quiet_at = 0.0
    while True:
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        busy = False
        for stream in streams:
            if stream.waiting:
                poller.register(stream.target, select.POLLOUT)
            elif stream.open:
                poller.register(stream.source, select.POLLIN)
            busy = busy or (not stream.is_input and (stream.open or bool(stream.waiting)))
        if outcome:
            quiet_at = quiet_at or time.monotonic() + QUIET
            if not busy or time.monotonic() >= quiet_at:
                return
        left = max(quiet_at - time.monotonic(), 0.0) * 1000 if outcome else None
        ready = dict(poller.poll(left))
        if ready.pop(woken, 0):
            for number in os.read(woken, 64):
                if number:
                    on_signal(number)
        if ready and outcome:
            quiet_at = time.monotonic() + QUIET
        for stream in streams:
            if stream.waiting and stream.target in ready:
                stream.write()
            elif not stream.waiting and stream.open and stream.source in ready:
                stream.read()


class _Signals:
    """Signals come as bytes through a pipe."""

    def __init__(self, waker: int) -> None:
        self._waker = waker
        self._old: dict[int, object] = {}

    def __enter__(self) -> None:
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in FORWARDED:
            self._old[number] = signal.signal(number, lambda *_: None)

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)


def require_terminal() -> None:
    """Raise InvalidRequest unless our stdin is a terminal: there would be nobody to type."""
    if not os.isatty(0):
        raise InvalidRequest("terminal", "is wanted, but stdin is none")


class RawTerminal:
    """The user's terminal, if descriptor ``fd`` is one, passing every key on; a context manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved = termios.tcgetattr(fd) if os.isatty(fd) else None

    def __enter__(self) -> RawTerminal:
        if self._saved is not None:
            tty.setraw(self.fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._saved)


def copy_size(source: int, target: int) -> None:
    """Give the terminal ``target`` the size of ``source``; no error if either has none."""
    try:
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, b"\0" * 8)
        if struct.unpack("HHHH", size)[:2] != (0, 0):
            fcntl.ioctl(target, termios.TIOCSWINSZ, size)
    except OSError:
        return


def key_signals(master: int, data: bytes) -> list[int]:
    """The signals that typing ``data`` asks for, as the terminal is set now.

    No process of the host has it as its controlling terminal, so the kernel sends none.
    """
    try:
        attributes = termios.tcgetattr(master)
    except termios.error:
        return []
    if not attributes[3] & termios.ISIG:
        return []
    keys = {attributes[6][index]: number for index, number in _KEYS}
    keys.pop(b"\0", None)
    return [keys[bytes((byte,))] for byte in data if bytes((byte,)) in keys]


def quietly(call: Callable[..., object], *arguments: object) -> None:
    """Make a call whose failure means that the process has just ended."""
    try:
        call(*arguments)
    except (NotFound, RuntimeFault):
        return
