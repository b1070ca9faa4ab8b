"""Messages between the shim and a helper process: JSON with descriptors, over a stream socket.

Each message is a 4-byte length in native order, with which descriptors travel, and JSON.  Both
sides are the same code on the same machine.
"""

from __future__ import annotations

import _socket
import struct

from runtime.base import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

MAX_MESSAGE = 16 * 1024 * 1024
MAX_FDS = 253  # SCM_MAX_FD
_LENGTH = struct.Struct("=I")
_FD = struct.Struct("=i")


def send(channel: _socket.socket, message: Json, fds: list[int] | None = None) -> None:
    """Send a message; descriptors travel with its length."""
    body = fastjson.dumps(message).encode("ascii")
    if fds:
        rights = struct.pack(f"={len(fds)}i", *fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
        channel.sendmsg([_LENGTH.pack(len(body))], ancillary)
    else:
        channel.sendall(_LENGTH.pack(len(body)))
    channel.sendall(body)


def receive(channel: _socket.socket) -> Json:
    """Receive a message.  Raises EOFError if the other side closed."""
    return _receive_body(channel, _receive_exactly(channel, _LENGTH.size))


def receive_with_fds(channel: _socket.socket, fds: list[int]) -> Json:
    """Receive a message; its descriptors are added to ``fds``, even if this raises."""
    # Not socket.recv_fds(), which ignores its flags: the descriptors would be inheritable.
    room = _socket.CMSG_LEN(MAX_FDS * _FD.size)
    length, ancillary, _, _ = channel.recvmsg(_LENGTH.size, room, _socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += (fd for (fd,) in _FD.iter_unpack(data[: len(data) // _FD.size * _FD.size]))
    length += _receive_exactly(channel, _LENGTH.size - len(length)) if length else b""
    return _receive_body(channel, length)


def _receive_body(channel: _socket.socket, length: bytes) -> Json:
    """Receive what follows the length.  Raises EOFError."""
    if not length:
        raise EOFError
    size = _LENGTH.unpack(length)[0]
    if size > MAX_MESSAGE:
        raise ValueError(f"message of {size} bytes")
    message = fastjson.loads(_receive_exactly(channel, size))
    if not isinstance(message, dict):
        raise ValueError("message is not an object")
    return message


def _receive_exactly(channel: _socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = channel.recv(min(size - len(data), 1 << 16))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
