"""A file system in user space with one file, whose reads are never answered."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from pathlib import Path

from integration.harness.base import linux

_LOOKUP, _GETATTR, _OPEN, _READ, _STATFS, _INIT, _OPENDIR = 1, 3, 14, 15, 17, 26, 27
_FORGET, _INTERRUPT, _BATCH_FORGET = 2, 36, 42
_DONE = (18, 25, 28, 29, 34, 38)  # release, flush, readdir, releasedir, access, destroy: nothing
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ROOT, _FILE = 1, 2
FILE = "file"


class HangingFuse:
    """Mounted at `target` while it is entered.  `asked` is set when a read waits for ever.

    The process that waits can't be killed before the connection ends, by `__exit__` if nobody
    else ends it.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.asked = threading.Event()
        self._fd = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HangingFuse:
        self.target.mkdir(parents=True, exist_ok=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        linux.mount("hanging", str(self.target), "fuse.hanging", 0, options)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        linux.unmount_force(str(self.target))  # aborts what waits, and ends the thread's read
        linux.unmount(str(self.target))
        if self._thread is not None:
            self._thread.join(10)
        os.close(self._fd)

    @property
    def device(self) -> int:
        """The number by which the kernel knows the connection."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            words = line.split()
            if words[4] == str(self.target):
                return int(words[2].partition(":")[2])
        raise FileNotFoundError(self.target)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 18)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # unmounted or aborted
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code == _READ:
                self.asked.set()
                continue
            if code in (_FORGET, _INTERRUPT, _BATCH_FORGET):
                continue
            answer = self._answer(code, node, request[_IN.size :])
            fault = -answer if isinstance(answer, int) else 0
            body = answer if isinstance(answer, bytes) else b""
            try:
                os.write(self._fd, _OUT.pack(_OUT.size + len(body), fault, unique) + body)
            except OSError:
                continue  # who asked has gone

    def _answer(self, code: int, node: int, data: bytes) -> bytes | int:
        if code == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        if code == _LOOKUP:
            if node != _ROOT or data.rstrip(b"\0").decode() != FILE:
                return errno.ENOENT
            return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + _attributes(_FILE)
        if code == _GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + _attributes(node)
        if code in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 1, 0, 0)
        if code == _STATFS:
            return struct.pack("<QQQQQIIII24x", 1, 1, 1, 2, 2, 512, 255, 512, 0)
        return b"" if code in _DONE else errno.ENOSYS


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
    return struct.pack("<QQQQQQIIIIIIIIII", node, 4096, 8, *(0,) * 6, mode, 1, 0, 0, 0, 4096, 0)
