"""``cp``: files from a container to the host, or the other way, as docker's does it.

The files are read and written inside the container, by its own view of them: volumes, and what
is in the sandbox's memory alone, are there, and a link of the container's leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import sys

from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.base.record import Record
from runtime.cli import find, output
from runtime.cli.files.trees import HostFiles, TarSink, TarSource, TreeSink, TreeSource
from runtime.sandbox.inside_files import AT_FDCWD

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.cli.files.trees import Files, Tell

_STREAM = "-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY


class Place(Record):
    """A side of the copy: ``container`` is empty on the host."""

    container: str
    path: str

    @property
    def whole(self) -> str:
        return f"{self.container}:{self.path}" if self.container else self.path


def place(text: str) -> Place:
    """What ``ID:PATH``, or a path of the host, names.  Raises InvalidRequest."""
    container, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        if not text:
            raise InvalidRequest("cp", "a path is empty")
        return Place(container="", path=text)
    if not container or "/" in container:
        raise InvalidRequest(
            text, "is neither ID:PATH nor a path; begin one that has a colon with ./"
        )
    return Place(container=container, path=os.path.join("/", path))


def cp_verb(args: argparse.Namespace) -> int:
    """``cp``: 1 if something had to be left out."""
    source, target = place(args.source), place(args.target)
    if bool(source.container) == bool(target.container):
        raise InvalidRequest("cp", "one of the two must be in a container, as ID:PATH")
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        output.warn(text)

    host = HostFiles()
    with find.find(args, source.container or target.container).open_files() as inside:
        try:
            if target.container:
                _copy(host, source, inside, target, args, tell)
            else:
                _copy(inside, source, host, target, args, tell)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            name = os.fsdecode(error.filename or b"")
            # Which side it was on isn't known any more; both are named.
            text = f"{source.whole} to {target.whole}: {reason(error)}"
            raise Failed(f"{text}: {name}" if name else text) from None
    return 1 if told else 0


def _copy(
    here: Files, source: Place, there: Files, target: Place, args: argparse.Namespace, tell: Tell
) -> None:
    if source.whole == _STREAM:
        top = _open_folder(there, target)
        TarSource(sys.stdin.buffer, tell).copy(TreeSink(there, top, args.archive))
        return
    folder, name, base = _split(here, source)
    follow = args.follow_link or source.path.endswith("/")
    status = here.stat(folder, name, follow)
    is_folder = modes.S_ISDIR(status.mode)
    if source.path.endswith("/") and not is_folder:
        raise InvalidRequest(source.whole, "is not a folder")
    tree = TreeSource(here, folder, name, tell, follow)
    if target.whole == _STREAM:
        if os.isatty(1):
            raise InvalidRequest("-", "is a tar archive, which is not for a terminal")
        with TarSink(sys.stdout.buffer, tell) as archive:
            tree.copy(archive, base)
        sys.stdout.buffer.flush()
        return
    top, new = _aim(there, target, base, is_folder)
    tree.copy(TreeSink(there, top, args.archive), new)


def _split(files: Files, at: Place) -> tuple[int, bytes, bytes]:
    """A source as an opened folder and a name in it; and its name for the other side, which is
    empty where only what is in it is meant."""
    path = os.fsencode(at.path)
    stripped = path.rstrip(b"/")
    head, base = os.path.split(stripped)
    if base in (b"", b".", b".."):
        return files.open(AT_FDCWD, path, _FOLDER), b".", b""
    return files.open(AT_FDCWD, head or (b"/" if path[:1] == b"/" else b"."), _FOLDER), base, base


def _open_folder(files: Files, at: Place) -> int:
    try:
        return files.open(AT_FDCWD, os.fsencode(at.path), _FOLDER)
    except NotADirectoryError:
        raise InvalidRequest(at.whole, "is not a folder") from None


def _aim(files: Files, target: Place, base: bytes, is_folder: bool) -> tuple[int, bytes]:
    """The folder to write to, and the name in it: empty for the folder itself."""
    path = os.fsencode(target.path)
    try:
        found = modes.S_IFMT(files.stat(AT_FDCWD, path, True).mode)
    except FileNotFoundError:
        found = 0
    except NotADirectoryError:
        raise InvalidRequest(target.whole, "has something above it that is not a folder") from None
    if found == modes.S_IFDIR:
        return _open_folder(files, target), base
    if found and is_folder:
        raise InvalidRequest(target.whole, "is there and not a folder")
    head, name = os.path.split(path.rstrip(b"/"))
    if not is_folder and path.endswith(b"/"):
        raise InvalidRequest(target.whole, "is not a folder" if found else "no such folder")
    if name in (b"", b".", b".."):
        raise InvalidRequest(target.whole, "no such folder")
    top = files.open(AT_FDCWD, head or (b"/" if path[:1] == b"/" else b"."), _FOLDER)
    return top, name
