"""The client: many callers on one connection, and no thread of its own.

A caller that waits for its answer reads the socket, one caller at a time.  It hands the answers of
others to them and, when it has its own, leaves the reading to the next.  So an idle client notices
a closed connection only with its next call.
"""

from __future__ import annotations

import _socket
import os
from select import POLLIN, POLLOUT, poll
from struct import Struct
from threading import Condition, Lock
from time import monotonic

from .call import Inbox
from .connection import ClientConnection, DataReceived, ResponseReceived
from .errors import (
    RESOURCE_EXHAUSTED,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    StatusError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

CONNECT_TIMEOUT: Final = 10.0  # seconds
_READ_SIZE: Final = 64 << 10
_LONGEST_POLL: Final = 1e6  # seconds; poll takes no more than 2^31 ms
_LONGEST_CALL: Final = 1e9  # seconds; locks and the wire's nanoseconds take no more than 9e9
_TIMEVAL = Struct("@ll")


def connect(address: str, timeout: float | None = CONNECT_TIMEOUT) -> _socket.socket:
    """A stream socket connected to ``unix:///path``, ``/path`` or ``\\0abstract``.

    Raises TimeoutError if the server's backlog stays full, FileNotFoundError,
    ConnectionRefusedError and other OSErrors of connect(2).
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if timeout is not None:
            # A non-blocking connect would fail at once, not wait, on a full backlog.
            seconds, micros = divmod(max(1, int(timeout * 1e6)), 1_000_000)
            limit = _TIMEVAL.pack(seconds, micros)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
        try:
            sock.connect(address.removeprefix("unix://"))
        except BlockingIOError:
            raise TimeoutError(f"connect to {address}: backlog is full") from None
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Client:
    """A connection to a server, or to the ``address`` of one (see :func:`connect`).

    Owns the socket.  All methods may be called from any thread.  Once anything has raised
    ConnectionLost the client is closed for good; make a new one.
    """

    def __init__(
        self, target: _socket.socket | str, timeout: float | None = CONNECT_TIMEOUT
    ) -> None:
        if isinstance(target, str):
            target = connect(target, timeout)
        target.setblocking(False)
        self._socket = target
        self._fd = target.fileno()
        self._sending = Lock()  # held while writing, so that frames go out whole and in order
        self._turn = Condition(Lock())  # a leaf, taken under _sending
        self._protocol = ClientConnection()  # guarded by _turn
        self._inboxes: dict[int, _Answer] = {}  # guarded by _turn
        self._reading = False  # guarded by _turn; one caller is reading
        self._lost = ""  # guarded by _turn; why the connection is of no more use
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # ends waits on close

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be gone."""
        with self._turn:
            return bool(self._lost)

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
    ) -> bytes:
        """A unary call; the reply's payload.  ``timeout`` in seconds, None for no limit.

        The time-out is told to the server and kept here.  Raises StatusError for an answer that
        is an error, TimeoutError, ConnectionLost, and LocalProtocolError for an oversized request.
        """
        deadline = _deadline(timeout)
        answer = self._open(service, method, payload, deadline, metadata)
        try:
            self._await(answer, deadline)
            payload_or_end = answer.inbox.take(0)
        finally:
            self._forget(answer)
        return payload_or_end or b""

    def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
        remote_open: bool = True,
    ) -> ClientStream:
        """A streaming call.  ``remote_open`` False: all that we have to say is ``payload``.

        ``timeout`` bounds the whole call.  Raises TimeoutError, ConnectionLost,
        LocalProtocolError.
        """
        deadline = _deadline(timeout)
        answer = self._open(
            service, method, payload, deadline, metadata, streaming=True, remote_open=remote_open
        )
        return ClientStream(self, answer, deadline)

    def close(self) -> None:
        """End the connection.  Waiting callers get ConnectionLost.  Idempotent."""
        self._lose("the client was closed")
        with self._sending, self._turn:
            # Whoever polls holds one of these or _reading, so that no descriptor is closed, and
            # its number taken anew, under a poll.
            self._turn.wait_for(lambda: not self._reading)
            if self._fd >= 0:
                self._fd = -1
                self._socket.close()
                os.close(self._wake)

    # For ClientStream

    def send_data(self, answer: _Answer, payload: bytes | None, deadline: float | None) -> None:
        """Write a message of a stream, or None for the end of it."""
        self._acquire_sending(deadline)
        try:
            with self._turn:
                self._check_locked()
                if not self._protocol.is_open(answer.stream_id):
                    return  # it has ended already; taking its outcome will tell how
                if payload is None:
                    data = self._protocol.send_end(answer.stream_id)
                else:
                    data = self._protocol.send_data(answer.stream_id, payload)
            self._write(data, deadline)
        finally:
            self._sending.release()

    def receive(self, answer: _Answer, deadline: float | None) -> bytes | None:
        """The next message of a stream, or None at its end."""
        self._await(answer, deadline)
        return answer.inbox.take(0)

    def forget(self, answer: _Answer) -> None:
        """Give a stream up."""
        self._forget(answer)

    # Writing

    def _open(
        self,
        service: str,
        method: str,
        payload: bytes,
        deadline: float | None,
        metadata: Mapping[str, tuple[str, ...]] | None,
        *,
        streaming: bool = False,
        remote_open: bool = False,
    ) -> _Answer:
        self._acquire_sending(deadline)
        try:
            # Zero would mean "no limit" to the server.
            nanos = 0
            if deadline is not None:
                nanos = max(1, int((deadline - monotonic()) * 1e9))
            with self._turn:
                self._check_locked()
                stream_id, data = self._protocol.send_request(
                    service,
                    method,
                    payload,
                    nanos,
                    metadata,
                    streaming=streaming,
                    remote_open=remote_open,
                )
                answer = self._inboxes[stream_id] = _Answer(stream_id, streaming)
            self._write(data, deadline)
            return answer
        finally:
            self._sending.release()

    def _acquire_sending(self, deadline: float | None) -> None:
        left = -1.0 if deadline is None else max(0.0, deadline - monotonic())
        if not self._sending.acquire(timeout=left):
            raise TimeoutError("another call is still being sent")

    def _write(self, data: bytes, deadline: float | None) -> None:
        """Under _sending.  A frame that was sent in part makes the connection useless."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view, _socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                try:
                    self._poll(POLLOUT, deadline)
                except TimeoutError:
                    self._lose("the server does not read")
                    raise
                with self._turn:
                    self._check_locked()
            except OSError as exc:
                self._lose(f"send: {exc.strerror}")
                raise ConnectionLost(f"send: {exc.strerror}") from None

    def _poll(self, events: int, deadline: float | None) -> None:
        """Wait for the socket, or for the end of the connection; may return early.

        Raises TimeoutError.
        """
        poller = poll()
        poller.register(self._fd, events)
        poller.register(self._wake, POLLIN)
        if deadline is None:
            poller.poll()
            return
        left = max(0.0, deadline - monotonic())
        if not poller.poll(min(left, _LONGEST_POLL) * 1000) and left <= _LONGEST_POLL:
            raise TimeoutError("no answer in time")

    # Reading

    def _await(self, answer: _Answer, deadline: float | None) -> None:
        """Until the answer's inbox has something.  Raises TimeoutError."""
        while True:
            with self._turn:
                while self._reading and not answer.inbox.ready:
                    left = None if deadline is None else deadline - monotonic()
                    if not self._turn.wait(left):
                        raise TimeoutError("no answer in time")
                if answer.inbox.ready:
                    return
                self._reading = True
            try:
                self._read(deadline)
            finally:
                with self._turn:
                    self._reading = False
                    self._turn.notify_all()

    def _read(self, deadline: float | None) -> None:
        """Read once and hand out what came.  Called by the one that set _reading."""
        self._poll(POLLIN, deadline)
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._lose(f"recv: {exc.strerror}")
            return
        try:
            with self._turn:
                if data:
                    for event in self._protocol.receive_data(data):
                        self._dispatch_locked(event)
                    return
                self._protocol.receive_eof()
        except RemoteProtocolError as exc:
            self._lose(str(exc))
        else:
            self._lose("the server closed the connection")

    def _dispatch_locked(self, event: ResponseReceived | DataReceived) -> None:
        answer = self._inboxes.get(event.stream_id)
        if answer is None:
            return
        inbox = answer.inbox
        if isinstance(event, DataReceived):
            if not inbox.put(event.payload, event.closed):
                inbox.abort(StatusError(RESOURCE_EXHAUSTED, "receive buffer of stream is full"))
                self._protocol.forget(event.stream_id)
        elif event.status is not None:
            status = event.status
            inbox.abort(StatusError(status.code, status.message, status.details))
        elif answer.streaming and not event.payload:
            inbox.put(None, True)
        elif not inbox.put(event.payload, True):
            inbox.abort(StatusError(RESOURCE_EXHAUSTED, "receive buffer of stream is full"))

    def _forget(self, answer: _Answer) -> None:
        with self._turn:
            self._inboxes.pop(answer.stream_id, None)
            self._protocol.forget(answer.stream_id)
            answer.inbox.abort(LocalProtocolError("the call was given up"))

    def _check_locked(self) -> None:
        if self._lost:
            raise ConnectionLost(self._lost)

    def _lose(self, why: str) -> None:
        """The connection is of no more use: tell all that wait."""
        with self._turn:
            if self._lost:
                return
            self._lost = why
            os.eventfd_write(self._wake, 1)
            for answer in self._inboxes.values():
                answer.inbox.abort(ConnectionLost(why))
            self._turn.notify_all()


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + min(timeout, _LONGEST_CALL)


