"""A small D-Bus client: the protocol without I/O, and a blocking connection around it.

Owns authentication (SASL EXTERNAL), the wire format, and the matching of replies to calls.  Doesn't
know whom it talks to.  Loaded only where systemd is asked to make cgroups.  The rules are those of
the D-Bus specification; the types are those that systemd's manager needs.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from runtime.base.errors import DeadlineExceeded, Failed, reason
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4

#: More than any message of systemd's manager that we ask for; the specification allows 128 MiB.
MAX_MESSAGE = 1 << 20
#: What the specification allows, and so what a bus may pass on from anybody.
_MAX_SKIPPED = 128 << 20
#: Signals that wait to be looked at: more than there are jobs of systemd's in one call's time.
MAX_SIGNALS = 8192
_MAX_DEPTH = 16
_MAX_LINE = 1024
_FIXED: Final = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q"}
_ALIGNMENT: Final = {
    **{"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8},
    **{"s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8},
}
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(
    1, 9
)
_TEXTS: Final = {
    _PATH: "path",
    _INTERFACE: "interface",
    _MEMBER: "member",
    _ERROR_NAME: "error",
    _SENDER: "sender",
    _SIGNATURE: "signature",
}


class DBusWireError(Failed):
    """Bytes that are no D-Bus."""


class Message(Record):
    """A message as it came.  ``body`` has a value for each type of ``signature``."""

    kind: int
    serial: int
    reply_serial: int = 0
    path: str = ""
    interface: str = ""
    member: str = ""
    error: str = ""
    sender: str = ""
    signature: str = ""
    body: tuple[Any, ...] = ()


class RemoteFault(Failed):
    """The peer's answer is an error; ``name`` is its D-Bus name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{text or 'no explanation'} ({name})")
        self.name = name


# -- types -------------------------------------------------------------------------------------


def split_signature(signature: str) -> list[str]:
    """The complete types in a signature.  Raises DBusWireError."""
    found, position = [], 0
    while position < len(signature):
        end = _type_end(signature, position, 0)
        found.append(signature[position:end])
        position = end
    return found


def _type_end(signature: str, start: int, depth: int) -> int:
    kind = signature[start : start + 1]
    if depth > _MAX_DEPTH or kind not in _ALIGNMENT:
        raise DBusWireError(f"signature {signature!r} has no type at {start}")
    if kind == "a":
        return _type_end(signature, start + 1, depth + 1)
    if kind not in "({":
        return start + 1
    close = ")" if kind == "(" else "}"
    position = start + 1
    while signature[position : position + 1] != close:
        position = _type_end(signature, position, depth + 1)
    if position == start + 1:
        raise DBusWireError(f"signature {signature!r} has an empty structure")
    return position + 1


def marshal(signature: str, values: Sequence[Any], out: bytearray | None = None) -> bytearray:
    """The values in little endian, aligned as at the start of a message.

    A variant is given as (signature, value).  Raises DBusWireError for values that don't fit.
    """
    out = bytearray() if out is None else out
    kinds = split_signature(signature)
    if len(kinds) != len(values):
        raise DBusWireError(f"{len(values)} values for signature {signature!r}")
    for kind, value in zip(kinds, values, strict=True):
        _put(kind, value, out)
    return out


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)


def _put(kind: str, value: Any, out: bytearray) -> None:
    first = kind[0]
    _pad(out, _ALIGNMENT[first])
    if first in _FIXED:
        try:
            out += struct.pack("<" + _FIXED[first], value)
        except struct.error as error:
            raise DBusWireError(f"{value!r} is not of type {kind}: {error}") from None
    elif first in "so":
        data = _text(kind, value)
        out += struct.pack("<I", len(data)) + data + b"\0"
    elif first == "g":
        data = _text(kind, value)
        if len(data) > 255:
            raise DBusWireError("a signature is longer than 255 bytes")
        out += bytes([len(data)]) + data + b"\0"
    elif first == "v":
        inner, content = value
        _put("g", inner, out)
        marshal(inner, (content,), out)
    elif first == "a":
        element = kind[1:]
        out += b"\0\0\0\0"
        length = len(out)
        _pad(out, _ALIGNMENT[element[0]])
        start = len(out)
        for each in value:
            _put(element, each, out)
        struct.pack_into("<I", out, length - 4, len(out) - start)
    else:
        marshal(kind[1:-1], value, out)


def _text(kind: str, value: Any) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise DBusWireError(f"{value!r} is not of type {kind}")
    return value.encode()


