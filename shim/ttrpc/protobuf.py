"""Protobuf's wire format, coded by hand: for ttrpc's own messages, and for commands that end soon.

Such a command would spend more on loading the protobuf library than on all the rest.  Pure; knows
no message by name but Any and Timestamp.  Decoding skips unknown fields, and known ones of another
wire type, as protobuf does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_MAX_DEPTH: Final = 64  # of unknown groups

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


class Malformed(ValueError):
    """The bytes are not the message that they should be."""


def varint(value: int) -> bytes:
    """``value`` as a varint; a negative one takes ten bytes, as protobuf's int32 and enums do."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """An integer, enum or bool field; nothing for zero, as proto3 has it."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, value: bytes | str, *, always: bool = False) -> bytes:
    """A string, bytes or message field; nothing if empty, unless ``always``."""
    if not value and not always:
        return b""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def any_message(type_url: str, value: bytes) -> bytes:
    """A google.protobuf.Any."""
    return bytes_field(1, type_url) + bytes_field(2, value)


def timestamp(nanoseconds: int) -> bytes:
    """A google.protobuf.Timestamp of a time since the epoch."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return number_field(1, seconds) + number_field(2, nanos)


def text(value: int | bytes) -> str:
    """A string field's value.  Raises Malformed if it isn't one."""
    if isinstance(value, int):
        raise Malformed("a number where a string belongs")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("a string that is not UTF-8") from None


def blob(value: int | bytes) -> bytes:
    """A bytes or message field's value.  Raises Malformed if it isn't one."""
    if isinstance(value, int):
        raise Malformed("a number where bytes belong")
    return value


def number(value: int | bytes) -> int:
    """A number field's value, signed.  Raises Malformed if it isn't one."""
    if not isinstance(value, int):
        raise Malformed("bytes where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def parse_any(data: bytes) -> tuple[str, bytes]:
    """Type URL and value of a google.protobuf.Any.  Raises Malformed."""
    type_url, content = "", b""
    for field, value in fields(data):
        if field == 1:
            type_url = text(value)
        elif field == 2:
            content = blob(value)
    return type_url, content


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


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field that is a varint (64 bits, unsigned) or bytes.

    Raises Malformed, possibly after some fields were yielded.
    """
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
