"""Pure text work on cgroup paths: OCI's ``linux.cgroupsPath`` in both of its forms, systemd's
slice names, lists of CPUs, and the kernel's tables of cgroup mounts and memberships.

It must not touch a file system.  Paths that come out of it are absolute or relative, have no
empty, ``.`` or ``..`` element, and are safe to append to a mount point.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record

FIELD = "linux.cgroupsPath"

#: Bounds of a path and of one element of it (the latter is the kernel's NAME_MAX).
MAX_PATH = 2048
MAX_NAME = 255

#: Where systemd puts a scope whose slice is not named; what runsc does.
DEFAULT_SLICE = "system.slice"


class Location(Record):
    """Where a cgroup lies in every hierarchy.

    ``directory`` starts with ``/`` if it counts from the hierarchy's root; otherwise it counts
    from the cgroup of the process itself.  ``unit`` and ``slice`` are set for systemd's form:
    they are what a D-Bus driver would pass to StartTransientUnit.
    """

    directory: str
    unit: str = ""
    slice: str = ""


def locate(path: str, *, systemd: bool = False) -> Location:
    """Understand ``linux.cgroupsPath``.

    ``a/b`` and ``/a/b`` are directories.  ``slice:prefix:name`` is systemd's scope
    ``prefix-name.scope`` in that slice, and is recognised without ``systemd`` too, as runsc does
    (three parts, and not absolute).  Raises InvalidRequest.
    """
    if not isinstance(path, str):
        raise InvalidRequest(FIELD, "not a string")
    if len(path) > MAX_PATH:
        raise InvalidRequest(FIELD, f"longer than {MAX_PATH} bytes")
    parts = path.split(":")
    if systemd or (len(parts) == 3 and not path.startswith("/")):
        if len(parts) != 3:
            raise InvalidRequest(FIELD, f"{path!r} is not of the form slice:prefix:name")
        parent, prefix, name = parts
        if not name:
            raise InvalidRequest(FIELD, f"{path!r} names no scope")
        parent = parent or DEFAULT_SLICE
        unit = f"{prefix}-{name}.scope"
        directory = expand_slice(parent).rstrip("/") + "/" + unit
        if "/" in unit:
            raise InvalidRequest(FIELD, f"{unit!r} is not a unit's name")
        return Location(directory=_clean(directory), unit=unit, slice=parent)
    return Location(directory=_clean(path))


def _clean(path: str) -> str:
    if any(c < " " or c == "\x7f" for c in path):
        raise InvalidRequest(FIELD, "holds control characters")
    elements = [e for e in path.split("/") if e not in ("", ".")]
    if not elements:
        raise InvalidRequest(FIELD, f"{path!r} names no cgroup below the root")
    if ".." in elements:
        raise InvalidRequest(FIELD, f"{path!r} leads upwards")
    if any(len(e.encode("utf-8", "surrogateescape")) > MAX_NAME for e in elements):
        raise InvalidRequest(FIELD, f"has an element longer than {MAX_NAME} bytes")
    return ("/" if path.startswith("/") else "") + "/".join(elements)


def expand_slice(name: str) -> str:
    """The directory of a slice: ``a-b.slice`` is ``/a.slice/a-b.slice``, ``-.slice`` is ``/``.

    Raises InvalidRequest for what systemd wouldn't take (``a--b.slice``, ``-a.slice``).
    """
    stem = name.removesuffix(".slice")
    if len(name) > MAX_NAME or stem == name or not stem or "/" in name:
        raise InvalidRequest(FIELD, f"{name[:MAX_NAME]!r} is not a slice")
    if stem == "-":
        return "/"
    parts = stem.split("-")
    if "" in parts:
        raise InvalidRequest(FIELD, f"{name!r} is not a slice")
    return "".join(f"/{'-'.join(parts[: i + 1])}.slice" for i in range(len(parts)))


def derive_parent(cgroups_path: str) -> str | None:
    """The pod's cgroup, given the cgroup path of its sandbox container, or None.

    A path is cut at its last element that starts with ``pod`` (the rule of gVisor's shim);
    nothing below it means that there is no separate parent.  Of systemd's form the slice is
    meant, if it is a pod's; it is returned as a directory, which :func:`locate` takes.  (gVisor's
    shim leaves those sandboxes in the pause container's scope.)  Raises InvalidRequest.
    """
    location = locate(cgroups_path)
    if location.unit:
        last = location.slice.removesuffix(".slice").rpartition("-")[2]
        return location.directory.rpartition("/")[0] if last.startswith("pod") else None
    elements = location.directory.split("/")
    for i in range(len(elements) - 1, -1, -1):
        if elements[i].startswith("pod"):
            return "/".join(elements[: i + 1]) if i + 1 < len(elements) else None
    return None


def count_cpus(text: str) -> int:
    """How many CPUs a list like ``0-2,7`` names.  Raises ValueError."""
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError(f"{text!r} is not a list of cpus")
        low = int(first)
        high = int(last) if dash else low
        if high < low:
            raise ValueError(f"{text!r} is not a list of cpus")
        count += high - low + 1
    return count


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def parse_memberships(text: str) -> dict[str, str]:
    """``/proc/PID/cgroup`` as controller -> path; the v2 hierarchy's key is the empty string."""
    found = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for name in parts[1].split(","):
                found[name.removeprefix("name=")] = parts[2]
    return found


def below(root: str, path: str) -> str:
    """``path`` of a hierarchy as seen through a mount whose root is ``root``.

    In a nested container the kernel tells host paths, of which the mount shows a part only.
    What lies outside of the mount is replaced by the mount's root.
    """
    if root == "/":
        return path
    if path == root or path.startswith(root + "/"):
        return path[len(root) :] or "/"
    return "/"
