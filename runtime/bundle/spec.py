"""The typed view of a bundle's ``config.json``.

Owns reading and checking it, and the checking of ids.  Everything in it is input from outside.
Knows nothing of gVisor but for the annotations by which the callers name a pod's containers.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.base.errors import InvalidRequest, reason
from runtime.base.json_fields import Fields, parse_object
from runtime.base.record import Record
from runtime.bundle.hook_spec import read_hooks
from runtime.bundle.process_spec import MAX_JSON, PATH_MAX, ProcessSpec, read_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.bundle.hook_spec import Hook

_CONFIG = "config.json"
#: Leaves room for what is put before and after it in a file name of 255 bytes.
MAX_ID = 200
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+,-.")
_NAMESPACES = frozenset({"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"})
_MAX_HOST_ID = 0xFFFF_FFFF
#: Far more than any pod has: each is looked at by all who rewrite mounts.
_MAX_MOUNTS = 4096

# containerd's CRI plugin and CRI-O tell a pod's sandbox from its containers by these.
_CONTAINER_TYPE = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_SANDBOX_ID = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
_CONTAINER_NAME = ("io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName")


class IdMapping(Record):
    """A line of a user namespace's id map."""

    container_id: int
    host_id: int
    size: int


class Mount(Record):
    """A mount of the container.  The source of a bind mount is absolute."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    #: How the owners of the files come out in the mount: ids of the file system to the mount's.
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()

    @property
    def is_bind(self) -> bool:
        """Whether it is a bind mount: by its type, or by its options whatever the type says."""
        return self.type == "bind" or "bind" in self.options or "rbind" in self.options

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    @property
    def id_mapped(self) -> bool:
        """Whether the owners of the files are to come out as others."""
        return bool(
            self.uid_mappings
            or self.gid_mappings
            or "idmap" in self.options
            or "ridmap" in self.options
        )


class Spec(Record):
    """``config.json``.  ``raw`` is the whole of it, not to be modified."""

    raw: Mapping[str, Any]
    bundle: str
    process: ProcessSpec
    root_path: str
    root_readonly: bool = False
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    annotations: Mapping[str, str] = {}
    cgroups_path: str = ""
    resources: Mapping[str, Any] = {}
    #: Type (``pid``, ``network``, ...) to path, empty for a new one.
    namespaces: Mapping[str, str] = {}
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    #: By the name of the stage; a stage without any is left out.
    hooks: Mapping[str, tuple[Hook, ...]] = {}

    @property
    def netns_path(self) -> str:
        """The network namespace to join; empty for a new one or for the host's."""
        return self.namespaces.get("network", "")

    @property
    def container_type(self) -> str:
        """``sandbox``, ``container``, or empty where the caller doesn't know of pods."""
        return self._annotation(_CONTAINER_TYPE)

    @property
    def sandbox_id(self) -> str:
        """The id of the pod's sandbox, where the caller names one."""
        return self._annotation(_SANDBOX_ID)

    @property
    def container_name(self) -> str:
        """The name in the pod's manifest, which stays the same when a container is made anew."""
        return self._annotation(_CONTAINER_NAME)

    def _annotation(self, keys: tuple[str, ...]) -> str:
        return next((self.annotations[key] for key in keys if key in self.annotations), "")


def sandbox_to_join(spec: Spec) -> str | None:
    """The id of the sandbox that a container joins; None for one that gets its own.

    The rule of gVisor's runsc/specutils (SpecContainerType): containers that CRI marks as
    ``container`` go into the sandbox that they name, all others start one.  Raises
    InvalidRequest for one that names none.
    """
    if spec.container_type != "container":
        return None
    if not spec.sandbox_id:
        raise InvalidRequest("config.json: annotations", "a container names no sandbox id")
    return spec.sandbox_id


def validate_id(kind: str, id: str) -> str:
    """Return ``id`` if it may name a container or an exec.

    The same characters as runsc's and libcontainer's (``[\\w+-.]``, where ``+-.`` is a range),
    but not ``.`` and ``..``: ids become names of files.  Raises InvalidRequest.
    """
    field = f"{kind} id"
    if not id:
        raise InvalidRequest(field, "is empty")
    if len(id) > MAX_ID:
        raise InvalidRequest(field, f"{id[:20]!r}... has {len(id)} characters, more than {MAX_ID}")
    if not _ID_CHARACTERS.issuperset(id):
        raise InvalidRequest(field, f"{id!r} has characters other than letters, digits and _+,-.")
    if id in (".", ".."):
        raise InvalidRequest(field, f"{id!r} is not a name")
    return id


