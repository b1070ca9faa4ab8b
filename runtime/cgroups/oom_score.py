"""Which process the OOM killer should prefer: reads, sets and chooses oom_score_adj.

The choice is pure, and single accesses to procfs are functions.  :class:`SentryScore` keeps a
sandbox's score right while its containers come and go.
"""

from __future__ import annotations

import errno
import os
import threading

from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.base.log import get_logger
from runtime.host.privilege import SYS_RESOURCE, holds_over_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = get_logger("oom")

LOWEST, HIGHEST = -1000, 1000
# What a caller who may not do it is told; for anybody else it is a failure.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)


def set_score(pid: int, value: int, *, proc: str = "/proc") -> None:
    """Set a process's oom_score_adj; a process that is gone is no error.

    Lowering takes CAP_SYS_RESOURCE.  Without it a refusal is logged and let pass, as containerd
    does in a user namespace: a pod with a worse score is better than none.  Raises Failed for
    other refusals, and InvalidRequest outside of [-1000, 1000].
    """
    if not LOWEST <= value <= HIGHEST:
        raise InvalidRequest("process.oomScoreAdj", f"{value} is out of range")
    path = f"{proc}/{pid}/oom_score_adj"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return
        if error.errno in _REFUSALS and not holds_over_host(SYS_RESOURCE, proc=proc):
            _log.warning("oom_score.not_lowered", pid=pid, value=value, error=error.strerror)
            return
        raise Failed(f"set oom_score_adj of process {pid} to {value}: {reason(error)}") from error


def get_score(pid: int, *, proc: str = "/proc") -> int | None:
    """A process's oom_score_adj; None if it is gone.  Raises Failed."""
    try:
        with open(f"{proc}/{pid}/oom_score_adj", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESRCH):
            return None
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Failed(f"read oom_score_adj of process {pid}: {why}") from error


def own_score() -> int:
    """That of this process, which those that it starts get.  Raises Failed."""
    return get_score(os.getpid()) or 0


def sandbox_score(scores: Iterable[tuple[str, int | None]], original: int) -> int:
    """The sentry's score, given its containers' (type, oomScoreAdj).

    The sentry must not be killed for a container that asks less, so it gets the lowest.  The
    pause container, of type ``sandbox``, asks far less than any workload and is left out while
    there are others (runsc, adjustSandboxOOMScoreAdj).  ``original`` is what the sentry started
    with; it holds if nobody asks for anything.
    """
    all_scores = list(scores)
    others = [score for kind, score in all_scores if kind != "sandbox"]
    relevant = others or [score for _, score in all_scores]
    return min((score for score in relevant if score is not None), default=original)


class SentryScore:
    """The oom_score_adj of one sentry, kept at what its containers ask for.  Thread-safe.

    The shim is the only one that changes it, and does so under one lock: two containers that come
    or go at once leave what the later of them makes of it.
    """

    def __init__(
        self, pid: int, original: int, alive: Callable[[], bool], *, proc: str = "/proc"
    ) -> None:
        self._pid = pid
        self._original = original
        self._alive = alive  # a number may be another process's once the sentry is reaped
        self._proc = proc
        self._lock = threading.Lock()
        self._asked: dict[str, tuple[str, int | None]] = {}  # guarded by _lock
        self._set: int | None = None  # guarded by _lock; what was written last

    def add(self, container_id: str, kind: str, score: int | None) -> None:
        """A container of type ``kind`` has come.  Raises Failed as :func:`set_score` does."""
        with self._lock:
            self._asked[container_id] = (kind, score)
            self._apply_locked()

    def remove(self, container_id: str) -> None:
        """A container has gone; with the last that asked for a score, the original is back."""
        with self._lock:
            if self._asked.pop(container_id, None) is not None and self._asked:
                self._apply_locked()

    def _apply_locked(self) -> None:
        score = sandbox_score(self._asked.values(), self._original)
        if self._set is None and all(asked is None for _, asked in self._asked.values()):
            return  # what it has been born with
        if score != self._set and self._alive():
            set_score(self._pid, score, proc=self._proc)
            self._set = score
