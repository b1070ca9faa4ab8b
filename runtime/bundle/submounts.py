"""Read-only bind mounts that are not recursive: what is mounted below them stays writable.

For the sentry a bind mount and all that the host has mounted below it are one file system, so
``ro`` holds for all of it.  On Linux it holds for the top alone, unless the option is ``rro``.  So
each mount below gets a mount of its own in the spec.  Reads the host's mount table, and changes
nothing.
"""

from __future__ import annotations

import os
import stat

from runtime.bundle.spec import with_mounts
from runtime.host import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.bundle.spec import Mount, Spec

#: Each costs a connection to the gofer; more of them (all of a host's /) stay read-only.
MAX_SUBMOUNTS = 16


def separate(spec: Spec, table: str = mountinfo.TABLE) -> tuple[Spec, tuple[str, ...]]:
    """The spec with a mount for each of the host's below a read-only one; what was left out.

    To be called while recursive options can still be told from plain ones.  A mount stays
    read-only where others than root could make its path lead elsewhere.
    """
    wanted = [m for m in spec.mounts if m.read_only and m.is_bind and "rbind" in m.options]
    wanted = [m for m in wanted if "rro" not in m.options and os.path.isdir(m.source)]
    chosen = set(map(id, wanted))
    if not wanted:
        return spec, ()
    points = [each.place for each in mountinfo.read(table)]
    raws: list[dict[str, Any]] = []
    notes: list[str] = []
    left = MAX_SUBMOUNTS
    for mount, raw in zip(spec.mounts, spec.raw["mounts"], strict=True):
        raws.append(raw)
        if id(mount) not in chosen:
            continue
        found = _below(mount, points)
        kept = [path for path in found if _is_steady(mount.source, path)]
        if len(kept) > left:
            kept = []
        left -= len(kept)
        if len(kept) < len(found):
            notes.append(f"what is mounted inside of {mount.destination} is read-only, too")
        options = ["rw" if option == "ro" else option for option in mount.options]
        raws += [
            {
                "destination": destination,
                "type": "bind",
                "source": mount.source.rstrip("/") + path,
                "options": options,
            }
            for path in kept
            if not _is_covered(destination := mount.destination.rstrip("/") + path, mount, spec)
        ]
    return with_mounts(spec, raws), tuple(notes)


def tmpfs_points() -> frozenset[str]:
    """Where file systems of type tmpfs are mounted on the host."""
    found = mountinfo.read(hint=b" - tmpfs ")
    return frozenset(each.place for each in found if each.kind == "tmpfs")


def _below(mount: Mount, points: list[str]) -> list[str]:
    """The topmost mount points inside the source, relative to it with a slash in front."""
    source = os.path.realpath(mount.source).rstrip("/")
    inside = sorted({p[len(source) :] for p in points if p.startswith(source + "/") and p != "/"})
    top: list[str] = []
    for path in inside:
        if not any(path.startswith(other + "/") for other in top):
            top.append(path)
    return top


def _is_steady(source: str, path: str) -> bool:
    """Whether none but root, or who runs the shim, can change what the path names."""
    place = source
    for part in path.split("/")[1:]:
        try:
            info = os.lstat(place) if place != source else os.stat(place)
        except OSError:
            return False
        if not stat.S_ISDIR(info.st_mode):
            return False
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            return False
        place = os.path.join(place, part)
    return True


def _is_covered(destination: str, mount: Mount, spec: Spec) -> bool:
    """Whether the spec has another mount in its place, or between it and ``mount``."""
    return any(
        each is not mount
        and each.destination.startswith(mount.destination.rstrip("/") + "/")
        and (destination + "/").startswith(each.destination.rstrip("/") + "/")
        for each in spec.mounts
    )
