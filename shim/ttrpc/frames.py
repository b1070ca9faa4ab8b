"""The frame layer: a 10-byte header and a body.  Pure; knows no messages and no stream rules.

    u32 length of the body | u32 stream id | u8 type | u8 flags      (big-endian)

A body is at most 4 MiB.  The header of a longer one is honoured: its body is skipped, so that the
connection stays usable.
"""

from __future__ import annotations

from struct import Struct

from .errors import LocalProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER_LENGTH: Final = 10
MAX_BODY: Final = 4 << 20
MAX_STREAM_ID: Final = (1 << 32) - 1

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x1  # the sender will send no more on this stream
REMOTE_OPEN: Final = 0x2  # on a request: data frames of the sender follow
NO_DATA: Final = 0x4  # on a data frame: it carries no message, which is not an empty message

_HEADER = Struct(">IIBB")


class Frame:
    """A whole frame."""

    __slots__ = ("body", "flags", "stream_id", "type")

    def __init__(self, stream_id: int, type: int, flags: int, body: bytes) -> None:
        self.stream_id, self.type, self.flags, self.body = stream_id, type, flags, body


class Oversized:
    """A frame whose body of ``length`` bytes was too long, and was skipped."""

    __slots__ = ("flags", "length", "stream_id", "type")

    def __init__(self, stream_id: int, type: int, flags: int, length: int) -> None:
        self.stream_id, self.type, self.flags, self.length = stream_id, type, flags, length


def encode(stream_id: int, type: int, flags: int, body: bytes) -> bytes:
    """The bytes of a frame.  Raises LocalProtocolError if a part is out of its range."""
    if len(body) > MAX_BODY:
        raise LocalProtocolError(f"frame body of {len(body)} bytes exceeds {MAX_BODY}")
    if not 0 <= stream_id <= MAX_STREAM_ID:
        raise LocalProtocolError(f"stream id {stream_id} is out of range")
    return _HEADER.pack(len(body), stream_id, type, flags) + body


class FrameBuffer:
    """Cuts a byte stream into frames.  Holds at most one incomplete frame; not thread-safe."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes of an oversized body still to come
        self._skipped: Oversized | None = None

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame."""
        return bool(self._buffer) or self._skipped is not None

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """The frames that these bytes complete, in order.  Accepts any bytes at all."""
        frames: list[Frame | Oversized] = []
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while True:
            if self._skipped is not None:
                step = min(self._skip, end - start)
                start += step
                self._skip -= step
                if self._skip:
                    break
                frames.append(self._skipped)
                self._skipped = None
            if end - start < HEADER_LENGTH:
                break
            length, stream_id, type, flags = _HEADER.unpack_from(buffer, start)
            if length > MAX_BODY:
                start += HEADER_LENGTH
                self._skip, self._skipped = length, Oversized(stream_id, type, flags, length)
                continue
            if end - start < HEADER_LENGTH + length:
                break
            start += HEADER_LENGTH
            frames.append(Frame(stream_id, type, flags, bytes(buffer[start : start + length])))
            start += length
        if start == end:
            self._buffer = bytearray()  # a bytearray keeps its room, an idle connection needs none
        elif start:
            del buffer[:start]
        return frames
