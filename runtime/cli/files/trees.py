"""Trees of files, copied from one place to another: the host, a container, a tar archive.

Owns that no name and no link of the one side leads anywhere on the other: a folder is entered by
its descriptor and one name at a time, never through a symbolic link, and a file is only ever
written where none was, or to a plain file.  What is copied may change meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import tarfile
import time

from runtime.base.errors import Failed, InvalidRequest
from runtime.sandbox.inside_files import AT_FDCWD, Status, checked_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any, Protocol

    class Files(Protocol):
        """System calls on files, here or in a container; those of ``InsideFiles``."""

        def open(self, folder: int, name: bytes, flags: int, mode: int = 0) -> int: ...
        def close(self, fd: int) -> None: ...
        def read(self, fd: int, count: int) -> bytes: ...
        def write(self, fd: int, data: bytes) -> int: ...
        def stat(self, folder: int, name: bytes, follow: bool = False) -> Status: ...
        def names(self, folder: int) -> Iterator[bytes]: ...
        def readlink(self, folder: int, name: bytes) -> bytes: ...
        def symlink(self, target: bytes, folder: int, name: bytes) -> None: ...
        def link(self, old_folder: int, old: bytes, folder: int, name: bytes) -> None: ...
        def mkdir(self, folder: int, name: bytes, mode: int) -> None: ...
        def fifo(self, folder: int, name: bytes, mode: int) -> None: ...
        def unlink(self, folder: int, name: bytes) -> None: ...
        def chmod(self, fd: int, mode: int) -> None: ...
        def chown(self, folder: int, name: bytes, uid: int, gid: int) -> None: ...
        def set_time(self, folder: int, name: bytes, mtime_ns: int) -> None: ...

    class Sink(Protocol):
        """Takes files; a folder is what ``enter`` returned, or the sink's ``top``."""

        top: Any

        def enter(self, folder: Any, name: bytes, status: Status) -> Any: ...
        def leave(self, folder: Any, status: Status) -> None: ...
        def file(self, folder: Any, name: bytes, status: Status, data: Data) -> None: ...
        def symlink(self, folder: Any, name: bytes, status: Status, target: bytes) -> None: ...
        def fifo(self, folder: Any, name: bytes, status: Status) -> None: ...

    #: A file's next bytes, at most so many; none at its end.
    Data = Callable[[int], bytes]
    #: Told of what is left out, and why.
    Tell = Callable[[str], None]

CHUNK = 262144
#: Folders within folders, each of which holds a descriptor.
MAX_DEPTH = 400
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_OLD = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
#: What may not be opened for writing, but made anew.
_ANEW = (errno.ELOOP, errno.ETXTBSY, errno.ENXIO, errno.EACCES, errno.EISDIR)


class HostFiles:
    """The host's."""

    def open(self, folder: int, name: bytes, flags: int, mode: int = 0) -> int:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=_dir(folder))

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, count: int) -> bytes:
        return os.read(fd, count)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def stat(self, folder: int, name: bytes, follow: bool = False) -> Status:
        if name:
            found = os.stat(name, dir_fd=_dir(folder), follow_symlinks=follow)
        else:
            found = os.fstat(folder)
        return Status(
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
        )

    def names(self, folder: int) -> Iterator[bytes]:
        return map(os.fsencode, os.listdir(folder))

    def readlink(self, folder: int, name: bytes) -> bytes:
        return os.readlink(name, dir_fd=_dir(folder))

    def symlink(self, target: bytes, folder: int, name: bytes) -> None:
        os.symlink(target, name, dir_fd=_dir(folder))

    def link(self, old_folder: int, old: bytes, folder: int, name: bytes) -> None:
        os.link(
            old,
            name,
            src_dir_fd=_dir(old_folder),
            dst_dir_fd=_dir(folder),
            follow_symlinks=False,
        )

    def mkdir(self, folder: int, name: bytes, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=_dir(folder))

    def fifo(self, folder: int, name: bytes, mode: int) -> None:
        os.mkfifo(name, mode, dir_fd=_dir(folder))

    def unlink(self, folder: int, name: bytes) -> None:
        os.unlink(name, dir_fd=_dir(folder))

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def chown(self, folder: int, name: bytes, uid: int, gid: int) -> None:
        if name:
            os.chown(name, uid, gid, dir_fd=_dir(folder), follow_symlinks=False)
        else:
            os.fchown(folder, uid, gid)

    def set_time(self, folder: int, name: bytes, mtime_ns: int) -> None:
        times = (mtime_ns, mtime_ns)
        if name:
            os.utime(name, ns=times, dir_fd=_dir(folder), follow_symlinks=False)
        else:
            os.utime(folder, ns=times)


