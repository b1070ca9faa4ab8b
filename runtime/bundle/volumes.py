"""A pod's volumes that live in the sentry's memory, instead of being served by a gofer.

An admission controller annotates the pod with what it knows of a volume: its type by the medium
and who shares it by how many containers use it.  Where the volume lies is known on the node
alone.  Owns completing those annotations in the spec of the pod's sandbox, from which runsc reads
them, and matching the containers' mounts to them.  The rules are those of gVisor's own shim
(pkg/shim, utils/volumes.go).  Reads the kubelet's directories; changes nothing on the host.

An annotated emptyDir becomes a tmpfs that all its users share.  In memory if the containers mount
it as tmpfs; with a file in the volume behind it if their mounts stay bind mounts.  Those that
nobody annotated become the same by their medium, which the host's mount table tells, and by the
operator's option.
"""

from __future__ import annotations

import os
import stat

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.golang import parse_bool
from runtime.bundle.spec import with_mounts
from runtime.bundle.submounts import tmpfs_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.bundle.spec import Mount, Spec

KUBELET_PODS = "/var/lib/kubelet/pods"
#: Which volumes the sandbox keeps that nobody annotated: those in memory, the default.
MEMORY = "memory"

_PREFIX = "dev.gvisor.spec.mount."
_FORCE_SHARED = "dev.gvisor.empty-dir.{}.force-shared"
_EMPTY_DIRS = "kubernetes.io~empty-dir"
_LOG_DIRECTORY = "io.kubernetes.cri.sandbox-log-directory"
_FILESTORE = ".gvisor.filestore."
_SHM = "/dev/shm"
_SHM_NAME = "gvisorinternaldevshm"
#: Sources of a tmpfs that is nobody's volume.
_PRIVATE = ("tmpfs", "shm", "none", "", None)
#: The medium of a volume that was annotated here.
_MEDIUM = "dev.gvisor.shim.medium."
_HOST_UDS = "dev.gvisor.flag.host-uds"
#: The volume by which GKE's side-car for buckets speaks with its driver.
_GCS_FUSE = "gke-gcsfuse-tmp"
_WHOLE, _PARTS = "whole", "parts"
#: Types of volumes that one pod alone has.
_OWN = (
    _EMPTY_DIRS,
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
)


def prepare(
    spec: Spec,
    newer: bool,
    sandbox: Mapping[str, str] | None,
    pods: str = KUBELET_PODS,
    *,
    share: str = MEMORY,
    used: dict[str, str] | None = None,
) -> Spec:
    """The spec with its volumes' annotations complete, or with its mounts matched to them.

    ``sandbox`` are the annotations of the sandbox that the container joins, as this function has
    left them; None for a sandbox of its own.  ``share`` is which volumes that nobody annotated the
    sandbox keeps: ``memory``, ``all`` or ``none``.  ``used`` remembers for the sandbox how its
    containers use each volume; without it a subPath of a shared one is refused.

    Raises InvalidRequest naming the volume whose directory isn't found, Unsupported for a subPath
    of a volume that the sandbox keeps already.
    """
    annotations = dict(spec.annotations)
    if sandbox is None:
        _complete(annotations, newer, pods)
        _add_hints(annotations, newer, pods, share)
        mounts = _own_shared_memory(spec, annotations, newer)
    else:
        mounts = _match(spec, annotations, dict(sandbox), used)
    mounts = _without_private_shm(mounts)
    if annotations != spec.annotations:
        spec = spec.replace(annotations=annotations, raw={**spec.raw, "annotations": annotations})
    if mounts != list(spec.raw.get("mounts") or []):
        spec = with_mounts(spec, mounts)
    return spec


def are_own(spec: Spec, pod: Mapping[str, str], pods: str = KUBELET_PODS) -> bool:
    """Whether a container mounts nothing of the host's but its pod's own volumes, and files.

    Such are what the kubelet makes for this pod alone, and parts of its emptyDirs.  ``pod`` are the
    annotations of its sandbox.
    """
    uid = _pod_uid(pod)
    if not uid:
        return False
    folder = os.path.join(pods, uid)
    return all(_is_own(mount.source, folder) for mount in spec.mounts if mount.is_bind)


def _is_own(source: str, folder: str) -> bool:
    try:
        if stat.S_ISREG(os.stat(source).st_mode):
            return True
    except OSError:
        return False
    parts = os.path.relpath(source, folder).split("/")
    if parts[0] == "volume-subpaths" and len(parts) > 2:
        parts = ["volumes", _EMPTY_DIRS, parts[1]]
    known = len(parts) > 2 and parts[0] == "volumes" and parts[1] in _OWN
    return known and os.path.isdir(os.path.join(folder, *parts[:3]))


# -- the sandbox's annotations -----------------------------------------------------------------