def load_spec(bundle: str) -> Spec:
    """Read and check ``config.json`` of a bundle, whose path must be absolute.

    Links on the way to the root file system are followed here, once: gofers since 2026 mount
    nothing below a path that has any.  Raises InvalidRequest naming the member that is wrong.
    """
    if not bundle.startswith("/") or "\0" in bundle:
        raise InvalidRequest("bundle", f"{bundle!r} is not an absolute path")
    spec = parse_spec(_read(bundle), bundle)
    if "\0" in spec.root_path:
        raise InvalidRequest(f"{_CONFIG}: root.path", "has a NUL character")
    return spec.replace(root_path=os.path.realpath(spec.root_path))


def parse_spec(data: bytes, bundle: str) -> Spec:
    """The spec in ``data``; relative paths in it are taken from ``bundle``.  Pure.

    Raises InvalidRequest.
    """
    return read_spec(parse_object(data, _CONFIG, MAX_JSON), bundle)


def read_spec(raw: dict[str, Any], bundle: str, where: str = _CONFIG) -> Spec:
    """Like :func:`parse_spec`, for a spec inside a larger document, which ``where`` names."""
    fields = Fields(raw, where)
    process = fields.fields("process")
    if process is None:
        raise fields.error("process", "is missing")
    root = fields.fields("root")
    if root is None:
        raise fields.error("root", "is missing")
    root_path = root.text("path")
    if not root_path:
        raise root.error("path", "is missing")
    linux = fields.fields("linux") or Fields({}, _CONFIG, "linux")
    resources = linux.fields("resources")
    return Spec(
        raw=raw,
        bundle=bundle,
        process=read_process(process),
        root_path=os.path.join(bundle, root_path),
        root_readonly=root.boolean("readonly"),
        hostname=fields.text("hostname"),
        mounts=_mounts(fields, bundle),
        annotations=fields.text_mapping("annotations"),
        cgroups_path=linux.text("cgroupsPath"),
        resources=resources.value if resources else {},
        namespaces=_namespaces(linux),
        uid_mappings=_mappings(linux, "uidMappings"),
        gid_mappings=_mappings(linux, "gidMappings"),
        hooks=read_hooks(fields.fields("hooks")),
    )


def with_mounts(spec: Spec, mounts: Sequence[Mapping[str, Any]]) -> Spec:
    """The same with other mounts, given in the form that they have in ``config.json``.

    Raises InvalidRequest.
    """
    raw = {**spec.raw, "mounts": [dict(mount) for mount in mounts]}
    return spec.replace(raw=raw, mounts=_mounts(Fields(raw, _CONFIG), spec.bundle))


def _read(bundle: str) -> bytes:
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hang us.
        fd = os.open(
            os.path.join(bundle, _CONFIG),
            os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
        )
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else reason(error)
        raise InvalidRequest(_CONFIG, f"in bundle {bundle}: {why.lower()}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest(_CONFIG, f"in bundle {bundle}: not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_JSON + 1)
    finally:
        os.close(fd)


def _mounts(fields: Fields, bundle: str) -> tuple[Mount, ...]:
    if len(fields.array("mounts")) > _MAX_MOUNTS:
        raise fields.error("mounts", f"are more than {_MAX_MOUNTS}")
    return tuple(_mount(each, bundle) for each in fields.all_fields("mounts"))


def _mount(fields: Fields, bundle: str) -> Mount:
    destination = fields.text("destination")
    if not destination:
        raise fields.error("destination", "is missing")
    if len(os.fsencode(destination)) > PATH_MAX:
        raise fields.error("destination", f"is longer than {PATH_MAX} bytes")
    mount = Mount(
        # A relative one is taken from the root, as the OCI specification has it for old bundles.
        destination=destination if destination.startswith("/") else "/" + destination,
        type=fields.text("type"),
        source=fields.text("source"),
        options=fields.texts("options"),
        uid_mappings=_mappings(fields, "uidMappings"),
        gid_mappings=_mappings(fields, "gidMappings"),
    )
    if mount.source and mount.is_bind:
        return mount.replace(source=os.path.join(bundle, mount.source))
    return mount


def _namespaces(linux: Fields) -> dict[str, str]:
    result: dict[str, str] = {}
    for each in linux.all_fields("namespaces"):
        kind, path = each.text("type"), each.text("path")
        if kind not in _NAMESPACES:
            raise each.error("type", f"{kind!r} is not a kind of namespace")
        if kind in result:
            raise each.error("type", f"{kind!r} is given twice")
        if path and not path.startswith("/"):
            raise each.error("path", f"{path!r} is not absolute")
        result[kind] = path
    return result


def _mappings(fields: Fields, name: str) -> tuple[IdMapping, ...]:
    result = []
    for each in fields.all_fields(name):
        values = [
            each.integer(key, 0, _MAX_HOST_ID) or 0 for key in ("containerID", "hostID", "size")
        ]
        if not values[2]:
            raise each.error("size", "must be at least 1")
        result.append(IdMapping(container_id=values[0], host_id=values[1], size=values[2]))
    return tuple(result)
