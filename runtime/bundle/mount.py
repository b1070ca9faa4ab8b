"""How one mount is made: flags, data that is too long, id maps, loop devices, helpers.

Matches containerd's ``core/mount/mount_linux.go``, so that a snapshotter's mounts come out the
same.  Decides nothing about order, places and roll-back: ``runtime/bundle/rootfs.py`` does.
"""

from __future__ import annotations

import errno
import os
import threading

from runtime.base.errors import Failed, InvalidRequest, Unsupported, reason
from runtime.base.log import get_logger
from runtime.bundle.mount_options import Options, parse_options
from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.bundle.mount_options import RootfsMount

# Data of mount(2) is one page with its NUL.
_MAX_DATA = 4095
_CLONE_FS = 0x200
_HELPER_TIMEOUT = 30.0
_HELPER_OUTPUT = 4096
_HELPER_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

# What a bind mount takes over from its source and gets of its own by a remount only.
_PER_MOUNT = (
    linux.MS_RDONLY
    | linux.MS_NOSUID
    | linux.MS_NODEV
    | linux.MS_NOEXEC
    | linux.MS_NOATIME
    | linux.MS_NODIRATIME
    | linux.MS_RELATIME
    | linux.MS_STRICTATIME
    | linux.MS_NOSYMFOLLOW
)
_KEPT = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def attach(mount: RootfsMount, place: str) -> None:
    """Make one mount at ``place``; on an error nothing of it is left.

    Raises InvalidRequest, Unsupported or Failed, which name the type, the source and the place.
    """
    what = f"mount {mount.type} {mount.source} on {place}"
    options = Options()
    try:
        if "\0" in "".join((mount.type, mount.source, *mount.options)):
            raise InvalidRequest("rootfs", f"{what}: has a NUL byte")
        if mount.type.startswith(("fuse.", "fuse3.")):
            _run_helper(mount, place)
            return
        options = parse_options(mount.options)
        if options.idmapped and mount.type == "overlay":
            _attach_idmapped_overlay(mount, options, place)
        else:
            _attach_plain(mount, options, place)
    except OSError as error:
        if options.idmapped and error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise Unsupported(f"{what} with id maps: {reason(error)}") from None
        at = f" ({error.filename})" if error.filename not in (None, place) else ""
        raise Failed(f"{what}: {reason(error)}{at}") from None


def _attach_plain(mount: RootfsMount, options: Options, place: str) -> None:
    _mount_source(mount, options, place)
    try:
        _finish(options, place)
        if options.idmapped:
            _map_ids(options, place)
    except BaseException:
        _drop(place)
        raise


