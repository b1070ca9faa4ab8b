"""What a pod without a pause container is made of: its OCI spec and the files that members mount.

Owns what CRI's podsandbox controller does where it makes a pause container
(containerd's internal/cri/server/podsandbox).  Pure but for ``write`` and ``complete_member``.
"""

from __future__ import annotations

import os

from runtime.base import fastjson, files
from runtime.base.errors import InvalidRequest
from runtime.base.json_fields import parse_object
from runtime.bundle.process_spec import MAX_JSON
from runtime.host.forward_program import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Final

    from protos.pod_pb2 import IDMapping, PodSandboxConfig

_NODE: Final = 2  # of CRI's NamespaceMode
_CRI: Final = "io.kubernetes.cri."
_MAX_FILE = 1 << 20
_SHM = "/dev/shm"
#: Where members have the pod's files: destination to the file's name in the sandbox's bundle.
_FILES: Final = {
    "/etc/hostname": "hostname",
    "/etc/hosts": "hosts",
    "/etc/resolv.conf": "resolv.conf",
    _SHM: "shm",
}


def spec_of(
    config: PodSandboxConfig,
    sandbox_id: str,
    bundle: str,
    netns: str,
    root: str,
    allowed: Sequence[str],
) -> dict[str, Any]:
    """The ``config.json`` of the sandbox's first container, whose program only waits.

    ``root`` is a directory with that program, ``allowed`` are patterns of the annotations that a
    pod's author may set.  Raises InvalidRequest for a user namespace without mappings.
    """
    linux = config.linux
    modes = linux.security_context.namespace_options
    users = modes.userns_options if modes.HasField("userns_options") else None
    if users is not None and users.mode == _NODE:
        users = None
    namespaces = [{"type": "mount"}]
    namespaces += [{"type": "user"}] if users is not None else []
    namespaces += [{"type": "pid"}] if modes.pid != _NODE else []
    namespaces += [{"type": "ipc"}] if modes.ipc != _NODE else []
    if modes.network != _NODE:
        network = {"type": "network", "path": netns} if netns else {"type": "network"}
        namespaces += [{"type": "uts"}, network]
    section: dict[str, Any] = {
        "namespaces": namespaces,
        "resources": {"cpu": {"shares": 2}},
        "sysctl": dict(linux.sysctls),
    }
    if users is not None:
        section["uidMappings"], section["gidMappings"] = _maps(users.uids), _maps(users.gids)
    if linux.cgroup_parent:
        section["cgroupsPath"] = cgroups_path(linux.cgroup_parent, sandbox_id)
    return {
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [f"/{NAME}"],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "hostname": _hostname(config),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            _bind(_SHM, f"{bundle}/shm"),
        ],
        "annotations": _annotations(config, sandbox_id, allowed),
        "linux": section,
    }


def _maps(ids: Iterable[IDMapping]) -> list[dict[str, int]]:
    """A user namespace's, in the spec's words.  Raises InvalidRequest."""
    if not ids:
        raise InvalidRequest("userns_options", "a user namespace without mappings")
    return [
        {"containerID": each.container_id, "hostID": each.host_id, "size": each.length}
        for each in ids
    ]


def cgroups_path(parent: str, sandbox_id: str) -> str:
    """A path below ``parent``, or of systemd's form where that is a slice, as CRI makes it."""
    base = parent.rstrip("/").rpartition("/")[2]
    return (
        f"{base}:cri-containerd:{sandbox_id}"
        if base.endswith(".slice")
        else (f"{parent.rstrip('/')}/{sandbox_id}")
    )


def _hostname(config: PodSandboxConfig) -> str:
    return config.hostname or os.uname().nodename


