"""A control server that speaks the sentry's protocol over a real socket, as badly as one wants."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any


class SentryError(Exception):
    """A handler's way to answer with an error text."""


class Request:
    """What was received: the descriptors are known by device and inode."""

    def __init__(self, method: str, argument: Any, files: list[tuple[int, int]]) -> None:
        self.method = method
        self.argument = argument
        self.files = files


class FakeSentry:
    """Serves ``handlers`` by method; what it has no handler for is an unknown method.

    Per method: ``gates`` delay the reply until an event is set, ``dropped`` closes the connection
    without one, ``broken`` that many times only, ``silent`` never answers, ``cut`` sends that many
    bytes and closes, ``raw`` sends those bytes instead.  ``chunk`` is how many bytes are sent at
    once, ``pause`` the seconds after each.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.handlers: dict[str, Callable[[Any], Any]] = {}
        self.requests: list[Request] = []
        self.gates: dict[str, threading.Event] = {}
        self.dropped: set[str] = set()
        self.broken: dict[str, int] = {}
        self.silent: set[str] = set()
        self.cut: dict[str, int] = {}
        self.raw: dict[str, bytes] = {}
        self.chunk = 1 << 16
        self.pause = 0.0
        #: Per method, what is written to each file that comes with it.
        self.written: dict[str, bytes] = {}
        #: Counts connections that the peer closed after their reply.
        self.closed_by_peer = threading.Semaphore(0)
        self._listener = listener
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @classmethod
    def at(cls, path: str) -> FakeSentry:
        """Listening and serving at ``path``."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        fake = cls(listener)
        fake.start()
        return fake

    def start(self) -> None:
        self._listener.listen(16)
        self._run(self._accept)

    def stop(self) -> None:
        """Close everything; waits for the threads."""
        self._stopping.set()
        for gate in self.gates.values():
            gate.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in list(self._threads):
            thread.join(5)
            assert not thread.is_alive()
        self._listener.close()

    def methods(self) -> list[str]:
        return [request.method for request in self.requests]

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while (request := self._receive(connection)) is not None:
                if not self._answer(connection, request):
                    return
            self.closed_by_peer.release()

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Whether the connection stays open for another request."""
        self.requests.append(request)
        method = request.method
        if method in self.gates:
            self.gates[method].wait(10)
        if method in self.dropped or self._stopping.is_set():
            return False
        if self.broken.get(method, 0) > 0:
            self.broken[method] -= 1
            return False
        if method in self.silent:
            return True
        data = self.raw.get(method) or self._reply(request)
        cut = self.cut.get(method)
        self._send(connection, data[:cut])
        return cut is None

    def _receive(self, connection: socket.socket) -> Request | None:
        data, files, fds = b"", [], array.array("i")
        decoder = json.JSONDecoder()
        first = True
        while True:
            space = socket.CMSG_SPACE(4 * 253) if first else 0
            try:
                chunk, ancillary, _, _ = connection.recvmsg(1 << 16, space)
            except OSError:
                return None
            if not chunk:
                return None
            first = False
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            data += chunk
            try:
                value, _ = decoder.raw_decode(data.decode())
            except ValueError:
                continue
            for fd in fds:
                info = os.fstat(fd)
                files.append((info.st_dev, info.st_ino))
                if value["method"] in self.written:
                    os.write(fd, self.written[value["method"]])
                os.close(fd)
            return Request(value["method"], value["arg"], files)

    def _reply(self, request: Request) -> bytes:
        handler = self.handlers.get(request.method)
        if handler is None:
            reply = {"success": False, "err": f"unknown method {request.method!r}"}
        else:
            try:
                reply = {"success": True, "err": "", "result": handler(request.argument)}
            except SentryError as error:
                reply = {"success": False, "err": str(error), "result": None}
        return json.dumps(reply).encode()

    def _send(self, connection: socket.socket, data: bytes) -> None:
        try:
            for start in range(0, len(data), self.chunk):
                connection.sendall(data[start : start + self.chunk])
                if self._stopping.wait(self.pause):
                    return
        except OSError:
            return
