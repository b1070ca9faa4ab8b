"""Checkpoints of a sandbox's file systems alone: what was written, without any process.

A sentry saves what it keeps of a container's files in a filestore (an overlay's upper layer, a
volume that the sandbox keeps), by the container's name and the path, and gives it to the
container of that name when it mounts the same path in a fresh sandbox.  Owns the names of such an
image's files, and reading what asks for one: gVisor's ``runsc/boot/fscheckpoint.go``.

Releases that can have the flags ``fs-restore-fds`` and ``fs-save-fds`` of ``boot``.
"""

from __future__ import annotations

import errno
import fcntl
import os

from runtime.base.errors import AlreadyExists, Failed, InvalidRequest, Unsupported, reason
from runtime.base.golang import parse_bool
from runtime.sandbox.checkpoint_image import PAGES, PAGES_META, FilesDraft, open_files, sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.host.fds import FdSet
    from runtime.runsc.control import Control
    from runtime.runsc.release import Generation

MANIFEST = "fscheckpoint.pb"
TREES = "multitar.img"
#: In the order in which a sentry wants them.
NAMES = (MANIFEST, TREES, PAGES_META, PAGES)
#: Our own file: sizes and checksums of the others.
ABOUT = "gvisor-shim-files.json"
_FORMAT = 1

_PREFIX = "dev.gvisor.internal.fscheckpoint."
#: Where a program in the sandbox saves to when it writes to /proc/gvisor/fscheckpoint.
SAVE_PATH = _PREFIX + "path"
_SAVE_DIRECT = _PREFIX + "direct"
#: What a fresh sandbox is given.  Of our own: runsc has a flag of ``create`` for it.
RESTORE_PATH = _PREFIX + "restore-path"
#: Which CRI sets itself, of the pod's namespace.
_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FilesImage:
    """The open files of an image, in the sentry's order."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        self.fds = fds

    def close(self) -> None:
        """Idempotent."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)


def require(generation: Generation) -> None:
    """Raise Unsupported, naming the release, if it can't save file systems alone."""
    if not generation.saves_files:
        raise Unsupported(f"runsc {generation.version} can't save file systems alone")


def parse_path(text: str) -> tuple[str, str]:
    """Container name and path, of ``[NAME:]PATH``.  Raises InvalidRequest."""
    name, colon, path = text.partition(":")
    if not colon:
        name, path = "", text
    if not path.startswith("/") and path != "all-tmpfs":
        raise InvalidRequest("path", f"{text[:100]!r} is not of the form [CONTAINER:]/PATH")
    return name, path


def save(
    control: Control,
    generation: Generation,
    path: str,
    paths: Sequence[tuple[str, str]],
    *,
    timeout: float,
) -> None:
    """Write an image of ``paths`` of the sandbox into directory ``path``; it goes on as it was.

    Raises Unsupported, AlreadyExists, InvalidRequest, Failed with the sentry's words; then nothing
    of the image is left.
    """
    require(generation)
    with FilesDraft(path, NAMES, ABOUT) as draft:
        control.save_files(draft.fds, paths, timeout)
        draft.commit_with(
            lambda files: {
                "format": _FORMAT,
                "runsc": generation.version,
                "paths": [f"{name}:{each}" if name else each for name, each in paths],
                "files": sizes(files),
            }
        )


def load(
    path: str, generation: Generation, go_on: Callable[[], None] = lambda: None
) -> tuple[int, ...]:
    """Open and check the image in directory ``path``, in the sentry's order; the caller closes it.

    Raises Unsupported, NotFound, InvalidRequest.
    """
    require(generation)
    return open_files(path, NAMES, ABOUT, go_on)


def wanted(annotations: Mapping[str, str], key: str, folder: str) -> str:
    """The directory that a pod's author names; empty if none is named.

    It is below ``folder``, which is the operator's, and in Kubernetes below a directory of the
    pod's namespace there: a pod neither writes elsewhere nor reads what another's namespace has
    saved.  Raises InvalidRequest.
    """
    named = annotations.get(key, "")
    if not named:
        return ""
    if not folder:
        raise InvalidRequest(key, "needs the operator's option fs_checkpoints")
    top = os.path.join(folder, annotations.get(_NAMESPACE, ""))
    if os.path.normpath(named) != named or not named.startswith(top.rstrip("/") + "/"):
        raise InvalidRequest(key, f"{named[:200]!r} is not a path below {top}")
    return named


def check_links(folder: str, path: str) -> None:
    """Raise InvalidRequest if a directory between ``folder`` and ``path`` is a link."""
    here = folder
    for part in path.removeprefix(folder).strip("/").split("/"):
        here = os.path.join(here, part)
        if os.path.islink(here):
            raise InvalidRequest("fs checkpoint", f"{here} is a symbolic link")


def open_for_saving(
    annotations: Mapping[str, str], folder: str, generation: Generation, fds: FdSet
) -> tuple[int, ...]:
    """The files that a program in the sandbox may save to, later and once; none if not asked for.

    Until it does, they are empty, and the next sandbox may have them.  Raises InvalidRequest,
    AlreadyExists if there is an image or another sandbox has them, Unsupported, Failed.
    """
    path = wanted(annotations, SAVE_PATH, folder)
    if not path:
        return ()
    require(generation)
    direct = os.O_DIRECT if parse_bool(annotations.get(_SAVE_DIRECT, "")) else 0
    try:
        directory = fds.add(_make_below(folder, path))
        found = []
        for name in NAMES:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            flags |= direct if name == PAGES else 0
            found.append(fds.add(os.open(name, flags, 0o600, dir_fd=directory)))
        try:
            # Of the open file, which the sentry has for as long as it may write there.
            fcntl.flock(found[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists("checkpoint", path) from None
        if os.fstat(found[0]).st_size:
            raise AlreadyExists("checkpoint", path)
        for fd in found:
            os.ftruncate(fd, 0)
            os.set_blocking(fd, True)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise InvalidRequest(SAVE_PATH, f"{path}: there is a symbolic link") from None
        raise Failed(f"{path}: {reason(error)}") from None
    return tuple(found)


def _make_below(folder: str, path: str) -> int:
    """A directory below ``folder``, opened, and made where it is missing; no link is followed."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.removeprefix(folder).strip("/").split("/"):
        try:
            try:
                os.mkdir(part, 0o700, dir_fd=here)
            except FileExistsError:
                pass
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here
