"""The kernel's table of a process's mounts (proc_pid_mountinfo(5)).  Reads; changes nothing."""

from __future__ import annotations

import os

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = "/proc/self/mountinfo"


class Mounted(Record):
    """One mount."""

    #: ``major:minor``, the same for all mounts of one file system.
    device: str
    #: What of the file system is mounted.
    root: str = "/"
    #: The mount point.
    place: str
    #: The file system's type.
    kind: str
    #: The file system's own options, for instance the controllers of a cgroup hierarchy.
    options: str = ""


def read(path: str = TABLE, hint: bytes = b"") -> list[Mounted]:
    """The mounts, each behind the one that it is mounted on.  Raises OSError.

    Lines without ``hint`` aren't looked at; most of a large table is ruled out cheaply so.
    """
    with open(path, "rb") as file:
        return list(parse(file.read(), hint))


def parse(table: bytes, hint: bytes = b"") -> Iterator[Mounted]:
    """The mounts of a table; lines that don't parse are left out."""
    for line in table.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        left, right = before.split(b" "), after.split(b" ")
        if hint not in line or not separator or len(left) < 6 or len(right) < 3:
            continue
        try:
            root, place, kind, options = map(_unescape, (left[3], left[4], right[0], right[2]))
        except ValueError:
            continue
        device = os.fsdecode(left[2])
        yield Mounted(device=device, root=root, place=place, kind=kind, options=options)


def _unescape(field: bytes) -> str:
    r"""Undo the ``\ooo`` escapes of blanks, line ends and backslashes.  Raises ValueError."""
    if b"\\" in field:
        head, *rest = field.split(b"\\")
        field = head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)
    return os.fsdecode(field)
