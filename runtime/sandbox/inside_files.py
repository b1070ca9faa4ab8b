"""Files of a running container, reached by system calls that are made inside of it.

Owns the conversation with the program that makes them (``gv_calls`` of ``runtime/native/linux.c``).
The container's own processes may stop or change that program: what it answers is checked like any
other input from outside.  Names are bytes.  Not thread-safe; every call blocks.
"""

from __future__ import annotations

import os
import select
import stat as modes
import struct
import time

from runtime.base.errors import DeadlineExceeded, Failed, Unsupported
from runtime.base.record import Record
from runtime.host import elf, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

#: Of the program's buffer (bytes): room for names, and behind it for data.
_NAMES, _DATA = 8192, 262144
#: Seconds for one call: a volume may be slow, a sandbox may be paused.
TIMEOUT = 60.0
AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_REMOVEDIR = 0x100, 0x1000, 0x200
_BASIC_STATS = 0x7FF
_STATX = struct.Struct("<IIQIIIHHQQQQ")
_STATX_SIZE = 256
_TIME = struct.Struct("<qI")
_MTIME_AT = 112
_ENTRY = struct.Struct("<QqHB")
#: The system calls' numbers by ELF's number of the machine.
_NUMBERS = {
    62: {
        "read": 0, "write": 1, "close": 3, "fchmod": 91, "fchown": 93, "getdents64": 217,
        "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "unlinkat": 263,
        "linkat": 265, "symlinkat": 266, "readlinkat": 267, "utimensat": 280, "statx": 332,
    },
    183: {
        "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37,
        "fchmod": 52, "fchownat": 54, "fchown": 55, "openat": 56, "close": 57, "getdents64": 61,
        "read": 63, "write": 64, "readlinkat": 78, "utimensat": 88, "statx": 291,
    },
}  # fmt: skip


class Status(Record):
    """What a file is: ``mode`` as in ``st_mode``, ``size`` in bytes, ``mtime_ns`` since 1970."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int


def program() -> bytes:
    """The program, as an executable file.  Raises Unsupported on other machines."""
    return elf.executable(*linux.calls_code(), what="system calls inside a sandbox")


def checked_name(name: bytes) -> bytes:
    """A name in a directory that somebody else told.  Raises Failed unless it is a plain one."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
        raise Failed(f"a file's name is {name[:300]!r}")
    return name


