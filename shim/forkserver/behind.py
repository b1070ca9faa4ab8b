"""Starts a fork server from ``start``, for the next one, where there is none.

The process is forked first and held until ``start`` has ended.  So it has what containerd gave to
``start``, not what ``start`` changed for its daemon, and costs ``start`` no time.
"""

from __future__ import annotations

import fcntl
import os
import sys

from runtime.host import forkservers
from runtime.host.pids import start_time
from shim.forkserver import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_START = """\
import sys
sys.path[:0] = [{package!r}]
import {entry} as entry
entry.serve_forks()
"""


def prepare(path: str, publish_binary: str, entry: str) -> None:
    """Have a server that will listen at ``path`` begin once this process has ended.

    It is ``serve_forks()`` of the module that ``entry`` names.

    None is left to a caller that isn't the containerd whose binary ``publish_binary`` is: a server
    ends with the process that it is for; nor where servers could not become what their callers
    are, however often one was left.  Never raises.
    """
    containerd = caller.parent()
    try:
        if not _is_same(publish_binary, f"/proc/{containerd}/exe"):
            return
        started = start_time(containerd)
        folder = os.path.dirname(path)
        for each in (os.path.dirname(folder), folder):
            try:
                os.mkdir(each, 0o700)
            except FileExistsError:
                continue
        if not forkservers.is_private(folder) or forkservers.is_given_up(path):
            return
        lock = _lock(path + ".lock")
        if lock < 0:
            return
        reader, _ = os.pipe2(os.O_CLOEXEC)  # the other end is this process's until it ends
        try:
            if not os.fork():
                _wait_and_become(reader, lock, entry, (path, str(containerd), str(started)))
        finally:
            os.close(reader)
            os.close(lock)
    except OSError:
        return  # the next start tries again


def _is_same(one: str, other: str) -> bool:
    if not one.startswith("/"):
        return False
    return os.path.samefile(one, other)


def _lock(path: str) -> int:
    """A descriptor of the locked file; -1 if another has it: there is a server, or will be."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return -1
        except FileNotFoundError:
            pass  # removed by one that ended in this moment
        os.close(fd)


def _wait_and_become(reader: int, lock: int, entry: str, arguments: tuple[str, ...]) -> NoReturn:
    """In the fork: wait for the end of ``start``, then execute the server."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (reader, lock):
                try:
                    os.close(int(name))
                except OSError:
                    pass  # that of the listing itself
        os.setsid()
        os.chdir("/")
        os.read(reader, 1)
        os.set_inheritable(lock, True)
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        program = _START.format(package=package, entry=entry)
        os.execve(
            sys.executable,
            (sys.executable, "-I", "-S", "-c", program, *arguments, str(lock)),
            os.environ,
        )
    finally:
        os._exit(1)
