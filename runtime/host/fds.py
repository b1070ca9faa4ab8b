"""Ownership of file descriptors that are passed through several hands.

An :class:`FdSet` owns what is added to it and closes it at the end; ``steal`` hands one on.  All
descriptors made here are close-on-exec.  Knows nothing of what the descriptors are for.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat

from runtime.base.errors import Failed, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class FdSet:
    """Owns file descriptors until they're stolen.  As a context manager it closes the rest.

    Belongs to one thread at a time.
    """

    def __init__(self) -> None:
        self._fds: dict[int, None] = {}  # in order of addition

    def add(self, fd: int) -> int:
        """Take ownership of ``fd`` and return it.  ValueError if it's owned already."""
        if fd < 0 or fd in self._fds:
            raise ValueError(f"file descriptor {fd} cannot be added")
        self._fds[fd] = None
        return fd

    def steal(self, fd: int) -> int:
        """Give up ownership of ``fd`` and return it.  KeyError if it isn't owned."""
        del self._fds[fd]
        return fd

    def take(self, other: FdSet) -> None:
        """Take over all that ``other`` owns."""
        while other._fds:
            self.add(other.steal(next(iter(other._fds))))

    def close_one(self, fd: int) -> None:
        """Close ``fd`` now.  KeyError if it isn't owned."""
        os.close(self.steal(fd))

    def close(self) -> None:
        """Close all that is owned.  Goes on past errors, then raises the first; idempotent."""
        first: OSError | None = None
        while self._fds:
            fd, _ = self._fds.popitem()
            try:
                os.close(fd)
            except OSError as error:
                first = first or error
        if first is not None:
            raise first

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Open a file; OSError as from ``os.open``."""
        return self.add(os.open(path, flags | os.O_CLOEXEC, mode))

    def dup(self, fd: int) -> int:
        """A copy of ``fd``, which itself stays with its owner."""
        return self.add(os.dup(fd))

    def pipe(self) -> tuple[int, int]:
        """A pipe: its read end and its write end."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        return self.add(reader), self.add(writer)

    def socketpair(self) -> tuple[int, int]:
        """A pair of connected stream sockets."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        return self.add(ours.detach()), self.add(theirs.detach())

    def __contains__(self, fd: int) -> bool:
        return fd in self._fds

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_namespace(path: str, fds: FdSet) -> int:
    """A namespace's file, to be joined.  Raises Failed naming it."""
    try:
        return fds.add(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise Failed(f"open namespace {path}: {reason(error)}") from None


def own_stdio(fds: tuple[int, ...], uid: int, gid: int) -> None:
    """Give stdio to the sandbox's user, so that the container can change modes and owners.

    As runsc's configureStdios, but devices that everybody shares, such as /dev/null, are left
    alone.  File systems that can't are ignored.
    """
    for fd in set(fds):
        mode = os.fstat(fd).st_mode
        if stat.S_ISCHR(mode) and not os.isatty(fd):
            continue
        try:
            os.fchown(fd, uid, gid)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise
