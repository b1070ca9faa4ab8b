"""The limit of open files: raised as far as possible for this process, but not for its children.

Each exec takes some descriptors of a shim, and the usual soft limit of 1024 is meant for programs
that use select(2).  Go's runtime does the same.
"""

from __future__ import annotations

import fcntl
import os
import resource

from runtime.base.log import get_logger

_log = get_logger("open_files")

#: The limits to start other processes with; None while ours are what they were.
inherited: tuple[int, int] | None = None


def raise_limit() -> None:
    """Raise the soft limit to the hard one.  Once, before there are threads; never raises."""
    global inherited
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        # Above fs.nr_open, for one.
        _log.warning("limit.not_raised", soft=soft, hard=hard, error=str(error))
        return
    inherited = before


def make_room(numbers: int) -> None:
    """Have the table of descriptors hold that many from now on.

    Once, before there are threads: with them a table that grows waits for an RCU grace period, 10
    to 20 ms, and a shim takes a high number while it creates its first container.  Never raises.
    """
    try:
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it grows when it has to
    try:
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, numbers - 1))
    except OSError as error:
        _log.debug("table.not_grown", numbers=numbers, error=str(error))
    finally:
        os.close(fd)


def hard_limit(pid: int | str = "self") -> int | None:
    """The hard limit of a process, which a shim that it starts may go up to; None if unknown."""
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii", errors="replace") as file:
            line = next(line for line in file if line.startswith("Max open files"))
        hard = line.split()[4]
        return 1 << 30 if hard == "unlimited" else int(hard)
    except (OSError, ValueError, IndexError, StopIteration):
        return None
