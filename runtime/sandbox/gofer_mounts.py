"""Which of a container's file systems a gofer serves, and where changes to them go.

Owns the filestores: files that hold what a container changes in an overlaid file system.  A
``self`` filestore lies inside the file system it belongs to.  It has a name there, and is removed
at the end, where a node adds up what its pods use (the kubelet's ephemeral storage): in volumes,
and in the root file systems of pods.  In any other root file system it has no name, because clients
make images of those (``docker commit``, ``ctr snapshots``), and it must not be in them.
The rules are those of gVisor's ``runsc/container/container.go``, createGoferFilestores.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.base.errors import Failed, reason
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.host import forward_program
from runtime.runsc.driver import MountConf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.bundle.spec import Mount, Spec
    from runtime.host.fds import FdSet
    from runtime.runsc.flags import Settings
    from runtime.runsc.release import Generation

_HINT = "dev.gvisor.spec.mount."
_ROOTFS_HINT = "dev.gvisor.spec.rootfs."
#: In the order of Go's numbers, from 1 on.
_SHARES = ("container", "pod", "shared")
_FILE_MODE = 0o666  # less the umask


class MountPlan(Record):
    """The root file system, then the gofer mounts in the spec's order."""

    confs: tuple[MountConf, ...]
    #: Open filestores in the order of the mounts that have one; in the FdSet's ownership.
    filestore_fds: tuple[int, ...] = ()
    #: The named ones among them, to be removed when the container is gone.
    filestores: tuple[str, ...] = ()
    #: Named ones that siblings use too, to be removed when the sandbox is gone.
    shared_filestores: tuple[str, ...] = ()

    @property
    def serves_itself(self) -> bool:
        """Whether the root file system is an image, and nothing is left for a gofer."""
        return bool(self.confs) and self.confs[0].lower == "erofs"

    @property
    def sockets(self) -> int:
        """How many connections to the gofer there are."""
        return sum(conf.lower == "lisafs" for conf in self.confs)


class _Hint(Record):
    name: str
    source: str
    type: str
    share: str

    @property
    def shared(self) -> bool:
        return self.type == "tmpfs" and self.share in ("container", "pod")


def is_gofer_mount(mount: Mount) -> bool:
    """Whether the gofer serves it (everything else is the sentry's own).

    Matches runsc/specutils IsGoferMount.
    """
    return bool(mount.source) and mount.is_bind


def plan_mounts(
    spec: Spec,
    settings: Settings,
    generation: Generation,
    sandbox_id: str,
    hints_from: Mapping[str, str],
    fds: FdSet,
) -> MountPlan:
    """Decide for each gofer mount, and create the filestores.

    ``hints_from`` are the annotations of the *root* container, which tell of volumes that
    containers share.  Raises Failed naming the file; then no filestore is left.
    """
    mounts = [mount for mount in spec.mounts if is_gofer_mount(mount)]
    if not generation.mount_confs:
        return _plan_old(1 + len(mounts), settings, fds)
    hints = _mount_hints(hints_from)
    filestores = _Filestores(sandbox_id, fds)
    try:
        root_medium = "none" if spec.root_readonly else _rootfs_overlay(spec, settings)
        in_pod = bool(spec.container_type)
        size = settings.overlay_size
        root_conf = filestores.conf("lisafs", root_medium, spec.root_path, named=in_pod)
        confs = [_bounded(root_conf, size)]
        for mount in mounts:
            medium = "none" if mount.read_only else settings.mount_overlay
            lower, shared, size = "lisafs", False, settings.overlay_size
            hint = hints.get(mount.source)
            if hint is not None and hint.share != "shared":
                # One that the host uses, too, must not be overlaid (release-20240729 does).
                # Also for a read-only mount: another container may mount it writable.
                medium, shared, size = "self", hint.shared, ""
                lower = "none" if hint.type == "tmpfs" else "lisafs"
            conf = filestores.conf(lower, medium, mount.source, shared=shared)
            confs.append(_bounded(conf, size))
        if serves_itself(spec) and all(conf.lower == "none" for conf in confs[1:]):
            confs[0] = MountConf(lower="erofs", upper="none")
    except BaseException:
        remove_filestores(filestores.created)
        raise
    return MountPlan(
        confs=tuple(confs),
        filestore_fds=tuple(filestores.fds),
        filestores=tuple(filestores.own),
        shared_filestores=tuple(filestores.shared),
    )


def serves_itself(spec: Spec) -> bool:
    """Whether the sentry can mount an image of the root file system: a pod's, which is ours.

    Not in a user namespace, which members find by the gofer that they join.
    """
    return (
        spec.root_path in forward_program.FOLDERS
        and spec.root_readonly
        and "user" not in spec.namespaces
        and os.path.exists(spec.root_path + forward_program.IMAGE)
    )


def _bounded(conf: MountConf, size: str) -> MountConf:
    return conf.replace(size=size) if size and conf.upper != "none" else conf


def require_sources(spec: Spec, confs: tuple[MountConf, ...]) -> None:
    """Raises Failed naming a bind mount whose source isn't there.

    Older gofers say so themselves; those since release-20241118 ask the shim for the source.
    """
    mounts = [mount for mount in spec.mounts if is_gofer_mount(mount)]
    for mount, conf in zip(mounts, confs[1:], strict=True):
        if conf.lower != "lisafs":
            continue
        try:
            os.stat(mount.source)
        except OSError as error:
            raise Failed(f"mount {mount.source} on {mount.destination}: {reason(error)}") from None


