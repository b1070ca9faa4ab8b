"""Does the root file system have the program that a container is to run?

The sentry tells only when init is started, and a shell's user expects to hear of a typing error at
creation.  So this module finds what is plainly missing.  It walks the path inside the root file
system as the container's kernel would: links are resolved within it and never lead out of it.
Where one of the container's mounts could provide the program, the question is left open.

Reads directories and links only.  A file of the container is opened by ``open_file`` alone.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.base.errors import InvalidRequest, reason
from runtime.bundle.process_spec import PATH_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.bundle.spec import Spec

_MAX_LINKS = 40  # the kernel's own bound
_MAX_PARTS = 4096
_NAME_MAX = 255
#: Directories that are open at a time.
_MAX_DEPTH = 128
#: Parts that are looked at for one container in all.  Cwd, PATH, program and mounts are the
#: pod's to choose, and the image's what is there: beyond it the question is left open.
_MAX_STEPS = 20_000
#: Enough for one path, whatever its links.
_MAX_RESOLVED = (_MAX_LINKS + 1) * (PATH_MAX // 2 + 1)
_O_DIR = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Absent(Exception):
    """The walk ended early: ``reached`` is the path, inside the root, where it did."""

    def __init__(self, code: int, reached: tuple[str, ...]) -> None:
        self.code, self.reached = code, reached


def find_executable(rootfs: str, spec: Spec) -> None:
    """Check that the program and the working directory of the spec's process can exist.

    Returns None if they do, or if a mount could still provide them.  Raises InvalidRequest in the
    words of the OCI runtimes if they plainly don't.  An unreadable root file system is the
    gofer's to report.  Matches gVisor's lookup (``pkg/sentry/fsimpl/user/path.go``): relative
    entries of $PATH are skipped, and so is an entry that can't be searched.  Takes bounded time
    whatever the spec and the root file system are like.
    """
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _check(_Tree(root, spec), spec)
    finally:
        os.close(root)


def resolve(root: str, path: str) -> tuple[str, int]:
    """Where ``path`` is with directory ``root`` as the root of all links, and its st_mode.

    The place is an absolute path inside ``root``, without links as far as it exists.  The mode is
    0 if there is nothing, or if it can't be told.
    """
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return path, 0
    try:
        parts, mode = _walk(fd, path, _Budget(_MAX_RESOLVED))
    except _Absent as absent:
        parts, mode = absent.reached, 0
    finally:
        os.close(fd)
    return "/" + "/".join(parts), mode


def open_file(rootfs: str, spec: Spec, path: str) -> int | None:
    """A descriptor of a regular file, for reading; None if a mount decides what ``path`` is.

    What is opened is what the walk came to, whatever the container puts in its place meanwhile.
    Raises OSError: that it isn't there, EINVAL for anything but a regular file.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kept: list[int] = []
    try:
        tree = _Tree(root, spec)
        try:
            where, mode = _walk(root, path, tree.budget, kept)
        except _Absent as absent:
            if tree.covers(absent.reached):
                return None
            raise OSError(absent.code, os.strerror(absent.code)) from None
        if tree.covers(where):
            return None
        if not kept or not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.open(f"/proc/self/fd/{kept[0]}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        for fd in (root, *kept):
            os.close(fd)


def _check(tree: _Tree, spec: Spec) -> None:
    process = spec.process
    name = process.args[0]
    mode = tree.mode(process.cwd)
    if mode is not None and mode > 0 and not stat.S_ISDIR(mode):
        raise InvalidRequest("process.cwd", f"chdir to cwd {process.cwd!r}: not a directory")
    if "/" in name:
        path = name if name.startswith("/") else f"{process.cwd}/{name}"
        code = tree.missing(path)
        if code:
            why = reason(code)
            name = _shown(name)
            raise InvalidRequest("process.args", f'exec: "{name}": stat {name}: {why}')
        return
    if len(name) <= _NAME_MAX:
        for directory in _search_path(process.env):
            if not tree.missing(f"{directory}/{name}"):
                return
    name = _shown(name)
    raise InvalidRequest("process.args", f'exec: "{name}": executable file not found in $PATH')


def _shown(name: str) -> str:
    return name if len(name) <= _NAME_MAX else f"{name[:_NAME_MAX]}..."


def _search_path(env: Sequence[str]) -> list[str]:
    for entry in env:
        if entry.startswith("PATH="):
            return [each for each in entry[5:].split(":") if each.startswith("/")]
    return []


class _Budget:
    """How many parts of paths may still be looked at."""

    def __init__(self, steps: int = _MAX_STEPS) -> None:
        self.left = steps

    def take(self, path: str) -> list[str]:
        """The parts of ``path``.  Raises _Absent, with EAGAIN where there is no time left."""
        if self.left <= 0:
            raise _Absent(errno.EAGAIN, ())
        if len(os.fsencode(path)) > PATH_MAX:
            raise _Absent(errno.ENAMETOOLONG, ())
        parts = [part for part in path.split("/") if part not in ("", ".")]
        # Also of no parts: a list of such paths would go on for ever.
        self.left -= len(parts) + 1
        return parts


class _Tree:
    """A root file system and the places in it that mounts will cover."""

    def __init__(self, root: int, spec: Spec) -> None:
        self._root = root
        self._spec = spec
        self._places: _Places | None = None
        self.budget = _Budget()

    def missing(self, path: str) -> int:
        """The errno by which ``path`` plainly doesn't exist, or 0."""
        mode = self.mode(path)
        return -mode if mode is not None and mode < 0 else 0

    def mode(self, path: str) -> int | None:
        """The st_mode of ``path``; negative errno if it isn't there; None if that is open."""
        try:
            where, mode = _walk(self._root, path, self.budget)
        except _Absent as absent:
            if absent.code == errno.ENAMETOOLONG:
                return -absent.code
            if absent.code not in (errno.ENOENT, errno.ENOTDIR) or self.covers(absent.reached):
                return None
            return -absent.code
        return None if self.covers(where) else mode

    def covers(self, where: tuple[str, ...]) -> bool:
        """Whether one of the mounts is at that place or above it."""
        if self._places is None:
            # Destinations go through links, too: /var/run is often one.
            self._places = _Places()
            for mount in self._spec.mounts:
                self._places.add(self._settle(mount.destination))
        return self._places.cover(where)

    def _settle(self, path: str) -> tuple[str, ...]:
        """Where ``path`` is inside the root, as far as it exists."""
        try:
            return _walk(self._root, path, self.budget)[0]
        except _Absent as absent:
            # Nobody knows where it is, so it may be anywhere.
            return absent.reached


class _Places:
    """A set of paths, by their parts, that tells what is at or below one of them."""

    def __init__(self) -> None:
        self._below: dict[str, _Places] = {}
        self._here = False

    def add(self, path: tuple[str, ...]) -> None:
        place = self
        for part in path:
            place = place._below.setdefault(part, _Places())
        place._here = True

    def cover(self, path: tuple[str, ...]) -> bool:
        place: _Places | None = self
        for part in path:
            if place is None or place._here:
                break
            place = place._below.get(part)
        return place is not None and place._here


def _walk(
    root: int, path: str, budget: _Budget, keep: list[int] | None = None
) -> tuple[tuple[str, ...], int]:
    """Resolve ``path`` with directory ``root`` as the root; returns where it is and its mode.

    ``keep`` gets an O_PATH descriptor of what is there, unless that is the root.

    Raises _Absent, whose ``reached`` ends with all the parts that were still to come.
    """
    todo = budget.take(path)[::-1]
    names: list[str] = []
    fds: list[int] = []
    links = 0
    mode = stat.S_IFDIR
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                if names:
                    names.pop()
                    os.close(fds.pop())
                mode = stat.S_IFDIR
                continue
            if len(fds) >= _MAX_DEPTH:
                raise _Absent(errno.EAGAIN, ())
            if not stat.S_ISDIR(mode):
                raise _Absent(errno.ENOTDIR, (*names, part, *reversed(todo)))
            try:
                fd = os.open(part, _O_DIR, dir_fd=fds[-1] if fds else root)
            except OSError as error:
                where = (*names, part, *reversed(todo))
                raise _Absent(error.errno or errno.EIO, where) from None
            fds.append(fd)
            names.append(part)
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                target = os.readlink("", dir_fd=fd)
                os.close(fds.pop())
                names.pop()
                mode = stat.S_IFDIR
                if target.startswith("/"):
                    while fds:
                        os.close(fds.pop())
                    names.clear()
                if links > _MAX_LINKS or len(todo) > _MAX_PARTS:
                    raise _Absent(errno.ELOOP, (*names, part, *reversed(todo)))
                todo += budget.take(target)[::-1]
        if keep is not None and fds:
            keep.append(fds.pop())
        return tuple(names), mode
    finally:
        for fd in fds:
            os.close(fd)
