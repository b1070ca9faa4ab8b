"""A table-driven protobuf codec: just enough for containerd's API.

A message is a `Schema`; values are `Msg` objects with one attribute for each field.  It knows
nothing of services or sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

_U64 = (1 << 64) - 1
_SCALARS: dict[str, Any] = {"string": "", "bytes": b"", "uint": 0, "int": 0, "bool": False}


class Msg(SimpleNamespace):
    """A decoded message."""


class Schema:
    """The fields of one message: `Schema("id:1 signal:3:uint rootfs:4:@*", Mount)`.

    Each word is `name:number[:kind][*]`; the kind is string (the default), bytes, uint, int,
    bool, map (string to string) or `@`, which takes the next of the nested schemas.
    """

    def __init__(self, text: str, *nested: Schema) -> None:
        self.by_name: dict[str, tuple[int, str | Schema, bool]] = {}
        self.by_number: dict[int, str] = {}
        rest = iter(nested)
        for word in text.split():
            many = word.endswith("*")
            parts = word.rstrip("*").split(":")
            kind: str | Schema = parts[2] if len(parts) > 2 else "string"
            if kind == "@":
                kind = next(rest)
            self.by_name[parts[0]] = (int(parts[1]), kind, many)
            self.by_number[int(parts[1])] = parts[0]

    def encode(self, **values: Any) -> bytes:
        """The wire form; fields that are not named, None or zero are left out."""
        out = bytearray()
        for name, value in values.items():
            number, kind, many = self.by_name[name]
            if value is None:
                continue
            if kind == "map":
                for key, item in value.items():
                    out += _field(
                        number, "bytes", _field(1, "string", key) + _field(2, "string", item)
                    )
            elif many:
                for item in value:
                    out += _field(number, kind, item)
            elif value or isinstance(kind, Schema):
                out += _field(number, kind, value)
        return bytes(out)

    def decode(self, data: bytes) -> Msg:
        """The message in `data`; ValueError when it is none."""
        values: dict[str, Any] = {}
        for name, (_, kind, many) in self.by_name.items():
            empty: Any = (
                None if isinstance(kind, Schema) else {} if kind == "map" else _SCALARS[kind]
            )
            values[name] = [] if many else empty
        for number, raw in fields(data):
            name = self.by_number.get(number, "")
            if not name:
                continue
            _, kind, many = self.by_name[name]
            if kind == "map":
                entry = dict(fields(_as_bytes(raw)))
                values[name][_text(entry.get(1, b""))] = _text(entry.get(2, b""))
                continue
            value = _value(kind, raw)
            if many:
                values[name].append(value)
            else:
                values[name] = value
        return Msg(**values)


def _varint(value: int) -> bytes:
    value &= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, kind: str | Schema, value: Any) -> bytes:
    if isinstance(kind, Schema):
        body = value if isinstance(value, bytes) else kind.encode(**vars_of(value))
    elif kind == "string":
        body = value.encode()
    elif kind == "bytes":
        body = value
    else:
        return _varint(number << 3) + _varint(int(value))
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def vars_of(value: Any) -> dict[str, Any]:
    """The fields of a message that was given as a dict or as a `Msg`."""
    return dict(value) if isinstance(value, dict) else vars(value)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Every field of a message, undecoded: (number, integer or bytes)."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield number, data[at : at + size]
            at += size
        elif wire == 2:
            size, at = _read_varint(data, at)
            if at + size > len(data):
                raise ValueError("message cut short")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _as_bytes(raw: int | bytes) -> bytes:
    if not isinstance(raw, bytes):
        raise ValueError("integer where bytes are due")
    return raw


def _text(raw: int | bytes) -> str:
    return _as_bytes(raw).decode()


def _value(kind: str | Schema, raw: int | bytes) -> Any:
    if isinstance(kind, Schema):
        return kind.decode(_as_bytes(raw))
    if kind == "string":
        return _text(raw)
    if kind == "bytes":
        return _as_bytes(raw)
    if not isinstance(raw, int):
        raise ValueError("bytes where an integer is due")
    if kind == "bool":
        return bool(raw)
    return raw - (1 << 64) if kind == "int" and raw >> 63 else raw
