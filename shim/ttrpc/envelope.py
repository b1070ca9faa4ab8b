"""The three protobuf messages of ttrpc itself, coded by hand: Request, Response and Status.

    Request  { string service = 1; string method = 2; bytes payload = 3; int64 timeout_nano = 4;
               repeated KeyValue metadata = 5 }
    KeyValue { string key = 1; string value = 2 }
    Response { google.rpc.Status status = 1; bytes payload = 2 }
    Status   { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3 }

They are few and frozen, and a protobuf library would cost more memory than the rest of the server.
Sizes are bounded by the frame that the bytes came in.
"""

from __future__ import annotations

from .protobuf import Malformed, bytes_field, fields, number, number_field, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

MAX_METADATA: Final = 1024  # pairs in a request
MAX_DETAILS: Final = 256  # details in a status


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
    out = [
        bytes_field(1, request.service),
        bytes_field(2, request.method),
        bytes_field(3, request.payload),
        number_field(4, request.timeout_nano),
    ]
    for key, values in request.metadata.items():
        for value in values:
            out.append(bytes_field(5, bytes_field(1, key) + bytes_field(2, value), always=True))
    return b"".join(out)


def decode_request(data: bytes) -> Request:
    """Raises Malformed."""
    request = Request()
    metadata: dict[str, tuple[str, ...]] = {}
    pairs = 0
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            request.service = text(value)
        elif field == 2 and isinstance(value, bytes):
            request.method = text(value)
        elif field == 3 and isinstance(value, bytes):
            request.payload = value
        elif field == 4 and isinstance(value, int):
            request.timeout_nano = number(value)
        elif field == 5 and isinstance(value, bytes):
            pairs += 1
            if pairs > MAX_METADATA:
                raise Malformed(f"more than {MAX_METADATA} metadata pairs")
            key, content = _decode_pair(value)
            metadata[key] = (*metadata.get(key, ()), content)
    request.metadata = metadata
    return request


def _decode_pair(data: bytes) -> tuple[str, str]:
    key = content = ""
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            key = text(value)
        elif field == 2 and isinstance(value, bytes):
            content = text(value)
    return key, content


def encode_response(status: Status | None, payload: bytes) -> bytes:
    """The bytes of a response; ``status`` is None for success, as the field is then left out."""
    out = bytes_field(2, payload)
    if status is None:
        return out
    inner = number_field(1, status.code) + bytes_field(2, status.message.encode(errors="replace"))
    for detail in status.details:
        inner += bytes_field(3, detail, always=True)
    return bytes_field(1, inner, always=True) + out


def decode_response(data: bytes) -> tuple[Status | None, bytes]:
    """Status (None if absent or OK) and payload.  Raises Malformed."""
    encoded: bytes | None = None
    payload = b""
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            encoded = value if encoded is None else encoded + value  # that is how they merge
        elif field == 2 and isinstance(value, bytes):
            payload = value
    if encoded is None:
        return None, payload
    status = Status()
    details: list[bytes] = []
    for field, value in fields(encoded):
        if field == 1 and isinstance(value, int):
            code = value & 0xFFFFFFFF
            status.code = code - (1 << 32) if code >> 31 else code
        elif field == 2 and isinstance(value, bytes):
            status.message = value.decode(errors="replace")
        elif field == 3 and isinstance(value, bytes) and len(details) < MAX_DETAILS:
            details.append(value)
    status.details = tuple(details)
    return (status if status.code else None), payload
