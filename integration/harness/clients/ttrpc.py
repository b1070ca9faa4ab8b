"""A ttrpc client of the harness's own, for a shim's socket; it can send what no client would."""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integration.harness.clients import api
from integration.harness.clients.wire import Msg, Schema

REQUEST, RESPONSE = 1, 2
HEADER = struct.Struct(">IIBB")
_STRING_PAIR = Schema("key:1 value:2")
REQUEST_BODY = Schema(
    "service:1 method:2 payload:3:bytes timeout_nano:4:int metadata:5:@*", _STRING_PAIR
)
_RESPONSE = Schema("status:1:@ payload:2:bytes", api.Status)


class Refused(Exception):
    """A call that was answered with an error status."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message} (code {code})")
        self.code, self.message = code, message


class Lost(Exception):
    """The connection ended before the reply."""


class Silent(Exception):
    """No reply came in time."""


class Client:
    """A connection to a shim; replies are matched to calls, so that calls may overlap."""

    def __init__(self, path: Path, service: str = api.TASK_SERVICES[0]) -> None:
        self.service = service
        self._streams = itertools.count(1, 2)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Msg | None]] = {}  # guarded by _lock
        self._gone = False  # guarded by _lock
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self.socket.close()

    def call(self, method: str, timeout: float = 20, **values: Any) -> Msg:
        """One call of the task service; raises Refused, Lost or Silent."""
        return self.call_later(method, timeout, **values)()

    def call_later(self, method: str, timeout: float = 20, **values: Any) -> Callable[[], Msg]:
        request, reply = api.TASK[method]
        finish = self.raw(self.service, method, request.encode(**values), timeout)
        return lambda: reply.decode(finish())

    def raw(
        self, service: str, method: str, payload: bytes, timeout: float = 20
    ) -> Callable[[], bytes]:
        """Send one request of any service; the function returned waits for the reply's payload."""
        stream = next(self._streams)
        replies: queue.SimpleQueue[Msg | None] = queue.SimpleQueue()
        with self._lock:
            if self._gone:
                raise Lost(method)
            self._waiting[stream] = replies
        body = REQUEST_BODY.encode(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=int(timeout * 1e9),
            metadata=[{"key": "containerd-namespace-ttrpc", "value": "test"}],
        )
        try:
            self.socket.sendall(frame(body, stream))
        except OSError:
            raise Lost(method) from None

        def finish() -> bytes:
            try:
                answer = replies.get(timeout=timeout)
            except queue.Empty:
                raise Silent(f"{method}: no reply within {timeout:g} s") from None
            if answer is None:
                raise Lost(method)
            if answer.status is not None and answer.status.code:
                raise Refused(method, answer.status.code, answer.status.message)
            return bytes(answer.payload)

        return finish

    def _read(self) -> None:
        try:
            while True:
                length, stream, kind, _ = HEADER.unpack(self._exactly(HEADER.size))
                body = self._exactly(length)
                with self._lock:
                    replies = self._waiting.pop(stream, None)
                if kind == RESPONSE and replies is not None:
                    replies.put(_RESPONSE.decode(body))
        except (OSError, EOFError):
            pass
        with self._lock:
            self._gone = True
            waiting = [*self._waiting.values()]
        for replies in waiting:
            replies.put(None)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def frame(body: bytes, stream: int, kind: int = REQUEST, flags: int = 0, length: int = -1) -> bytes:
    """A frame; `length` lies about the size of the body."""
    return HEADER.pack(len(body) if length < 0 else length, stream, kind, flags) + body
