"""Holding a process, or what a process is about to do, so that a test strikes in mid-operation.

Nothing here waits for a time to pass: a held operation stays where it is until it is let go.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from integration.harness.base.waiting import until
from integration.harness.host import footprint

_CLASS_CONTENT = 0x4
_CLOEXEC = 0x1
_NONBLOCK = 0x2
_MARK_ADD = 0x1
_OPEN_EXEC_PERM = 0x40000
_ALLOW = 1
_AT_FDCWD = -100
#: The flags of a socket that listens, in /proc/net/unix.
_LISTENS = "00010000"
#: length, version, reserved, length of the metadata, mask, descriptor, pid
_EVENT = struct.Struct("=IBBHQii")
_ANSWER = struct.Struct("=iI")

_libc = ctypes.CDLL(None, use_errno=True)


def freeze(pid: int) -> None:
    """Stop a process, and return once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _state(pid) in ("T", ""), 5, f"{pid} is stopped")


def thaw(*pids: int) -> None:
    """Let stopped processes go on; those that are gone are no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def calls_waiting(socket: str) -> int:
    """How many connections to the socket nobody has accepted: a stopped server takes none."""
    count = 0
    with open("/proc/net/unix") as lines:
        for line in lines:
            words = line.split()
            # State 02 with inode 0 is the server's end of a connection before accept(2).
            if words[5:7] == ["02", "0"] and words[-1] == socket:
                count += 1
    return count


def control_socket(sandbox: str) -> str:
    """The name of a sandbox's control socket: the only one that listens and has the id in it."""

    def look() -> str:
        with open("/proc/net/unix") as lines:
            found = [line.split() for line in lines if sandbox in line]
        listening = [words[-1] for words in found if words[3] == _LISTENS]
        return listening[0] if listening else ""

    return until(look, 10, f"sandbox {sandbox[:12]} has a control socket")


class ExecGate:
    """Holds processes that are about to execute one program, if `wanted` says so of their pid.

    A context manager; at its end all are let go, and while it stands everybody who executes the
    program waits for this process's word.  The program should be a copy that no one else uses.
    """

    def __init__(self, program: Path, wanted: Callable[[int], bool]) -> None:
        self._wanted = wanted
        self._held: dict[int, int] = {}  # pid -> the event's descriptor; guarded by _lock
        self._lock = threading.Lock()
        self._fd = _libc.fanotify_init(_CLASS_CONTENT | _CLOEXEC | _NONBLOCK, os.O_CLOEXEC)
        self._check("fanotify_init", self._fd)
        path = os.fsencode(program)
        mask = ctypes.c_uint64(_OPEN_EXEC_PERM)
        self._check(
            "fanotify_mark", _libc.fanotify_mark(self._fd, _MARK_ADD, mask, _AT_FDCWD, path)
        )
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ExecGate:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(5)
        self.open()
        os.close(self._fd)
        os.close(self._stop)

    def wait(self, timeout: float = 20) -> int:
        """Wait until somebody is held; the pid."""

        def look() -> int:
            with self._lock:
                return next(iter(self._held), 0)

        return until(look, timeout, "a program is held before its execution")

    def open(self) -> None:
        """Let go all that are held; from now on nobody is held."""
        with self._lock:
            self._wanted = lambda pid: False
            for fd in self._held.values():
                self._allow(fd)
            self._held.clear()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            if any(fd == self._stop for fd, _ in poll.poll()):
                return
            with suppress(BlockingIOError):
                self._take(os.read(self._fd, 4096))

    def _take(self, data: bytes) -> None:
        while data:
            length, _, _, _, _, fd, pid = _EVENT.unpack_from(data)
            data = data[length:]
            with self._lock:
                if self._wanted(pid):
                    self._held[pid] = fd
                else:
                    self._allow(fd)

    def _allow(self, fd: int) -> None:
        with suppress(FileNotFoundError):  # whoever waited was killed
            os.write(self._fd, _ANSWER.pack(fd, _ALLOW))
        os.close(fd)

    @staticmethod
    def _check(what: str, result: int) -> None:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")


def sentry_executes(pid: int) -> bool:
    """Whether it is a sentry in the middle of its start, or what that waits for.

    Releases before 2026 execute themselves once more; all of them start a helper, which has their
    command line until it executes itself, and wait until it has.
    """
    return "boot" in footprint.command_line(pid)


def _state(pid: int) -> str:
    """One letter, as in ps; nothing for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
