"""A systemd at the other end of a socket: the manager's calls that scopes need, and their jobs.

Its answers are put together here, not by the client's code, from the D-Bus specification.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from runtime.host.dbus import Message, Protocol

MANAGER = "org.freedesktop.systemd1.Manager"


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _field(code: int, kind: str, value: str | int) -> bytes:
    head = bytes([code, len(kind)]) + kind.encode() + b"\0"
    if isinstance(value, int):
        return head + struct.pack("<I", value)
    if kind == "g":
        return head + bytes([len(value)]) + value.encode() + b"\0"
    return head + _text(value)


def message(
    kind: int, serial: int, fields: list[tuple[int, str, str | int]], signature: str, *values: Any
) -> bytes:
    """A message whose body has numbers and texts only."""
    body = b""
    for each, value in zip(signature, values, strict=True):
        body += bytes(-len(body) % 4)
        body += struct.pack("<I", value) if each == "u" else _text(value)
    if signature:
        fields = [*fields, (8, "g", signature)]
    array = b""
    for field in fields:
        array += bytes(-len(array) % 8) + _field(*field)
    head = struct.pack("<BBBBIII", ord("l"), kind, 0, 1, len(body), serial, len(array)) + array
    return head + bytes(-len(head) % 8) + body


class FakeSystemd:
    """Serves one connection, or all that are made to ``path``, one after the other in a thread.

    ``calls`` are those that came, as (member, body).

    A test may have ``result`` of jobs be another, ``refuse`` a member with an error's name, or
    act on a call by ``on_call``.
    """

    def __init__(self, *, chunk: int = 1 << 16, private: bool = False, path: str = "") -> None:
        self.private = private
        self.ours, self._theirs = socket.socketpair()
        self._listener: socket.socket | None = None
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.matched: list[str] = []
        self.units: dict[str, dict[str, Any]] = {}
        self.result = "done"
        self.refuse: dict[str, str] = {}
        self.on_call: Callable[[str, tuple[Any, ...]], None] = lambda member, body: None
        self.early_signals = False
        #: How often somebody else says of each job that it failed.
        self.forged = 0
        self.greeting = b""
        self._chunk = chunk
        self._serial = 0
        self._jobs = 0
        target = self._serve if self._listener is None else self._accept
        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.ours.close()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._theirs.close()
        if self._listener is not None:
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            self._theirs.close()
            try:
                self._theirs, _ = self._listener.accept()
            except OSError:
                return
            self._serve()

    def members(self) -> list[str]:
        return [member for member, _ in self.calls]

    def _serve(self) -> None:
        greeting = b""
        while not greeting.endswith(b"\r\n"):
            data = self._theirs.recv(1)
            if not data:
                return
            greeting += data
        self.greeting = greeting
        if "AUTH" in self.refuse:
            self._theirs.sendall(b"REJECTED EXTERNAL\r\n")
            return
        self._theirs.sendall(b"OK 1234deadbeef\r\n")
        begin = self._theirs.recv(7, socket.MSG_WAITALL)
        if begin != b"BEGIN\r\n":
            return
        # A client's view of a stream, which reads calls as well as it does replies.
        stream = Protocol(0)
        stream.receive(b"OK x\r\n")
        while True:
            try:
                data = self._theirs.recv(self._chunk)
            except OSError:
                return
            if not data:
                return
            for call in stream.receive(data):
                self._answer(call)

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), self._chunk):
            self._theirs.sendall(data[start : start + self._chunk])

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _answer(self, call: Message) -> None:
        self.calls.append((call.member, call.body))
        self.on_call(call.member, call.body)
        if call.member == "hang up":
            self._theirs.close()
            return
        refusal = self.refuse.get(call.member)
        if refusal is None:
            refusal = self._refusal(call)
        if refusal:
            fields: list[tuple[int, str, str | int]] = [
                (4, "s", refusal),
                (5, "u", call.serial),
            ]
            self._send(message(3, self._next(), fields, "s", f"{call.member} is refused"))
            return
        signature, values, after = self._act(call)
        reply = message(2, self._next(), [(5, "u", call.serial)], signature, *values)
        self._send(after + reply if self.early_signals else reply + after)

    def _refusal(self, call: Message) -> str:
        name = call.body[0] if call.body else ""
        if call.member == "GetNameOwner" and "Subscribe" not in self.members():
            # systemd comes to the bus late; a call to it waits there.
            return "org.freedesktop.DBus.Error.NameHasNoOwner"
        if call.member == "StartTransientUnit" and name in self.units:
            return "org.freedesktop.systemd1.UnitExists"
        if call.member in ("StopUnit", "KillUnit", "ResetFailedUnit", "SetUnitProperties"):
            return "" if name in self.units else "org.freedesktop.systemd1.NoSuchUnit"
        return ""

    def _act(self, call: Message) -> tuple[str, tuple[Any, ...], bytes]:
        if call.member == "Hello":
            return "s", (":1.42",), self._signal("NameAcquired", "s", ":1.42")
        if call.member == "GetNameOwner":
            return "s", (":1.7",), b""
        if call.member == "StartTransientUnit":
            unit, _, properties, _ = call.body
            if self.result == "done":
                self.units[unit] = dict(properties)
            return self._job(unit)
        if call.member == "StopUnit":
            self.units.pop(call.body[0])
            return self._job(call.body[0])
        if call.member == "SetUnitProperties":
            self.units[call.body[0]].update(dict(call.body[2]))
        if call.member == "ResetFailedUnit" and "failed" in self.units[call.body[0]]:
            self.units.pop(call.body[0])
        return "", (), b""

    def _job(self, unit: str) -> tuple[str, tuple[Any, ...], bytes]:
        self._jobs += 1
        path = f"/org/freedesktop/systemd1/job/{self._jobs}"
        other = self._signal("JobRemoved", "uoss", 99, f"{path}9", "other.service", "failed")
        ours = self._signal("JobRemoved", "uoss", self._jobs, path, unit, self.result)
        body = (self._jobs, path, unit, "failed")
        other += self.forged * self._signal("JobRemoved", "uoss", *body, sender=":1.99")
        return "o", (path,), other + ours

    def _signal(self, member: str, signature: str, *values: Any, sender: str = ":1.7") -> bytes:
        fields: list[tuple[int, str, str | int]] = [
            (1, "o", "/org/freedesktop/systemd1"),
            (2, "s", MANAGER),
            (3, "s", member),
        ]
        if not self.private:
            fields.append((7, "s", sender))
        return message(4, self._next(), fields, signature, *values)
