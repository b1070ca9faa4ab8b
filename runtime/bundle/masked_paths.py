"""Masked and read-only paths, as mounts.

A Linux runtime carries out ``linux.maskedPaths`` and ``linux.readonlyPaths`` itself, on the tree
that it has mounted.  The sentry ignores both and mounts by itself, so they become mounts of the
spec that it gets.  Owns that, and knowing what the sentry has in file systems of its own making:
a mount on what isn't there would create it, in the sentry and, for a bind mount, on the host.

What is found in the root file system or in a volume is told by walking it with all links kept
inside.  Nothing is opened for reading.
"""

from __future__ import annotations

import os
import stat

from runtime.base.errors import InvalidRequest
from runtime.base.json_fields import Fields
from runtime.base.record import Record
from runtime.bundle.executable import resolve
from runtime.bundle.mount_points import can_have
from runtime.bundle.spec import with_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.bundle.spec import Mount, Spec

    Pair = tuple[Mount, dict[str, Any]]

_MAX_PATHS = 1000

# The sentry's own mounts, made whether the spec has them or not.
_BUILT_IN = (("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "dev"), ("/dev/pts", "devpts"))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What the sentry's file systems have (pkg/sentry/fsimpl/proc, sys, dev).  The newer ones came
# after the generation that knows no gofer mount configurations.
_DIRECTORIES = _words(
    """
    /proc/sys /proc/sys/kernel /proc/sys/kernel/yama /proc/sys/net /proc/sys/net/core
    /proc/sys/net/ipv4 /proc/sys/vm
    /sys/block /sys/bus /sys/class /sys/class/net /sys/class/power_supply /sys/dev /sys/devices
    /sys/devices/system /sys/devices/system/cpu /sys/firmware /sys/fs /sys/kernel /sys/module
    /sys/power
    """
)
_NEWER_DIRECTORIES = _words(
    "/proc/bus /proc/fs /proc/irq /proc/sys/fs /proc/sys/kernel/random /sys/fs/cgroup"
)
_FILES = _words(
    """
    /proc/cgroups /proc/cmdline /proc/cpuinfo /proc/filesystems /proc/loadavg /proc/meminfo
    /proc/sentry-meminfo /proc/stat /proc/uptime /proc/version
    /proc/sys/kernel/hostname /proc/sys/kernel/msgmax /proc/sys/kernel/msgmnb
    /proc/sys/kernel/msgmni /proc/sys/kernel/sem /proc/sys/kernel/shmall /proc/sys/kernel/shmmax
    /proc/sys/kernel/shmmni /proc/sys/kernel/yama/ptrace_scope
    /proc/sys/net/core/default_qdisc /proc/sys/net/core/message_burst
    /proc/sys/net/core/message_cost /proc/sys/net/core/optmem_max /proc/sys/net/core/rmem_default
    /proc/sys/net/core/rmem_max /proc/sys/net/core/somaxconn /proc/sys/net/core/wmem_default
    /proc/sys/net/core/wmem_max
    /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_local_port_range
    /proc/sys/net/ipv4/tcp_recovery /proc/sys/net/ipv4/tcp_rmem /proc/sys/net/ipv4/tcp_sack
    /proc/sys/net/ipv4/tcp_wmem
    /proc/sys/vm/max_map_count /proc/sys/vm/mmap_min_addr /proc/sys/vm/overcommit_memory
    /dev/full /dev/null /dev/random /dev/tty /dev/urandom /dev/zero
    """
)
_NEWER_FILES = _words(
    """
    /proc/sysrq-trigger /proc/sys/fs/nr_open /proc/sys/kernel/cap_last_cap
    /proc/sys/kernel/overflowgid /proc/sys/kernel/overflowuid /proc/sys/kernel/random/boot_id
    """
)
# Files of the sentry's /proc that take writes which change something.
_WRITABLE = (
    "/proc/sys/fs/nr_open",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/tcp_recovery",
)

_MASK_OPTIONS = ["ro", "nosuid", "nodev", "noexec", "mode=0555"]


def restrict(spec: Spec, newer: bool) -> tuple[Spec, tuple[str, ...]]:
    """The spec with mounts for its masked and read-only paths, and what had to be left out.

    Paths that aren't there need nothing, as with any runtime.  Raises InvalidRequest for a path
    that isn't absolute.
    """
    linux = Fields(dict(spec.raw), "config.json").fields("linux")
    if linux is None:
        return spec, ()
    masked = _paths(linux, "maskedPaths")
    readonly = [
        path
        for path in _paths(linux, "readonlyPaths")
        if not any(_within(path, mask) for mask in masked)
    ]
    if not masked and not readonly:
        return spec, ()
    work = _Restriction(spec, newer)
    for path in masked:
        work.mask(path)
    for path in readonly:
        work.make_readonly(path)
    return work.result(), tuple(work.notes)


class Covered(Record):
    """A special file that the gofer's own mounts have to hide, or make read-only."""

    #: As the spec names it.
    path: str
    #: The bind mount that it is in, None for the root file system.
    mount: Mount | None
    #: Where in there.
    place: str
    masked: bool


def special_files(spec: Spec, newer: bool) -> list[Covered]:
    """What :func:`restrict` leaves to the gofer's mount namespace.

    A gofer opens the place of a mount before it mounts: a FIFO never opens, a socket or a device
    of no driver can't be opened, and opening any other device may act.
    """
    linux = Fields(dict(spec.raw), "config.json").fields("linux")
    if linux is None:
        return []
    found = []
    work = _Restriction(spec, newer)
    masked = _paths(linux, "maskedPaths")
    for path in dict.fromkeys((*masked, *_paths(linux, "readonlyPaths"))):
        place, mode = work.find(path)
        if not is_special(mode):
            continue
        kind, mount = work.cover(place)
        if kind == "bind" and mount is not None:
            inside = place[len(destination_of(mount)) :]
            if not inside:
                continue  # a mount that says itself what it is, as a mask does
            place = resolve(mount.source, inside)[0]
        elif kind != "root":
            continue
        found.append(
            Covered(
                path=path,
                mount=mount if kind == "bind" else None,
                place=place,
                masked=any(_within(path, each) for each in masked),
            )
        )
    return found


def is_special(mode: int) -> bool:
    """Whether an st_mode is that of a FIFO, a socket or a device."""
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _paths(linux: Fields, name: str) -> list[str]:
    """The paths in normal form, less those inside of others."""
    texts = linux.texts(name)
    if len(texts) > _MAX_PATHS:
        raise linux.error(name, f"has more than {_MAX_PATHS} paths")
    paths: list[str] = []
    for index, text in enumerate(texts):
        if not text.startswith("/"):
            raise linux.error(f"{name}[{index}]", f"{text[:200]!r} is not absolute")
        paths.append("/" + os.path.normpath(text).lstrip("/"))
    return [
        path
        for path in dict.fromkeys(paths)
        if not any(other != path and _within(path, other) for other in paths)
    ]


def _within(path: str, parent: str) -> bool:
    return parent == "/" or path == parent or path.startswith(parent + "/")


class _Restriction:
    """A spec's mounts while they are rewritten."""

    def __init__(self, spec: Spec, newer: bool) -> None:
        self._spec = spec
        self._root_readonly = spec.root_readonly
        self._directories = _DIRECTORIES | _NEWER_DIRECTORIES if newer else _DIRECTORIES
        self._files = _FILES | _NEWER_FILES if newer else _FILES
        raw = spec.raw.get("mounts") or []
        self._pairs: list[Pair] = list(zip(spec.mounts, raw, strict=True))
        # The gofer mounts in the order of the spec, unlike the sentry: what is to lie below the
        # container's own mounts comes first, what is to cover them last.
        self._first: list[dict[str, Any]] = []
        self._last: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def result(self) -> Spec:
        spec = with_mounts(
            self._spec, [*self._first, *(raw for _, raw in self._pairs), *self._last]
        )
        if self._root_readonly and not spec.root_readonly:
            raw = {**spec.raw, "root": {**spec.raw["root"], "readonly": True}}
            spec = spec.replace(raw=raw, root_readonly=True)
        return spec

    # -- masked paths ----------------------------------------------------------------------

    def mask(self, path: str) -> None:
        """Put something empty over ``path``: a directory over one, the null device over others."""
        if path == "/":
            raise InvalidRequest("config.json: linux.maskedPaths", "masks the root directory")
        place, mode = self.find(path)
        if is_special(mode) and (mount := self._mounted_at(place)) is not None:
            # Nothing needs to be over a mount that can be left out; but over what is below it.
            self._pairs = [pair for pair in self._pairs if pair[0] is not mount]
            self.mask(path)
            return
        if not mode or is_special(mode):
            return
        # The mask comes after all mounts, so it hides those that are inside.
        self._pairs = [p for p in self._pairs if not _within(destination_of(p[0]), place)]
        # Where no file can be mounted, a sentry of before 2025 still puts a directory over one.
        if stat.S_ISDIR(mode) or not can_have(self._spec.root_path, place):
            self._last.append(_tmpfs(place))
        else:
            self._last.append(
                {
                    "destination": place,
                    "type": "bind",
                    "source": "/dev/null",
                    "options": ["bind", "ro"],
                }
            )

    def _mounted_at(self, place: str) -> Mount | None:
        mount = self.cover(place)[1]
        return mount if mount is not None and destination_of(mount) == place else None

    # -- read-only paths -------------------------------------------------------------------

    def make_readonly(self, path: str) -> None:
        """Mount ``path`` once more, read-only, unless it can't be written anyway."""
        place, mode = self.find(path)
        if not mode or (is_special(mode) and self._mounted_at(place) is None):
            return
        kind, mount = self.cover(place)
        if mount is not None and mount.read_only:
            return
        if mount is not None and destination_of(mount) == place:
            self._remount(mount)
        elif kind == "root":
            self._root_path(place)
        elif any(_within(file, place) for file in _WRITABLE):
            # A part of a file system that the sentry makes can't be mounted once more.  All else
            # in there refuses to be written by itself.
            self.notes.append(f"{path} stays writable: it is the sentry's own")
        elif kind == "bind":
            # The volume can be changed by others: a source inside of it could become a link that
            # leads out of it.
            self.notes.append(f"{path} stays writable: it is inside a volume")

    def _remount(self, mount: Mount) -> None:
        for index, (each, raw) in enumerate(self._pairs):
            if each is mount:
                options = [o for o in mount.options if o != "rw"]
                changed = mount.replace(options=(*options, "ro"))
                self._pairs[index] = (changed, {**raw, "options": [*options, "ro"]})

    def _root_path(self, place: str) -> None:
        if self._root_readonly:
            return
        if place == "/":
            self._root_readonly = True
            return
        source = self._spec.root_path.rstrip("/") + place
        self._first.append(
            {"destination": place, "type": "bind", "source": source, "options": ["rbind", "ro"]}
        )

    # -- what is there ---------------------------------------------------------------------

    def find(self, path: str) -> tuple[str, int]:
        """Where ``path`` is once links are followed, and its st_mode; 0 if it isn't there."""
        kind, mount = self.cover(path)
        if kind == "root":
            path, mode = resolve(self._spec.root_path, path)
            kind, mount = self.cover(path)
            if kind == "root":
                return path, mode
            # A link to what a mount covers.
        if kind == "bind":
            assert mount is not None
            return path, _mode_in(mount, path)
        if (mount is not None and destination_of(mount) == path) or path in self._directories:
            return path, stat.S_IFDIR
        if path in (place for place, _ in _BUILT_IN):
            return path, stat.S_IFDIR
        return path, stat.S_IFREG if path in self._files else 0

    def cover(self, path: str) -> tuple[str, Mount | None]:
        """What ``path`` lies on: ``root``, ``bind``, or the type of a file system."""
        best, kind, found = "/", "root", None
        for place, type_ in _BUILT_IN:
            if _within(path, place) and len(place) > len(best):
                best, kind = place, type_
        for mount, _ in self._pairs:
            place = destination_of(mount)
            if place != "/" and _within(path, place) and len(place) >= len(best):
                best, found = place, mount
                kind = "bind" if mount.is_bind else dict(_BUILT_IN).get(place, mount.type)
        return kind, found


def destination_of(mount: Mount) -> str:
    """Where a mount is in the container, in normal form."""
    return "/" + os.path.normpath(mount.destination).lstrip("/")


def _mode_in(mount: Mount, path: str) -> int:
    """The st_mode of ``path``, which is on a bind mount."""
    inside = path[len(destination_of(mount)) :]
    if inside:
        return resolve(mount.source, inside)[1]
    try:
        return os.stat(mount.source).st_mode
    except OSError:
        return 0  # the gofer's to report


def _tmpfs(place: str) -> dict[str, Any]:
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": _MASK_OPTIONS}