class _Reader:
    """Takes values off a message, of which ``data`` is the whole so far as alignment goes."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self._at = 0

    def align(self, alignment: int) -> None:
        self._at += -self._at % alignment

    @property
    def at(self) -> int:
        return self._at

    def _take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise DBusWireError("a value ends beyond its message")
        self._at += count
        return found

    def number(self, kind: str) -> int:
        self.align(_ALIGNMENT[kind])
        code = self._order + _FIXED[kind]
        value: int = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def value(self, kind: str, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise DBusWireError("values are nested too deep")
        first = kind[0]
        if first in _FIXED:
            value = self.number(first)
            return bool(value) if first == "b" else value
        if first in "sog":
            length = self.number("y" if first == "g" else "u")
            data = self._take(length + 1)
            if data[-1:] != b"\0":
                raise DBusWireError("a text has no end")
            return data[:-1].decode("utf-8", "replace")
        if first == "v":
            inner = split_signature(self.value("g"))
            if len(inner) != 1:
                raise DBusWireError("a variant has not one type")
            return inner[0], self.value(inner[0], depth + 1)
        if first == "a":
            return self._array(kind[1:], depth)
        self.align(8)
        return tuple(self.value(each, depth + 1) for each in split_signature(kind[1:-1]))

    def _array(self, element: str, depth: int) -> list[Any]:
        length = self.number("u")
        self.align(_ALIGNMENT[element[0]])
        end = self._at + length
        if end > len(self._data):
            raise DBusWireError("an array ends beyond its message")
        found = []
        while self._at < end:
            found.append(self.value(element, depth + 1))
        if self._at != end:
            raise DBusWireError("an array ends within a value")
        return found


def encode_call(
    serial: int,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    values: Sequence[Any] = (),
) -> bytes:
    """A method call.  Without a destination it is for whoever is at the other end."""
    fields = [
        (_PATH, ("o", path)),
        (_INTERFACE, ("s", interface)),
        (_MEMBER, ("s", member)),
    ]
    if destination:
        fields.append((_DESTINATION, ("s", destination)))
    if signature:
        fields.append((_SIGNATURE, ("g", signature)))
    body = marshal(signature, values)
    head = marshal("yyyyuua(yv)", (ord("l"), CALL, 0, 1, len(body), serial, fields))
    _pad(head, 8)
    return bytes(head + body)


# -- the connection without input and output -----------------------------------------------------


class Protocol:
    """A client's side.  Bytes go in by ``receive``, and out by ``outgoing``."""

    def __init__(self, uid: int) -> None:
        self._out = bytearray(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
        self._in = bytearray()
        self._skip = 0  # bytes still to come of a message that is not looked at
        self._serial = 0
        self.ready = False

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        data, self._out = bytes(self._out), bytearray()
        return data

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: Sequence[Any] = (),
    ) -> int:
        """Send a call, once authenticated; its serial, which the reply will name."""
        if not self.ready:
            raise Failed("d-bus: a call before the connection is authenticated")
        self._serial += 1
        self._out += encode_call(
            self._serial, destination, path, interface, member, signature, values
        )
        return self._serial

    def receive(self, data: bytes) -> list[Message]:
        """Take bytes in any pieces; the complete messages.  Raises DBusWireError, Failed.

        Signals and calls that are too long or malformed are left out: any local user may send
        them to us over the system bus, and they must not fail what we are at.  A reply is the
        called one's, as a bus passes on no other.
        """
        self._in += data
        if not self.ready:
            self._authenticate()
        found = []
        while self.ready and (whole := self._whole()) is not None:
            order, start, content = whole
            try:
                found.append(_decode(order, start, content))
            except DBusWireError:
                if content[1] in (REPLY, ERROR):
                    raise
        return found

    def _authenticate(self) -> None:
        end = self._in.find(b"\r\n")
        if end < 0:
            if len(self._in) > _MAX_LINE:
                raise DBusWireError("d-bus: the peer's greeting has no end")
            return
        line = bytes(self._in[:end])
        del self._in[: end + 2]
        if not line.startswith(b"OK "):
            word = line[:100].decode("ascii", "replace")
            raise Failed(f"d-bus: authentication refused: {word}")
        self._out += b"BEGIN\r\n"
        self.ready = True

    def _whole(self) -> tuple[str, int, bytes] | None:
        """The next message in one piece: byte order, where its body starts, and its bytes."""
        while True:
            passed = min(self._skip, len(self._in))
            del self._in[:passed]
            self._skip -= passed
            if self._skip or len(self._in) < 16:
                return None
            order = {ord("l"): "<", ord("B"): ">"}.get(self._in[0])
            if order is None or self._in[3] != 1:
                raise DBusWireError("d-bus: no message begins here")
            body_length, _, fields_length = struct.unpack_from(order + "III", self._in, 4)
            start = 16 + fields_length + -fields_length % 8
            if fields_length <= MAX_MESSAGE and body_length <= MAX_MESSAGE:
                break
            if self._in[1] in (REPLY, ERROR) or start + body_length > _MAX_SKIPPED:
                raise DBusWireError("d-bus: a message is too long")
            self._skip = start + body_length
        if len(self._in) < start + body_length:
            return None
        content = bytes(self._in[: start + body_length])
        del self._in[: start + body_length]
        return order, start, content


