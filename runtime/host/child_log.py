"""What a gofer or a sentry prints: kept in memory, bounded, readable after its death.

The output goes to a memory file that can't grow, so nothing must be drained and a program that
prints without end harms nobody: the beginning is kept, where the cause stands, and further
writes fail.  Knows nothing of what is printed but how runsc marks a fatal error.
"""

from __future__ import annotations

import fcntl
import os
import threading

#: Bytes that are kept; pages are allocated as they are written.
SIZE = 64 << 10
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PANICS = ("panic:", "fatal error:", "runtime: ", "SIGSEGV", "SIGBUS", "SIGABRT")
_ERRORS = ("error", "fatal", "failed")
_LINE = 1000


class ChildLog:
    """The output of one process.  ``fd`` is for its standard output and error.  Thread-safe."""

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        # guarded by _lock once shared; -1 when closed
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, SIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def text(self) -> str:
        """All that was kept."""
        with self._lock:
            data = os.pread(self.fd, SIZE, 0) if self.fd >= 0 else b""
        return data.rstrip(b"\0").decode("utf-8", "replace")

    def panic(self) -> str:
        """The line by which the Go runtime says that it gives up; empty if it doesn't."""
        for line in self.text().splitlines():
            if line.startswith(_PANICS):
                return line[:_LINE]
        return ""

    def message(self) -> str:
        """What the process said of its failure, in one line; empty if nothing."""
        lines = [_plain(line.strip()) for line in self.text().splitlines() if line.strip()]
        # A warning of every start that `SpawnSpec.no_membarrier` is the cause of.
        lines = [line for line in lines if not line.startswith("membarrier(")]
        # A fatal error comes first; what follows is a usage text, or the data that is wrong.
        for marks in (_PANICS, _ERRORS):
            for line in lines:
                if line.lower().startswith(marks) or line.startswith(marks):
                    return line[:_LINE]
        for line in lines:
            if "error" in line or "failed" in line:
                return line[:_LINE]
        return lines[0][:_LINE] if lines else ""

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def _plain(line: str) -> str:
    """The line without the prefix of a Go or gVisor log, such as ``W1123 12:00:00 1 x.go:1] ``."""
    line = line.removeprefix("FATAL ERROR: ")
    head, bracket, rest = line.partition("] ")
    if bracket and ".go:" in head:
        return rest
    return line
