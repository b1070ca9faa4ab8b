"""The wire of gVisor's control server: one JSON object per request and per reply.

Owns the codec, which is pure and incremental, and connections that carry one call each, with file
descriptors beside the first byte.  Knows no method names and no meaning of errors: ``control.py``
does.

The format is that of ``pkg/urpc/urpc.go``.  A connection is closed as soon as its reply is there:
a sentry that wants to exit waits up to 15 s for idle ones.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from runtime.base import fastjson
from runtime.base.errors import DeadlineExceeded, Failed, ResourceExhausted, Unanswered, reason
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self

#: What the sentry's buffer holds; it silently drops the rest (``pkg/urpc``, maxFiles).
MAX_FDS = 128
#: Bytes of a reply to most methods: a number, a state, an error's text.
MAX_REPLY = 64 << 10
#: Seconds that a call may take unless it says otherwise.
DEFAULT_TIMEOUT = 10.0
_MAX_PATH = 107  # of sun_path, less the terminating NUL
_CHUNK = 64 << 10

_BLANK = b" \t\r\n"
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"{[]}")
#: Objects and lists in a reply: each costs a parser many times its own text.  An honest list of
#: processes has two in some 150 bytes.
_MIN_BRACKETS, _BYTES_PER_BRACKET = 1024, 16


class RemoteError(Exception):
    """The sentry's answer is an error: its text, as sent."""


class Disconnected(Exception):
    """There is no sentry at the other end, or it went away before it answered."""


class Refused(Disconnected):
    """Nobody listens at the socket, which is there."""


class ProtocolError(Exception):
    """What came isn't a reply."""


class Reply(Record):
    """A reply: ``result`` is meaningful if ``success``, else ``error`` is the sentry's text."""

    success: bool
    error: str
    result: Any

    def value(self) -> Any:
        """The result.  Raises RemoteError."""
        if not self.success:
            raise RemoteError(self.error)
        return self.result


def encode_request(method: str, argument: object) -> bytes:
    """The bytes of a request."""
    return fastjson.dumps({"method": method, "arg": argument}).encode("ascii")


