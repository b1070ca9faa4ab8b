"""Bind mounts that are attached in a gofer's own mount namespace, with mapped ids where asked.

A gofer in its container's user namespace has no privilege on the host: it can't walk the private
directories that hold a pod's volumes and files.  And releases of runsc before 2024-11-18 don't
know id-mapped mounts (``uidMappings`` of a mount, ``idmap``).  One method solves both.  The shim
copies the mounts while it still may, and attaches the copies in an intermediate mount namespace,
over a directory that the gofer doesn't need; the gofer joins that namespace, and its own is cloned
from it.  Nothing is mounted on the host itself, so nothing can be left there, and a bundle that is
deleted too early takes no volume's files with it.

The intermediate namespace belongs to the host's user namespace.  So in a clone that belongs to a
container's user namespace the kernel locks ``ro``, ``nodev``, ``nosuid`` and ``noexec`` of the
mounts (mount_namespaces(7)), and hides what they cover.  Had they been attached in a namespace of
the container's, its root could lift the flags.

Special files of masked and read-only paths are covered there, too, since a gofer would open them,
and mount points are made that a read-only root file system lacks.

Owns which mounts this concerns, the copies, and their attachment.
"""

from __future__ import annotations

import os
import stat
import threading

from runtime.base.errors import Failed, InvalidRequest, Unsupported, reason
from runtime.bundle.spec import with_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from runtime.bundle.masked_paths import Covered
    from runtime.bundle.mount_points import MountPoints
    from runtime.bundle.spec import IdMapping, Mount, Spec
    from runtime.host.fds import FdSet

_CLONE_FS = 0x200
_MAX_SOURCES = 1000


def lend(
    spec: Spec, served: Sequence[Mount], place: str, fds: FdSet
) -> tuple[Spec, Callable[[], None] | None]:
    """The spec with sources below ``place``, and what attaches them, for ``mount_namespace``.

    ``served`` are the bind mounts that the gofer serves.  ``place`` is a directory of the shim's,
    which the gofer doesn't need.  The copies are in ``fds``, to be closed once they are attached.
    None where the gofer needs no help.

    Raises InvalidRequest for maps that make no sense, Unsupported where the kernel or the file
    system can't map ids, Failed naming the mount.
    """
    in_user_namespace = "user" in spec.namespaces
    wanted = [mount for mount in served if in_user_namespace or mount.id_mapped]
    if not wanted:
        return spec, None
    if len(wanted) > _MAX_SOURCES:
        raise InvalidRequest("config.json: mounts", f"more than {_MAX_SOURCES} bind mounts")
    copies: list[tuple[int, bool]] = []
    raws: list[dict[str, Any]] = []
    for mount, raw in zip(spec.mounts, spec.raw["mounts"], strict=True):
        if any(mount is each for each in wanted):
            copies.append(_copy(mount, spec, fds))
            raw = {
                **{k: v for k, v in raw.items() if k not in ("uidMappings", "gidMappings")},
                "source": f"{place}/{len(copies) - 1}",
                "options": [o for o in mount.options if o not in ("idmap", "ridmap")],
            }
        raws.append(raw)

    def attach() -> None:
        _attach(place, copies)

    return with_mounts(spec, raws), attach


def _copy(mount: Mount, spec: Spec, fds: FdSet) -> tuple[int, bool]:
    """A detached copy of a mount's source, and whether it is a directory."""
    from runtime.host import linux

    deep = linux.AT_RECURSIVE if "rbind" in mount.options or mount.type != "bind" else 0
    what = f"mount {mount.source} on {mount.destination}"
    maps = mount.uid_mappings, mount.gid_mappings
    if any(maps) and not all(maps):
        raise InvalidRequest("config.json: mounts", f"{what[:200]}: maps users or groups alone")
    try:
        fd = fds.add(linux.open_tree(mount.source, linux.OPEN_TREE_CLONE | deep))
        if mount.id_mapped:
            linux.mount_setattr(
                fd,
                flags=linux.AT_EMPTY_PATH
                | (linux.AT_RECURSIVE if "ridmap" in mount.options else 0),
                attr_set=linux.MOUNT_ATTR_IDMAP,
                userns_fd=_user_namespace(mount, spec, fds),
            )
        return fd, stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError as error:
        import errno

        why = reason(error)
        if mount.id_mapped and error.errno in (
            errno.EINVAL,
            errno.ENOSYS,
            errno.EOPNOTSUPP,
        ):
            raise Unsupported(f"{what} with id maps: {why}") from None
        raise Failed(f"{what}: {why}") from None
    except ValueError as error:
        raise InvalidRequest("config.json: mounts", f"{what[:200]}: {error}") from None


