"""A program's file that stays the same when another is put in its place.

An upgrade replaces the file of runsc below running pods.  A running pod must go on with the file
that its sandbox was made with, since releases don't fit each other.
"""

from __future__ import annotations

import fcntl
import os

from runtime.base.errors import Failed, reason
from runtime.runsc.release import probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.runsc.release import Generation

#: How often a binary is asked anew that is replaced while it is asked.
_TRIES = 3
#: Above every number that a child gets, which would take the descriptor's place.
_FIRST = 700


class Program:
    """An executable file, held open.  It is let go with the object.  Thread-safe."""

    def __init__(self, path: str) -> None:
        """``path`` may lead through ``/proc``.  Raises OSError."""
        self._path = path
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
        finally:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """What tells the file from others; of one that is written to, what it is now."""
        return _identity(os.fstat(self._fd))

    def is_at(self, path: str) -> bool:
        """Whether ``path`` still leads to the file."""
        try:
            return _identity(os.stat(path)) == self.identity
        except OSError:
            return False  # it was removed

    def to_execute(self, named: str) -> tuple[str, tuple[int, ...]]:
        """The ``path`` and ``keep`` of a SpawnSpec that run the file; ``named`` if it is there."""
        if self.is_at(named):
            return named, ()
        return f"/proc/self/fd/{self._fd}", (self._fd,)


def program_of(pid: int) -> str:
    """The path that leads to the program of a process, also where its file was replaced."""
    return f"/proc/{pid}/exe"


def is_program_of(pid: int, path: str) -> bool:
    """Whether a process runs that file; also if it can't be told."""
    try:
        return os.path.samestat(os.stat(program_of(pid)), os.stat(path))
    except OSError:
        return True


def probe_program(path: str, cache_dir: str) -> tuple[Generation, Program]:
    """What the runsc at ``path`` can do, and its very file.  Raises as ``release.probe`` does."""
    for _ in range(_TRIES):
        try:
            program = Program(path)
        except OSError as error:
            raise Failed(f"runsc binary {path}: {reason(error)}") from None
        generation = probe(path, cache_dir)
        if program.is_at(path):
            return generation, program
    raise Failed(f"runsc binary {path}: is being replaced again and again")


def _identity(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size
