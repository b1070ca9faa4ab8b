"""A task's root file system: mounting it in order, undoing it wholly, and finding what is left.

Owns the order of mounts, the place of each, and the roll-back; how one mount is made is in
``runtime/bundle/mount.py``.  That, and the native module, is imported only when there is something
to mount or to unmount, so that a ``delete`` with nothing left to do stays cheap.
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.host import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.bundle.mount_options import RootfsMount

# Mounts can hide each other, so that several rounds may be needed.
_ROUNDS = 32


def mount_rootfs(mounts: Sequence[RootfsMount], target: str) -> None:
    """Mount all of ``mounts`` on the directory ``target``, in order; none at all on an error.

    ``target`` is made if it's missing.  An empty list does nothing: then the root file system is
    somewhere else already.  Raises InvalidRequest for a mount that makes no sense, Unsupported for
    one that this kernel can't do, Failed with the system's error.
    """
    if not mounts:
        return
    from runtime.bundle.mount import attach

    try:
        os.mkdir(target, 0o711)  # as containerd's runc shim does
    except FileExistsError:
        pass
    except OSError as error:
        raise Failed(f"make directory {target}: {reason(error)}") from None
    done: list[str] = []
    try:
        for mount in mounts:
            place = _place(target, mount.target)
            attach(mount, place)
            done.append(place)
    except BaseException:
        for place in reversed(done):
            _detach(place)
        raise


def unmount_all(target: str) -> None:
    """Unmount everything at and below ``target``, deepest first, lazily what is busy.

    Idempotent: nothing mounted, or no such directory, is fine.  Symbolic links are followed in the
    directories above ``target`` only.  Raises Failed if something stays mounted.
    """
    parent, name = os.path.split(os.path.abspath(target))
    root = os.path.join(os.path.realpath(parent), name)
    error: OSError | None = None
    before: list[str] | None = None
    for _ in range(_ROUNDS):
        places = mounts_below(root)
        if not places:
            return
        if places == before:
            break
        before = places
        for place in places:
            error = _detach(place) or error
    why = f": {error.strerror}" if error is not None else ""
    raise Failed(f"unmount {root}{why}")


def mounts_below(root: str) -> list[str]:
    """The mount points at and below the absolute path ``root``, deepest and newest first."""
    inside = root.rstrip("/") + "/"
    # A prefix without special characters rules out most of the lines.
    hint = b" " + _plain_prefix(os.fsencode(root))
    places = [each.place for each in mountinfo.read(hint=hint)]
    found = [place for place in places if place == root or place.startswith(inside)]
    found.reverse()
    found.sort(key=lambda place: -place.rstrip("/").count("/"))
    return found


def _plain_prefix(path: bytes) -> bytes:
    for number, byte in enumerate(path):
        if byte in b" \t\n\\#":
            return path[:number]
    return path


def _detach(place: str) -> OSError | None:
    """Take the uppermost mount off ``place``; an error other than that there's none."""
    import errno

    from runtime.host.linux import MNT_DETACH, UMOUNT_NOFOLLOW, umount2

    try:
        try:
            umount2(place, UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            umount2(place, UMOUNT_NOFOLLOW | MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return error
    return None


def _place(root: str, below: str) -> str:
    """Where a mount goes.  ``below`` is seen as a container with root ``root`` would see it.

    No process of the container runs yet, so what is resolved here can't be changed under us.
    """
    if not below:
        return root
    from runtime.host.linux import open_in_root

    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, below.lstrip("/") or ".", os.O_PATH)
        finally:
            os.close(root_fd)
        try:
            place = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except ValueError:
        raise InvalidRequest("rootfs", f"mount target {below!r} has a NUL byte") from None
    except OSError as error:
        raise Failed(f"mount target {below!r} in {root}: {reason(error)}") from None
    real = os.path.realpath(root)
    if place != real and not place.startswith(real + "/"):
        raise InvalidRequest("rootfs", f"mount target {below!r} lies outside of {root}")
    return place
