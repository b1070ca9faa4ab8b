"""A stand-in for containerd's end of the events' connection, for when containerd is down."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path

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

    def __enter__(self) -> EventSink:
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
