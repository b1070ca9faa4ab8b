"""The processes that this one started and has not reaped yet; the only place that reaps.

A child is held by a pidfd from its birth and stays in the register until it is reaped, so its pid
can't be reused, and nobody else can wait for it.  Knows nothing of how a process is started:
``runtime/host/spawn.py`` does that.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base.errors import DeadlineExceeded
from runtime.base.signals import SIGKILL, pidfd_send_signal
from runtime.host.pids import wait_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, Self

    class Birth(Protocol):
        """A start that is under way; both numbers are 0 until there is such a process."""

        def pids(self) -> tuple[int, int]: ...


# Children that have not executed yet are waited for with this flag alone (waitpid(2)).
WAIT_ALL = 0x40000000
_ENDED = os.WEXITED | os.WNOHANG | WAIT_ALL

# One lock for the register and for all children: nothing blocks under it, and it's a leaf.
_lock = threading.Lock()
_children: dict[int, Child] = {}  # guarded by _lock
_births: set[Birth] = set()  # guarded by _lock
_reaping_due = False  # guarded by _lock


class Child:
    """A process that we started.  All methods may be called from any thread."""

    def __init__(self, pid: int, pidfd: int, start_time: int, name: str) -> None:
        self.pid = pid
        self.pidfd = pidfd  # guarded by _lock; -1 once closed
        self.start_time = start_time
        self.name = name
        self._status: int | None = None  # guarded by _lock; written once
        self._waiters = 0  # guarded by _lock
        self._closing = False  # guarded by _lock

    def poll(self) -> int | None:
        """The raw wait status (``os.waitstatus_to_exitcode``) if it has ended, else None."""
        with _lock:
            return self._poll_locked()

    def _poll_locked(self) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG | WAIT_ALL)
            except ChildProcessError:
                # Somebody else reaped it, so how it ended can't be known any more.
                pid, status = self.pid, SIGKILL
            if pid:
                self._status = status
                _children.pop(self.pid, None)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the raw wait status.

        Raises DeadlineExceeded after ``timeout`` seconds, ValueError once closed.
        """
        with _lock:
            if self._status is not None:
                return self._status
            if self.pidfd < 0 or self._closing:
                raise ValueError(f"handle of process {self.pid} is closed")
            self._waiters += 1
            pidfd = self.pidfd
        try:
            ended = wait_exit(pidfd, timeout)
        finally:
            with _lock:
                self._waiters -= 1
                self._close_locked()
        status = self.poll() if ended else None
        if status is None:
            raise DeadlineExceeded(f"process {self.pid} ({self.name})", timeout or 0)
        return status

    def kill(self, signo: int) -> None:
        """Send a signal.  No error if it has ended; PermissionError if it may not be signalled."""
        with _lock:
            if self._status is not None:
                return
            try:
                if self.pidfd >= 0:
                    pidfd_send_signal(self.pidfd, signo)
                else:
                    os.kill(self.pid, signo)  # not reaped, so the number is still its own
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Give up the pidfd, once no other thread waits on it.  Idempotent.

        A child that still runs stays ours: :func:`reap_orphans` reaps it when it ends.
        """
        with _lock:
            self._closing = True
            self._close_locked()

    def _close_locked(self) -> None:
        if self._closing and not self._waiters and self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Child({self.pid}, {self.name})"


def owns(pid: int) -> bool:
    """Is it a child of ours that isn't reaped, or one that is being started?"""
    with _lock:
        return pid in _children or any(pid in birth.pids() for birth in _births)


def begin(birth: Birth) -> None:
    """A process is about to be made: nobody may reap it behind its maker's back."""
    with _lock:
        _births.add(birth)


def end(birth: Birth, child: Child | None) -> None:
    """The start is over; ``child`` is its result, or None if nothing is left of it."""
    global _reaping_due
    with _lock:
        _births.discard(birth)
        if child is not None:
            _children[child.pid] = child
        due, _reaping_due = _reaping_due, False
    if due:
        reap_orphans()


def reap_orphans() -> int:
    """Reap all that has ended and return how many of them were orphans.

    Called on SIGCHLD by a process that is a child subreaper (prctl(2)).  Children of ours that
    have ended are reaped, too, and remember their status.  Never blocks.
    """
    global _reaping_due
    orphans = 0
    while True:
        with _lock:
            try:
                found = os.waitid(os.P_ALL, 0, _ENDED | os.WNOWAIT)
            except ChildProcessError:
                return orphans
            if found is None:
                return orphans
            child = _children.get(found.si_pid)
            if child is not None:
                child._poll_locked()
            elif any(found.si_pid in birth.pids() for birth in _births):
                # It ended within its birth; the kernel would show us nothing but it until its
                # maker has seen it.
                _reaping_due = True
                return orphans
            else:
                os.waitpid(found.si_pid, os.WNOHANG | WAIT_ALL)
                orphans += 1


def collect() -> None:
    """Reap those of our children that have ended; each remembers its status."""
    with _lock:
        ended = list(_children.values())
    for child in ended:
        child.poll()


def destroy(pid: int, timeout: float) -> None:
    """Kill and reap a process within its birth; gives up on it after ``timeout`` seconds.

    One that even SIGKILL can't end for now, such as a frozen one, is left to the orphans' reaper.
    """
    deadline = time.monotonic() + timeout
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1
    try:
        os.kill(pid, SIGKILL)
        if pidfd >= 0:
            wait_exit(pidfd, deadline - time.monotonic())
        os.waitpid(pid, os.WNOHANG | WAIT_ALL)
    except (ProcessLookupError, ChildProcessError):
        return
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def describe_status(raw: int) -> str:
    """A wait status in words."""
    status = os.waitstatus_to_exitcode(raw)
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
