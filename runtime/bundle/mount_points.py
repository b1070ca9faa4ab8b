"""Mount points that a root file system lacks and nobody can make, as it is mounted read-only.

A gofer mounts the bind mounts of a container inside of its root file system.  Those below /proc,
/sys and /dev need no place in it on Linux, where a file system that was just made is there; in
the gofer's view there is the image's empty directory.  So one is put over that, in the gofer's own
mount namespace, with all the places that are wanted; what the container sees there is the
sentry's file system anyway.
"""

from __future__ import annotations

import os
import stat

from runtime.base.record import Record
from runtime.bundle.executable import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.bundle.spec import Mount

#: Where the sentry has file systems of its own, whatever the spec says.
_TOPS = ("/proc", "/sys", "/dev")


class MountPoints(Record):
    """A directory of the host to be covered, and what is to be in it: path and whether it is a
    directory, parents not named."""

    directory: str
    points: tuple[tuple[str, bool], ...]


def can_have(root_path: str, place: str) -> bool:
    """Whether there is, or can be made, a mount point at ``place`` of a root file system."""
    return (
        not _is_readonly(root_path)
        or resolve(root_path, place)[1] != 0
        or any(_lies_in(place, top) and _is_directory(root_path, top) for top in _TOPS)
    )


def missing(root_path: str, served: Sequence[Mount]) -> list[MountPoints]:
    """What has to be put into a root file system for the bind mounts that a gofer serves.

    Nothing unless it is read-only and lacks one of the places.
    """
    if not served or not _is_readonly(root_path):
        return []
    found = []
    for top in _TOPS:
        inside = [(_normal(mount.destination), mount.source) for mount in served]
        inside = [(place, source) for place, source in inside if _lies_in(place, top)]
        if not _is_directory(root_path, top):
            continue
        if all(resolve(root_path, place)[1] for place, _ in inside):
            continue
        # Mounts inside of others find their places in those.
        places = [place for place, _ in inside]
        points = tuple(
            (place[len(top) + 1 :], os.path.isdir(source))
            for place, source in inside
            if not any(other != place and _lies_in(place, other) for other in places)
        )
        directory = root_path.rstrip("/") + top
        found.append(MountPoints(directory=directory, points=tuple(dict.fromkeys(points))))
    return found


def make(wanted: Sequence[MountPoints]) -> None:
    """Cover the directories, in the caller's mount namespace.  Raises OSError."""
    from runtime.host import linux

    for each in wanted:
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("points", each.directory, "tmpfs", flags, "mode=755,size=1m")
        for name, is_directory in each.points:
            path = os.path.join(each.directory, name)
            os.makedirs(path if is_directory else os.path.dirname(path), 0o755, exist_ok=True)
            if not is_directory:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(path, flags, 0o644))


def _normal(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _lies_in(path: str, parent: str) -> bool:
    return path.startswith(parent + "/")


def _is_directory(root_path: str, top: str) -> bool:
    """Whether it is one itself: a link's target is somewhere else, where files may be needed."""
    place, mode = resolve(root_path, top)
    return place == top and stat.S_ISDIR(mode)


def _is_readonly(root_path: str) -> bool:
    try:
        return bool(os.statvfs(root_path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