def _complete(annotations: dict[str, str], newer: bool, pods: str) -> None:
    """Add what an admission controller can't know: where each volume lies."""
    uid = _pod_uid(annotations)
    for name, kind in _types(annotations).items():
        if not uid:
            # Not a pod of the kubelet's: whoever wrote the annotations knows of sources, too.
            continue
        path = _volume_path(pods, uid, name)
        if not path:
            if annotations.get(_key(name, "source")):
                continue
            raise InvalidRequest(
                f"annotation {_key(name[:100], 'type')}",
                f"no volume, or several, of that name under {pods}/{uid}/volumes",
            )
        annotations[_key(name, "source")] = path
        if os.path.basename(os.path.dirname(path)) == _EMPTY_DIRS:
            annotations.setdefault(_key(name, "share"), "pod")
            if _is_shared_with_host(annotations, name, path):
                annotations[_key(name, "type")] = "bind"
                annotations[_key(name, "share")] = "shared"
            elif newer or kind == "tmpfs":
                # The older ones know tmpfs for volumes in memory only.
                annotations[_key(name, "type")] = "tmpfs"
                if newer:
                    annotations.setdefault(_key(name, "options"), _options(path))
            if annotations[_key(name, "share")] == "shared" and name == _GCS_FUSE:
                _allow_sockets(annotations, newer)
        # Without it, old releases refuse to boot and newer ones ignore the volume.
        annotations.setdefault(_key(name, "share"), "pod")


def _add_hints(annotations: dict[str, str], newer: bool, pods: str, share: str) -> None:
    """Annotate the pod's emptyDirs that nobody did: those in memory, or all of them.

    Not with the oldest releases, where such a volume has neither size nor owner.
    """
    for key in [key for key in annotations if key.startswith(_MEDIUM)]:
        del annotations[key]  # ours to say
    uid = _pod_uid(annotations)
    if share == "none" or not uid or not newer:
        return
    folder = os.path.join(pods, uid, "volumes", _EMPTY_DIRS)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    in_memory = tmpfs_points() if names else frozenset()
    for name in names:
        path = os.path.join(folder, name)
        if "." in name or any(key.startswith(_key(name, "")) for key in annotations):
            continue
        if _is_shared_with_host(annotations, name, path):
            if name == _GCS_FUSE:
                annotations[_key(name, "source")] = path
                annotations[_key(name, "type")] = "bind"
                annotations[_key(name, "share")] = "shared"
                _allow_sockets(annotations, newer)
            continue
        memory = os.path.realpath(path) in in_memory
        if not (memory or share == "all"):
            continue
        annotations[_key(name, "source")] = path
        annotations[_key(name, "type")] = "tmpfs"
        annotations[_key(name, "share")] = "pod"
        annotations[_key(name, "options")] = _options(path, in_memory)
        if memory:
            annotations[_MEDIUM + name] = MEMORY


def _options(path: str, in_memory: frozenset[str] | None = None) -> str:
    """Options by which a tmpfs has the owner, the mode and the size of the host's directory."""
    try:
        info, size = os.stat(path), 0
        if os.path.realpath(path) in (tmpfs_points() if in_memory is None else in_memory):
            system = os.statvfs(path)
            size = system.f_blocks * system.f_frsize
    except OSError:
        return "rw"
    options = ["rw", f"mode={info.st_mode & 0o7777:o}", f"uid={info.st_uid}", f"gid={info.st_gid}"]
    return ",".join([*options, f"size={size}"] if size else options)


def _allow_sockets(annotations: dict[str, str], newer: bool) -> None:
    """Let a side-car speak with the host's CSI driver by a socket in its volume."""
    if newer and not annotations.get(_HOST_UDS):
        annotations[_HOST_UDS] = "open"


