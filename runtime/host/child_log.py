"""The output of a program that we start: kept in memory, bounded, readable after its death.

The output goes to a memory file that can't grow.  So nothing has to be drained, and a program that
prints without end does no harm: the beginning, which names the cause, is kept, and further writes
fail.  Of what is printed, only the mark of runsc's fatal errors is known here.
"""

from __future__ import annotations

import fcntl
import os
import threading

#: Bytes that are kept; pages are allocated as they are written.
SIZE = 64 << 10
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PANICS = ("panic:", "fatal error:", "runtime: ", "SIGSEGV", "SIGBUS", "SIGABRT")
#: What a process of runsc says, in lower case, when it finds that another has ended: a helper of
#: the sentry's, a sentry without its gofer, a gofer without its sentry.
_ECHOES = (
    "unable to read from the sync descriptor",
    "error reading mounts file: error unmarshaling mounts: unexpected end",
    "panic: failed to write mounts",
)
_FATAL = "FATAL ERROR: "
_LINE = 1000


class ChildLog:
    """The output of one process.  ``fd`` is for its standard output and error.  Thread-safe."""

    def __init__(self, name: str, size: int = SIZE) -> None:
        self._lock = threading.Lock()
        self._size = size
        # guarded by _lock once shared; -1 when closed
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def text(self) -> str:
        """All that was kept."""
        with self._lock:
            data = os.pread(self.fd, self._size, 0) if self.fd >= 0 else b""
        return data.rstrip(b"\0").decode("utf-8", "replace")

    def panic(self) -> str:
        """The line by which the Go runtime says that it gives up; empty if it doesn't."""
        for line in self.text().splitlines():
            if line.startswith(_PANICS):
                return line[:_LINE]
        return ""

    def message(self) -> str:
        """What the process said of its failure, in one line; empty if nothing.

        What comes after an echo is of no account.  Before it a panic counts, else the first line
        that isn't a log's: so runsc says why it ends, and usage or the wrong data may follow.
        """
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        # A warning of every start that `SpawnSpec.no_membarrier` is the cause of.
        lines = [line for line in lines if not _plain(line).startswith("membarrier(")]
        echo = next((at for at, line in enumerate(lines) if is_echo(line)), len(lines))
        told = lines[:echo] or lines
        candidates = (
            [line for line in told if line.startswith(_PANICS)],
            [line for line in told if not _is_logged(line) or _FATAL in line],
            [line for line in told if "error" in line or "failed" in line],
            told,
        )
        return _short(_plain(next((found[0] for found in candidates if found), "")))

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def is_echo(line: str) -> bool:
    """Whether it only tells that another process has ended, which will know why."""
    return line.lower().startswith(_ECHOES)


def _short(line: str) -> str:
    """Both ends of a long line: the cause may stand at the end, as behind a command line."""
    half = _LINE // 2
    return line if len(line) <= _LINE else f"{line[:half]} ... {line[-half:]}"


def _is_logged(line: str) -> bool:
    """Whether it has the prefix of a Go or gVisor log, such as ``W1123 12:00:00 1 x.go:1] ``."""
    head, bracket, _ = line.partition("] ")
    return bool(bracket) and ".go:" in head


def _plain(line: str) -> str:
    """The line without what a log puts before it."""
    if _is_logged(line):
        line = line.partition("] ")[2]
    return line.removeprefix(_FATAL)
