"""Who the kernel's OOM killer should prefer: reading, setting and choosing oom_score_adj.

The policy is pure; the rest are single accesses to procfs.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import Failed, InvalidRequest
from runtime.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_log = get_logger("oom")

LOWEST, HIGHEST = -1000, 1000
_CAP_SYS_RESOURCE = 24


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
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return
        if error.errno in (errno.EACCES, errno.EPERM) and not _privileged(proc):
            _log.warning("oom_score.not_lowered", pid=pid, value=value, error=error.strerror)
            return
        raise Failed(f"set oom_score_adj of process {pid} to {value}: {error.strerror}") from error


def _privileged(proc: str) -> bool:
    """Do we hold CAP_SYS_RESOURCE over the whole host?

    A user namespace grants it within itself only, and this write is checked against the host's.
    """
    try:
        with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
            status = file.read()
        with open(f"{proc}/self/uid_map", encoding="ascii") as file:
            whole = file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return whole and bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def get_score(pid: int, *, proc: str = "/proc") -> int:
    """A process's oom_score_adj.  Raises Failed, also if the process is gone."""
    try:
        with open(f"{proc}/{pid}/oom_score_adj", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Failed(f"read oom_score_adj of process {pid}: {why}") from error


def own_score_from_parent(*, proc: str = "/proc") -> int:
    """The shim's score: one more than its parent's, so that it goes before containerd.

    To be asked by ``start``, whose parent containerd is (pkg/shim, AdjustOOMScore).
    """
    return min(HIGHEST, get_score(os.getppid(), proc=proc) + 1)


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