def _types(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotated volumes and their types."""
    found = {}
    for key, value in annotations.items():
        if key.startswith(_PREFIX) and key.endswith(".type"):
            name = key[len(_PREFIX) : -len(".type")]
            if name and "/" not in name and "." not in name and "\0" not in name:
                found[name] = value
    return found


def _key(name: str, field: str) -> str:
    return f"{_PREFIX}{name}.{field}"


def _pod_uid(annotations: Mapping[str, str]) -> str:
    """The pod's uid, from the directory of its logs: ``NAMESPACE_NAME_UID`` or just ``UID``."""
    fields = os.path.basename(annotations.get(_LOG_DIRECTORY, "").rstrip("/")).split("_")
    uid = fields[-1] if len(fields) in (1, 3) else ""
    return "" if uid in (".", "..") else uid


def _volume_path(pods: str, uid: str, name: str) -> str:
    """The only directory of that name among the pod's volumes of all types, or nothing."""
    volumes = os.path.join(pods, uid, "volumes")
    try:
        types = os.listdir(volumes)
    except OSError:
        return ""
    found = [path for each in types if os.path.lexists(path := os.path.join(volumes, each, name))]
    return found[0] if len(found) == 1 else ""


def _is_shared_with_host(annotations: Mapping[str, str], name: str, path: str) -> bool:
    """Whether an emptyDir has users outside of the sandbox: it is said so, or they were there."""
    if parse_bool(annotations.get(_FORCE_SHARED.format(name), "")):
        return True
    try:
        with os.scandir(path) as entries:
            # That of a container which used it before is its own.
            names = [entry.name for _, entry in zip(range(2), entries, strict=False)]
    except OSError:
        return False
    return bool(names) and not (len(names) == 1 and names[0].startswith(_FILESTORE))


# -- the containers' mounts --------------------------------------------------------------------


def _match(
    spec: Spec, annotations: dict[str, str], hints: Mapping[str, str], used: dict[str, str] | None
) -> list[Mapping[str, Any]]:
    """The mounts, those of volumes in memory as such."""
    types = _types(hints)
    sources = {
        hints[_key(name, "source")]: name for name in types if hints.get(_key(name, "source"))
    }
    kept = {path: name for path, name in sources.items() if types[name] == "tmpfs"}
    raws: list[Mapping[str, Any]] = list(spec.raw.get("mounts") or [])
    on_host = _in_parts(spec, kept, used)
    result = []
    for mount, raw in zip(spec.mounts, raws, strict=True):
        name = sources.get(mount.source, "") if mount.is_bind else ""
        if name in on_host:
            # Not as the hint has it, so that the sentry doesn't take it for the one that it keeps.
            raw = {**raw, "source": mount.source + "/."}
        elif name == _SHM_NAME:
            if os.path.normpath(mount.destination) == _SHM:
                raw = _as_tmpfs(raw)
        elif name and types[name] == "tmpfs":
            # The container's annotation is still the admission controller's, and tells the medium.
            if MEMORY in (hints.get(_MEDIUM + name), _medium(spec, name)):
                raw = _as_tmpfs(raw)
        elif name == _GCS_FUSE and hints.get(_HOST_UDS) and not annotations.get(_HOST_UDS):
            annotations[_HOST_UDS] = hints[_HOST_UDS]
        result.append(raw)
    return result


def _medium(spec: Spec, name: str) -> str:
    return MEMORY if spec.annotations.get(_key(name, "type")) == "tmpfs" else ""


def _in_parts(spec: Spec, kept: Mapping[str, str], used: dict[str, str] | None) -> frozenset[str]:
    """Volumes of which a subPath is used: the host's, for all of the pod's containers.

    The kubelet mounts a part of the host's directory for it, in which nothing is of what the
    sandbox keeps.  Raises Unsupported if it keeps the volume for a container already.
    """
    known = used is not None
    used = {} if used is None else used
    for path, name in kept.items():
        volumes, _, _ = path.partition(f"/volumes/{_EMPTY_DIRS}/")
        part = f"{volumes}/volume-subpaths/{name}/"
        for mount in spec.mounts:
            if not mount.is_bind or not mount.source.startswith(part):
                continue
            if not known or used.get(name) == _WHOLE:
                raise Unsupported(
                    f"mount {mount.destination[:200]}: a subPath of volume {name!r}, which the "
                    "sandbox keeps in memory or in one file for other containers; annotation "
                    f"{_FORCE_SHARED.format(name)} = true keeps it on the host"
                )
            used[name] = _PARTS
    for mount in spec.mounts:
        name = kept.get(mount.source, "") if mount.is_bind else ""
        if name:
            used.setdefault(name, _WHOLE)
    return frozenset(name for name in kept.values() if used.get(name) == _PARTS)


# -- /dev/shm ----------------------------------------------------------------------------------


def _own_shared_memory(spec: Spec, hints: dict[str, str], newer: bool) -> list[Mapping[str, Any]]:
    """/dev/shm, a bind mount of the pod's in CRI, as a tmpfs that all containers share.

    The C library takes only a tmpfs for it.  Adds the volume to the sandbox's annotations.
    """
    raws: list[Mapping[str, Any]] = list(spec.raw.get("mounts") or [])
    for index, mount in enumerate(spec.mounts):
        if mount.destination != _SHM or mount.type != "bind" or not _is_callers_shm(spec, mount):
            continue
        hints[_key(_SHM_NAME, "source")] = mount.source
        hints[_key(_SHM_NAME, "type")] = "tmpfs"
        hints[_key(_SHM_NAME, "share")] = "pod"
        # Each container mounts it with options of its own, which may not be wider.
        options = _options(mount.source) if newer else "rw"
        hints[_key(_SHM_NAME, "options")] = options
        raws[index] = _as_tmpfs(raws[index])
        break
    return raws


def _is_callers_shm(spec: Spec, mount: Mount) -> bool:
    """Whether the mount is what a caller makes for each pod or container, and not its user's."""
    if spec.container_type == "sandbox":
        return True  # a pause container has no volumes
    name = os.path.basename(mount.source)
    return (
        name == "shm" and mount.source != _SHM and os.path.realpath(mount.source) in tmpfs_points()
    )


def _without_private_shm(raws: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A private /dev/shm besides another mount in its place is dropped."""
    there = [raw for raw in raws if raw.get("destination") == _SHM]
    private = [raw for raw in there if raw.get("type") == "tmpfs" and raw.get("source") in _PRIVATE]
    if len(there) == len(private):
        return raws
    return [raw for raw in raws if not any(raw is each for each in private)]


def _as_tmpfs(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The mount with another type, which must then not be a bind mount by its options either."""
    options = [o for o in raw.get("options") or () if o not in ("bind", "rbind")]
    return {**raw, "type": "tmpfs", "options": options}