class InsideFiles:
    """The container's files.  A context manager; what a call fails with is an OSError of its own.

    Also raises Failed if the program is gone or what it says can't be, DeadlineExceeded.
    """

    def __init__(
        self,
        calls: int,
        answers: int,
        ended: Callable[[], None] = lambda: None,
        timeout: float = TIMEOUT,
    ) -> None:
        """``calls`` and ``answers`` are the other ends of its stdin and stdout, ours from now.

        ``ended`` is called when it was told to end.
        """
        self._ended, self._timeout = ended, timeout
        self._calls, self._answers = calls, answers
        try:
            os.set_blocking(calls, False)
            os.set_blocking(answers, False)
            self._numbers = _NUMBERS.get(linux.machine_number())
            if self._numbers is None:
                raise Unsupported("system calls inside a sandbox on this machine")
            (self._buffer,) = struct.unpack("<Q", self._take(8, self._deadline()))
        except BaseException:
            self.close_all()
            raise

    def __enter__(self) -> InsideFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()

    def close_all(self) -> None:
        """End the program.  Idempotent."""
        for fd in (self._calls, self._answers):
            if fd >= 0:
                os.close(fd)
        if self._calls >= 0:
            self._calls = self._answers = -1
            self._ended()

    # -- calls -------------------------------------------------------------------------------

    def open(self, folder: int, name: bytes, flags: int, mode: int = 0) -> int:
        flags |= os.O_CLOEXEC
        return self._call("openat", (folder, self._buffer, flags, mode), name, path=name)[0]

    def close(self, fd: int) -> None:
        self._call("close", (fd,))

    def read(self, fd: int, count: int) -> bytes:
        count = min(count, _DATA)
        return self._call("read", (fd, self._buffer + _NAMES, count), answer=-1)[1]

    def write(self, fd: int, data: bytes) -> int:
        data = data[:_DATA]
        place = self._buffer + _NAMES
        done, _ = self._call("write", (fd, place, len(data)), b"", data)
        if done > len(data):
            raise Failed("more was written inside the sandbox than there is")
        return done

    def stat(self, folder: int, name: bytes, follow: bool = False) -> Status:
        """Of a name in a folder, or of descriptor ``folder`` itself if the name is empty."""
        flags = _AT_EMPTY_PATH if not name else 0 if follow else _AT_SYMLINK_NOFOLLOW
        place = self._buffer + _NAMES
        arguments = (folder, self._buffer, flags, _BASIC_STATS, place)
        _, data = self._call("statx", arguments, name, answer=_STATX_SIZE, path=name)
        _, _, _, _, uid, gid, mode, _, _, size, *_ = _STATX.unpack_from(data)
        seconds, nanoseconds = _TIME.unpack_from(data, _MTIME_AT)
        if nanoseconds >= 10**9 or abs(seconds) >= 1 << 33 or size >= 1 << 63:
            raise Failed(f"{name!r}: the sandbox tells an impossible time or size")
        mtime_ns = seconds * 10**9 + nanoseconds
        return Status(mode=mode, uid=uid, gid=gid, size=size, mtime_ns=mtime_ns)

    def names(self, folder: int) -> Iterator[bytes]:
        """What a directory has, but for itself and its parent."""
        while True:
            place = self._buffer + _NAMES
            _, data = self._call("getdents64", (folder, place, 32768), answer=-1)
            if not data:
                return
            at = 0
            while at < len(data):
                if len(data) - at < _ENTRY.size + 1:
                    raise Failed("a directory's entry is cut off")
                _, _, length, _ = _ENTRY.unpack_from(data, at)
                if length <= _ENTRY.size or at + length > len(data):
                    raise Failed("a directory's entry has an impossible length")
                name = data[at + _ENTRY.size : at + length].split(b"\0", 1)[0]
                at += length
                if name not in (b".", b".."):
                    yield checked_name(name)

    def readlink(self, folder: int, name: bytes) -> bytes:
        arguments = (folder, self._buffer, self._buffer + _NAMES, 4096)
        return self._call("readlinkat", arguments, name, answer=-1, path=name)[1]

    def symlink(self, target: bytes, folder: int, name: bytes) -> None:
        both = target + b"\0" + name
        second = self._buffer + len(target) + 1
        self._call("symlinkat", (self._buffer, folder, second), both, path=name)

    def link(self, old_folder: int, old: bytes, folder: int, name: bytes) -> None:
        second = self._buffer + len(old) + 1
        arguments = (old_folder, self._buffer, folder, second, 0)
        self._call("linkat", arguments, old + b"\0" + name, path=name)

    def mkdir(self, folder: int, name: bytes, mode: int) -> None:
        self._call("mkdirat", (folder, self._buffer, mode), name, path=name)

    def fifo(self, folder: int, name: bytes, mode: int) -> None:
        arguments = (folder, self._buffer, modes.S_IFIFO | mode, 0)
        self._call("mknodat", arguments, name, path=name)

    def unlink(self, folder: int, name: bytes) -> None:
        self._call("unlinkat", (folder, self._buffer, 0), name, path=name)

    def chmod(self, fd: int, mode: int) -> None:
        self._call("fchmod", (fd, mode))

    def chown(self, folder: int, name: bytes, uid: int, gid: int) -> None:
        """Of a name, never of what it points to, or of descriptor ``folder`` without a name."""
        if not name:
            self._call("fchown", (folder, uid, gid))
            return
        arguments = (folder, self._buffer, uid, gid, _AT_SYMLINK_NOFOLLOW)
        self._call("fchownat", arguments, name, path=name)

    def set_time(self, folder: int, name: bytes, mtime_ns: int) -> None:
        """The same for its time of change; that of use becomes the same."""
        times = struct.pack("<qqqq", *divmod(mtime_ns, 10**9), *divmod(mtime_ns, 10**9))
        path = self._buffer if name else 0
        flags = _AT_SYMLINK_NOFOLLOW if name else 0
        place = self._buffer + _NAMES
        self._call("utimensat", (folder, path, place, flags), name, times, path=name)

    # -- the conversation ----------------------------------------------------------------------

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _call(
        self,
        name: str,
        arguments: tuple[int, ...],
        names: bytes = b"",
        data: bytes = b"",
        *,
        answer: int = 0,
        path: bytes = b"",
    ) -> tuple[int, bytes]:
        assert self._numbers is not None
        names += b"\0"
        if len(names) > _NAMES:
            raise Failed(f"a file's name is longer than {_NAMES} bytes")
        sent = names.ljust(_NAMES, b"\0") + data if data else names
        five = (*arguments, 0, 0, 0, 0)[:5]
        deadline = self._deadline()
        head = struct.pack("<8q", self._numbers[name], *_signed(five), len(sent), answer)
        self._give(head + sent, deadline)
        (result,) = struct.unpack("<q", self._take(8, deadline))
        count = (result if result > 0 else 0) if answer < 0 else answer
        if count > _DATA:
            raise Failed(f"{name} inside the sandbox tells of {count} bytes")
        data = self._take(count, deadline)
        if result < 0:
            error = OSError(-result, os.strerror(-result) if result > -4096 else "unknown error")
            if path:
                error.filename = os.fsdecode(path)
            raise error
        return result, data

    def _give(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._calls, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._calls, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _gone() from None

    def _take(self, count: int, deadline: float) -> bytes:
        parts = []
        while count:
            self._wait(self._answers, select.POLLIN, deadline)
            try:
                data = os.read(self._answers, count)
            except BlockingIOError:
                continue
            if not data:
                raise _gone()
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def _wait(self, fd: int, events: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(fd, events)
        if not poller.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise DeadlineExceeded("a system call inside the sandbox", self._timeout)


def _signed(values: tuple[int, ...]) -> Iterator[int]:
    """As registers: addresses may lie in the upper half of the range."""
    return (value - (1 << 64) if value >= 1 << 63 else value for value in values)


def _gone() -> Failed:
    return Failed("the program inside the sandbox has ended")
