"""The runsc that an operator gives: a file with what lies beside it, a tarball of a release, or
the one that the node has.

Owns what is taken from it.  A tarball's names and kinds are its author's: of it only regular files
of known names are read, and nothing is written by a name in it.
"""

from __future__ import annotations

import hashlib
import os
import stat

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.base.record import Record
from runtime.runsc import sidecars

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.cli.install.node import Node

_MAX_PROGRAM = 512 << 20
_KINDS = (".tar", ".tar.bz2", ".tbz2", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.zstd")
_ELF = b"\x7fELF"


class RunscSource(Record):
    """``paths`` are files of ours by their names beside ``runsc``; ``data`` those of a tarball.

    Neither: the node has one, at ``system``.
    """

    words: str
    paths: Mapping[str, str]
    data: Mapping[str, bytes]
    system: str = ""

    @property
    def is_copied(self) -> bool:
        return not self.system

    def digests(self) -> dict[str, str]:
        found = {name: hashlib.sha512(data).hexdigest() for name, data in self.data.items()}
        for name, path in self.paths.items():
            with open(path, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha512").hexdigest()
        return found

    def copy_to(self, folder: str) -> None:
        """Write its programs into a folder, which is made; nothing if the node has them."""
        for name in (*self.paths, *self.data):
            target = f"{folder}/{name}"
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            with open(target, "xb") as file:
                if name in self.data:
                    file.write(self.data[name])
                else:
                    with open(self.paths[name], "rb") as source:
                        while chunk := source.read(1 << 20):
                            file.write(chunk)
            os.chmod(target, 0o755)
            os.chmod(os.path.dirname(target), 0o755)


def find(node: Node, given: str, earlier: str) -> RunscSource:
    """What ``--runsc`` names, else that of the earlier installation, else the node's own.

    ``earlier`` is the path of ours to a runsc that an installed version has; empty if none has.
    Raises InvalidRequest, Unsupported, Failed.
    """
    if given.endswith(_KINDS):
        return _of_tarball(given)
    if given:
        return _of_file(given)
    if earlier:
        return _of_file(earlier)
    system = node.which("runsc")
    if not system:
        raise Unsupported(
            "the node has no runsc: name one with --runsc, a path or a tarball of gVisor's release"
        )
    return RunscSource(words=system, paths={}, data={}, system=system)


def _of_file(path: str) -> RunscSource:
    _require_program(path)
    paths = {"runsc": path}
    sentry = sidecars.find_sentry(path, "")
    folder = os.path.dirname(sentry.path)
    if os.path.lexists(sentry.path):
        if sentry.fault:
            raise Failed(f"{sentry.path}: {sentry.fault}")
        for name in sorted(os.listdir(folder)):
            if stat.S_ISREG(os.stat(f"{folder}/{name}").st_mode):
                paths[f"{sidecars.FOLDER}/{name}"] = f"{folder}/{name}"
    return RunscSource(words=path, paths=paths, data={})


def _require_program(path: str) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except IsADirectoryError:
        raise InvalidRequest("--runsc", f"{path} is a directory") from None
    except OSError as error:
        raise InvalidRequest("--runsc", f"{path}: {error.strerror}") from None
    if head != _ELF:
        # What a download that failed leaves is a page that says so.
        raise InvalidRequest("--runsc", f"{path} is no program, its first bytes are {head!r}")
    if not os.access(path, os.X_OK):
        raise InvalidRequest("--runsc", f"{path} is not executable")


def _of_tarball(path: str) -> RunscSource:
    import tarfile

    _check_digest(path)
    data: dict[str, bytes] = {}
    try:
        with _opened(path) as archive:
            for member in archive:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                name = "/".join(parts[-2:]) if parts[-2:-1] == [sidecars.FOLDER] else parts[-1:]
                name = name if isinstance(name, str) else "".join(name)
                wanted = name == "runsc" or name.startswith(f"{sidecars.FOLDER}/")
                if not wanted or not member.isreg() or ".." in parts or name in data:
                    continue
                if member.size > _MAX_PROGRAM:
                    raise InvalidRequest("--runsc", f"{path}: {member.name} is too large")
                content = archive.extractfile(member)
                data[name] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        text = str(error) or type(error).__name__
        raise InvalidRequest("--runsc", f"{path} can't be read as a tarball: {text}") from None
    if not data.get("runsc", b"").startswith(_ELF):
        raise InvalidRequest("--runsc", f"{path} has no program runsc in it")
    return RunscSource(words=path, paths={}, data=data)


def _opened(path: str):  # type: ignore[no-untyped-def]
    import io
    import tarfile

    if not path.endswith((".zst", ".zstd")):
        return tarfile.open(path)
    from runtime.cli import doctor
    from runtime.host.spawn import spawn
    from runtime.host.spawn_spec import SpawnSpec

    program = doctor.which("zstd")
    if not program:
        raise Unsupported(f"{path}: there is no zstd here: take the release's .tar.bz2")
    fd = os.memfd_create("tarball", os.MFD_CLOEXEC)
    child = spawn(SpawnSpec(path=program, argv=("zstd", "-dcq", path), env={}, fds={1: fd}))
    try:
        status = child.wait(300)
    finally:
        child.close()
    if status:
        os.close(fd)
        raise InvalidRequest("--runsc", f"{path} can't be unpacked by zstd")
    os.lseek(fd, 0, os.SEEK_SET)
    return tarfile.open(fileobj=io.FileIO(fd))


def _check_digest(path: str) -> None:
    """Compare the tarball with the digest beside it, if there is one.  Raises Failed."""
    beside = files.read_bounded(f"{path}.sha512", 1 << 16)
    if beside is None:
        return
    words = beside.decode("ascii", "replace").split()
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha512").hexdigest()
    except OSError as error:
        raise InvalidRequest("--runsc", f"{path}: {error.strerror}") from None
    if not words or found != words[0].lower():
        raise Failed(f"{path} is damaged: its SHA-512 isn't the one in {path}.sha512")
