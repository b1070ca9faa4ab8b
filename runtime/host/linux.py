"""System calls that the standard library lacks, as functions that raise OSError.

No policy, no retries and no state.  An error carries the path that the call was about, if any.
A call releases the interpreter's lock while it runs.
"""

from __future__ import annotations

import os

from runtime._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# namespaces (sched.h)
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2), umount2(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000
MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# The mount API of Linux 5.2 and later.
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x4
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_IDMAP = 0x100000
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# openat2(2)
RESOLVE_IN_ROOT = 0x10


_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30
_PR_SCHED_CORE = 62
_PR_SCHED_CORE_CREATE = 1
_PIDTYPE_TGID = 1
_M_ARENA_MAX = -8


def _text(value: str) -> bytes:
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


def _error(path: str | None = None) -> OSError:
    code = ffi.errno
    if path is None:
        return OSError(code, os.strerror(code))
    return OSError(code, os.strerror(code), path)


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        raise _error(path)
    return result


# --- mounts ---------------------------------------------------------------------------------


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2).  The error's file name is ``target``."""
    options = _text(data) if data else ffi.NULL
    kind = _text(fstype) if fstype else ffi.NULL
    _checked(lib.mount(_text(source), _text(target), kind, flags, options), target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(lib.umount2(_text(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _checked(lib.gv_pivot_root(_text(new_root), _text(put_old)), new_root)


def fsopen(fstype: str) -> int:
    """fsopen(2): a context to configure a file system of this type; close-on-exec."""
    return _checked(lib.gv_fsopen(_text(fstype), FSOPEN_CLOEXEC), fstype)


def fsconfig_create(fd: int) -> None:
    """Make the file system that was configured."""
    _checked(lib.gv_fsconfig(fd, FSCONFIG_CMD_CREATE, ffi.NULL, ffi.NULL, 0))


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of the file system, with MOUNT_ATTR_* attributes."""
    return _checked(lib.gv_fsmount(fd, FSMOUNT_CLOEXEC, attributes))


def open_tree(path: str, flags: int = 0, *, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2); with OPEN_TREE_CLONE a detached copy of the mount at ``path``."""
    return _checked(lib.gv_open_tree(dir_fd, _text(path), flags | OPEN_TREE_CLOEXEC), path)


def move_mount(fd: int, target: str, *, dir_fd: int = AT_FDCWD, flags: int = 0) -> None:
    """Attach the detached mount ``fd`` at ``target``; ``flags`` are MOVE_MOUNT_T_*."""
    flags |= MOVE_MOUNT_F_EMPTY_PATH
    _checked(lib.gv_move_mount(fd, b"", dir_fd, _text(target), flags), target)


def mount_setattr(
    fd: int,
    path: str = "",
    flags: int = AT_EMPTY_PATH,
    *,
    attr_set: int = 0,
    propagation: int = 0,
    userns_fd: int = -1,
) -> None:
    """mount_setattr(2), Linux 5.12; AT_RECURSIVE in ``flags`` reaches all mounts below."""
    _checked(
        lib.gv_mount_setattr(fd, _text(path), flags, attr_set, 0, propagation, userns_fd),
        path or None,
    )


def open_in_root(dir_fd: int, path: str, flags: int) -> int:
    """openat2(2), Linux 5.6: open ``path`` as if the directory ``dir_fd`` was the root."""
    flags |= os.O_CLOEXEC
    return _checked(lib.gv_openat_beneath(dir_fd, _text(path), flags, RESOLVE_IN_ROOT), path)


def fs_type(path: str) -> int:
    """The type of the file system that ``path`` lies on: the magic number of statfs(2)."""
    return _checked(lib.gv_fs_type(_text(path)), path)


def watch_openings(path: str) -> int:
    """An inotify(7) descriptor that can be read once somebody opens ``path``."""
    return _checked(lib.gv_watch_openings(_text(path)), path)


# --- processes ------------------------------------------------------------------------------


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2), for the calling thread."""
    _checked(lib.setns(fd, nstype))


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _checked(lib.unshare(flags))


def set_child_subreaper() -> None:
    """Have orphaned descendants become children of this process (prctl(2))."""
    _checked(lib.gv_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def create_core_scheduling() -> None:
    """Give this process a new core scheduling cookie, which its later children inherit.

    OSError: ENODEV without SMT, EINVAL without kernel support.
    """
    _checked(lib.gv_prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_TGID, 0))


def timer_slack() -> int:
    """Nanoseconds by which this process's timers may be late."""
    return _checked(lib.gv_prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0))


def set_timer_slack(nanoseconds: int) -> None:
    """Have this process's timers be late by no more."""
    _checked(lib.gv_prctl(_PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0))


def personality() -> int:
    """The execution domain of this process (personality(2))."""
    return int(lib.personality(0xFFFFFFFF))


def io_priority() -> int:
    """ioprio_get(2) of this process."""
    return _checked(lib.gv_ioprio_get())


def set_io_priority(value: int) -> None:
    """ioprio_set(2) of this process."""
    _checked(lib.gv_ioprio_set(value))


def show_arguments(arguments: Sequence[bytes], environment: Sequence[bytes] | None) -> None:
    """Have /proc, and so ps, show these as this process's command line and environment.

    The environment that is shown stays if it is None.  Raises OSError where the kernel can't (it
    needs CONFIG_CHECKPOINT_RESTORE).
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    now = [int(fields[number - 3]) for number in (26, 27, 28, 45, 46, 47)]
    shown = b"".join(each + b"\0" for each in arguments)
    if environment is None:
        with open("/proc/self/environ", "rb") as file:
            rest = file.read()
    else:
        rest = b"".join(each + b"\0" for each in environment)
    _checked(lib.gv_show_arguments(shown + rest, len(shown), len(rest), now))


# --- files ----------------------------------------------------------------------------------


def disabled_ring() -> int:
    """An io_uring that nothing can be asked of; close-on-exec.  Linux 5.10, if it is permitted."""
    return _checked(lib.gv_disabled_ring())


def pin_files(ring: int, fds: Sequence[int]) -> None:
    """Have an io_uring hold these files as well, until it ends.  Once for each ring."""
    _checked(lib.gv_pin_files(ring, ffi.new("int[]", list(fds)), len(fds)))


# --- networks -------------------------------------------------------------------------------


def lead_loopback(netns: int, listener: int) -> int:
    """Have each new TCP connection to loopback in a network namespace come to ``listener``.

    To 127.0.0.0/8 and ::1, of any port, whether others listen on it or not; ``listener`` is a
    TCP socket of that namespace, one for IPv6 that takes IPv4 as well.  Returns the descriptor
    of the link, whose closing ends it; so does the listener's.  By an sk_lookup program
    (Documentation/bpf/prog_sk_lookup.rst), Linux 5.9.  OSError: EINVAL where there is none.
    """
    return _checked(lib.gv_lead_loopback(netns, listener))


def forward_code() -> tuple[bytes, int]:
    """Machine code of a program that forwards a port, and the place of its first instruction in it.

    Both are empty if there is none for this machine.
    """
    return _code(lib.gv_forward_code)


def calls_code() -> tuple[bytes, int]:
    """The same for a program that makes system calls for who holds its pipes."""
    return _code(lib.gv_calls_code)


def _code(function: Callable[[object, object], object]) -> tuple[bytes, int]:
    size, entry = ffi.new("size_t *"), ffi.new("size_t *")
    start = function(size, entry)
    code = bytes(ffi.buffer(start, size[0])) if size[0] else b""
    return code, int(entry[0])


def machine_number() -> int:
    """The machine's number as ELF has it: 0 if there are no programs for it."""
    return int(lib.gv_inside_machine())


# --- memory ---------------------------------------------------------------------------------


def limit_malloc_arenas(count: int) -> None:
    """Let the C library's allocator use at most ``count`` arenas, however many threads there are.

    A no-op with a C library that has no such setting.
    """
    lib.mallopt(_M_ARENA_MAX, count)


def trim_memory() -> None:
    """Give free memory of the C library's allocator back to the system."""
    lib.malloc_trim(0)


def fill_heap() -> None:
    """Take all room of the C library's allocator between what it has given out, for good.

    So what is asked of it later is new memory.  A no-op with a C library that doesn't tell of its
    memory.
    """
    lib.gv_fill_heap()


def keep_object(one: object) -> None:
    """Make an object immortal, by the number of references that it seems to have.

    Only in CPython 3.11, whose objects begin with that number.
    """
    lib.gv_keep_object(id(one))


def memory_of(one: object, offset: int, size: int) -> memoryview:
    """``size`` bytes of an object's own memory, to be read and written."""
    return memoryview(ffi.buffer(ffi.cast("char *", id(one) + offset), size))


def share_pages(ranges: Sequence[tuple[int, int]]) -> None:
    """Have the forks of this process share the memory from start to end, of whole pages each.

    Of a range that is the C library's heap, what is in use.  The process has one thread.  Raises
    OSError if nothing has changed, as where the kernel or the interpreter can't.
    """
    flat = [address for each in ranges for address in each]
    if lib.gv_share_pages(ffi.new("uintptr_t[]", flat), len(ranges)):
        raise _error()


def exclude_pages(one: object, size: int) -> None:
    """Never give back the pages of an object of ``size`` bytes, and those that it points to."""
    lib.gv_exclude_pages(id(one), size)


def give_back() -> int:
    """Drop this process's copies of shared pages that are again what they were; how many.

    No thread runs Python code meanwhile: a few milliseconds.  A no-op in what is no fork of a
    process that called :func:`share_pages`.
    """
    return int(lib.gv_give_back())