def _annotations(
    config: PodSandboxConfig, sandbox_id: str, allowed: Sequence[str]
) -> dict[str, str]:
    from fnmatch import fnmatchcase

    found = {
        key: value
        for key, value in config.annotations.items()
        if any(fnmatchcase(key, pattern) for pattern in allowed)
    }
    limits, overhead = config.linux.resources, config.linux.overhead
    figures = {"cpu-period": limits.cpu_period, "cpu-shares": limits.cpu_shares}
    if limits.cpu_quota > 0:
        figures["cpu-quota"] = limits.cpu_quota + max(overhead.cpu_quota, 0)
    if limits.memory_limit_in_bytes > 0:
        extra = max(overhead.memory_limit_in_bytes, 0)
        figures["memory"] = limits.memory_limit_in_bytes + extra
    words = {
        "container-type": "sandbox",
        "sandbox-id": sandbox_id,
        "sandbox-name": config.metadata.name,
        "sandbox-namespace": config.metadata.namespace,
        "sandbox-uid": config.metadata.uid,
        "sandbox-log-directory": config.log_directory,
    }
    words.update((f"sandbox-{key}", str(value)) for key, value in figures.items() if value > 0)
    # Last, as they say what a pod is: no pattern of the operator's lets its author say that.
    return {**found, **{_CRI + key: value for key, value in words.items() if value}}


def resolv_conf(config: PodSandboxConfig) -> bytes | None:
    """The file that the pod's DNS settings make; None if it has none and gets the host's."""
    dns = config.dns_config
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    if any("\n" in line for line in lines):
        raise InvalidRequest("dns_config", "contains a line feed")
    return "".join(line + "\n" for line in lines).encode() or None


def write(bundle: str, spec: Mapping[str, Any], config: PodSandboxConfig) -> None:
    """Write the spec and the files for members into the sandbox's bundle.  Raises OSError."""
    os.makedirs(f"{bundle}/shm", exist_ok=True)
    os.chmod(f"{bundle}/shm", 0o1777)
    contents = {
        "hostname": f"{_hostname(config)}\n".encode(),
        "hosts": _host_file("/etc/hosts"),
        "resolv.conf": resolv_conf(config) or _host_file("/etc/resolv.conf"),
    }
    for name, data in contents.items():
        files.replace_file(f"{bundle}/{name}", data, 0o644)
        os.chmod(f"{bundle}/{name}", 0o644)  # whatever the umask
    files.replace_file(f"{bundle}/config.json", fastjson.dumps(spec).encode())


def _host_file(path: str) -> bytes:
    return files.read_bounded(path, _MAX_FILE, follow=True) or b""


def complete_member(bundle: str, pod_bundle: str, former: Mapping[int, int] | None = None) -> None:
    """Add to a member's spec the mounts of the pod's files that it lacks.

    ``former`` are pids that CRI may have been told the sandbox has, each with the one that it has
    by now: the pod's namespaces are named by them.

    CRI adds them only where it made the files itself, and so: read-only where the root file system
    is, with the ids of the pod's user namespace.  A mount that the pod's author, or CRI, put in
    such a place stays.  Raises InvalidRequest, OSError.
    """
    path = f"{bundle}/config.json"
    data = files.read_bounded(path, MAX_JSON)
    if data is None:
        return  # whoever reads it next says so
    spec = parse_object(data, "config.json", MAX_JSON)
    mounts = spec.get("mounts") or []
    if not isinstance(mounts, list):
        return
    taken = {
        each.get("destination")
        for each in mounts
        if isinstance(each, dict) and not _is_default_shm(each)
    }
    kept = [each for each in mounts if not (isinstance(each, dict) and _is_default_shm(each))]
    root, linux = spec.get("root"), spec.get("linux")
    read_only = isinstance(root, dict) and root.get("readonly") is True
    maps = {
        key: linux[key]
        for key in ("uidMappings", "gidMappings")
        if isinstance(linux, dict) and key in linux
    }
    added = [
        {**_bind(there, f"{pod_bundle}/{name}", read_only and there != _SHM), **maps}
        for there, name in _FILES.items()
        if there not in taken
    ]
    spec["mounts"] = kept + added
    if former and isinstance(linux, dict):
        _rename_namespaces(linux.get("namespaces"), former)
    files.replace_file(path, fastjson.dumps(spec).encode())


def _rename_namespaces(namespaces: object, former: Mapping[int, int]) -> None:
    for each in namespaces if isinstance(namespaces, list) else ():
        if not isinstance(each, dict) or not isinstance(path := each.get("path"), str):
            continue
        for old, new in former.items():
            if path.startswith(f"/proc/{old}/ns/"):
                each["path"] = path.replace(f"/{old}/", f"/{new}/", 1)
                break


def _is_default_shm(mount: Mapping[str, Any]) -> bool:
    return mount.get("destination") == _SHM and mount.get("type") == "tmpfs"


def _bind(destination: str, source: str, read_only: bool = False) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}
