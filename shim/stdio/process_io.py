"""Stdio of one process: from containerd's URIs to the descriptors that the sentry gets.

Owns every descriptor of a process's stdio and the rules about when each is opened and closed.
Knows nothing of the process itself.

What a URI may be follows containerd's runc shim (``cmd/containerd-shim-runc-v2/process/io.go``):
the scheme is taken from stdout, and a plain path stands for a FIFO or a file.  Unlike there
nothing is copied unless there is a terminal: the sentry reads and writes the FIFOs itself, but for
an exec's output, which the kernel moves from a pipe of ours to the FIFO.

The sentry sets O_NONBLOCK on the open file descriptions that it gets.  So these are never shared
with us or with containerd: each is opened anew.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base.errors import InvalidRequest, InvalidState, Unsupported
from shim.stdio.fifo import (
    READER_INTERVAL,
    Located,
    await_reader,
    check_path,
    create_log,
    failed,
    give_to,
    locate,
    open_input,
    open_output,
)
from shim.stdio.keeper import Keeper
from shim.stdio.relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor
    from runtime.task.process import OpenStdio
    from shim.stdio.binary_logger import LoggerProcess
    from shim.stdio.console import Console

_SCHEME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-.")
_HEX = frozenset("0123456789abcdefABCDEF")
_MAX_URI = 64 * 1024
_MAX_SIZE = 0xFFFF
#: Seconds that a client gets to open the FIFO of a process that is over already.
_READER_TIMEOUT = 1.0


class ProcessIO:
    """The stdio of a process, from before it starts until it is deleted.  Thread-safe."""

    def __init__(self, wanted: OpenStdio, reactor: Reactor) -> None:
        """For :meth:`open` alone."""
        self.terminal = wanted.where.terminal
        self._wanted = wanted
        self._reactor = reactor
        self._lock = threading.Lock()
        self._sentry: tuple[int, int, int] | None = None  # guarded by _lock
        self._owned: list[int] = []  # guarded by _lock; what we close once it is handed over
        self._keepers: list[Keeper] = []  # guarded by _lock
        self._relays: list[Relay] = []  # guarded by _lock
        self._stdin_writer = -1  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._console: Console | None = None
        self._logger: LoggerProcess | None = None

    @classmethod
    def open(cls, wanted: OpenStdio, namespace: str, reactor: Reactor) -> ProcessIO:
        """Open what the three URIs say; nothing stays open if it raises.

        ``namespace`` is containerd's, which a logging program is told.

        Raises InvalidRequest, Unsupported, ResourceExhausted, DeadlineExceeded and Failed.
        """
        io = cls(wanted, reactor)
        try:
            scheme, rest = split_uri(wanted.where.stdout)
            if scheme in ("binary", "binary-v2"):
                from shim.stdio.binary_logger import LoggerProcess

                io._logger = LoggerProcess(
                    argv=logger_argv(rest),
                    container_id=wanted.container_id,
                    namespace=namespace,
                    must_report=scheme == "binary-v2",
                    reactor=reactor,
                    deadline=wanted.deadline,
                )
            elif scheme not in ("", "fifo", "file"):
                raise Unsupported(f"stdout: scheme {scheme!r} is not supported")
            if io.terminal:
                io._open_terminal(scheme, rest)
            else:
                io._open_direct(scheme, rest)
        except BaseException as error:
            if io._logger is not None:
                io._logger.abandon()
            io.close()
            if isinstance(error, OSError):
                raise failed("stdio", error) from error
            raise
        return io

    @property
    def sentry_fds(self) -> tuple[int, int, int]:
        """Descriptors for the process's stdin, stdout and stderr.  Numbers may be equal.

        They stay ours.  Raises InvalidState once they are released.
        """
        with self._lock:
            if self._sentry is None:
                raise InvalidState("pass on", "stdio", "released")
            return self._sentry

    def release_sentry_fds(self) -> None:
        """Close our copies, now that the sentry has its own; idempotent.

        To be called soon after they were handed over: as long as our copies are open, readers of
        the output see no EOF.
        """
        with self._lock:
            self._release_locked()

    @property
    def on_signal(self) -> Callable[[int], None] | None:
        """Called with the number of a signal that the terminal sends to its foreground group.

        Only with ``emulate_signals``.  Called from any thread, the reactor's too: must not block.
        """
        return self._console.on_signal if self._console is not None else None

    @on_signal.setter
    def on_signal(self, callback: Callable[[int], None] | None) -> None:
        if self._console is not None:
            self._console.on_signal = callback

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; 0 by 0 is legal.  No-op without a terminal.

        Raises InvalidRequest for sizes beyond 65535.
        """
        for field, value in (("width", width), ("height", height)):
            if not 0 <= value <= _MAX_SIZE:
                raise InvalidRequest(field, f"{value} is not within 0 and {_MAX_SIZE}")
        if self._console is not None:
            self._console.resize(width, height)

    def close_stdin(self) -> None:
        """Let the process see EOF as soon as the client has closed its side, too; idempotent.

        A terminal stays open: EOF only ends its input.
        """
        with self._lock:
            self._close_writer_locked()

    def finish(self) -> None:
        """The process has ended: hang up its terminal behind its last words; doesn't block."""
        if self._console is not None:
            self._console.finish()

    def await_reading(self, patience: float, timeout: float) -> None:
        """Wait while output of an ended process is being read, ``timeout`` seconds at most.

        A client that learns of an end closes its ends of the FIFOs, whatever they still hold (Go
        client ``cio``: Cancel, since 2.1).  Who reads nothing for ``patience`` seconds, or isn't
        there, is waited for no longer.
        """
        began = since = time.monotonic()
        last = -1
        while (left := self._unread()) and (now := time.monotonic()) - began < timeout:
            if left != last:
                last, since = left, now
            elif now - since >= patience:
                return
            time.sleep(READER_INTERVAL)

    def _unread(self) -> int:
        """Bytes of output that are on the way to the client."""
        with self._lock:
            keepers, relays = list(self._keepers), list(self._relays)
        waiting = self._console.waiting() if self._console is not None else 0
        return waiting + sum(k.unread() for k in keepers) + sum(r.unread() for r in relays)

    def drain(self, timeout: float) -> bool:
        """Wait until the output of a process that has ended has been read; whether it was.

        ``timeout`` seconds at most, and a second at most where nobody is there to read it.  Jobs
        that it left behind get as long to end, as with containerd's runc shim; then they lose
        their output.  To be called by one thread, after which ``close`` is the only call left.
        """
        limit = time.monotonic() + timeout
        passed_on = self._console.drain(timeout) if self._console is not None else True
        with self._lock:
            relays, self._relays = self._relays, []
        for relay in relays:
            passed_on &= relay.drain(limit - time.monotonic())
            relay.close()
        with self._lock:
            keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            left = max(0.0, limit - time.monotonic())
            fd = keeper.take()
            passed_on &= fd < 0 or await_reader(fd, _READER_TIMEOUT, left)
        return passed_on

    def close(self) -> None:
        """Close everything, in any state; idempotent.  Doesn't wait for a logging program."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._release_locked()
            self._close_writer_locked()
        if self._console is not None:
            self._console.close()
        with self._lock:
            while self._relays:
                self._relays.pop().close()
        # The keepers go last, so that no writer meets a FIFO without a reader on the way.
        with self._lock:
            while self._keepers:
                self._keepers.pop().close()
        if self._logger is not None:
            self._logger.stop()

    # -- opening -----------------------------------------------------------------------------

    def _open_direct(self, scheme: str, stdout: str) -> None:
        stdin = self._wanted.where.stdin
        reader = self._own(self._open_input(stdin, nonblock=False) if stdin else _open_null())
        if self._logger is not None:
            out = self._own(self._logger.take_stdout())
            err = self._own(self._logger.take_stderr())
        elif scheme == "file":
            with create_log("stdout", file_path(stdout)) as where:
                out = err = self._own(self._open_output(where, nonblock=False))
        else:
            out, err = self._open_outputs(stdout, split_fifo("stderr", self._wanted.where.stderr))
        for fd in (reader, out, err):
            give_to(fd, *self._wanted.owner)
        self._sentry = (reader, out, err)

    def _open_outputs(self, stdout: str, stderr: str) -> tuple[int, int]:
        """Open two FIFOs or files for the sentry; one description if they are the same."""
        out, identity = -1, None
        if stdout:
            with locate("stdout", stdout) as where:
                out, identity = self._own(self._open_output(where, nonblock=False)), where.identity
        if stderr:
            with locate("stderr", stderr) as where:
                if where.identity == identity:
                    return out, out
                err = self._own(self._open_output(where, nonblock=False))
        else:
            err = self._own(_open_null())
        return (out if out >= 0 else self._own(_open_null())), err

    def _open_terminal(self, scheme: str, stdout: str) -> None:
        from shim.stdio.console import Console

        stdin = self._wanted.where.stdin
        source = sink = -1
        try:
            if stdin:
                source = self._open_input(stdin, nonblock=True)
            if self._logger is not None:
                sink = self._logger.take_stdout()
                os.set_blocking(sink, False)
                os.close(self._logger.take_stderr())
            elif scheme == "file":
                with create_log("stdout", file_path(stdout)) as where:
                    sink = self._open_output(where, nonblock=True)
            elif stdout:
                with locate("stdout", stdout) as where:
                    sink = self._open_output(where, nonblock=True)
            console = Console(
                reactor=self._reactor,
                source=source,
                sink=sink,
                emulate_signals=self._wanted.emulate_signals,
            )
        except BaseException:
            for fd in (source, sink):
                if fd >= 0:
                    os.close(fd)
            raise
        self._console = console
        give_to(console.slave, *self._wanted.owner)
        self._sentry = (console.slave,) * 3

    def _open_input(self, uri: str, *, nonblock: bool) -> int:
        with locate("stdin", split_fifo("stdin", uri)) as where:
            opened = open_input(where, nonblock=nonblock)
        self._stdin_writer = opened.writer
        return opened.fd

    def _open_output(self, where: Located, *, nonblock: bool) -> int:
        relayed = self._wanted.outlived and where.is_fifo and not self.terminal
        opened = open_output(where, nonblock=nonblock or relayed)
        if opened.keeper >= 0:
            try:
                self._keepers.append(Keeper(opened.keeper, self._reactor))
            except BaseException:
                os.close(opened.keeper)
                os.close(opened.fd)
                raise
        if not relayed:
            return opened.fd
        try:
            relay = Relay(opened.fd, self._reactor)
        except BaseException:
            os.close(opened.fd)
            raise
        self._relays.append(relay)
        return relay.writer

    def _own(self, fd: int) -> int:
        self._owned.append(fd)
        return fd

    # -- closing -----------------------------------------------------------------------------

    def _release_locked(self) -> None:
        self._sentry = None
        while self._owned:
            os.close(self._owned.pop())
        if self._console is not None:
            self._console.release_slave()

    def _close_writer_locked(self) -> None:
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1


def _open_null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


# -- URIs ------------------------------------------------------------------------------------


def split_uri(uri: str) -> tuple[str, str]:
    """Scheme and what follows it; a plain path has the scheme "".

    Raises InvalidRequest for what is absurdly long.
    """
    if len(uri) > _MAX_URI:
        raise InvalidRequest("stdio", f"URI of {len(uri)} characters")
    scheme, separator, rest = uri.partition(":")
    lowered = scheme.lower()
    if not separator or not lowered[:1].isalpha() or not _SCHEME_CHARACTERS.issuperset(lowered):
        return "", uri
    if lowered == "fifo":
        # What follows is a path as it stands, like a plain one.
        return lowered, rest.removeprefix("//")
    return lowered, rest


def split_fifo(field: str, uri: str) -> str:
    """The path of a URI that can only be a FIFO's or a file's.  Raises Unsupported for others."""
    scheme, rest = split_uri(uri)
    if scheme not in ("", "fifo"):
        raise Unsupported(f"{field}: scheme {scheme!r} is not supported")
    return rest


def file_path(rest: str) -> str:
    """The path in what follows ``file:`` or ``binary:``, percent-decoded; without host or query."""
    rest = rest.partition("#")[0].partition("?")[0]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host:
            raise InvalidRequest("stdout", f"URI has a host, {host!r}, where a path should be")
        rest = slash + path
    return unquote(rest)


def logger_argv(rest: str) -> tuple[str, ...]:
    """The command line of a logging program: its path, then each key and its first value.

    The order is the URI's.  As in containerd (``NewBinaryCmd``) a key counts once, and one
    without a value is followed by an empty argument.
    """
    path = file_path(rest)
    check_path("stdout", path)
    arguments: dict[str, str] = {}
    for pair in rest.partition("#")[0].partition("?")[2].split("&"):
        if pair:
            key, _, value = pair.partition("=")
            name = unquote(key.replace("+", " "))
            arguments.setdefault(name, unquote(value.replace("+", " ")))
    argv = [path]
    for name, value in arguments.items():
        argv += (name, value)
    if any("\0" in argument for argument in argv):
        raise InvalidRequest("stdout", "URI has a NUL character")
    return tuple(argv)


def unquote(text: str) -> str:
    """Decode percent escapes.  Raises InvalidRequest for malformed ones."""
    first, *others = text.split("%")
    data = os.fsencode(first)
    for other in others:
        digits = other[:2]
        if len(digits) < 2 or not _HEX.issuperset(digits):
            raise InvalidRequest("stdout", f"URI has a bad escape, %{digits}")
        data += bytes((int(digits, 16),)) + os.fsencode(other[2:])
    return os.fsdecode(data)
