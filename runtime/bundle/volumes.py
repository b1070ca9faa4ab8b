"""A pod's volumes that live in the sentry's memory, instead of being served by a gofer.

An admission controller annotates the pod with what it knows of a volume: its type by the medium
and who shares it by how many containers use it.  Where the volume lies is known on the node
alone.  Owns completing those annotations in the spec of the pod's sandbox, from which runsc reads
them, and matching the containers' mounts to them.  The rules are those of gVisor's own shim
(pkg/shim, utils/volumes.go).  Reads the kubelet's directories; changes nothing on the host.

An annotated emptyDir becomes a tmpfs that all its users share.  In memory if the containers mount
it as tmpfs; with a file in the volume behind it if their mounts stay bind mounts.
"""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest
from runtime.base.golang import parse_bool
from runtime.bundle.spec import with_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.bundle.spec import Mount, Spec

KUBELET_PODS = "/var/lib/kubelet/pods"

_PREFIX = "dev.gvisor.spec.mount."
_FORCE_SHARED = "dev.gvisor.empty-dir.{}.force-shared"
_EMPTY_DIRS = "kubernetes.io~empty-dir"
_LOG_DIRECTORY = "io.kubernetes.cri.sandbox-log-directory"
_FILESTORE = ".gvisor.filestore."
_SHM = "/dev/shm"
_SHM_NAME = "gvisorinternaldevshm"


def prepare(
    spec: Spec,
    newer: bool,
    sandbox: Mapping[str, str] | None,
    pods: str = KUBELET_PODS,
) -> Spec:
    """The spec with its volumes' annotations complete, or with its mounts matched to them.

    ``sandbox`` are the annotations of the sandbox that the container joins, as this function has
    left them; None for a sandbox of its own.  Raises InvalidRequest naming the volume whose
    directory isn't found.
    """
    annotations = dict(spec.annotations)
    if sandbox is None:
        _complete(annotations, newer, pods)
        hints = annotations
    else:
        hints = dict(sandbox)
    mounts = _shared_memory(spec, annotations if sandbox is None else None)
    if sandbox is not None:
        mounts = _match(spec, mounts, hints)
    if annotations != spec.annotations:
        spec = spec.replace(annotations=annotations, raw={**spec.raw, "annotations": annotations})
    if mounts != list(spec.raw.get("mounts") or []):
        spec = with_mounts(spec, mounts)
    return spec


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
            if _is_shared_with_host(annotations, name, path):
                annotations[_key(name, "type")] = "bind"
                annotations[_key(name, "share")] = "shared"
            elif newer or kind == "tmpfs":
                # The older ones know tmpfs for volumes in memory only.
                annotations[_key(name, "type")] = "tmpfs"
        # Without it, old releases refuse to boot and newer ones ignore the volume.
        annotations.setdefault(_key(name, "share"), "pod")


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
    spec: Spec, raws: list[Mapping[str, Any]], hints: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """Volumes in memory are mounted as such."""
    sources = {
        hints.get(_key(name, "source")): name
        for name, kind in _types(hints).items()
        if kind == "tmpfs"
    }
    result = []
    for raw in raws:
        name = sources.get(raw.get("source"))
        # The container's annotation is still the admission controller's, and tells the medium.
        if name and spec.annotations.get(_key(name, "type")) == "tmpfs":
            raw = _as_tmpfs(raw)
        result.append(raw)
    return result


def _shared_memory(spec: Spec, hints: dict[str, str] | None) -> list[Mapping[str, Any]]:
    """/dev/shm, a bind mount of the pod's in CRI, as a tmpfs that all containers share.

    The C library takes only a tmpfs for it.  A private one besides it is dropped.  ``hints`` are
    the sandbox's annotations, to which the volume is added.
    """
    raws: list[Mapping[str, Any]] = list(spec.raw.get("mounts") or [])
    index, mount = next(
        (
            (at, each)
            for at, each in enumerate(spec.mounts)
            if each.destination == _SHM and each.type == "bind"
        ),
        (-1, None),
    )
    if mount is None:
        return raws
    if hints is not None:
        hints[_key(_SHM_NAME, "source")] = mount.source
        hints[_key(_SHM_NAME, "type")] = "tmpfs"
        hints[_key(_SHM_NAME, "share")] = "pod"
        # Each container mounts it with options of its own, which may not be wider.
        hints[_key(_SHM_NAME, "options")] = "rw"
    raws[index] = _as_tmpfs(raws[index])
    return [
        raw
        for raw, each in zip(raws, spec.mounts, strict=True)
        if each is mount or not _is_private_shm(each)
    ]


def _is_private_shm(mount: Mount) -> bool:
    return mount.destination == _SHM and mount.type == "tmpfs"


def _as_tmpfs(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The mount with another type, which must then not be a bind mount by its options either."""
    options = [o for o in raw.get("options") or () if o not in ("bind", "rbind")]
    return {**raw, "type": "tmpfs", "options": options}