class _Answer:
    """What has come for one stream."""

    __slots__ = ("inbox", "stream_id", "streaming")

    def __init__(self, stream_id: int, streaming: bool) -> None:
        self.stream_id, self.streaming = stream_id, streaming
        self.inbox = Inbox()


class ClientStream:
    """A streaming call of ours."""

    def __init__(self, client: Client, answer: _Answer, deadline: float | None) -> None:
        self._client, self._answer, self._deadline = client, answer, deadline

    def __enter__(self) -> ClientStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, payload: bytes) -> None:
        """Send a message.  Raises TimeoutError, ConnectionLost, LocalProtocolError.

        On a stream that the server has ended it does nothing; ``recv`` tells how it ended.
        """
        self._client.send_data(self._answer, payload, self._deadline)

    def close_send(self) -> None:
        """Say that no more will be sent.  Raises as ``send`` does."""
        self._client.send_data(self._answer, None, self._deadline)

    def recv(self, timeout: float | None = None) -> bytes | None:
        """The next message, None at the end.  Raises StatusError, TimeoutError, ConnectionLost."""
        limits = [d for d in (self._deadline, _deadline(timeout)) if d is not None]
        deadline = min(limits, default=None)
        return self._client.receive(self._answer, deadline)

    def close(self) -> None:
        """Give the stream up here; the protocol cannot tell the server.  Idempotent."""
        self._client.forget(self._answer)