def filestore_name(sandbox_id: str) -> str:
    """The name of a ``self`` filestore in its file system."""
    return f".gvisor.filestore.{sandbox_id}"


def shared_sources(annotations: Mapping[str, str]) -> frozenset[str]:
    """The volumes that the sentry keeps once for all containers that mount them."""
    hints = _mount_hints(annotations)
    return frozenset(source for source, hint in hints.items() if hint.share != "shared")


def remove_filestores(paths: tuple[str, ...] | list[str]) -> None:
    """Unlink named filestores; those that are gone are fine.  Raises Failed naming the others."""
    faults = []
    for path in paths:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            faults.append(f"remove {path}: {reason(error)}")
    if faults:
        raise Failed("; ".join(faults))


def _plan_old(count: int, settings: Settings, fds: FdSet) -> MountPlan:
    """Before gofer mounts had a configuration: the sentry does all but a directory's file."""
    medium = settings.root_overlay
    found = (_anonymous(medium, fds),) if medium.startswith("/") else ()
    return MountPlan(confs=(MountConf(),) * count, filestore_fds=found)


def _rootfs_overlay(spec: Spec, settings: Settings) -> str:
    for key in spec.annotations:
        if key.startswith(_ROOTFS_HINT):
            raise Failed(f"annotation {key[:100]} is not supported by the shim")
    return settings.root_overlay


def _mount_hints(annotations: Mapping[str, str]) -> dict[str, _Hint]:
    """The hints by the source of the volume.  Incomplete ones are ignored, as runsc does."""
    found: dict[str, dict[str, str]] = {}
    for key, value in annotations.items():
        if key.startswith(_HINT):
            name, dot, field = key[len(_HINT) :].partition(".")
            if name and dot:
                found.setdefault(name, {})[field] = value
    hints = {}
    for name, fields in found.items():
        hint = _Hint(
            name=name,
            source=fields.get("source", ""),
            type=fields.get("type", ""),
            share=fields.get("share", ""),
        )
        if hint.source and hint.type in ("tmpfs", "bind") and hint.share in _SHARES:
            hints[hint.source] = hint
    return hints


def mount_hints(annotations: Mapping[str, str]) -> dict[str, Any]:
    """The hints as runsc writes them down (gVisor runsc/boot/mount_hints.go, MountHint)."""
    return {
        hint.name: {
            "name": hint.name,
            "share": _SHARES.index(hint.share) + 1,
            "mount": {"destination": "", "type": hint.type, "source": hint.source},
        }
        for hint in _mount_hints(annotations).values()
    }


class _Filestores:
    """Creates filestores and notes what was created."""

    def __init__(self, sandbox_id: str, fds: FdSet) -> None:
        self._name = filestore_name(sandbox_id)
        self._set = fds
        self.fds: list[int] = []
        self.own: list[str] = []
        self.shared: list[str] = []
        self.created: list[str] = []

    def conf(
        self, lower: str, medium: str, source: str, *, shared: bool = False, named: bool = True
    ) -> MountConf:
        """The configuration of one mount, with its filestore if it needs one."""
        if medium in ("none", "memory"):
            return MountConf(lower=lower, upper=medium)
        if medium != "self":
            self.fds.append(_anonymous(medium, self._set))
            return MountConf(lower=lower, upper="anon")
        if not _is_directory(source):
            return MountConf(lower=lower, upper="memory")
        path = os.path.join(source, self._name)
        if not self._create(path, shared):
            return MountConf(lower=lower, upper="memory")
        if not named:
            # Then it is such a file as in any other directory, which runsc's commands, too, look
            # for under no name.
            os.unlink(path)
            self.own.remove(path)
            return MountConf(lower=lower, upper="anon")
        return MountConf(lower=lower, upper="self")

    def _create(self, path: str, shared: bool) -> bool:
        """Create or open a filestore; False where its file system is read-only."""
        try:
            fd, created = _open_filestore(path, shared)
        except OSError as error:
            if error.errno == errno.EROFS:
                get_logger("mounts").warning("overlay.in_memory", path=path, error="read-only")
                return False
            raise Failed(f"create overlay filestore {path}: {reason(error)}") from None
        if created:
            self.created.append(path)
        (self.shared if shared else self.own).append(path)
        self.fds.append(self._set.add(fd))
        return True


def _open_filestore(path: str, shared: bool) -> tuple[int, bool]:
    """A named filestore, and whether it was made.  Raises OSError.

    A second use of a file that isn't meant to be shared would give two overlays that don't see
    each other's changes.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE), True
    except FileExistsError:
        if not shared:
            raise
        return os.open(path, flags), False


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        # The gofer has the better words for it.
        return False


def _anonymous(directory: str, fds: FdSet) -> int:
    """A file without a name in ``directory``, gone with its last descriptor."""
    path = os.path.join(directory, f"runsc-filestore-{os.getpid()}-{os.urandom(6).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise Failed(f"create overlay filestore in {directory}: {reason(error)}") from None
    fds.add(fd)
    os.unlink(path)
    return fd