def _dir(folder: int) -> int | None:
    return None if folder == AT_FDCWD else folder


# -- reading -----------------------------------------------------------------------------------


class TreeSource:
    """A file or folder of ``files``, called ``name`` in ``folder``."""

    def __init__(
        self, files: Files, folder: int, name: bytes, tell: Tell, follow: bool = False
    ) -> None:
        """``follow`` a link that it is itself; never one within it."""
        self._files, self._folder, self._name, self._tell = files, folder, name, tell
        self._follow = follow

    def copy(self, sink: Sink, name: bytes) -> None:
        """Into the sink's top, under another name; what is in it into the top itself if that is
        empty.  Raises OSError, InvalidRequest for what is neither file, folder nor link."""
        self._copy(self._folder, self._name, sink, sink.top, name, os.fsdecode(self._name), 0)

    def _copy(
        self, folder: int, name: bytes, sink: Sink, there: Any, new: bytes, path: str, depth: int
    ) -> None:
        files = self._files
        follow = self._follow and not depth
        status = files.stat(folder, name, follow)
        if modes.S_ISLNK(status.mode):
            sink.symlink(there, new, status, files.readlink(folder, name))
        elif modes.S_ISFIFO(status.mode):
            sink.fifo(there, new, status)
        elif modes.S_ISDIR(status.mode):
            if depth > MAX_DEPTH:
                raise InvalidRequest(path[-200:], f"is more than {MAX_DEPTH} folders deep")
            fd = files.open(folder, name, _FOLDER & ~os.O_NOFOLLOW if follow else _FOLDER)
            try:
                self._copy_folder(fd, sink, there, new, path, depth)
            finally:
                files.close(fd)
        elif modes.S_ISREG(status.mode):
            flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
            # Not waiting, if it was replaced by a FIFO.
            fd = files.open(folder, name, flags)
            try:
                self._copy_file(fd, sink, there, new, path)
            finally:
                files.close(fd)
        elif depth:
            kind = "socket" if modes.S_ISSOCK(status.mode) else "device"
            self._tell(f"{path}: left out, as it is a {kind}")
        else:
            raise InvalidRequest(path, "is neither a file, a folder nor a link")

    def _copy_folder(
        self, fd: int, sink: Sink, there: Any, new: bytes, path: str, depth: int
    ) -> None:
        status = self._files.stat(fd, b"")
        inner = sink.enter(there, new, status) if new else there
        try:
            for name in self._files.names(fd):
                below = f"{path}/{os.fsdecode(name)}"
                try:
                    self._copy(fd, name, sink, inner, name, below, depth + 1)
                except FileNotFoundError:
                    self._tell(f"{below}: left out, as it was gone meanwhile")
        finally:
            if new:
                sink.leave(inner, status)

    def _copy_file(self, fd: int, sink: Sink, there: Any, new: bytes, path: str) -> None:
        # What was opened is looked at, not the name.
        status = self._files.stat(fd, b"")
        if not modes.S_ISREG(status.mode):
            raise Failed(f"{path}: was replaced meanwhile")
        sink.file(there, new, status, lambda count: self._files.read(fd, count))


