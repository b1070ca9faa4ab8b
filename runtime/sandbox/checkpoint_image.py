"""The files of a checkpoint: written whole or not at all, and checked when they are read.

Owns the names in an image's directory, the header that gVisor puts in front of its state, and a
file of our own that tells what the sentry's files don't: which runsc made them, for which
containers, and how those must look.  An image without that file, as ``runsc checkpoint`` writes
it, can be restored too, but less of it can be checked.  Knows no sentry, needs no reactor.

Names and header are those of gVisor's ``runsc/boot/restore.go`` and ``pkg/state/statefile``.
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import crc32

from runtime.base import fastjson
from runtime.base.errors import AlreadyExists, Failed, InvalidRequest, NotFound, reason
from runtime.base.files import write_all
from runtime.base.record import Record
from runtime.bundle.spec import validate_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self

STATE = "checkpoint.img"
PAGES_META = "pages_meta.img"
PAGES = "pages.img"
#: Our own file.
ABOUT = "gvisor-shim.json"

FLATE = "flate-best-speed"
NONE = "none"
COMPRESSIONS = (FLATE, NONE)

_FORMAT = 1
_MAGIC = b"gVisorSF"
_MAX_HEADER = 16 << 20
_MAX_ABOUT = 4 << 20
_MAX_CONTAINERS = 1024
_CHUNK = 1 << 20
#: How many times larger than on disk a file may be.
_MAX_HOLES = 64
_FIELD = "checkpoint"


class SavedContainer(Record):
    """A container of the image.  ``name`` is what restored ones are matched by, "" if it has none.

    ``mounts`` are the destinations that its gofer serves, ``args`` the command of its init.
    """

    name: str
    args: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    terminal: bool = False


class About(Record):
    """What our own file tells.  Containers stand in the order of their creation, root first."""

    runsc: str
    compression: str
    containers: tuple[SavedContainer, ...]
    #: The id of the sandbox that was saved.
    sandbox_id: str
    #: The argument of the sentry's network call; None where the sandbox had no own network.
    network: Mapping[str, Any] | None = None


class FilesDraft:
    """Files in the making.  None of them has its final name before ``commit_with``.

    A context manager: what was not committed is removed at the end, directories made for it too.
    One thread at a time.
    """

    def __init__(self, path: str, names: tuple[str, ...], about: str) -> None:
        """Create the files, and ``path`` where it is missing.

        ``about`` is the name of the file of ours that tells of them; the first of ``names`` may
        not stay empty.  Raises InvalidRequest for a path that can't be used, AlreadyExists if an
        image is there.
        """
        self.path = path
        self._made: list[str] = []
        self._names, self._about = names, about
        self._temporary: dict[str, str] = {}
        self._linked: list[str] = []
        self._committed = False
        #: Open for reading and writing, in the order in which the sentry wants them.
        self.fds: tuple[int, ...] = ()
        _check_path(path)
        self._directory = self._open_directory()
        try:
            for name in dict.fromkeys((*names, about, STATE, PAGES_META, PAGES)):
                if _exists(self._directory, name):
                    raise AlreadyExists("checkpoint", os.path.join(path, name))
            for name in self._names:
                self.fds += (self._create(name),)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_directory(self) -> int:
        path, missing = self.path, []
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for each in reversed(missing):
                os.mkdir(each, 0o700)
                self._made.append(each)
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self._remove_directories()
            raise InvalidRequest(_FIELD, f"{self.path}: {_reason(error)}") from None

    def _create(self, name: str) -> int:
        temporary = f".{name}.{os.urandom(6).hex()}.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise Failed(f"create {os.path.join(self.path, name)}: {_reason(error)}") from None
        self._temporary[name] = temporary
        return fd

    def commit_with(self, tell: Callable[[Mapping[str, tuple[int, int]]], object]) -> None:
        """Give the files their names, that of the first last.  Raises AlreadyExists, Failed.

        ``tell`` makes of the files' sizes and checksums what our own file is to say, as JSON.
        """
        files = {name: _measure(fd, name) for name, fd in zip(self._names, self.fds, strict=True)}
        first = self._names[0]
        if not files[first][0]:
            raise Failed(f"{first}: the sentry wrote nothing")
        fd = self._create(self._about)
        try:
            write_all(fd, fastjson.dumps(tell(files)).encode("ascii"))
        except OSError as error:
            raise Failed(f"write {self._about}: {_reason(error)}") from None
        finally:
            os.close(fd)
        for name in (self._about, *reversed(self._names)):
            self._link(name)
        self._committed = True

    def _link(self, name: str) -> None:
        # Unlike a rename, a link never replaces what somebody else has put there meanwhile.
        directory = self._directory
        try:
            os.link(
                self._temporary[name],
                name,
                src_dir_fd=directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
        except FileExistsError:
            raise AlreadyExists("checkpoint", os.path.join(self.path, name)) from None
        except OSError as error:
            raise Failed(f"create {os.path.join(self.path, name)}: {_reason(error)}") from None
        self._linked.append(name)

    def close(self) -> None:
        """Close the files, and remove them unless they are committed.  Idempotent."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)
        if self._directory < 0:
            return
        linked = () if self._committed else self._linked
        for name in (*self._temporary.values(), *linked):
            try:
                os.unlink(name, dir_fd=self._directory)
            except FileNotFoundError:
                continue
        os.close(self._directory)
        self._directory = -1
        if not self._committed:
            self._remove_directories()

    def _remove_directories(self) -> None:
        for path in reversed(self._made):
            try:
                os.rmdir(path)
            except OSError:
                return  # somebody else uses it by now
        self._made.clear()


