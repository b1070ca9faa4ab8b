"""Short runs of other programs, and what they print."""

from __future__ import annotations

import fcntl
import os

from runtime.base.signals import SIGKILL
from runtime.host.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from runtime.host.spawn_spec import SpawnSpec

#: Seconds for a killed program to go.
_KILL_TIMEOUT = 2.0


class Run:
    """A program that runs.  Both its outputs go to ``limit`` bytes of memory; more is an error
    to it.  Not a pipe, which a daemon that it starts could keep open.  One thread at a time.
    """

    def __init__(self, spec: SpawnSpec, limit: int) -> None:
        """Start it.  Raises as :func:`spawn` does."""
        self._output = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._output, limit)
            fcntl.fcntl(self._output, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            self._child = spawn(spec.replace(fds={1: self._output, 2: self._output}))
        except BaseException:
            os.close(self._output)
            raise

    def result(self, timeout: float) -> tuple[int, str]:
        """Its raw wait status and what it printed.  Raises DeadlineExceeded."""
        status = self._child.wait(timeout)
        printed = os.lseek(self._output, 0, os.SEEK_CUR)  # its own offset, too
        return status, os.pread(self._output, printed, 0).decode("utf-8", "replace")

    def close(self) -> None:
        """Kill it if it still runs.  Raises DeadlineExceeded if that doesn't end it."""
        try:
            if self._child.poll() is None:
                self._child.kill(SIGKILL)
                self._child.wait(_KILL_TIMEOUT)
        finally:
            self._child.close()
            os.close(self._output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
