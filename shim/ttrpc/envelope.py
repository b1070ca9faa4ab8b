"""The three protobuf messages of ttrpc itself, coded by hand: Request, Response and Status.

    Request  { string service = 1; string method = 2; bytes payload = 3; int64 timeout_nano = 4;
               repeated KeyValue metadata = 5 }
    KeyValue { string key = 1; string value = 2 }
    Response { google.rpc.Status status = 1; bytes payload = 2 }
    Status   { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3 }

They are few and frozen, and a protobuf library would cost more memory than the rest of the server.
Decoding takes unknown fields, and known ones of a foreign wire type, as protobuf does: it skips
them.  Sizes are bounded by the frame that the bytes came in.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

MAX_METADATA: Final = 1024  # pairs in a request
MAX_DETAILS: Final = 256  # details in a status
_MAX_DEPTH: Final = 64  # of unknown groups

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


class Malformed(ValueError):
    """The bytes are not the message that they should be."""


class Request:
    """What a client asks.  ``timeout_nano`` 0 means no limit."""

    __slots__ = ("metadata", "method", "payload", "service", "timeout_nano")

    def __init__(
        self,
        service: str = "",
        method: str = "",
        payload: bytes = b"",
        timeout_nano: int = 0,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.service, self.method, self.payload = service, method, payload
        self.timeout_nano = timeout_nano
        self.metadata: Mapping[str, tuple[str, ...]] = {} if metadata is None else metadata


class Status:
    """The error part of a response."""

    __slots__ = ("code", "details", "message")

    def __init__(self, code: int = 0, message: str = "", details: tuple[bytes, ...] = ()) -> None:
        self.code, self.message, self.details = code, message, details


def encode_request(request: Request) -> bytes:
    """The bytes of a request."""
    out = bytearray()
    _put_bytes(out, 1, request.service.encode())
    _put_bytes(out, 2, request.method.encode())
    _put_bytes(out, 3, request.payload)
    _put_varint(out, 4, request.timeout_nano)
    for key, values in request.metadata.items():
        for value in values:
            pair = bytearray()
            _put_bytes(pair, 1, key.encode())
            _put_bytes(pair, 2, value.encode())
            _put_bytes(out, 5, pair, always=True)
    return bytes(out)


def decode_request(data: bytes) -> Request:
    """Raises Malformed."""
    request = Request()
    metadata: dict[str, tuple[str, ...]] = {}
    pairs = 0
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            request.service = _text(value)
        elif number == 2 and isinstance(value, bytes):
            request.method = _text(value)
        elif number == 3 and isinstance(value, bytes):
            request.payload = value
        elif number == 4 and isinstance(value, int):
            request.timeout_nano = _signed(value)
        elif number == 5 and isinstance(value, bytes):
            pairs += 1
            if pairs > MAX_METADATA:
                raise Malformed(f"more than {MAX_METADATA} metadata pairs")
            key, text = _decode_pair(value)
            metadata[key] = (*metadata.get(key, ()), text)
    request.metadata = metadata
    return request


def _decode_pair(data: bytes) -> tuple[str, str]:
    key = text = ""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            key = _text(value)
        elif number == 2 and isinstance(value, bytes):
            text = _text(value)
    return key, text


def encode_response(status: Status | None, payload: bytes) -> bytes:
    """The bytes of a response; ``status`` is None for success, as the field is then left out."""
    out = bytearray()
    if status is not None:
        inner = bytearray()
        _put_varint(inner, 1, status.code)
        _put_bytes(inner, 2, status.message.encode(errors="replace"))
        for detail in status.details:
            _put_bytes(inner, 3, detail, always=True)
        _put_bytes(out, 1, inner, always=True)
    _put_bytes(out, 2, payload)
    return bytes(out)


def decode_response(data: bytes) -> tuple[Status | None, bytes]:
    """Status (None if absent or OK) and payload.  Raises Malformed."""
    encoded: bytes | None = None
    payload = b""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            encoded = value if encoded is None else encoded + value  # that is how they merge
        elif number == 2 and isinstance(value, bytes):
            payload = value
    if encoded is None:
        return None, payload
    status = Status()
    details: list[bytes] = []
    for number, value in _fields(encoded):
        if number == 1 and isinstance(value, int):
            code = value & 0xFFFFFFFF
            status.code = code - (1 << 32) if code >> 31 else code
        elif number == 2 and isinstance(value, bytes):
            status.message = value.decode(errors="replace")
        elif number == 3 and isinstance(value, bytes) and len(details) < MAX_DETAILS:
            details.append(value)
    status.details = tuple(details)
    return (status if status.code else None), payload


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Malformed("a string is not UTF-8") from None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _append_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_varint(out: bytearray, number: int, value: int) -> None:
    if value:
        out.append(number << 3 | _VARINT)
        _append_varint(out, value & 0xFFFFFFFFFFFFFFFF)


def _put_bytes(out: bytearray, number: int, value: bytes | bytearray, always: bool = False) -> None:
    if value or always:
        out.append(number << 3 | _BYTES)
        _append_varint(out, len(value))
        out += value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and the offset behind it."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise Malformed("message ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise Malformed("a number is longer than 10 bytes")


def _tag(data: bytes, at: int) -> tuple[int, int, int]:
    """Field number, wire type and the offset behind them."""
    tag, at = _varint(data, at)
    number = tag >> 3
    if not 0 < number < 1 << 29:
        raise Malformed(f"field number {number} is out of range")
    return number, tag & 7, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field that is a varint or bytes; skips the others."""
    at = 0
    while at < len(data):
        number, kind, at = _tag(data, at)
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == _BYTES:
            start, at = _span(data, at)
            yield number, data[start:at]
        else:
            at = _skip(data, at, number, kind)


def _span(data: bytes, at: int) -> tuple[int, int]:
    """Start and end of the bytes whose length stands at ``at``."""
    length, start = _varint(data, at)
    if length > len(data) - start:
        raise Malformed("message ends within a field")
    return start, start + length


def _skip(data: bytes, at: int, number: int, kind: int) -> int:
    """The offset behind a field of another kind."""
    groups: list[int] = []
    while True:
        if kind == _VARINT:
            at = _varint(data, at)[1]
        elif kind == _BYTES:
            at = _span(data, at)[1]
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
            if at > len(data):
                raise Malformed("message ends within a field")
        elif kind == _GROUP:
            groups.append(number)
            if len(groups) > _MAX_DEPTH:
                raise Malformed("groups are nested too deeply")
        elif kind == _END_GROUP and groups and groups.pop() == number:
            pass
        else:
            raise Malformed(f"wire type {kind} is out of place")
        if not groups:
            return at
        number, kind, at = _tag(data, at)