class Draft(FilesDraft):
    """An image of a whole sandbox in the making."""

    def __init__(self, path: str, paged: bool) -> None:
        """Raises as for any files."""
        super().__init__(path, (STATE, PAGES_META, PAGES) if paged else (STATE,), ABOUT)

    def commit(self, about: About) -> None:
        """Raises AlreadyExists, Failed."""
        self.commit_with(lambda files: _encode(about, files))


class Image:
    """A checkpoint that was found sound, its files open.

    Whatever becomes of the directory, the files stay readable until ``close``: containerd
    unpacks an image for the creation of a task and doesn't keep it until the task is started.
    """

    def __init__(
        self, path: str, fds: tuple[int, ...], header: Mapping[str, str], about: About | None
    ) -> None:
        self.path = path
        #: In the order in which the sentry wants them: the state, and the pages' two files.
        self.fds = fds
        #: What the sentry wrote in front of its state.
        self.header = header
        self.about = about

    @property
    def paged(self) -> bool:
        """Whether memory is in files of its own."""
        return len(self.fds) > 1

    @property
    def containers(self) -> int:
        """How many containers have to be restored before any of them runs."""
        text = self.header.get("container_count", "1")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 1

    def close(self) -> None:
        """Idempotent."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)


def open_files(
    path: str, names: tuple[str, ...], about: str, go_on: Callable[[], None] = lambda: None
) -> tuple[int, ...]:
    """Open the files ``names`` in directory ``path``, and check them by our own file ``about``.

    If that is there: it is as ``commit_with`` wrote it, with a member ``files``.  Reads all of
    them, and calls ``go_on`` meanwhile.  The caller closes them.  Raises NotFound if one is
    missing, InvalidRequest if it is damaged.
    """
    _check_path(path)
    directory = _open_image(path)
    fds: list[int] = []
    try:
        for name in names:
            if not _exists(directory, name):
                raise NotFound(_FIELD, path, f"no {name} in {path}")
            fds.append(_open(directory, path, name))
        document = _read_about(directory, path, about)
        if document is not None:
            _check_files(
                path, dict(zip(names, fds, strict=True)), _files_of(path, document, about), go_on
            )
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    finally:
        os.close(directory)
    return tuple(fds)


def sizes(files: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """Sizes and checksums in the form of our own files."""
    return {name: {"size": size, "crc32": crc} for name, (size, crc) in files.items()}


def load(path: str, runsc: str, go_on: Callable[[], None] = lambda: None) -> Image:
    """Open and check the image in directory ``path``, for the runsc of version ``runsc``.

    Reads all of it, and calls ``go_on`` meanwhile, which may raise.  The caller closes it.
    Raises NotFound if there is none, InvalidRequest if it is truncated, damaged, or another
    runsc's.
    """
    _check_path(path)
    directory = _open_image(path)
    fds: list[int] = []
    try:
        names = [name for name in (STATE, PAGES_META, PAGES) if _exists(directory, name)]
        if STATE not in names:
            raise NotFound(_FIELD, path, f"no {STATE} in {path}")
        if len(names) == 2:
            lost = PAGES if PAGES_META in names else PAGES_META
            raise _broken(path, f"{lost} is missing")
        for name in names:
            fds.append(_open(directory, path, name))
        document = _read_about(directory, path)
        about = None
        if document is not None:
            about, files = _decode(path, document)
            _check_version(path, about.runsc, runsc)
            _check_files(path, dict(zip(names, fds, strict=True)), files, go_on)
        header = _read_header(path, fds[0])
        _check_version(path, header.get("runsc_version", ""), runsc)
        if header.get("compression", FLATE) not in COMPRESSIONS:
            raise _broken(path, f"compression {header['compression'][:50]!r} is unknown")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    finally:
        os.close(directory)
    return Image(path, tuple(fds), header, about)


def _open_image(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(_FIELD, path) from None
    except OSError as error:
        raise InvalidRequest(_FIELD, f"{path}: {_reason(error)}") from None


# -- checks ------------------------------------------------------------------------------------


def _broken(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(_FIELD, f"image {path} is truncated or damaged: {why}")


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest(_FIELD, f"{path!r} is not an absolute path")


def _check_version(path: str, made_by: str, runsc: str) -> None:
    if made_by and runsc and made_by != runsc:
        raise InvalidRequest(
            _FIELD,
            f"image {path} was made by runsc {made_by[:100]}; runsc {runsc} can't read it",
        )


def _check_files(
    path: str,
    present: Mapping[str, int],
    wanted: Mapping[str, tuple[int, int]],
    go_on: Callable[[], None],
) -> None:
    if present.keys() != wanted.keys():
        lost = ", ".join(sorted(wanted.keys() ^ present.keys()))
        raise _broken(path, f"files don't belong together: {lost}")
    # Sizes first: they cost nothing.
    for name, fd in present.items():
        info = os.fstat(fd)
        size = info.st_size
        if size != wanted[name][0]:
            raise _broken(path, f"{name} has {size} bytes instead of {wanted[name][0]}")
        if size > _MAX_HOLES * (info.st_blocks * 512 + (1 << 20)):
            # A sentry writes no zeros; a file of them would keep us reading for hours.
            raise _broken(path, f"{name} has {size} bytes, but hardly any on disk")
    for name, fd in present.items():
        if _measure(fd, name, go_on) != wanted[name]:
            raise _broken(path, f"the checksum of {name} is wrong")


def _measure(fd: int, name: str, go_on: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Size and CRC-32 of a file; leaves its offset where it is, which is the sentry's too.

    Between two parts it calls ``go_on``, which may raise.
    """
    size = checksum = 0
    try:
        while chunk := os.pread(fd, _CHUNK, size):
            go_on()
            checksum = crc32(chunk, checksum)
            size += len(chunk)
    except OSError as error:
        raise Failed(f"read {name}: {_reason(error)}") from None
    return size, checksum