class TarSource:
    """A tar archive that comes as a stream."""

    def __init__(self, stream: IO[bytes], tell: Tell) -> None:
        self._stream, self._tell = stream, tell

    def copy(self, sink: TreeSink) -> None:
        """Everything in it into the sink's top.  Raises InvalidRequest if it is no archive, or has
        a name that leads out of it."""
        try:
            with tarfile.open(fileobj=self._stream, mode="r|*") as archive:
                for member in archive:
                    self._copy(archive, member, sink)
        except tarfile.TarError as error:
            raise InvalidRequest("tar archive", str(error)) from None

    def _copy(self, archive: tarfile.TarFile, member: tarfile.TarInfo, sink: TreeSink) -> None:
        parts = _parts(member.name)
        status = Status(
            mode=member.mode & 0o7777,
            uid=member.uid,
            gid=member.gid,
            size=member.size,
            mtime_ns=int(member.mtime * 10**9),
        )
        if not parts:
            return  # the archive's own folder
        *above, name = parts
        with sink.within(above) as folder:
            if member.isdir():
                sink.leave(sink.enter(folder, name, status), status)
            elif member.isreg():
                data = archive.extractfile(member)
                assert data is not None
                sink.file(folder, name, status, data.read)
            elif member.issym():
                sink.symlink(folder, name, status, os.fsencode(member.linkname))
            elif member.islnk():
                sink.hard_link(folder, name, _parts(member.linkname))
            elif member.isfifo():
                sink.fifo(folder, name, status)
            else:
                self._tell(f"{member.name}: left out, as it is a device")


def _parts(name: str) -> list[bytes]:
    parts = [os.fsencode(part) for part in name.split("/") if part not in ("", ".")]
    if b".." in parts or len(parts) > MAX_DEPTH:
        raise InvalidRequest("tar archive", f"{name[:200]!r} leads out of it, or too deep")
    for part in parts:
        checked_name(part)
    return parts


# -- writing -----------------------------------------------------------------------------------


class TreeSink:
    """A folder of ``files``; with ``keep`` owners and all modes are kept.

    Without it all belongs to who copies, and nothing gets its owner's rights when it is run.
    """

    def __init__(self, files: Files, top: int, keep: bool) -> None:
        self._files, self.top, self._keep = files, top, keep
        #: Those that are ours to finish.
        self._made: set[int] = set()

    def enter(self, folder: int, name: bytes, status: Status) -> int:
        try:
            self._files.mkdir(folder, name, 0o700)
        except FileExistsError:  # a folder, or the next call fails
            return self._files.open(folder, name, _FOLDER)
        inner = self._files.open(folder, name, _FOLDER)
        self._made.add(inner)
        return inner

    def leave(self, folder: int, status: Status) -> None:
        try:
            if folder in self._made:
                self._made.discard(folder)
                self._finish(folder, status)
        finally:
            self._files.close(folder)

    def file(self, folder: int, name: bytes, status: Status, data: Data) -> None:
        fd = self._open(folder, name)
        try:
            while chunk := data(CHUNK):
                while chunk:
                    chunk = chunk[self._files.write(fd, chunk) :]
            self._finish(fd, status)
        finally:
            self._files.close(fd)

    def _open(self, folder: int, name: bytes) -> int:
        """A plain file for writing: the one that is there, as others may have it open or mounted,
        or else a new one."""
        files = self._files
        try:
            return files.open(folder, name, _NEW, 0o600)
        except FileExistsError:
            pass
        try:
            fd = files.open(folder, name, _OLD)
        except OSError as error:
            if error.errno not in _ANEW:
                raise
        else:
            if modes.S_ISREG(files.stat(fd, b"").mode):
                return fd
            files.close(fd)
        files.unlink(folder, name)
        return files.open(folder, name, _NEW, 0o600)

    def _finish(self, fd: int, status: Status) -> None:
        if self._keep:
            self._files.chown(fd, b"", status.uid, status.gid)
        self._files.chmod(fd, status.mode & (0o7777 if self._keep else 0o1777))
        self._files.set_time(fd, b"", status.mtime_ns)

    def symlink(self, folder: int, name: bytes, status: Status, target: bytes) -> None:
        self._remove(folder, name)
        self._files.symlink(target, folder, name)
        self._settle(folder, name, status)

    def fifo(self, folder: int, name: bytes, status: Status) -> None:
        self._remove(folder, name)
        self._files.fifo(folder, name, status.mode & 0o777)
        self._settle(folder, name, status)

    def hard_link(self, folder: int, name: bytes, old: list[bytes]) -> None:
        """To what this sink has by the names ``old``."""
        if not old:
            raise InvalidRequest("tar archive", "has a link to its own folder")
        with self.within(old[:-1]) as place:
            status = self._files.stat(place, old[-1])
            if not modes.S_ISREG(status.mode):
                raise InvalidRequest("tar archive", f"{old[-1]!r} is linked and no file")
            self._remove(folder, name)
            self._files.link(place, old[-1], folder, name)

    def _remove(self, folder: int, name: bytes) -> None:
        try:
            self._files.unlink(folder, name)
        except FileNotFoundError:
            return

    def _settle(self, folder: int, name: bytes, status: Status) -> None:
        if self._keep:
            self._files.chown(folder, name, status.uid, status.gid)
        self._files.set_time(folder, name, status.mtime_ns)

    def within(self, above: list[bytes]) -> _Within:
        """A context manager: the folder with these names, made where it isn't there."""
        return _Within(self._files, self.top, above)


