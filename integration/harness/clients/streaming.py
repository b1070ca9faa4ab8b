"""What `kubectl exec` and `kubectl attach` use: a stream to a process, through CRI's own server.

CRI answers Exec and Attach with a URL, behind which a web socket carries the streams; the first
byte of each message names the stream (the subprotocol v4.channel.k8s.io of Kubernetes).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10
_PROTOCOL = "v4.channel.k8s.io"


class Stream:
    """An open stream; a context manager, whose end is that of a client that goes away."""

    def __init__(self, url: str, timeout: float = 15) -> None:
        where = urlsplit(url)
        assert where.hostname and where.port, url
        self._socket = socket.create_connection((where.hostname, where.port), timeout)
        self._data = b""
        self._ended = False
        #: What came so far of stdout and stderr.
        self.out, self.err = b"", b""
        #: The server's word on how the process ended; empty until it did.
        self.status: dict[str, Any] = {}
        path = where.path + (f"?{where.query}" if where.query else "")
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
            f"Sec-WebSocket-Protocol: {_PROTOCOL}\r\n\r\n".encode()
        )
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self._data:
            self._receive(deadline)
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def code(self) -> int:
        """The exit code, once `wait` has returned."""
        assert self.status, "no status came"
        if self.status["status"] == "Success":
            return 0
        causes = self.status.get("details", {}).get("causes", [])
        found = [int(c["message"]) for c in causes if c.get("reason") == "ExitCode"]
        assert found, self.status
        return found[0]

    def write(self, text: str) -> None:
        """Send to the process's stdin."""
        self._send(bytes([_STDIN]) + text.encode())

    def resize(self, rows: int, columns: int) -> None:
        size = json.dumps({"Width": columns, "Height": rows})
        self._send(bytes([_RESIZE]) + size.encode())

    def expect(self, text: str, timeout: float = 10) -> str:
        """Read until `text` was on stdout, and return all up to it; what follows stays."""
        wanted, deadline = text.encode(), time.monotonic() + timeout
        while wanted not in self.out:
            if self._ended:
                raise AssertionError(f"{text!r} not seen, the stream ended after {self.out!r}")
            self.pump(deadline)
        at = self.out.index(wanted) + len(wanted)
        seen, self.out = self.out[:at], self.out[at:]
        return seen.decode()

    def wait(self, timeout: float = 20) -> None:
        """Read to the end."""
        deadline = time.monotonic() + timeout
        while not self._ended:
            self.pump(deadline)

    def _send(self, payload: bytes, opcode: int = _BINARY) -> None:
        size = len(payload)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        else:
            wide = size > 0xFFFF
            head += struct.pack("!BQ" if wide else "!BH", 0x80 | (127 if wide else 126), size)
        # A mask of zeros is one, too, and megabytes are sent.
        self._socket.sendall(head + bytes(4) + payload)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(f"nothing more came after {self.out[-200:]!r} {self.err[-200:]!r}")
        self._socket.settimeout(left)
        try:
            chunk = self._socket.recv(1 << 18)
        except TimeoutError:
            return self._receive(deadline)
        if not chunk:
            raise ConnectionError("the server hung up without a word")
        self._data += chunk

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._data) < count:
            self._receive(deadline)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def pump(self, deadline: float | None = None) -> None:
        """Read one message."""
        deadline = time.monotonic() + 10 if deadline is None else deadline
        first, second = self._take(2, deadline)
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", self._take(2, deadline))[0]
        elif size == 127:
            size = struct.unpack("!Q", self._take(8, deadline))[0]
        payload = self._take(size, deadline)
        opcode = first & 0xF
        if opcode == _PING:
            self._send(payload, _PONG)
        elif opcode == _CLOSE:
            self._ended = True
        elif payload:
            self._deliver(payload[0], payload[1:])

    def _deliver(self, channel: int, data: bytes) -> None:
        if channel == _STDOUT:
            self.out += data
        elif channel == _STDERR:
            self.err += data
        elif channel == _ERROR and data:
            self.status = json.loads(data)


class Forwarding(Stream):
    """`kubectl port-forward`: one connection to one port of a pod.

    Of its two channels the first carries data, the second what went wrong; both begin with the
    port's number.
    """

    def __init__(self, url: str, timeout: float = 15) -> None:
        self._heads = {0: 2, 1: 2}
        self._parts: list[bytes] = []
        #: Bytes of the answer so far.
        self.count = 0
        super().__init__(url, timeout)

    def write_bytes(self, data: bytes) -> None:
        self._send(b"\0" + data)

    @property
    def answer(self) -> bytes:
        """What came so far."""
        return b"".join(self._parts)

    def take(self, count: int, timeout: float = 20) -> bytes:
        """Read until so many bytes have come in all; returns all."""
        deadline = time.monotonic() + timeout
        while self.count < count:
            if self._ended:
                raise AssertionError(f"{self.count} bytes of {count}, then {self.err!r}")
            self.pump(deadline)
        return self.answer

    def _deliver(self, channel: int, data: bytes) -> None:
        skipped = min(self._heads[channel], len(data))
        self._heads[channel] -= skipped
        if channel == 0:
            self._parts.append(data[skipped:])
            self.count += len(data) - skipped
        else:
            self.err += data[skipped:]