def _drop(place: str) -> None:
    try:
        linux.umount2(place, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    except OSError as error:
        # EINVAL: it's gone already.  Whatever else, the error that led here matters more.
        if error.errno != errno.EINVAL:
            get_logger("mounts").warning("mount.left", place=place, error=str(error))


def _mount_source(mount: RootfsMount, options: Options, place: str) -> None:
    if options.loop:
        _mount_loop(mount, options, place)
        return
    try:
        _mount(mount, options, mount.source, place)
    except OSError as error:
        # An image file where the file system needs a block device, such as erofs before 6.12.
        if error.errno != errno.ENOTBLK or not os.path.isfile(mount.source):
            raise
        _mount_loop(mount, options, place)


def _mount_loop(mount: RootfsMount, options: Options, place: str) -> None:
    from runtime.host.loopdev import attach_loop

    read_only = bool(options.flags & linux.MS_RDONLY)
    device = attach_loop(mount.source, read_only=read_only, direct_io=options.direct_io)
    try:
        _mount(mount, options, os.readlink(f"/proc/self/fd/{device}"), place)
    finally:
        os.close(device)


def _mount(mount: RootfsMount, options: Options, source: str, place: str) -> None:
    data = ",".join(options.data)
    if len(os.fsencode(data)) <= _MAX_DATA:
        linux.mount(source, place, mount.type, options.flags, data)
        return
    others, lower = _split_lowerdir(options.data)
    if mount.type != "overlay" or not lower:
        raise InvalidRequest("rootfs", f"{len(data)} bytes of options to mount {mount.type}")
    # Layers by the numbers of open descriptors, seen from the directory that lists them: short
    # enough for all the layers that overlayfs takes, however long their paths are.
    fds: list[int] = []
    try:
        for path in lower:
            fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        short = ",".join((*others, "lowerdir=" + ":".join(map(str, fds))))
        if len(os.fsencode(short)) > _MAX_DATA:
            raise InvalidRequest("rootfs", f"{len(data)} bytes of options to mount {mount.type}")

        def work() -> int:
            os.chdir("/proc/self/fd")
            linux.mount(source, os.path.abspath(place), mount.type, options.flags, short)
            return 0

        _aside(_CLONE_FS, work)
    finally:
        for fd in fds:
            os.close(fd)


def _split_lowerdir(data: Sequence[str]) -> tuple[list[str], list[str]]:
    """The other options, and the layers.  Colons may be escaped (overlayfs documentation)."""
    others, lower = [], []
    for option in data:
        if not option.startswith("lowerdir="):
            others.append(option)
            continue
        paths = option[len("lowerdir=") :].replace("\\:", "\0").split(":")
        lower = [path.replace("\0", ":").replace("\\\\", "\\") for path in paths]
        if "" in lower:
            raise InvalidRequest("rootfs", "overlay: data-only layers can't be rewritten")
    return others, lower


def _finish(options: Options, place: str) -> None:
    """What can't be said in the call that mounts."""
    if options.flags & linux.MS_BIND and options.flags & _PER_MOUNT:
        # Flags that the source has must be named again; the kernel refuses to drop locked ones.
        kept = os.statvfs(place).f_flag & _KEPT
        flags = options.flags & _PER_MOUNT | kept | linux.MS_REMOUNT | linux.MS_BIND
        linux.mount("", place, "", flags)
    if options.recursive_read_only:
        linux.mount_setattr(
            linux.AT_FDCWD, place, linux.AT_RECURSIVE, attr_set=linux.MOUNT_ATTR_RDONLY
        )
    for propagation in options.propagation:
        linux.mount("", place, "", propagation)


def _map_ids(options: Options, place: str) -> None:
    """Replace the mount at ``place`` by an id-mapped copy: only a detached mount can be mapped."""
    deep = bool(options.flags & linux.MS_REC)
    copy = linux.open_tree(place, linux.OPEN_TREE_CLONE | (linux.AT_RECURSIVE if deep else 0))
    try:
        namespace = _id_namespace(options)
        try:
            _set_id_map(copy, namespace, deep=deep)
        finally:
            os.close(namespace)
        linux.umount2(place, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        linux.move_mount(copy, place)
    finally:
        os.close(copy)


def _id_namespace(options: Options) -> int:
    from runtime.host.spawn import userns

    return userns(options.uid_maps, options.gid_maps)


def _set_id_map(mount_fd: int, namespace: int, *, deep: bool = False, attributes: int = 0) -> None:
    linux.mount_setattr(
        mount_fd,
        flags=linux.AT_EMPTY_PATH | (linux.AT_RECURSIVE if deep else 0),
        attr_set=linux.MOUNT_ATTR_IDMAP | attributes,
        userns_fd=namespace,
    )


def _attach_idmapped_overlay(mount: RootfsMount, options: Options, place: str) -> None:
    """An overlay whose lower layers are id-mapped; the upper one holds mapped ids by itself.

    overlayfs wants its layers attached somewhere, so mapped copies of them are attached in a
    mount namespace of their own, which ends with the thread: no traces are left on the host even
    if we're killed.
    """
    others, lower = _split_lowerdir(options.data)
    if not lower:
        raise InvalidRequest("rootfs", "overlay with id maps has no lowerdir")
    place = os.path.abspath(place)
    lower = [os.path.abspath(path) for path in lower]
    names = [str(number) for number in range(len(lower))]
    data = ",".join((*others, "lowerdir=" + ":".join(names)))
    if len(os.fsencode(data)) > _MAX_DATA:
        raise InvalidRequest("rootfs", f"{len(data)} bytes of options to mount overlay")

    def work() -> int:
        linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        copies = []
        try:
            for path in lower:
                copies.append(linux.open_tree(path, linux.OPEN_TREE_CLONE))
                _set_id_map(copies[-1], namespace, attributes=linux.MOUNT_ATTR_RDONLY)
            linux.mount("layers", place, "tmpfs", 0, "mode=700")
            os.chdir(place)
            for name, copy in zip(names, copies, strict=True):
                os.mkdir(name)
                linux.move_mount(copy, name)
            os.mkdir("merged")
            linux.mount(mount.source, "merged", "overlay", options.flags, data)
            return linux.open_tree("merged", linux.OPEN_TREE_CLONE)
        finally:
            for copy in copies:
                os.close(copy)

    namespace = _id_namespace(options)
    try:
        overlay = _aside(linux.CLONE_NEWNS, work)
    finally:
        os.close(namespace)
    try:
        linux.move_mount(overlay, place)
    finally:
        os.close(overlay)
    try:
        _finish(options, place)
    except BaseException:
        _drop(place)
        raise


def _aside(flags: int, work: Callable[[], int]) -> int:
    """Run ``work`` in a thread with its own copy of what ``flags`` say (unshare(2))."""
    results: list[int] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            linux.unshare(flags)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _run_helper(mount: RootfsMount, place: str) -> None:
    """Mount with ``mount.fuse`` or ``mount.fuse3``, called as containerd calls them."""
    from runtime.host.run import Run
    from runtime.host.spawn_spec import SpawnSpec

    kind, _, name = mount.type.partition(".")
    program = f"mount.{kind}"
    directories = (*os.environ.get("PATH", "").split(":"), *_HELPER_PATH)
    paths = (os.path.join(d, program) for d in directories if d.startswith("/"))
    path = next((p for p in paths if os.access(p, os.X_OK)), None)
    what = f"mount {mount.type} {mount.source} on {place}"
    if path is None:
        raise Unsupported(f"{what}: {program} isn't installed")
    argv = [program, mount.source, place]
    for option in mount.options:
        argv += ("-o", option)
    spec = SpawnSpec(path=path, argv=(*argv, "-t", name))
    with Run(spec, _HELPER_OUTPUT) as run:
        status, text = run.result(_HELPER_TIMEOUT)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise Failed(f"{what}: {program} ended with status {code}: {text.strip()}")
