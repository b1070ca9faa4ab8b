"""The names of a container's state files, and the lock for changing them.

A container has ``<id>_sandbox:<sandbox id>`` with several endings in the root directory:
``.state`` is runsc's own (``runsc_state.py``), ``.lock`` the lock beside it, ``.shim.json`` our own
record (``shim_record.py``).  The lock is ``flock(2)`` on the same file that runsc takes (gVisor
runsc/container/state_file.go), so it holds between runsc, the shim and gvctl.
"""

from __future__ import annotations

import os
import time

from runtime.base import files
from runtime.base.errors import AlreadyExists, DeadlineExceeded, InvalidRequest, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

STATE = ".state"
LOCK = ".lock"
RECORD = ".shim.json"
SEPARATOR = "_sandbox:"
_MAX_NAME = 255
#: Seconds that a lock may be waited for: runsc holds it while it creates or starts a container.
LOCK_TIMEOUT = 10.0


def check_id(value: str) -> str:
    """``value`` if it can be a part of a file's name.  Raises InvalidRequest."""
    if not value or "/" in value or "\0" in value or ":" in value or value.startswith("."):
        raise InvalidRequest("container id", f"{value[:80]!r} can't name a file")
    return value


def file_name(container_id: str, sandbox_id: str, ending: str) -> str:
    """The name of a container's file.  Raises InvalidRequest for ids that can't make one."""
    stem = check_id(container_id) + SEPARATOR + check_id(sandbox_id)
    # A temporary file's name is longer.
    if len(os.fsencode(stem)) + len(RECORD) > _MAX_NAME - 16:
        raise InvalidRequest("container id", "is too long for a file's name")
    return stem + ending


def split_name(name: str, ending: str) -> tuple[str, str] | None:
    """Container and sandbox id in a file's name; None if it isn't one with that ending."""
    if not name.endswith(ending) or name.startswith("."):
        return None
    container, separator, sandbox = name[: -len(ending)].rpartition(SEPARATOR)
    return (container, sandbox) if separator and container and sandbox else None


def list_ids(root: str) -> list[tuple[str, str]]:
    """(container id, sandbox id) of all that have a state file or a record below ``root``.

    Raises Failed if others can write there.
    """
    names = names_in(root)
    found = (split_name(name, ending) for name in names for ending in (STATE, RECORD))
    return sorted({ids for ids in found if ids is not None})


def names_in(root: str) -> list[str]:
    """What the directory ``root`` holds; nothing if there is none.

    Raises Failed if others can write there: they could have made all of it.
    """
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        files.require_ours(root, os.fstat(fd))
        return os.listdir(fd)
    finally:
        os.close(fd)


def find_id(root: str, ident: str) -> tuple[str, str]:
    """The ids of the container that is called ``ident``, or begins so and is the only one.

    Raises NotFound; InvalidRequest if several begin so.
    """
    check_id(ident)
    known = list_ids(root)
    exact = [ids for ids in known if ids[0] == ident]
    found = exact or [ids for ids in known if ids[0].startswith(ident)]
    if not found:
        raise NotFound("container", ident, f'container "{ident}" does not exist')
    if len(found) > 1:
        names = ", ".join(sorted({ids[0] for ids in found})[:5])
        raise InvalidRequest("container id", f'"{ident}" is ambiguous: {names}')
    return found[0]


class StateLock:
    """The lock of one container's state, held from ``acquire`` to ``release``.

    A context manager as well.  For one thread at a time; between processes, and between two
    objects in one process, it excludes.
    """

    def __init__(self, root: str, container_id: str, sandbox_id: str) -> None:
        self._root = root
        self._ids = (container_id, sandbox_id)
        self.path = os.path.join(root, file_name(container_id, sandbox_id, LOCK))
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def acquire(self, timeout: float = LOCK_TIMEOUT) -> Self:
        """Raises DeadlineExceeded, OSError."""
        deadline = time.monotonic() + timeout
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            fd = os.open(self.path, flags, 0o600)
            try:
                files.lock(fd, self.path, deadline - time.monotonic())
                # Whoever destroys a container removes the file that it holds locked.
                if self._is_current(fd):
                    self._fd, fd = fd, -1
                    return self
            finally:
                if fd >= 0:
                    os.close(fd)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"lock {self.path}", timeout)
            time.sleep(0.001)

    def _is_current(self, fd: int) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def acquire_for_new(self, timeout: float = LOCK_TIMEOUT) -> Self:
        """Take the lock for a container that is yet to be made, making ``root`` if need be.

        Raises AlreadyExists if there is one of that id, in whatever sandbox.
        """
        os.makedirs(self._root, 0o711, exist_ok=True)
        files.require_ours(self._root, os.stat(self._root))
        self.acquire(timeout)
        for container, sandbox in list_ids(self._root):
            name = file_name(container, sandbox, STATE)
            if container == self._ids[0] and os.path.lexists(os.path.join(self._root, name)):
                self.release()
                raise AlreadyExists("container", container)
        return self

    def release(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Remove the lock's file, which nobody else may have meanwhile taken.  Raises OSError."""
        assert self.held
        files.remove_file(self.path)

    def __enter__(self) -> Self:
        return self if self.held else self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