def _user_namespace(mount: Mount, spec: Spec, fds: FdSet) -> int:
    """The one whose maps the mount takes: by itself, or the container's."""
    maps = mount.uid_mappings, mount.gid_mappings
    if not all(maps):
        path = spec.namespaces.get("user", "")
        if path:
            from runtime.host.fds import open_namespace

            return open_namespace(path, fds)
        maps = spec.uid_mappings, spec.gid_mappings
    if not all(maps):
        raise InvalidRequest(
            "config.json: mounts",
            f"{mount.destination}: is to have the container's id maps, and it has none",
        )
    from runtime.host.spawn import userns

    return fds.add(userns(*(_id_maps(each) for each in maps)))


def _id_maps(mappings: Sequence[IdMapping]) -> tuple[Any, ...]:
    from runtime.host.spawn_spec import IdMap

    return tuple(
        IdMap(container_id=m.container_id, host_id=m.host_id, size=m.size) for m in mappings
    )


def covering(
    special: Sequence[Covered], given: Spec, lent: Spec, first: Callable[[], None] | None
) -> Callable[[], None]:
    """What masks special files, or makes them read-only, for ``mount_namespace``.

    They are mounted over by their paths, and so never opened.  ``lent`` is ``given`` with sources
    that the gofer can reach, after ``first`` has been done.  Raises Unsupported
    for a file in a volume whose mounts inside aren't the gofer's.
    """
    places: list[tuple[str, bool]] = []
    for each in special:
        top = given.root_path
        if each.mount is not None:
            index = next(i for i, mount in enumerate(given.mounts) if mount is each.mount)
            top = lent.mounts[index].source
            if "rbind" not in each.mount.options:
                raise Unsupported(
                    f"linux.maskedPaths or readonlyPaths: {each.path}: a special file in "
                    f"{each.mount.destination}, which isn't mounted with rbind"
                )
        places.append((top.rstrip("/") + each.place, each.masked))

    def attach() -> None:
        if first is not None:
            first()
        _cover(places)

    return attach


def with_points(
    wanted: Sequence[MountPoints], first: Callable[[], None] | None
) -> Callable[[], None]:
    """What makes mount points that the root file system lacks, for ``mount_namespace``."""
    from runtime.bundle.mount_points import make

    def attach() -> None:
        if first is not None:
            first()
        make(wanted)

    return attach


def _cover(places: Sequence[tuple[str, bool]]) -> None:
    from runtime.host import linux

    for place, masked in places:
        source = "/dev/null" if masked else place
        flags = linux.OPEN_TREE_CLONE | linux.AT_SYMLINK_NOFOLLOW
        copy = linux.open_tree(source, flags)
        try:
            linux.mount_setattr(copy, flags=linux.AT_EMPTY_PATH, attr_set=linux.MOUNT_ATTR_RDONLY)
            linux.move_mount(copy, place)
        finally:
            os.close(copy)


def _attach(place: str, copies: Sequence[tuple[int, bool]]) -> None:
    """Make the copies the numbered entries of a directory that covers ``place``."""
    from runtime.host import linux

    linux.mount("sources", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=711,size=4k")
    for number, (fd, is_directory) in enumerate(copies):
        entry = f"{place}/{number}"
        if is_directory:
            os.mkdir(entry, 0o700)
        else:
            os.close(os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        linux.move_mount(fd, entry)


def mount_namespace(work: Callable[[], None], fds: FdSet) -> int:
    """A copy of the caller's mount namespace, in which ``work`` has been done; a descriptor.

    What ``work`` mounts gets to no other.  To be joined by a process before it enters a user
    namespace, and to be cloned there.  Raises Failed.
    """
    from runtime.host import linux

    faults: list[BaseException] = []
    found: list[int] = []

    def run() -> None:
        try:
            # A thread that shares its root with others can't change the namespace.
            linux.unshare(_CLONE_FS | linux.CLONE_NEWNS)
            # Nothing of this may get back to the host.
            linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
            work()
            found.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, name="sources")
    thread.start()
    thread.join()
    for fault in faults:
        if isinstance(fault, OSError):
            at = f" ({fault.filename})" if fault.filename else ""
            why = reason(fault)
            raise Failed(f"mounts for the gofer: {why}{at}") from None
        raise fault
    return fds.add(found[0])