def _read_header(path: str, fd: int) -> dict[str, str]:
    """gVisor's header: a magic word, a length of eight bytes, a JSON object of strings."""
    start = os.pread(fd, 16, 0)
    if not start.startswith(_MAGIC):
        raise _broken(path, f"{STATE} is no state of a sentry" if start else f"{STATE} is empty")
    length = int.from_bytes(start[8:], "big")
    if len(start) < 16 or length > _MAX_HEADER:
        raise _broken(path, f"the header of {STATE}")
    data = os.pread(fd, length, 16)
    try:
        if len(data) != length:
            raise ValueError("short")
        found = fastjson.loads(data)
    except ValueError:
        raise _broken(path, f"the header of {STATE}") from None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise _broken(path, f"the header of {STATE}")
    return found


# -- files -------------------------------------------------------------------------------------


def _reason(error: OSError) -> str:
    return reason(error)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(directory: int, path: str, name: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else _reason(error)
        raise InvalidRequest(_FIELD, f"{os.path.join(path, name)}: {why}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidRequest(_FIELD, f"{os.path.join(path, name)}: is not a regular file")
    os.set_blocking(fd, True)
    return fd


def _read_about(directory: int, path: str, about: str = ABOUT) -> object:
    if not _exists(directory, about):
        return None
    fd = _open(directory, path, about)
    try:
        data = os.pread(fd, _MAX_ABOUT + 1, 0)
    finally:
        os.close(fd)
    if len(data) > _MAX_ABOUT:
        raise _broken(path, f"{about} is larger than {_MAX_ABOUT} bytes")
    try:
        return fastjson.loads(data) or {}
    except ValueError:
        raise _broken(path, f"{about} is not JSON") from None


# -- our own file ------------------------------------------------------------------------------


def _encode(about: About, files: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "runsc": about.runsc,
        "compression": about.compression,
        "sandbox": about.sandbox_id,
        "containers": [
            {
                "name": each.name,
                "args": list(each.args),
                "mounts": list(each.mounts),
                "terminal": each.terminal,
            }
            for each in about.containers
        ],
        "files": sizes(files),
        "network": about.network,
    }


def _decode(path: str, document: object) -> tuple[About, dict[str, tuple[int, int]]]:
    if not isinstance(document, dict):
        raise _broken(path, f"{ABOUT} is not a JSON object")
    if document.get("format") != _FORMAT:
        raise InvalidRequest(
            _FIELD, f"image {path} has format {document.get('format')!r:.20}, known is {_FORMAT}"
        )
    try:
        return _about(document), _files_of(path, document, ABOUT)
    except (KeyError, TypeError, AttributeError, ValueError, InvalidRequest):
        raise _broken(path, f"{ABOUT} lacks something") from None


def _files_of(path: str, document: object, about: str) -> dict[str, tuple[int, int]]:
    """Sizes and checksums of the files.  Raises InvalidRequest."""
    try:
        if not isinstance(document, dict):
            raise TypeError("not an object")
        return {
            str(name): (_number(each, "size"), _number(each, "crc32"))
            for name, each in document["files"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise _broken(path, f"{about} lacks something") from None


def _about(document: Mapping[str, Any]) -> About:
    network = document["network"]
    if network is not None and not isinstance(network, dict):
        raise TypeError("network")
    found = document["containers"]
    if not isinstance(found, list) or not 0 < len(found) <= _MAX_CONTAINERS:
        raise TypeError("containers")
    return About(
        runsc=_text(document["runsc"]),
        compression=_text(document["compression"]),
        containers=tuple(
            SavedContainer(
                name=_text(each["name"]),
                args=tuple(_text(word) for word in each["args"]),
                mounts=tuple(_text(word) for word in each["mounts"]),
                terminal=each["terminal"] is True,
            )
            for each in found
        ),
        sandbox_id=validate_id("sandbox id", _text(document["sandbox"])),
        network=network,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _number(value: Mapping[str, Any], name: str) -> int:
    number = value[name]
    if type(number) is not int or number < 0:
        raise TypeError(name)
    return number
