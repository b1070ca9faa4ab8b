"""Just enough of the protobuf wire format for ``start``, ``delete`` and ``-info``.

Importing protobuf costs more than all the rest of those commands together, and they read and
write a handful of flat messages.  Pure; knows no message by name but Any and Timestamp.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10


class WireError(ValueError):
    """The bytes are not a message of this shape."""


def varint(value: int) -> bytes:
    """``value`` as a varint; a negative one takes ten bytes, as protobuf's int32 and enums do."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """An integer, enum or bool field; nothing for zero, as proto3 has it."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A string, bytes or message field; nothing if empty (wrong for a message that is present)."""
    if not value:
        return b""
    data = value.encode("utf-8") if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def any_message(type_url: str, value: bytes) -> bytes:
    """A google.protobuf.Any."""
    return bytes_field(1, type_url) + bytes_field(2, value)


def timestamp(nanoseconds: int) -> bytes:
    """A google.protobuf.Timestamp of a time since the epoch."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return number_field(1, seconds) + number_field(2, nanos)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MAX_VARINT):
        if at >= len(data):
            raise WireError("truncated varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise WireError("varint of more than ten bytes")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field as (number, value): an int for numbers (64 bits, unsigned), else bytes.

    Raises WireError, possibly after some fields were yielded.
    """
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number}")
        if kind == VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise WireError(f"wire type {kind}")
        if size > len(data) - at:
            raise WireError("truncated field")
        chunk = data[at : at + size]
        at += size
        yield number, chunk if kind == BYTES else int.from_bytes(chunk, "little")


def text(value: int | bytes) -> str:
    """A string field's value.  Raises WireError if it isn't one."""
    if isinstance(value, int):
        raise WireError("a number where a string belongs")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("a string that is not UTF-8") from None


def blob(value: int | bytes) -> bytes:
    """A bytes or message field's value.  Raises WireError if it isn't one."""
    if isinstance(value, int):
        raise WireError("a number where bytes belong")
    return value


def number(value: int | bytes) -> int:
    """A number field's value, signed.  Raises WireError if it isn't one."""
    if not isinstance(value, int):
        raise WireError("bytes where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def parse_any(data: bytes) -> tuple[str, bytes]:
    """Type URL and value of a google.protobuf.Any.  Raises WireError."""
    type_url, content = "", b""
    for field, value in fields(data):
        if field == 1:
            type_url = text(value)
        elif field == 2:
            content = blob(value)
    return type_url, content
