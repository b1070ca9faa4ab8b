"""A root file system with busybox and nothing else, and programs that see no other.

They have a mount namespace of their own, in which the kernel's file systems, /run and /tmp are
those of the machine, and folders that are named lie where they do outside.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from integration.harness.base import linux, peers

#: Of glibc what containerd loads.
_GLIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1")
_SHARED = ("/proc", "/sys", "/dev", "/run", "/tmp")
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "group": "root:x:0:\n",
    "hosts": "127.0.0.1 localhost\n",
    "resolv.conf": "",
}
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class BareRoot:
    """The tree in ``folder``.  ``folders`` of the machine are the same inside.

    ``elsewhere`` are further ones, by the path that they have inside.  With ``glibc`` it has the
    machine's C library, which Debian's containerd needs.
    """

    def __init__(
        self,
        folder: Path,
        folders: Iterable[Path] = (),
        elsewhere: Mapping[str, Path] | None = None,
        glibc: bool = True,
    ) -> None:
        self.folder = folder
        self._folders = [*map(str, folders)]
        self._elsewhere = elsewhere or {}
        self._glibc = glibc

    def make(self) -> None:
        """Idempotent."""
        if (self.folder / "bin/busybox").exists():
            return
        for name in ("bin", "etc", "root", "usr/bin", "opt", "var/lib", "old"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self._glibc:
            self._copy_glibc()
        for name, text in _ETC.items():
            (self.folder / "etc" / name).write_text(text)
        shutil.copy(peers.busybox(), self.folder / "bin/busybox")
        listing = subprocess.run([peers.busybox(), "--list"], capture_output=True, text=True)
        for applet in listing.stdout.split():
            if applet != "busybox":
                (self.folder / "bin" / applet).symlink_to("busybox")
        for shared in (*_SHARED, *self._folders, *self._elsewhere):
            (self.folder / shared.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _copy_glibc(self) -> None:
        triplet = f"{platform.machine()}-linux-gnu"
        loader = next(Path("/lib64").glob("ld-linux*"), None) or next(
            Path("/lib").glob("ld-linux*")
        )
        inside = self.folder / "lib" / triplet
        inside.mkdir(parents=True)
        for name in _GLIBC:
            shutil.copy(Path("/lib", triplet, name), inside / name)
        target = self.folder / loader.relative_to("/")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(loader, target)

    def command(self, *words: str | Path) -> list[str]:
        """The command line that runs a program, found at its path inside, in there."""
        start = f"import sys; sys.path.insert(0, {str(peers.CHECKOUT)!r})\n"
        start += "from integration.harness.host import bare_root; bare_root.main()"
        return [
            *(sys.executable, "-I", "-c", start),
            *(str(self.folder), *self._folders),
            *(f"{inside}:{outside}" for inside, outside in self._elsewhere.items()),
            *("--", *map(str, words)),
        ]


def _enter(root: str, folders: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    linux.mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    linux.mount(root, root, "none", linux.MS_BIND)
    for shared in (*_SHARED, *folders):
        inside, _, outside = shared.partition(":")
        linux.mount(outside or inside, root + inside, "none", linux.MS_BIND | _MS_REC)
    os.chdir(root)
    if libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"old"):
        raise OSError(ctypes.get_errno(), "pivot_root")
    linux.unmount("/old")
    os.chdir("/")


def main() -> None:
    """Enter the root that the command line names, and become the program that follows."""
    end = sys.argv.index("--")
    _enter(sys.argv[1], sys.argv[2:end])
    os.execv(sys.argv[end + 1], sys.argv[end + 1 :])