def _decode(order: str, start: int, content: bytes) -> Message:
    values: dict[str, Any] = {"kind": content[1]}
    reader = _Reader(content[:start], order)
    reader.number("u")
    reader.number("u")
    values["serial"] = reader.number("u")
    for code, (signature, value) in reader.value("a(yv)"):
        if code in _TEXTS and signature in ("s", "o", "g"):
            values[_TEXTS[code]] = value
        elif code == _REPLY_SERIAL and signature == "u":
            values["reply_serial"] = value
    reader = _Reader(content[start:], order)
    kinds = split_signature(values.get("signature", ""))
    values["body"] = tuple(reader.value(each) for each in kinds)
    return Message(**values)


# -- the connection ------------------------------------------------------------------------------


def _every(_: Message) -> bool:
    return True


class Bus:
    """A connected peer.  For one thread; blocks until each call's deadline."""

    def __init__(self, sock: _socket.socket, deadline: float) -> None:
        """Takes the socket over.  Raises Failed, DeadlineExceeded."""
        self._sock = sock
        self._signals: list[Message] = []
        self._heed: Callable[[Message], bool] = _every
        self._awaited = 0
        self._reply: Message | None = None
        sock.setblocking(False)
        try:
            self._protocol = Protocol(os.geteuid())
            self._flush(deadline)
            while not self._protocol.ready:
                self._pump(deadline)
            self._flush(deadline)
        except BaseException:
            sock.close()
            raise

    @classmethod
    def connect(cls, path: str, deadline: float) -> Bus:
        """Raises OSError if nobody listens, Failed, DeadlineExceeded."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(sock, deadline)

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        values: Sequence[Any],
        deadline: float,
    ) -> tuple[Any, ...]:
        """The reply's body.  Raises RemoteFault, Failed, DeadlineExceeded."""
        serial = self._protocol.call(destination, path, interface, member, signature, values)
        self._awaited, self._reply = serial, None
        self._flush(deadline)
        while self._reply is None:
            self._pump(deadline)
        reply = self._reply
        if reply.kind == ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise RemoteFault(reply.error, text)
        return reply.body

    def heed(self, wanted: Callable[[Message], bool]) -> None:
        """Keep from now on only signals that are ``wanted``: anybody on a bus may send us some."""
        self._heed = wanted
        self._signals = [signal for signal in self._signals if wanted(signal)]

    def wait_signal(self, wanted: Callable[[Message], bool], deadline: float) -> Message:
        """The first kept or coming signal that is ``wanted``; those before it are dropped."""
        while True:
            while self._signals:
                signal = self._signals.pop(0)
                if wanted(signal):
                    return signal
            self._pump(deadline)

    def _flush(self, deadline: float) -> None:
        data = self._protocol.outgoing()
        while data:
            self._wait(select.POLLOUT, deadline)
            try:
                data = data[self._sock.send(data, _socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Failed(f"d-bus: {reason(error)}") from error

    def _pump(self, deadline: float) -> None:
        self._wait(select.POLLIN, deadline)
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            raise Failed(f"d-bus: {reason(error)}") from error
        if not data:
            raise Failed("d-bus: the peer has closed the connection")
        for message in self._protocol.receive(data):
            if message.kind in (REPLY, ERROR):
                if message.reply_serial == self._awaited:
                    self._reply = message
            elif message.kind == SIGNAL and self._heed(message):
                if len(self._signals) >= MAX_SIGNALS:
                    raise Failed(f"d-bus: more than {MAX_SIGNALS} signals came unasked")
                self._signals.append(message)

    def _wait(self, events: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._sock.fileno(), events)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeadlineExceeded("an answer on d-bus", max(left, 0.0))
