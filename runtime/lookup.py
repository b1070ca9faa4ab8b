"""Does the root file system have the program that a container is to run?

The sentry tells only when init is started; a shell's user expects to hear of a typing error at
creation.  So what is plainly missing is found here, by walking the path inside the root file
system the way the container's kernel would: links are resolved within it and never lead out of
it.  Where one of the container's mounts decides the matter, the question is left open.

Reads directories and links only; a file of the container is opened for a caller of ``open_file``
alone.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.spec import Spec

_MAX_LINKS = 40  # the kernel's own bound
_MAX_PARTS = 4096
_O_DIR = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Absent(Exception):
    """The walk ended early: ``reached`` is the path, inside the root, where it did."""

    def __init__(self, code: int, reached: tuple[str, ...]) -> None:
        self.code, self.reached = code, reached


def find_executable(rootfs: str, spec: Spec) -> None:
    """Check that the program and the working directory of the spec's process can exist.

    Returns None if they do, or if a mount leaves it open; raises InvalidRequest in the words of
    the OCI runtimes if they plainly don't.  An unreadable root file system is the gofer's to
    report.  Matches gVisor's lookup (``pkg/sentry/fsimpl/user/path.go``): relative entries of
    $PATH are skipped, and so is an entry that can't be searched.
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
        parts, mode = _walk(fd, path)
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
            where, mode = _walk(root, path, kept)
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
            why = os.strerror(code).lower()
            raise InvalidRequest("process.args", f'exec: "{name}": stat {name}: {why}')
        return
    for directory in _search_path(process.env):
        if not tree.missing(f"{directory}/{name}"):
            return
    raise InvalidRequest("process.args", f'exec: "{name}": executable file not found in $PATH')


def _search_path(env: Sequence[str]) -> list[str]:
    for entry in env:
        if entry.startswith("PATH="):
            return [each for each in entry[5:].split(":") if each.startswith("/")]
    return []


class _Tree:
    """A root file system and the places in it that mounts will cover."""

    def __init__(self, root: int, spec: Spec) -> None:
        self._root = root
        self._spec = spec
        self._covered: list[tuple[str, ...]] | None = None

    def missing(self, path: str) -> int:
        """The errno by which ``path`` plainly doesn't exist, or 0."""
        mode = self.mode(path)
        return -mode if mode is not None and mode < 0 else 0

    def mode(self, path: str) -> int | None:
        """The st_mode of ``path``; negative errno if it isn't there; None if that is open."""
        try:
            where, mode = _walk(self._root, path)
        except _Absent as absent:
            if absent.code not in (errno.ENOENT, errno.ENOTDIR) or self.covers(absent.reached):
                return None
            return -absent.code
        return None if self.covers(where) else mode

    def covers(self, where: tuple[str, ...]) -> bool:
        """Whether one of the mounts is at that place or above it."""
        if self._covered is None:
            # Destinations go through links, too: /var/run is often one.
            self._covered = [self._settle(m.destination) for m in self._spec.mounts]
        return any(where[: len(each)] == each for each in self._covered)

    def _settle(self, path: str) -> tuple[str, ...]:
        """Where ``path`` is inside the root, as far as it exists."""
        try:
            return _walk(self._root, path)[0]
        except _Absent as absent:
            return absent.reached


def _walk(root: int, path: str, keep: list[int] | None = None) -> tuple[tuple[str, ...], int]:
    """Resolve ``path`` with directory ``root`` as the root; returns where it is and its mode.

    ``keep`` gets an O_PATH descriptor of what is there, unless that is the root.

    Raises _Absent, whose ``reached`` ends with all the parts that were still to come.
    """
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
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
            where = (*names, part, *reversed(todo))
            if not stat.S_ISDIR(mode):
                raise _Absent(errno.ENOTDIR, where)
            try:
                fd = os.open(part, _O_DIR, dir_fd=fds[-1] if fds else root)
            except OSError as error:
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
                todo += [p for p in reversed(target.split("/")) if p not in ("", ".")]
                if links > _MAX_LINKS or len(todo) > _MAX_PARTS:
                    raise _Absent(errno.ELOOP, where)
        if keep is not None and fds:
            keep.append(fds.pop())
        return tuple(names), mode
    finally:
        for fd in fds:
            os.close(fd)
