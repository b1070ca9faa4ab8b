"""The protocol of one connection without any I/O: bytes in, events out; calls in, bytes out.

``receive_data`` turns what was read into events; the ``send_*`` methods return what is to be
written, and the bytes of one connection must be written in the order in which they were returned.
Bad bytes from the peer end in an event or in RemoteProtocolError, after which the connection can
only be closed; a wrong call from our own side raises LocalProtocolError and changes nothing.

Not thread-safe: the owner holds a lock around each call, and handles events after releasing it.
Knows no sockets, no clocks and no services.
"""

from __future__ import annotations

from . import frames
from .envelope import (
    MAX_METADATA,
    Request,
    Status,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from .errors import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, LocalProtocolError, RemoteProtocolError
from .protobuf import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

MAX_OPEN_STREAMS: Final = 4096
_MAX_MESSAGE: Final = 64 << 10  # characters of a status message that is sent

_NO_LOCAL, _NO_REMOTE, _UNARY = 1, 2, 4  # what an open stream has no more: bits of its state


class RequestReceived:
    """A call begins.

    ``streaming`` tells whether data frames may go either way; ``remote_closed`` that none will
    come from the client.
    """

    __slots__ = ("remote_closed", "request", "stream_id", "streaming")

    def __init__(
        self, stream_id: int, request: Request, streaming: bool, remote_closed: bool
    ) -> None:
        self.stream_id, self.request = stream_id, request
        self.streaming, self.remote_closed = streaming, remote_closed


class DataReceived:
    """A message on an open stream (``payload``, None for none) and maybe the peer's end of it."""

    __slots__ = ("closed", "payload", "stream_id")

    def __init__(self, stream_id: int, payload: bytes | None, closed: bool) -> None:
        self.stream_id, self.payload, self.closed = stream_id, payload, closed


class FrameRejected:
    """The client broke a rule on this stream; ``reply`` is the status to write to it.

    ``ended`` says that the rule was broken on an open stream, which is closed thereby.
    """

    __slots__ = ("code", "ended", "message", "reply", "stream_id")

    def __init__(self, stream_id: int, code: int, message: str, reply: bytes, ended: bool) -> None:
        self.stream_id, self.code, self.message = stream_id, code, message
        self.reply, self.ended = reply, ended


class ResponseReceived:
    """The server's last word on a stream: a status other than OK, or None and the payload."""

    __slots__ = ("payload", "status", "stream_id")

    def __init__(self, stream_id: int, status: Status | None, payload: bytes) -> None:
        self.stream_id, self.status, self.payload = stream_id, status, payload


class _Connection:
    """What both ends have in common."""

    def __init__(self) -> None:
        self._frames = frames.FrameBuffer()
        self._open: dict[int, int] = {}  # stream id -> state bits

    @property
    def open_streams(self) -> int:
        """Number of streams without a last word."""
        return len(self._open)

    def receive_eof(self) -> None:
        """The peer closed.  Raises RemoteProtocolError if it did so within a frame."""
        if self._frames.partial:
            raise RemoteProtocolError("connection ended within a frame")

    def forget(self, stream_id: int) -> None:
        """Give the stream up: nothing more will be sent or heard on it.  Idempotent."""
        self._open.pop(stream_id, None)

    def _state(self, stream_id: int, forbidden: int, what: str) -> int:
        state = self._open.get(stream_id)
        if state is None or state & forbidden:
            raise LocalProtocolError(f"cannot send {what} on stream {stream_id}")
        return state

    def _data(self, stream_id: int, payload: bytes) -> bytes:
        self._state(stream_id, _UNARY | _NO_LOCAL, "data")
        return frames.encode(stream_id, frames.DATA, 0, payload)


class ServerConnection(_Connection):
    """The server's end.  At most ``max_streams`` calls are open; more are rejected."""

    def __init__(self, max_streams: int = MAX_OPEN_STREAMS) -> None:
        super().__init__()
        self._max_streams = max_streams
        self._last_id = 0

    def receive_data(self, data: bytes) -> list[RequestReceived | DataReceived | FrameRejected]:
        """The events in these bytes.

        Any bytes at all are events here: a frame that breaks a rule is answered on its own
        stream, and frames of unknown types are passed over, as the Go server does.
        """
        events: list[RequestReceived | DataReceived | FrameRejected] = []
        for frame in self._frames.feed(data):
            if frame.type not in (frames.REQUEST, frames.DATA):
                continue
            if isinstance(frame, frames.Oversized):
                self._last_id = self._used(frame.type, frame.stream_id)
                message = f"message length {frame.length} exceeds maximum of {frames.MAX_BODY}"
                events.append(self._reject(frame.stream_id, RESOURCE_EXHAUSTED, message))
            elif frame.stream_id % 2 == 0:
                events.append(self._invalid(frame, "stream id must be odd"))
            elif frame.type == frames.REQUEST:
                events.append(self._request(frame))
            else:
                events.append(self._received(frame))
        return events

    def send_response(self, stream_id: int, payload: bytes) -> bytes:
        """The successful answer; the stream is closed by it.

        One that is too long for a frame is replaced by a RESOURCE_EXHAUSTED status.
        """
        self._state(stream_id, 0, "a response")
        body = encode_response(None, payload)
        if len(body) > frames.MAX_BODY:
            message = f"message length {len(body)} exceeds maximum of {frames.MAX_BODY}"
            return self.send_status(stream_id, RESOURCE_EXHAUSTED, message)
        del self._open[stream_id]
        return frames.encode(stream_id, frames.RESPONSE, 0, body)

    def send_status(
        self, stream_id: int, code: int, message: str, details: tuple[bytes, ...] = ()
    ) -> bytes:
        """The answer that is an error; the stream is closed by it.

        A message that is overlong is cut, and details that do not fit a frame are left out.
        """
        self._state(stream_id, 0, "a status")
        del self._open[stream_id]
        return _status_frame(stream_id, code, message, details)

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """One message of a streaming answer."""
        return self._data(stream_id, payload)

    def send_end(self, stream_id: int) -> bytes:
        """The successful end of a streaming answer; the stream is closed by it."""
        self._state(stream_id, _UNARY, "an end of data")
        del self._open[stream_id]
        flags = frames.REMOTE_CLOSED | frames.NO_DATA
        return frames.encode(stream_id, frames.DATA, flags, b"")

    def _used(self, type: int, stream_id: int) -> int:
        """The highest id that can not be used again, once this frame is seen."""
        if type == frames.REQUEST and stream_id % 2:
            return max(self._last_id, stream_id)
        return self._last_id

    def _request(self, frame: frames.Frame) -> RequestReceived | FrameRejected:
        stream_id = frame.stream_id
        if stream_id <= self._last_id:
            return self._invalid(frame, "stream id cannot be re-used and must increase")
        self._last_id = stream_id
        try:
            request = decode_request(frame.body)
        except Malformed as exc:
            return self._invalid(frame, f"request: {exc}")
        if len(self._open) >= self._max_streams:
            message = f"more than {self._max_streams} requests in flight on one connection"
            return self._reject(stream_id, RESOURCE_EXHAUSTED, message)
        streaming = bool(frame.flags & (frames.REMOTE_OPEN | frames.REMOTE_CLOSED))
        closed = bool(frame.flags & frames.REMOTE_CLOSED) or not streaming
        self._open[stream_id] = (_NO_REMOTE if closed else 0) | (0 if streaming else _UNARY)
        return RequestReceived(stream_id, request, streaming, closed)

    def _received(self, frame: frames.Frame) -> DataReceived | FrameRejected:
        state = self._open.get(frame.stream_id, _NO_REMOTE)
        if state & _NO_REMOTE:
            return self._invalid(frame, "stream is not open for data")
        closed = bool(frame.flags & frames.REMOTE_CLOSED)
        if closed:
            self._open[frame.stream_id] = state | _NO_REMOTE
        payload = None if frame.flags & frames.NO_DATA else frame.body
        return DataReceived(frame.stream_id, payload, closed)

    def _invalid(self, frame: frames.Frame, message: str) -> FrameRejected:
        return self._reject(frame.stream_id, INVALID_ARGUMENT, message)

    def _reject(self, stream_id: int, code: int, message: str) -> FrameRejected:
        ended = self._open.pop(stream_id, None) is not None
        reply = _status_frame(stream_id, code, message, ())
        return FrameRejected(stream_id, code, message, reply, ended)


class ClientConnection(_Connection):
    """The client's end."""

    def __init__(self) -> None:
        super().__init__()
        self._next_id = 1

    def receive_data(self, data: bytes) -> Iterator[ResponseReceived | DataReceived]:
        """The events in these bytes, to be taken to the last before the next call.

        Frames of streams that are not open are passed over.  Raises RemoteProtocolError for an
        answer that is none, after the events that came before it.
        """
        for frame in self._frames.feed(data):
            state = self._open.get(frame.stream_id)
            if state is None or frame.type not in (frames.RESPONSE, frames.DATA):
                continue
            if isinstance(frame, frames.Oversized):
                del self._open[frame.stream_id]
                message = f"message length {frame.length} exceeds maximum of {frames.MAX_BODY}"
                status = Status(RESOURCE_EXHAUSTED, message)
                yield ResponseReceived(frame.stream_id, status, b"")
            elif frame.type == frames.RESPONSE:
                yield self._response(frame)
            else:
                yield self._received(frame, state)

    def send_request(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_nano: int = 0,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
        *,
        streaming: bool = False,
        remote_open: bool = False,
    ) -> tuple[int, bytes]:
        """A new stream's id, and the bytes that open it.

        ``streaming`` makes it a stream; ``remote_open`` then says that data of ours will follow.
        Raises LocalProtocolError for a request that no frame or server takes, or without ids left.
        """
        stream_id = self._next_id
        if stream_id > frames.MAX_STREAM_ID:
            raise LocalProtocolError("the connection has no stream ids left")
        if metadata and sum(map(len, metadata.values())) > MAX_METADATA:
            raise LocalProtocolError(f"more than {MAX_METADATA} metadata pairs")
        body = encode_request(Request(service, method, payload, timeout_nano, metadata))
        flags = state = 0
        if not streaming:
            state = _UNARY | _NO_LOCAL
        elif remote_open:
            flags = frames.REMOTE_OPEN
        else:
            flags, state = frames.REMOTE_CLOSED, _NO_LOCAL
        data = frames.encode(stream_id, frames.REQUEST, flags, body)
        self._next_id += 2
        self._open[stream_id] = state
        return stream_id, data

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """One message of a streaming request."""
        return self._data(stream_id, payload)

    def send_end(self, stream_id: int) -> bytes:
        """The end of a streaming request's data; answers still come."""
        state = self._state(stream_id, _UNARY | _NO_LOCAL, "an end of data")
        self._open[stream_id] = state | _NO_LOCAL
        flags = frames.REMOTE_CLOSED | frames.NO_DATA
        return frames.encode(stream_id, frames.DATA, flags, b"")

    def is_open(self, stream_id: int) -> bool:
        """Whether an answer is still expected."""
        return stream_id in self._open

    def _response(self, frame: frames.Frame) -> ResponseReceived:
        try:
            status, payload = decode_response(frame.body)
        except Malformed as exc:
            raise RemoteProtocolError(f"response on stream {frame.stream_id}: {exc}") from None
        del self._open[frame.stream_id]
        return ResponseReceived(frame.stream_id, status, payload)

    def _received(self, frame: frames.Frame, state: int) -> DataReceived:
        if state & _UNARY:
            raise RemoteProtocolError(f"data on stream {frame.stream_id}, which is not streaming")
        closed = bool(frame.flags & frames.REMOTE_CLOSED)
        if closed:
            del self._open[frame.stream_id]
        payload = None if frame.flags & frames.NO_DATA else frame.body
        return DataReceived(frame.stream_id, payload, closed)


def _status_frame(stream_id: int, code: int, message: str, details: tuple[bytes, ...]) -> bytes:
    if len(message) > _MAX_MESSAGE:
        message = message[:_MAX_MESSAGE]
    body = encode_response(Status(code, message, details), b"")
    if len(body) > frames.MAX_BODY:
        body = encode_response(Status(code, message), b"")
    return frames.encode(stream_id, frames.RESPONSE, 0, body)