class _Within:
    def __init__(self, files: Files, top: int, above: list[bytes]) -> None:
        self._files, self._top, self._above = files, top, above
        self._fd = -1

    def __enter__(self) -> int:
        folder = self._top
        try:
            for name in self._above:
                try:
                    self._files.mkdir(folder, name, 0o755)
                except FileExistsError:
                    pass
                inner = self._files.open(folder, name, _FOLDER)
                self.__exit__()
                folder = self._fd = inner
        except BaseException:
            self.__exit__()
            raise
        return folder

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1


class TarSink:
    """A tar archive that is written as a stream.  To be closed; a context manager."""

    top = b""

    def __init__(self, stream: IO[bytes], tell: Tell) -> None:
        self._tell = tell
        self._archive = tarfile.open(  # noqa: SIM115
            fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK
        )

    def __enter__(self) -> TarSink:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._archive.close()

    def enter(self, folder: bytes, name: bytes, status: Status) -> bytes:
        self._archive.addfile(_info(folder + name, status, tarfile.DIRTYPE))
        return folder + name + b"/"

    def leave(self, folder: bytes, status: Status) -> None:
        return None

    def file(self, folder: bytes, name: bytes, status: Status, data: Data) -> None:
        info = _info(folder + name, status, tarfile.REGTYPE)
        info.size = status.size
        reader: Any = _Exactly(data, status.size)
        self._archive.addfile(info, reader)
        if reader.missing:
            self._tell(f"{info.name}: shrank meanwhile, by {reader.missing} bytes")

    def symlink(self, folder: bytes, name: bytes, status: Status, target: bytes) -> None:
        info = _info(folder + name, status, tarfile.SYMTYPE)
        info.linkname = os.fsdecode(target)
        self._archive.addfile(info)

    def fifo(self, folder: bytes, name: bytes, status: Status) -> None:
        self._archive.addfile(_info(folder + name, status, tarfile.FIFOTYPE))


def _info(path: bytes, status: Status, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type, info.mode = kind, modes.S_IMODE(status.mode)
    info.uid, info.gid = status.uid, status.gid
    info.mtime = status.mtime_ns / 10**9 if status.mtime_ns >= 0 else time.time()
    return info


class _Exactly:
    """As many bytes as were promised: an archive says a file's size before its bytes."""

    def __init__(self, data: Data, size: int) -> None:
        self._data, self._left = data, size
        self.missing = 0

    def read(self, count: int) -> bytes:
        wanted = min(count, self._left)
        parts = b""
        while len(parts) < wanted and not self.missing:
            chunk = self._data(wanted - len(parts))
            if not chunk:
                self.missing = self._left - len(parts)
            parts += chunk
        self._left -= wanted
        return parts.ljust(wanted, b"\0")
