"""Small files of our own: bounded reading, replacing in one step, and locks.

Owns how such a file is opened safely.  Knows nothing of what is in it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest

#: Seconds that a directory's lock may take: its holders bind a socket or replace a file.
_LOCK_TIMEOUT = 5.0
_FIRST_WAIT, _LONGEST_WAIT = 0.001, 0.02

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def read_bounded(
    path: str, limit: int, *, follow: bool = False, ours: bool = False
) -> bytes | None:
    """The bytes of the regular file ``path``; None if there is no such file.

    A symbolic link at the end of the path is refused unless ``follow`` is set.  Never blocks on
    a FIFO or a device.  Raises InvalidRequest if it isn't a regular file, is longer than
    ``limit`` bytes or can't be a file's name, OSError where it can't be read; with ``ours`` as
    :func:`require_ours`.
    """
    if "\0" in path:
        raise InvalidRequest(repr(path[:200]), "contains a NUL character")
    try:
        fd = os.open(path, _READ if follow else _READ | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidRequest(path, "is not a regular file")
        if ours:
            require_ours(path, info)
        chunks: list[bytes] = []
        room = limit + 1
        while room and (chunk := os.read(fd, min(room, 1 << 20))):
            chunks.append(chunk)
            room -= len(chunk)
    finally:
        os.close(fd)
    if not room:
        raise InvalidRequest(path, f"is larger than {limit} bytes")
    return b"".join(chunks)


def require_ours(path: str, info: os.stat_result) -> None:
    """Raise Failed if others than root and we can write the file, or in the directory.

    What we act by (processes to kill, files to remove, programs to start) must be our own word.
    """
    shared = info.st_mode & 0o002 or (info.st_mode & 0o020 and info.st_gid not in (0, os.getegid()))
    if info.st_uid not in (0, os.geteuid()) or shared:
        what = f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}"
        raise Failed(f"{path} is not believed: others can write it ({what})")


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Make ``path`` a regular file of ``data``: readers see the old bytes or all of the new.

    Not synced to disk: what we keep describes processes, which a power cut ends as well.
    Raises OSError; then the old file is untouched.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode)
    except FileExistsError:  # left by a dead process that had our pid
        os.unlink(temporary)
        fd = os.open(temporary, flags, mode)
    try:
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_file(path: str) -> None:
    """Unlink ``path``; no error if it isn't there."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass


def lock(fd: int, what: str, timeout: float) -> None:
    """Take the exclusive flock(2) of ``fd``.  Raises DeadlineExceeded, OSError.

    The system call has no time-out, and the holder may be a process that hangs.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_WAIT
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"lock {what}", timeout) from None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_WAIT)


class DirectoryLock:
    """The lock of a directory, as a context manager: between processes, for moments.

    It leaves no file behind, and ends with its holder.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(self._fd, self._directory, _LOCK_TIMEOUT)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
