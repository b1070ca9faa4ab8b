"""The server's side of one connection: its socket, its protocol state and what is unsent.

Answers are written by the thread that gives them as far as the socket takes them at once; the rest
is kept and sent by the I/O thread when the peer reads on.  So no thread ever waits for a peer, and
a stuck one delays nobody else.  Knows no handlers and no epoll.
"""

from __future__ import annotations

import _socket
from threading import Condition, Lock
from time import monotonic

from .connection import ServerConnection
from .errors import ConnectionLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from .call import Call
    from .connection import DataReceived, FrameRejected, RequestReceived

HIGH_WATER: Final = 256 << 10  # unsent bytes from which on the peer is not read, streams not fed
MAX_UNSENT: Final = 32 << 20  # unsent bytes that end the connection
_READ_SIZE: Final = 64 << 10


class Peer:
    """A connected client.  ``respond`` to ``drop`` are for any thread, the rest for the I/O thread.

    ``attention`` is called, under the peer's lock, when the I/O thread has something new to look
    at: unsent bytes, a broken socket, or while draining an answered call.
    """

    def __init__(
        self,
        sock: _socket.socket,
        max_streams: int,
        send_timeout: float,
        attention: Callable[[Peer], None],
    ) -> None:
        self.socket: Final = sock
        self.mask = 0  # what epoll watches; I/O thread only
        self._send_timeout, self._attention = send_timeout, attention
        self._lock = Lock()
        self._room = Condition(self._lock)  # unsent bytes went below HIGH_WATER, or closed
        self._protocol = ServerConnection(max_streams)  # guarded by _lock
        self._calls: dict[int, Call] = {}  # guarded by _lock
        self._unsent: list[memoryview] = []  # guarded by _lock
        self._unsent_size = 0  # guarded by _lock
        self._progress_at = 0.0  # guarded by _lock; last time that unsent bytes got fewer
        self._draining = False  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._broken = ""  # guarded by _lock; why nothing can be sent any more

    # For any thread

    def respond(self, stream_id: int, payload: bytes) -> bool:
        """Write a successful answer; False if the connection can take none any more."""
        with self._lock:
            if not self._finish_locked(stream_id):
                return False
            self._write_locked(self._protocol.send_response(stream_id, payload))
            return not self._broken

    def fail(self, stream_id: int, code: int, message: str, details: tuple[bytes, ...]) -> None:
        """Write an error."""
        with self._lock:
            if self._finish_locked(stream_id):
                self._write_locked(self._protocol.send_status(stream_id, code, message, details))

    def end(self, stream_id: int) -> None:
        """Write the end of a streaming answer."""
        with self._lock:
            if self._finish_locked(stream_id):
                self._write_locked(self._protocol.send_end(stream_id))

    def drop(self, stream_id: int) -> None:
        """End a stream without a word: its client has stopped waiting."""
        with self._lock:
            if self._finish_locked(stream_id):
                self._protocol.forget(stream_id)

    def data(self, stream_id: int, payload: bytes) -> None:
        """Write a message of a streaming answer, once there is room for it.

        Raises ConnectionLost.  Waits no longer than a stuck connection is kept.
        """
        with self._room:
            while self._unsent_size > HIGH_WATER and not self._closed:
                self._room.wait()  # ended by flush or close, of which one comes in bounded time
            if self._closed or stream_id not in self._calls:
                raise ConnectionLost("the client is gone")
            self._write_locked(self._protocol.send_data(stream_id, payload))

    def hang_up(self) -> None:
        """Close the connection if nothing is under way on it."""
        with self._lock:
            if not (self._closed or self._calls or self._unsent):
                self._break_locked("its stream is over")

    # For the I/O thread

    def read(self) -> list[RequestReceived | DataReceived | FrameRejected] | None:
        """Read once without waiting; None at the end.  Raises RemoteProtocolError, OSError."""
        try:
            data = self.socket.recv(_READ_SIZE, _socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return []
        with self._lock:
            if not data:
                self._protocol.receive_eof()
                return None
            return self._protocol.receive_data(data)

    def reject(self, event: FrameRejected) -> Call | None:
        """Write the answer to a bad frame; returns the call that was ended by it, if any."""
        with self._lock:
            self._write_locked(event.reply)
            return self._calls.pop(event.stream_id, None) if event.ended else None

    def begin(self, stream_id: int, call: Call) -> None:
        """Remember an open call, to cancel it if the connection goes."""
        with self._lock:
            self._calls[stream_id] = call

    def call(self, stream_id: int) -> Call | None:
        """The open call on a stream."""
        with self._lock:
            return self._calls.get(stream_id)

    def flush(self) -> None:
        """Send what was left unsent, as far as the socket takes it."""
        with self._lock:
            while self._unsent and not self._broken:
                chunk = self._unsent[0]
                sent = self._send_locked(chunk)
                if not sent:
                    break
                self._progress_at = monotonic()
                self._unsent_size -= sent
                if sent == len(chunk):
                    del self._unsent[0]
                else:
                    self._unsent[0] = chunk[sent:]
            if self._unsent_size <= HIGH_WATER:
                self._room.notify_all()

    def wants(self) -> tuple[bool, bool]:
        """Whether to watch for reading, and for writing."""
        with self._lock:
            return self._unsent_size <= HIGH_WATER, bool(self._unsent)

    def stuck_at(self) -> float | None:
        """When, by ``time.monotonic``, the peer will have read nothing for too long."""
        with self._lock:
            return self._progress_at + self._send_timeout if self._unsent else None

    @property
    def broken(self) -> str:
        """Why the connection has to be closed; empty if it has not."""
        with self._lock:
            return self._broken

    def drain(self) -> None:
        """From now on call for attention with each call that ends."""
        with self._lock:
            self._draining = True

    @property
    def idle(self) -> bool:
        """Whether no call is open and nothing is unsent."""
        with self._lock:
            return not self._calls and not self._unsent

    def close(self) -> list[Call]:
        """Close the socket; returns the calls that were open, for the caller to cancel."""
        with self._lock:
            self._closed = True
            self.socket.close()
            calls = list(self._calls.values())
            self._calls = {}
            self._unsent = []
            self._unsent_size = 0
            self._room.notify_all()
            return calls

    def _finish_locked(self, stream_id: int) -> bool:
        """Take the call off the books; False if it was off already."""
        if self._closed or self._calls.pop(stream_id, None) is None:
            return False
        if self._draining:
            self._attention(self)
        return True

    def _write_locked(self, data: bytes) -> None:
        if self._closed or self._broken:
            return
        sent = 0 if self._unsent else self._send_locked(memoryview(data))
        if sent == len(data) or self._broken:
            return
        if not self._unsent:
            self._progress_at = monotonic()
            self._attention(self)
        self._unsent.append(memoryview(data)[sent:])
        self._unsent_size += len(data) - sent
        if self._unsent_size > MAX_UNSENT:
            self._break_locked(f"{self._unsent_size} bytes unsent")

    def _send_locked(self, data: memoryview) -> int:
        try:
            return self.socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._break_locked(f"send: {exc.strerror}")
            return 0

    def _break_locked(self, why: str) -> None:
        self._broken = why
        self._attention(self)