class ReplyDecoder:
    """Bytes in, one reply out, however they are cut.

    The end of the object is found by its brackets, looking at each byte once, and only then is it
    parsed: a peer that sends in small pieces costs no more than one that doesn't.  One that comes
    whole needs no such search.
    """

    def __init__(self, limit: int = MAX_REPLY) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._begun = False  # there was something but blanks
        self._depth = 0
        self._brackets = 0
        self._in_string = False
        self._escape = b""  # a backslash at the end of what has come, or nothing

    def feed(self, data: bytes) -> Reply | None:
        """Take bytes; returns the reply once it is complete.  Raises ProtocolError."""
        first = not self._buffer
        self._buffer += data
        if len(self._buffer) > self._limit:
            raise ProtocolError(f"reply of more than {self._limit} bytes")
        if not self._begun:
            start = data.lstrip(_BLANK)
            if start and not start.startswith(b"{"):
                raise ProtocolError("not a JSON object")
            self._begun = bool(start)
        if first and self._looks_whole(data):
            try:
                return self._parse(self._buffer)
            except ProtocolError:
                pass  # it isn't, or it is malformed: what follows tells
        return self._parse(self._buffer) if self._ends_in(data) else None

    def _looks_whole(self, data: bytes) -> bool:
        """Whether a piece may be all of a reply, as most are; without looking at its strings."""
        opened = data.count(b"{")
        if not data.endswith(b"}") or opened != data.count(b"}"):
            return False
        return 2 * (opened + data.count(b"[")) <= self._most

    @property
    def _most(self) -> int:
        """Brackets that as long a reply may have."""
        return 2 * (_MIN_BRACKETS + len(self._buffer) // _BYTES_PER_BRACKET)

    def _ends_in(self, data: bytes) -> bool:
        """Whether the bracket that closes the object is in ``data``, the bytes that come next."""
        # Without the escaped characters, each quote begins or ends a string.
        data = (self._escape + data).replace(rb"\\", b"").replace(rb"\"", b"")
        self._escape = b"\\" if data.endswith(b"\\") else b""
        parts = data.removesuffix(b"\\").split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        if not len(parts) % 2:
            self._in_string = not self._in_string
        brackets = outside.translate(None, _NO_BRACKET)
        self._brackets += len(brackets)
        if self._brackets > self._most:
            raise ProtocolError(f"reply of {self._brackets} brackets")
        for bracket in brackets:
            self._depth += 1 if bracket in b"{[" else -1
            if not self._depth:
                return True
        return False

    @staticmethod
    def _parse(data: bytearray) -> Reply:
        try:
            value = fastjson.loads(data)
        except ValueError as error:
            raise ProtocolError(f"malformed reply: {type(error).__name__}") from None
        success, text = value.get("success"), value.get("err") or ""
        if not isinstance(success, bool) or not isinstance(text, str):
            raise ProtocolError("malformed reply: success or err")
        return Reply(success=success, error=text, result=value.get("result"))


class Connection:
    """A connection to a control server, for one call at a time.  One thread at a time.

    ``connect`` and ``send`` and ``receive`` block, up to a deadline (``time.monotonic()``);
    ``feed`` doesn't, and ``fileno`` is for who watches for it.
    """

    def __init__(self, sock: _socket.socket, limit: int = MAX_REPLY) -> None:
        """``limit`` is of the reply, in bytes."""
        self._socket = sock
        self._limit = limit
        self._decoder = ReplyDecoder(limit)
        self._method = ""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def send(
        self,
        method: str,
        argument: object = None,
        fds: Sequence[int] = (),
        deadline: float | None = None,
    ) -> None:
        """Send the request; ``fds`` stay the caller's and are passed as duplicates.

        Raises ResourceExhausted if there are too many, Disconnected, DeadlineExceeded.
        """
        if len(fds) > MAX_FDS:
            raise ResourceExhausted(
                f"{method}: {len(fds)} file descriptors, the sentry takes {MAX_FDS}"
            )
        self._method = method
        self._since = time.monotonic()
        data = memoryview(encode_request(method, argument))
        rights = struct.pack(f"={len(fds)}i", *fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self._arm(deadline)
            # The sentry looks for descriptors beside the first byte only.
            sent = self._socket.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)
            while sent < len(data):
                self._arm(deadline)
                sent += self._socket.send(data[sent:], _socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise _broken(method, error) from None

    def post(self, method: str, argument: object = None) -> None:
        """Send a small request without waiting, or raise as ``send`` does.

        The first one, or the next once the reply to the last has come.
        """
        self._method = method
        self._decoder = ReplyDecoder(self._limit)
        self._since = time.monotonic()
        data = encode_request(method, argument)
        try:
            self._never_block()
            sent = self._socket.send(data, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _broken(method, error) from None
        if sent < len(data):
            raise self._late()

    def receive(self, deadline: float | None = None) -> Reply:
        """Wait for the reply.  Raises Disconnected, ProtocolError, DeadlineExceeded."""
        while True:
            try:
                self._arm(deadline)
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                raise self._late() from None
            except OSError as error:
                raise _broken(self._method, error) from None
            reply = self._take(data)
            if reply is not None:
                return reply

    def receive_files(self, count: int, deadline: float | None = None) -> tuple[Reply, list[int]]:
        """Like ``receive``, with up to ``count`` descriptors that come beside the first byte.

        They are the caller's to close.
        """
        received: list[int] = []
        size = struct.calcsize("i")
        try:
            self._arm(deadline)
            data, ancillary, _, _ = self._socket.recvmsg(
                _CHUNK, _socket.CMSG_LEN(count * size), _socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, rights in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    whole = len(rights) - len(rights) % size
                    received += struct.unpack(f"={whole // size}i", rights[:whole])
            return self._take(data) or self.receive(deadline), received
        except BaseException as error:
            for fd in received:
                os.close(fd)
            if isinstance(error, TimeoutError):
                raise self._late() from None
            if isinstance(error, OSError):
                raise _broken(self._method, error) from None
            raise

    def feed(self) -> Reply | None:
        """Take a bounded part of what has come; None if the reply isn't complete.

        Raises Disconnected, ProtocolError.
        """
        try:
            self._never_block()
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise _broken(self._method, error) from None
        return self._take(data)

    def _never_block(self) -> None:
        # MSG_DONTWAIT isn't enough: a socket with a time-out is polled first.
        if self._socket.gettimeout() != 0:
            self._socket.setblocking(False)

    def _take(self, data: bytes) -> Reply | None:
        if not data:
            raise Disconnected(f"{self._method}: connection closed by the sentry")
        return self._decoder.feed(data)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(self._method, round(time.monotonic() - self._since, 3))

    def _arm(self, deadline: float | None) -> None:
        if deadline is None:
            deadline = time.monotonic() + DEFAULT_TIMEOUT
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


#: What a host says that has no more of something.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


def _broken(method: str, error: OSError) -> Exception:
    code = error.errno or 0
    if code == errno.ECONNREFUSED:
        return Refused(f"{method}: {reason(code)}")
    if code in (errno.EPIPE, errno.ECONNRESET, errno.ENOENT, errno.ENOTCONN):
        return Disconnected(f"{method}: {reason(code)}")
    if code == errno.ETOOMANYREFS:
        return ResourceExhausted(f"{method}: too many file descriptors in flight")
    if code in _EXHAUSTED:
        return ResourceExhausted(f"{method}: {reason(code)}")
    return Failed(f"{method}: {reason(code)}")


def connect(
    address: str | Callable[[], _socket.socket],
    deadline: float | None = None,
    pid: int = 0,
    limit: int = MAX_REPLY,
) -> Connection:
    """Connect to a control server.

    ``address`` is a path, an abstract name (which begins with NUL and is taken as it is), or a
    function that gives a connected socket; ``limit`` is of the reply, in bytes.  Below a path is
    only who may write in its directory; an abstract name is free for all users of the network
    namespace once its owner has died, so there it has to be process ``pid``, where that is known,
    that listens.

    Raises Disconnected (also for a stranger), DeadlineExceeded, ResourceExhausted, Failed.
    """
    left = DEFAULT_TIMEOUT if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("connect", DEFAULT_TIMEOUT)
    return _connect(address, left, pid, limit)


def post(
    address: str,
    method: str,
    argument: object = None,
    pid: int = 0,
    limit: int = MAX_REPLY,
) -> Connection:
    """A connection on which a small request has been sent, all without waiting.

    For the reactor.  Raises as :func:`connect` does, DeadlineExceeded where it would have had to
    wait.
    """
    connection = _connect(address, 0.0, pid, limit)
    try:
        connection.post(method, argument)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(
    address: str | Callable[[], _socket.socket], seconds: float, pid: int, limit: int
) -> Connection:
    """With 0 seconds, without waiting."""
    sock = None
    try:
        if not isinstance(address, str):
            return Connection(address(), limit)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        if seconds:
            # A non-blocking connect doesn't wait for room in the backlog (of 16), it fails.  A
            # blocking one does, for as long as the send time-out says.
            whole = int(seconds)
            left = struct.pack("ll", whole, max(int((seconds - whole) * 1e6), 1))
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, left)
        else:
            sock.setblocking(False)
        with SocketPath(address) as usable:
            sock.connect(usable)
        if pid and address.startswith("\0") and _listener(sock) not in (0, pid):
            raise Disconnected("connect: another process listens there")
        return Connection(sock, limit)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, BlockingIOError):
            raise DeadlineExceeded("connect", seconds) from None
        if isinstance(error, OSError):
            raise _broken("connect", error) from None
        raise


def _listener(sock: _socket.socket) -> int:
    """The process that listens where the socket is connected to; 0 for one out of our sight."""
    size = struct.calcsize("3i")
    found = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", found)[0])


def call(
    address: str | Callable[[], _socket.socket],
    method: str,
    argument: object = None,
    fds: Sequence[int] = (),
    timeout: float = DEFAULT_TIMEOUT,
    *,
    pid: int = 0,
    limit: int = MAX_REPLY,
) -> Any:
    """One call on a connection of its own; returns the result.

    ``pid`` and ``limit`` as for :func:`connect`.

    Raises RemoteError with the sentry's text; Disconnected, ProtocolError, DeadlineExceeded and
    ResourceExhausted as the connection does; Unanswered if the request was sent.
    """
    deadline = time.monotonic() + timeout
    late: type[DeadlineExceeded] = DeadlineExceeded
    try:
        with connect(address, deadline, pid, limit) as connection:
            connection.send(method, argument, fds, deadline)
            late = Unanswered
            reply = connection.receive(deadline)
    except DeadlineExceeded:
        raise late(method, timeout) from None
    return reply.value()


def call_for_files(
    address: str,
    method: str,
    argument: object,
    count: int,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    pid: int = 0,
) -> tuple[Any, list[int]]:
    """Like :func:`call`, for a method that answers with descriptors, ``count`` at most.

    They are the caller's to close.
    """
    deadline = time.monotonic() + timeout
    with connect(address, deadline, pid) as connection:
        connection.send(method, argument, (), deadline)
        reply, files = connection.receive_files(count, deadline)
    if not reply.success:
        for fd in files:
            os.close(fd)
    return reply.value(), files


class SocketPath:
    """A context in which a socket's path is short enough to bind or connect to.

    A path that doesn't fit in ``sun_path`` is reached by way of a descriptor of its directory.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        path = self._path
        if path.startswith("\0") or len(os.fsencode(path)) <= _MAX_PATH:
            return path
        directory, name = os.path.split(path)
        self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        short = f"/proc/self/fd/{self._fd}/{name}"
        if len(os.fsencode(short)) > _MAX_PATH:
            os.close(self._fd)
            self._fd = -1
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return short

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
