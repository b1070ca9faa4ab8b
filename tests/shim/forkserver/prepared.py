"""A process that becomes a program, after what its first argument names was done to it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_PR_SET_NO_NEW_PRIVS = 38


def peculiar() -> None:
    """What an operator may have changed of containerd since the server was born."""
    sys.path.insert(0, str(ROOT))
    from runtime.host import linux

    os.umask(0o027)
    os.nice(3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 700), min(hard, 900)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    Path("/proc/self/oom_score_adj").write_text("321")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN, signal.SIGUSR1})
    linux.set_timer_slack(77_000)
    linux.set_io_priority(2 << 13 | 6)


def without_new_privileges() -> None:
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("prctl")


def main() -> None:
    # Our interpreter may have added to its environment, and ignores two signals.
    given = Path("/proc/self/environ").read_bytes().split(b"\0")
    environment = dict(each.partition(b"=")[::2] for each in given if each)
    {"peculiar": peculiar, "without_new_privileges": without_new_privileges}[sys.argv[1]]()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execve(sys.argv[2], sys.argv[2:], environment)


if __name__ == "__main__":
    main()
