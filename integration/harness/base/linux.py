"""The system calls that the harness needs and Python does not have."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
MNT_FORCE = 1
MNT_DETACH = 2
MS_BIND = 4096
_PIDFD_GETFD = 438


def unmount(target: str) -> None:
    """Detach a mount; one that is not there is no error."""
    _libc.umount2(os.fsencode(target), MNT_DETACH)


def unmount_force(target: str) -> None:
    """End a file system that nobody serves; no error if it is none."""
    _libc.umount2(os.fsencode(target), MNT_FORCE)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2); OSError when it fails."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def unified_cgroups() -> bool:
    """Whether /sys/fs/cgroup is a cgroup v2 hierarchy."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def take_fd(pid: int, fd: int) -> int:
    """Another process's descriptor, as one of ours (pidfd_getfd(2)); OSError when it fails."""
    pidfd = os.pidfd_open(pid)
    try:
        taken = int(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)
    if taken < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"descriptor {fd} of {pid}")
    return taken
