"""A node: the machine itself, or a folder in which another's root file system is seen.

Owns how a path of the node's is found and changed without leaving its root, and how the node's own
programs are run.  Paths are those that the node itself has.
"""

from __future__ import annotations

import os
import stat
import sys

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, RuntimeFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Where a node's programs are, as root has them.
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_MAX_FILE = 4 << 20
_MAX_OUTPUT = 4 << 20
_MAX_LINKS = 40
#: Has the node's root for its own and becomes the program, in a mount namespace made for it: by
#: chroot alone nobody gets a user namespace, which sandboxes have.
_ENTER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.host import linux
root = sys.argv[2]
linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
linux.mount(root, root, "", linux.MS_BIND | linux.MS_REC)
os.chdir(root)
linux.pivot_root(".", ".")
linux.umount2(".", linux.MNT_DETACH)
os.chdir("/")
os.execv(sys.argv[3], sys.argv[3:])
"""
_FORK_SERVER = "gvisor-forksrv"


class Node:
    """The node whose root is ``root``."""

    def __init__(self, root: str = "/") -> None:
        """Raises InvalidRequest if that is no directory."""
        if not os.path.isdir(root):
            raise InvalidRequest("--root", f"{root!r} is no directory")
        self.root = os.path.realpath(root)

    @property
    def is_other(self) -> bool:
        """Whether it is looked at from outside, as from a container."""
        return self.root != "/"

    def path(self, path: str) -> str:
        """Where a path of the node's lies for us, its links followed as the node follows them.

        Raises Failed if there are too many links.
        """
        if not self.is_other:
            return path
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        inside: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                inside = inside[:-1]
                continue
            here = "/".join((self.root, *inside, part))
            try:
                target = os.readlink(here)
            except OSError:
                inside.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise Failed(f"{path}: too many levels of symbolic links")
            if target.startswith("/"):
                inside = []
            todo += [word for word in target.split("/") if word not in ("", ".")][::-1]
        return "/".join((self.root, *inside))

    # -- files ------------------------------------------------------------------------------

    def read(self, path: str) -> str | None:
        """A file's text; None if it isn't there.  Raises InvalidRequest, OSError."""
        data = files.read_bounded(self.path(path), _MAX_FILE, follow=not self.is_other)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Replace a file in one step; its folder is made.  The file keeps the mode that it has."""
        real = os.path.realpath(path) if not self.is_other else self.path(path)
        self.make_folder(os.path.dirname(path))
        try:
            mode = stat.S_IMODE(os.stat(real).st_mode)
        except OSError:
            pass
        files.replace_file(real, text.encode("utf-8", "surrogateescape"), mode)
        os.chmod(real, mode)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        files.remove_file(self.path(path))

    def make_folder(self, path: str) -> list[str]:
        """Make a folder that anybody may enter; the paths of those made, innermost first."""
        missing = []
        while not os.path.isdir(self.path(path)):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing):
            os.mkdir(self.path(folder), 0o755)
            os.chmod(self.path(folder), 0o755)
        return missing

    def remove_folders(self, paths: Iterable[str]) -> None:
        """Remove those folders in which nothing is."""
        for path in paths:
            try:
                os.rmdir(self.path(path))
            except OSError:
                continue

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(self.path(path))

    def names(self, path: str) -> list[str]:
        """What is in a folder; nothing if there is none."""
        try:
            return sorted(os.listdir(self.path(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def file_system_flags(self, path: str) -> int:
        """``ST_*`` of the file system in which a path is, or would be."""
        real = self.path(path)
        while not os.path.isdir(real):
            real = os.path.dirname(real)
        return os.statvfs(real).f_flag

    # -- programs ---------------------------------------------------------------------------

    def which(self, name: str) -> str:
        """The path of a program that the node has; empty if there is none."""
        for folder in SEARCH:
            real = self.path(f"{folder}/{name}")
            if os.path.isfile(real) and os.access(real, os.X_OK):
                return f"{folder}/{name}"
        return ""

    def run(self, *words: str, timeout: float = 30) -> tuple[int, str]:
        """The exit status of a program of the node's and what it printed, both streams.

        ``words[0]`` is its path.  Raises Failed if it can't be run, DeadlineExceeded.
        """
        from runtime.host.linux import CLONE_NEWNS
        from runtime.host.run import Run
        from runtime.host.spawn_spec import SpawnSpec

        env = {"PATH": ":".join(SEARCH), "HOME": "/root", "LC_ALL": "C.UTF-8"}
        spec = SpawnSpec(path=words[0], argv=words, env=env, cwd="/")
        fd = -1
        if self.is_other and self.shows_processes:
            # In a container of the node: what it runs is to be as if started on the node.
            fd = os.open("/proc/1/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            spec = spec.replace(join=((fd, CLONE_NEWNS),))
        elif self.is_other:
            packages = os.path.abspath(f"{os.path.dirname(files.__file__)}/../..")
            argv = (sys.executable, "-I", "-S", "-c", _ENTER, packages, self.root, *words)
            spec = spec.replace(path=argv[0], argv=argv, namespaces=CLONE_NEWNS)
        try:
            with Run(spec, _MAX_OUTPUT) as run:
                status, text = run.result(timeout)
        except OSError as error:
            raise Failed(f"{words[0]}: {error.strerror}") from None
        finally:
            if fd >= 0:
                os.close(fd)
        return os.waitstatus_to_exitcode(status), text

    def ask(self, *words: str, timeout: float = 30) -> str:
        """What a program prints; empty if it fails or can't be run."""
        try:
            status, text = self.run(*words, timeout=timeout)
        except RuntimeFault:
            return ""
        return "" if status else text

    # -- processes --------------------------------------------------------------------------

    @property
    def shows_processes(self) -> bool:
        """Whether its processes are those that we see: on it, or in its pid namespace."""
        if not self.is_other:
            return True
        try:
            return os.path.samestat(os.stat("/proc/1/root"), os.stat(self.root))
        except OSError:
            return False

    def executables(self) -> Iterator[tuple[int, str]]:
        """Each process but us and fork servers: pid and the path of what it executes."""
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                with open(f"/proc/{name}/comm", encoding="ascii", errors="replace") as file:
                    if file.read().strip() == _FORK_SERVER:
                        continue
                path = os.readlink(f"/proc/{name}/exe").removesuffix(" (deleted)")
            except OSError:
                continue
            yield int(name), path
