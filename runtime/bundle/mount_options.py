"""The options of a mount, sorted by who acts on them.  Pure.

Their meaning follows ``parseMountOptions`` of containerd's ``core/mount/mount_linux.go``.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.host.spawn_spec import IdMap

_MAX_ID_MAPS = 340  # user_namespaces(7)

_SET = {
    "bind": linux.MS_BIND,
    "dirsync": linux.MS_DIRSYNC,
    "lazytime": linux.MS_LAZYTIME,
    "mand": linux.MS_MANDLOCK,
    "noatime": linux.MS_NOATIME,
    "nodev": linux.MS_NODEV,
    "nodiratime": linux.MS_NODIRATIME,
    "noexec": linux.MS_NOEXEC,
    "nosuid": linux.MS_NOSUID,
    "nosymfollow": linux.MS_NOSYMFOLLOW,
    "rbind": linux.MS_BIND | linux.MS_REC,
    "relatime": linux.MS_RELATIME,
    "remount": linux.MS_REMOUNT,
    "ro": linux.MS_RDONLY,
    "strictatime": linux.MS_STRICTATIME,
    "sync": linux.MS_SYNCHRONOUS,
}
_CLEAR = {
    "async": linux.MS_SYNCHRONOUS,
    "atime": linux.MS_NOATIME,
    "defaults": 0,
    "dev": linux.MS_NODEV,
    "diratime": linux.MS_NODIRATIME,
    "exec": linux.MS_NOEXEC,
    "nomand": linux.MS_MANDLOCK,
    "norelatime": linux.MS_RELATIME,
    "nostrictatime": linux.MS_STRICTATIME,
    "rw": linux.MS_RDONLY,
    "suid": linux.MS_NOSUID,
}
_PROPAGATION = {
    "private": linux.MS_PRIVATE,
    "rprivate": linux.MS_PRIVATE | linux.MS_REC,
    "rshared": linux.MS_SHARED | linux.MS_REC,
    "rslave": linux.MS_SLAVE | linux.MS_REC,
    "runbindable": linux.MS_UNBINDABLE | linux.MS_REC,
    "shared": linux.MS_SHARED,
    "slave": linux.MS_SLAVE,
    "unbindable": linux.MS_UNBINDABLE,
}


class Options(Record):
    """A mount's options, sorted by who is to act on them."""

    flags: int = 0
    propagation: tuple[int, ...] = ()
    data: tuple[str, ...] = ()
    recursive_read_only: bool = False
    loop: bool = False
    direct_io: bool = False
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()

    @property
    def idmapped(self) -> bool:
        """Are ids to be mapped?"""
        return bool(self.uid_maps)


def parse_options(options: Sequence[str]) -> Options:
    """Sort mount options.  Raises InvalidRequest for id maps that make no sense."""
    flags = 0
    propagation: list[int] = []
    data: list[str] = []
    maps: dict[str, tuple[IdMap, ...]] = {"uidmap": (), "gidmap": ()}
    recursive_read_only = False
    for option in options:
        name, _, value = option.partition("=")
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option == "rro":
            recursive_read_only = True
        elif name in maps:
            maps[name] = _id_maps(option, value)
        elif option and option != "loop" and not option.startswith(("X-", "x-")):
            # X- and x- are for user space alone (mount(8)), such as X-containerd.*.
            data.append(option)
    if bool(maps["uidmap"]) != bool(maps["gidmap"]):
        raise InvalidRequest("rootfs", "uidmap and gidmap are wanted both or neither")
    loop = "loop" in options
    direct_io = loop and "direct-io" in data
    if direct_io:
        data.remove("direct-io")
    return Options(
        flags=flags,
        propagation=tuple(propagation),
        data=tuple(data),
        recursive_read_only=recursive_read_only,
        loop=loop,
        direct_io=direct_io,
        uid_maps=maps["uidmap"],
        gid_maps=maps["gidmap"],
    )


def _id_maps(option: str, value: str) -> tuple[IdMap, ...]:
    from runtime.host.spawn_spec import IdMap

    maps = []
    for part in value.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(n.isascii() and n.isdecimal() for n in numbers):
            raise InvalidRequest("rootfs", f"{option!r} isn't inside:outside:size")
        # Beyond 32 bits all are equally wrong; a bound keeps the conversion cheap.
        inside, outside, size = (int(n) if len(n) <= 10 else 1 << 32 for n in numbers)
        if not size or max(inside, outside) + size > 1 << 32:
            raise InvalidRequest("rootfs", f"{option!r} is out of range")
        maps.append(IdMap(container_id=inside, host_id=outside, size=size))
    if len(maps) > _MAX_ID_MAPS:
        raise InvalidRequest("rootfs", f"more than {_MAX_ID_MAPS} id maps")
    return tuple(maps)


class RootfsMount(Record):
    """A mount of the task's root file system, as containerd asked for it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
