"""A stand-in for containerd's end of the events' connection, for when containerd is down."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path
from typing import Self

from integration.harness.clients import api
from integration.harness.clients.ttrpc import HEADER, REQUEST, REQUEST_BODY, RESPONSE, frame
from integration.harness.clients.wire import Msg, Schema

_FORWARD = Schema("envelope:1:@", api.Envelope)


class EventSink:
    """Listens where containerd would, takes every event and says that all is well."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._events: queue.SimpleQueue[tuple[str, Msg]] = queue.SimpleQueue()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._connections: list[socket.socket] = []
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for each in (self._listener, *self._connections):
            each.close()
        self._path.unlink(missing_ok=True)

    def next(self, timeout: float = 15) -> tuple[str, Msg]:
        """The next event: its topic without /tasks/, and itself."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no event within {timeout:g} s") from None

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while head := stream.read(HEADER.size):
                length, number, kind, _ = HEADER.unpack(head)
                body = stream.read(length)
                if kind != REQUEST:
                    continue
                payload = REQUEST_BODY.decode(body).payload
                topic, event = api.event_of(_FORWARD.decode(payload).envelope)
                self._events.put((topic.removeprefix("/tasks/"), event))
                connection.sendall(frame(b"", number, kind=RESPONSE))


class EventTap(EventSink):
    """Stands before containerd's end of the events' connection, and notes what that has taken.

    Where containerd doesn't run, a connection ends at once, as one that is refused.
    """

    def __init__(self, path: Path, containerd: Path) -> None:
        self._containerd = containerd
        self._lock = threading.Lock()
        self._taken: list[tuple[str, Msg]] = []  # guarded by _lock
        super().__init__(path)

    def taken(self) -> list[tuple[str, Msg]]:
        """All events so far: each one's topic without /tasks/, and itself."""
        with self._lock:
            return list(self._taken)

    def _serve(self, connection: socket.socket) -> None:
        above = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(OSError, EOFError), connection, above:
            above.connect(str(self._containerd))
            while True:
                head, body = _whole(connection)
                above.sendall(head + body)
                answer = b"".join(_whole(above))
                topic, event = api.event_of(
                    _FORWARD.decode(REQUEST_BODY.decode(body).payload).envelope
                )
                with self._lock:
                    self._taken.append((topic.removeprefix("/tasks/"), event))
                connection.sendall(answer)


def _whole(source: socket.socket) -> tuple[bytes, bytes]:
    """A frame's head and body.  Raises EOFError."""
    head = source.recv(HEADER.size, socket.MSG_WAITALL)
    if len(head) < HEADER.size:
        raise EOFError
    body = source.recv(HEADER.unpack(head)[0], socket.MSG_WAITALL)
    return head, body
