"""The host's cgroup mounts, and the reading and writing of single cgroup files.

Owns the knowledge of where controllers are mounted and of the host's mode.  Doesn't know OCI
resources.  Everything is relative to a :class:`CgroupRoot`, so that tests can point it at a
directory tree of their own.
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, Unsupported, reason
from runtime.cgroups import paths
from runtime.host import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.mountinfo import Mounted

DEFAULT_ROOT = "/sys/fs/cgroup"
SYSTEMD_BOOTED = "/run/systemd/system"

#: The v1 controllers, and named hierarchies, in which a sandbox gets a directory: those of runsc.
KNOWN_V1 = (
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "systemd",
)
KNOWN_V2 = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma")

_READ_SIZE = 65536


class CgroupDenied(Failed):
    """This process may not make or change cgroups: rootless, or a read-only mount.

    The caller may go on without a cgroup, as runsc does for rootless containers.
    """


class CgroupRoot:
    """The cgroup file systems below one directory.  Immutable, hence safe from any thread.

    ``proc`` is where procfs is mounted.  ``write`` and ``read`` are the only ways to cgroup
    files; a test may override them to act like a kernel.
    """

    def __init__(
        self, path: str = DEFAULT_ROOT, *, proc: str = "/proc", systemd: str = SYSTEMD_BOOTED
    ) -> None:
        self.path = path
        #: Exists on hosts booted with systemd (sd_booted(3)).
        self.systemd = systemd
        self._proc = proc
        # Only the root of a cgroup2 mount has this file.  On a hybrid host `path` is a tmpfs
        # and the v2 hierarchy lies in `unified`; such a host counts as v1 (containerd's and
        # runsc's test is the file system's magic number, with the same outcome).
        self.mode = "v2" if os.path.exists(f"{path}/cgroup.controllers") else "v1"
        self._mounts: dict[str, str] = {}

    def mounts(self) -> dict[str, str]:
        """v1: each known controller that is mounted, with its mount point, in our order.

        Controllers mounted together share a mount point.  v2: the one hierarchy, named "".
        Once found they are remembered: hierarchies stay as long as anybody uses them, and the
        kernel takes milliseconds to print its table of mounts.
        """
        if self.mode == "v2":
            return {"": self.path}
        if self._mounts:
            return self._mounts
        found: dict[str, str] = {}
        for each in self._hierarchies():
            if each.kind == "cgroup":
                for name in _controllers(each):
                    found.setdefault(name, each.place)
        self._mounts = {name: found[name] for name in KNOWN_V1 if name in found}
        return self._mounts

    def own_paths(self, pid: int | None = None) -> dict[str, str]:
        """This process's own cgroup in each mounted hierarchy, as seen through its mount.

        Or that of process ``pid``.  Raises Failed, also if the process is gone.
        """
        roots = {"": "/"}
        for each in self._hierarchies():
            if each.kind == "cgroup2" and each.place == self.path:
                roots[""] = each.root
            elif each.kind == "cgroup":
                for name in _controllers(each):
                    roots.setdefault(name, each.root)
        own = paths.parse_memberships(self._table(f"{pid or 'self'}/cgroup"))
        return {name: paths.below(roots[name], path) for name, path in own.items() if name in roots}

    def _hierarchies(self) -> list[Mounted]:
        """What is mounted at our path, and of v1 below."""
        try:
            found = mountinfo.read(f"{self._proc}/self/mountinfo", b" - cgroup")
        except OSError as error:
            raise Failed(f"read {self._proc}/self/mountinfo: {reason(error)}") from error
        return [each for each in found if (each.place + "/").startswith(self.path + "/")]

    def _table(self, name: str) -> str:
        try:
            with open(f"{self._proc}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError as error:
            raise Failed(f"read {self._proc}/{name}: {reason(error)}") from error

    def read(self, path: str) -> str:
        """A file's contents, stripped.  Raises OSError."""
        return read_file(path)

    def write(self, path: str, value: str) -> None:
        """Write a file that exists already, in one write.  Raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


def _controllers(mounted: Mounted) -> list[str]:
    """Of a v1 hierarchy; a named one (``name=systemd``) counts as a controller of that name."""
    return [option.removeprefix("name=") for option in mounted.options.split(",")]


def read_file(path: str) -> str:
    """A small file's contents, stripped.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, _READ_SIZE)
        # One read gives all of any file but a very long list of processes or devices.
        while len(data) % _READ_SIZE == 0 and data:
            more = os.read(descriptor, _READ_SIZE)
            if not more:
                break
            data += more
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "replace").strip()


def missing_directories(mount: str, directory: str) -> tuple[str, ...]:
    """What ``make_directories`` would make now, topmost first."""
    path = mount.rstrip("/")
    missing: list[str] = []
    for element in directory.strip("/").split("/"):
        path = f"{path}/{element}"
        if missing or not os.path.isdir(path):
            missing.append(path)
    return tuple(missing)


def make_directories(mount: str, directory: str) -> list[str]:
    """``mkdir -p`` below a mount; returns what was made, topmost first.

    What was made is removed again on failure.  Others may remove a parent that is empty at that
    moment (so do we), hence a vanished parent means another try.  Raises OSError.
    """
    elements = directory.strip("/").split("/")
    made: list[str] = []
    for attempt in range(10):
        path = mount.rstrip("/")
        try:
            for element in elements:
                path = f"{path}/{element}"
                try:
                    os.mkdir(path, 0o755)
                except FileExistsError:
                    continue
                if path not in made:
                    made.append(path)
            return made
        except FileNotFoundError:
            if attempt == 9 or not os.path.isdir(mount):
                _remove_quietly(made)
                raise
        except OSError:
            _remove_quietly(made)
            raise
    raise AssertionError("unreachable")


def _remove_quietly(directories: list[str]) -> None:
    for path in reversed(directories):
        try:
            os.rmdir(path)
        except OSError:
            return


def fault(step: str, error: OSError) -> Failed | Unsupported:
    """The domain's exception for a failed step on a cgroup."""
    import errno

    message = f"{step}: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CgroupDenied(message)
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        return Unsupported(message)
    return Failed(message)
