"""The fork servers of this machine, seen from outside: where they listen, and how to ask them.

A fork server has imported what a shim needs, and forks a process for each caller
(``shim/forkserver/``).  Each belongs to one containerd.  Nothing depends on it: a caller that is
refused, or that finds no server, starts a process itself.
"""

from __future__ import annotations

import _socket
import os
import stat
import struct

from runtime.base.errors import Failed
from runtime.base.record import Record

#: Where servers listen, by ``PID-START-BUILD-PLACE`` of containerd and of the installation.
FOLDER = "/run/containerd-shim-gvisor/forkserver"
#: Beside a socket: why servers there could not become what their callers are, a line for each.
UNLIKE = ".unlike"
#: The socket of the server that forked this process; empty if none did.
ours = ""
#: Seconds for an answer.  A server that is alive forks at once.
_TIMEOUT = 1.0
_MAX_ANSWER = 4096
#: Servers that end for being unlike their callers, until no other one is left for a containerd.
#: One may, since something was changed of containerd; what is there always would end each.
_MOST_UNLIKE = 3
_MOST_REASON = 200
_LENGTH, _FD = struct.Struct("=I"), struct.Struct("=i")


class ForkServerInfo(Record):
    """One server, as it tells of itself."""

    socket: str
    pid: int
    #: The containerd that it belongs to.
    containerd: int
    #: Processes that it has forked, and seconds since its start.
    forks: int
    age: int
    version: str
    package: str


def reach(path: str) -> _socket.socket:
    """A connection to the server at ``path``, which is surely root's.  Never waits long.

    Raises OSError.
    """
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        channel.settimeout(_TIMEOUT)
        channel.connect(os.fsencode(path))
        if peer(channel)[1] != os.geteuid():
            raise PermissionError(f"{path} is another user's")
    except BaseException:
        channel.close()
        raise
    return channel


def peer(channel: _socket.socket) -> tuple[int, int]:
    """Pid and user of the process at the other end of a connection."""
    credentials = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("=iII", credentials)
    return pid, uid


def request(
    channel: _socket.socket, tag: str, data: bytes = b"", fds: tuple[int, ...] = ()
) -> None:
    """Send what a server is asked; descriptors travel along.  Raises OSError."""
    record = tag.encode("ascii") + _LENGTH.pack(len(data)) + data
    rights = struct.pack(f"={len(fds)}i", *fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
    channel.sendmsg([_LENGTH.pack(len(record)) + record], ancillary)


def fork_in_network(path: str, namespace: int, channel: int, errors: int) -> int:
    """Have the server at ``path`` fork a network helper; a pidfd of it.

    It is in the network namespace that ``namespace`` is open on, speaks over ``channel``
    (``runtime/network/helper.py``) and writes to ``errors``.  Raises OSError, Failed.
    """
    connection = reach(path)
    try:
        request(connection, "h", fds=(namespace, channel, errors))
        room = _socket.CMSG_LEN(_FD.size)
        answer, ancillary, _, _ = connection.recvmsg(16, room, _socket.MSG_CMSG_CLOEXEC)
    finally:
        connection.close()
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and len(data) >= _FD.size:
            return int(_FD.unpack_from(data)[0])
    raise Failed(f"fork server: no helper: {answer!r}")


def ask(path: str) -> ForkServerInfo:
    """What the server at ``path`` tells of itself.  Raises OSError, Failed."""
    connection = reach(path)
    try:
        request(connection, "?")
        text = connection.recv(_MAX_ANSWER).decode("utf-8", "replace")
    finally:
        connection.close()
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        return ForkServerInfo(
            socket=path,
            pid=int(found["pid"]),
            containerd=int(found["containerd"]),
            forks=int(found["forks"]),
            age=int(found["age"]),
            version=found["version"],
            package=found["package"],
        )
    except (KeyError, ValueError):
        raise Failed(f"fork server at {path}: answers {text[:80]!r}") from None


def end(path: str) -> None:
    """Ask the server at ``path`` to end.  Raises OSError."""
    connection = reach(path)
    try:
        request(connection, "q")
        connection.recv(1)
    finally:
        connection.close()


def sockets(folder: str = FOLDER) -> list[str]:
    """The paths at which servers listen, or did."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if "." not in name]


def every(folder: str = FOLDER) -> list[ForkServerInfo]:
    """All servers that answer."""
    found = []
    for path in sockets(folder):
        try:
            found.append(ask(path))
        except (OSError, Failed):
            continue  # it is just going, or was killed
    return found


def describe(server: ForkServerInfo) -> str:
    """A server in words, for operators."""
    return (
        f"pid {server.pid}, of process {server.containerd}, {_memory(server.pid)}, has forked "
        f"{server.forks} times in {server.age} s, version {server.version}"
    )


def _memory(pid: int) -> str:
    """Its proportional share of memory."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            line = next(line for line in file if line.startswith(b"Pss:"))
        return f"{int(line.split()[1]) / 1024:.1f} MiB"
    except (OSError, StopIteration, ValueError, IndexError):
        return "size unknown"


def is_private(folder: str) -> bool:
    """Whether it is a directory of ours that nobody else can enter."""
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077


def note_unlike(path: str, reason: str) -> None:
    """Keep why a server at ``path`` can't become what its caller is.  Never raises."""
    line = " ".join(reason.split())[:_MOST_REASON]
    try:
        fd = os.open(path + UNLIKE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{line}\n".encode("utf-8", "replace"))
        finally:
            os.close(fd)
    except OSError:
        return  # the next one tries again, then


def reasons(path: str) -> list[str]:
    """What :func:`note_unlike` kept."""
    try:
        with open(path + UNLIKE, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_UNLIKE * _MOST_REASON * 4).splitlines()
    except OSError:
        return []


def is_given_up(path: str) -> bool:
    """Whether no server is to be left at ``path`` any more."""
    return len(reasons(path)) >= _MOST_UNLIKE


def given_up(folder: str = FOLDER) -> list[str]:
    """For operators: each containerd that gets no server any more, and why."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    found = []
    for name in names:
        path = os.path.join(folder, name.removesuffix(UNLIKE))
        if name.endswith(UNLIKE) and is_given_up(path):
            pid = name.partition("-")[0]
            found.append(f"none for process {pid}, whose shims differ: {reasons(path)[-1]}")
    return found
