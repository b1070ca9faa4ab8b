"""A server on a real socket, and raw connections to it."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.ttrpc import frames
from shim.ttrpc.call import Call
from shim.ttrpc.client import Client, connect
from shim.ttrpc.envelope import Request, Status, decode_response, encode_request
from shim.ttrpc.server import Server

WAIT = 10.0  # seconds after which a test has failed; nothing waits that long otherwise


class Raw:
    """A connection whose bytes the test writes itself."""

    def __init__(self, path: str) -> None:
        self.socket = connect(path)
        self.socket.settimeout(WAIT)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, stream_id: int, method: str = "echo", payload: bytes = b"") -> None:
        body = encode_request(Request("s", method, payload))
        self.send(frames.encode(stream_id, frames.REQUEST, 0, body))

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def frame(self) -> tuple[int, int, int, bytes]:
        header = self.exactly(frames.HEADER_LENGTH)
        length = int.from_bytes(header[:4], "big")
        stream_id = int.from_bytes(header[4:8], "big")
        return stream_id, header[8], header[9], self.exactly(length)

    def answer(self) -> tuple[int, Status | None, bytes]:
        stream_id, type, _, body = self.frame()
        assert type == frames.RESPONSE
        return stream_id, *decode_response(body)

    def at_end(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


class Harness:
    """Starts one server, and counts what it reports."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "s")
        self.logged: queue.Queue[tuple[str, dict[str, object]]] = queue.Queue()
        self.failed: queue.Queue[tuple[Call, BaseException]] = queue.Queue()
        self._opened: list[Raw | Client] = []
        self.server: Server

    def start(self, handler: Callable[[Call], bytes | None], **options: Any) -> Server:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(1024)
        options.setdefault("on_error", lambda call, exc: self.failed.put((call, exc)))
        self.server = Server(listener, handler, log=self._log, **options)
        self.server.start()
        return self.server

    def _log(self, event: str, **fields: object) -> None:
        self.logged.put((event, fields))

    def client(self) -> Client:
        client = Client(f"unix://{self.path}")
        self._opened.append(client)
        return client

    def raw(self) -> Raw:
        raw = Raw(self.path)
        self._opened.append(raw)
        return raw

    def close(self) -> None:
        self.server.stop(0)
        for item in self._opened:
            if isinstance(item, Raw):
                item.socket.close()
            else:
                item.close()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    before = set(threading.enumerate())
    harness = Harness(tmp_path)
    yield harness
    harness.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
        assert not thread.is_alive(), f"{thread.name} was left behind"


def echo(call: Call) -> bytes:
    return call.payload
