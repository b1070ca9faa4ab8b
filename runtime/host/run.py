"""Runs another program for a short time, and returns what it prints."""

from __future__ import annotations

from runtime.base.signals import SIGKILL
from runtime.host.child_log import ChildLog
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
        self._log = ChildLog("output", limit)
        try:
            self._child = spawn(spec.replace(fds={1: self._log.fd, 2: self._log.fd}))
        except BaseException:
            self._log.close()
            raise

    def result(self, timeout: float) -> tuple[int, str]:
        """Its raw wait status and what it printed.  Raises DeadlineExceeded."""
        return self._child.wait(timeout), self._log.text()

    def close(self) -> None:
        """Kill it if it still runs.  Raises DeadlineExceeded if that doesn't end it."""
        try:
            if self._child.poll() is None:
                self._child.kill(SIGKILL)
                self._child.wait(_KILL_TIMEOUT)
        finally:
            self._child.close()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
