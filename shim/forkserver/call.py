"""What a fork of the server is told, and how: the launcher's message, and the words between them.

The launcher (``shim/native/launcher.c``) connects, and sends a length and that many bytes of
records, each a tag, a length and content.  It gets

    "R\\0"      the call is understood: "G" has it done, with the descriptors that come along
    "N\\0"      do it yourself
    "S", status  it is done; the status is that of the process
    "D\\0"      do it yourself after all; the descriptor that comes along is what stdin was

Others (``runtime/host/forkservers.py``) send a single record, whose tag says what they want, with
descriptors at its first byte.
Both ends are root's, and of one build.
"""

from __future__ import annotations

import _socket
import os
import struct

from runtime.base.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Records = Mapping[str, Sequence[bytes]]

#: The most that is read: more than the launcher sends.
MAX_MESSAGE = 2 << 20
_MAX_FDS = 4
#: Seconds for the other side to send its message, or the word to go on.
TIMEOUT = 2.0
_LENGTH = struct.Struct("=I")
_FD = struct.Struct("=i")

READY, DECLINED, GO = b"R\0", b"N\0", b"G"
DIRECTLY = b"D\0"
#: Tags of what others want.
END, STATUS, NETWORK = "q", "?", "h"


def status_word(status: int) -> bytes:
    """The answer that tells the exit status."""
    return b"S" + bytes((status & 0xFF,))


def receive(channel: _socket.socket, fds: list[int]) -> Records:
    """The records of the other side's message, by tag; its descriptors are added to ``fds``.

    Raises InvalidRequest if it is no message, OSError (TimeoutError) if it doesn't come.
    """
    channel.settimeout(TIMEOUT)
    data = take(channel, 1 << 17, fds)
    parts, size = [data], len(data)
    wanted = _LENGTH.size
    while size < wanted or wanted == _LENGTH.size:
        if wanted == _LENGTH.size and size >= wanted:
            wanted += _LENGTH.unpack_from(b"".join(parts))[0]
            if wanted > MAX_MESSAGE:
                raise InvalidRequest("message", f"is {wanted} bytes long")
            continue
        part = channel.recv(1 << 17)
        if not part:
            raise InvalidRequest("message", "is cut off")
        parts.append(part)
        size += len(part)
    return parse(b"".join(parts)[_LENGTH.size :])


def take(channel: _socket.socket, most: int, fds: list[int]) -> bytes:
    """What comes next, and in ``fds`` the descriptors with it.  Raises OSError."""
    room = _socket.CMSG_LEN(_MAX_FDS * _FD.size)
    data, ancillary, _, _ = channel.recvmsg(most, room, _socket.MSG_CMSG_CLOEXEC)
    for level, kind, rights in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += (fd for (fd,) in _FD.iter_unpack(rights[: len(rights) // _FD.size * _FD.size]))
    return data


def parse(data: bytes) -> Records:
    """Records by tag, in their order.  Raises InvalidRequest."""
    found: dict[str, list[bytes]] = {}
    at = 0
    while at < len(data):
        if at + 5 > len(data):
            raise InvalidRequest("message", "is cut off")
        (size,) = _LENGTH.unpack_from(data, at + 1)
        tag, at = chr(data[at]), at + 5
        if at + size > len(data):
            raise InvalidRequest("message", "is cut off")
        found.setdefault(tag, []).append(data[at : at + size])
        at += size
    return found


def only(records: Records, tag: str) -> bytes:
    """The one record of that tag.  Raises InvalidRequest."""
    values = records.get(tag, ())
    if len(values) != 1:
        raise InvalidRequest("message", f"has {len(values)} records {tag!r}")
    return values[0]


def give_back(channel: _socket.socket, stdin: bytes) -> None:
    """Have the launcher become the interpreter after all, with ``stdin`` to read again."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(stdin)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _FD.pack(fd))]
        channel.sendmsg([DIRECTLY], rights)
    finally:
        os.close(fd)
