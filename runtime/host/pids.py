"""Processes known by their pid: start times, and handles on those that aren't our children.

Knows nothing of how processes are started.  Needs the standard library only, so that ``delete``,
which cleans up after a dead shim, doesn't load the native module.
"""

from __future__ import annotations

import errno
import os
import select

from runtime.base.errors import DeadlineExceeded
from runtime.base.signals import SIGKILL, pidfd_send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, Self

    class ProcessHandle(Protocol):
        """A process that is held: a child of ours (``Child``) or a stranger (``Foreign``)."""

        pid: int
        pidfd: int
        start_time: int

        def poll(self) -> int | None: ...
        def wait(self, timeout: float | None = None) -> int: ...
        def kill(self, signo: int) -> None: ...
        def close(self) -> None: ...


#: Bytes of a command line that are looked at.
_MAX_COMMAND = 1 << 17


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot (field 22 of its ``stat``, proc(5)).

    A number and a start time together name one process for the life of the machine.
    Raises ProcessLookupError if there's no such process.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    try:
        line = os.read(fd, 4096)
    finally:
        os.close(fd)
    # The command may hold blanks and brackets; the last bracket ends it, field 3 follows.
    fields = line[line.rindex(b")") + 2 :].split()
    return int(fields[19])


def wait_exit(pidfd: int, timeout: float | None) -> bool:
    """Wait until the process behind ``pidfd`` has ended, reaped or not; False on time-out (s)."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0, round(timeout * 1000))))


class Foreign:
    """A handle on a process that this one didn't start, for instance a dead shim's sandbox.

    Not for use by several threads while one of them closes it.
    """

    def __init__(self, pid: int, pidfd: int, start_time: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time

    @classmethod
    def open(cls, pid: int, started: int) -> Foreign | None:
        """The process ``pid`` that began at :func:`start_time` ``started``; None if it's gone.

        A process that merely got the same number later is never returned, so never signalled.
        Raises OSError if descriptors run out.
        """
        if pid <= 0:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            # Today the number is that of a thread, not of a process (ENOENT since Linux 6.9).
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise
        # Read after the open: what has the right start time now had it then, too.
        try:
            same = start_time(pid) == started
        except ProcessLookupError:
            same = False
        if same:
            return cls(pid, pidfd, started)
        os.close(pidfd)
        return None

    def kill(self, signo: int) -> None:
        """Send a signal.  No error if the process is gone; PermissionError if it's not ours."""
        try:
            pidfd_send_signal(self.pidfd, signo)
        except ProcessLookupError:
            return

    def poll(self) -> int | None:
        """None while it runs.  How it ended is its parent's to know: as if by SIGKILL."""
        return SIGKILL if self.wait_gone(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the result is that of :meth:`poll`.  Raises DeadlineExceeded."""
        if not wait_exit(self.pidfd, timeout):
            raise DeadlineExceeded(f"process {self.pid}", timeout or 0)
        return SIGKILL

    def wait_gone(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for its end; True once it has ended (a zombie has)."""
        return wait_exit(self.pidfd, timeout)

    def close(self) -> None:
        """Let go of the handle; more than once is allowed."""
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_helper(pid: int, name: bytes, matches: Callable[[list[bytes]], bool]) -> Foreign | None:
    """The process ``pid`` if it is one of runsc's helpers, of which only the number is known.

    ``name`` is what runsc calls it, and ``matches`` is asked about its arguments.  To be closed.
    Raises OSError if descriptors run out.
    """
    if pid <= 0:
        return None
    try:
        began = start_time(pid)
    except ProcessLookupError:
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_MAX_COMMAND).rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    # One that has ended has no command line.  That it is still the one that was looked at, the
    # start time says.
    return Foreign.open(pid, began) if words[0] == name and matches(words[1:]) else None
