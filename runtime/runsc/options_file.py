"""The operator's configuration file: where it is looked for, its keys, and what they mean.

Owns the TOML table of options, which the shim gets by file or inline and ``gvctl`` by file.  Never
looks into a bundle or at annotations: those come from the pod, not from the operator.
"""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest
from runtime.base.files import read_bounded
from runtime.base.golang import parse_bool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.runsc.config import RunscConfig

#: Our own file first, so that a host can run gVisor's shim and this one with different settings;
#: then the two that gVisor's shim reads (pkg/shim/v1/runsc/options.go; its third, config.toml in
#: the working directory, is not read here: that is the bundle).
GLOBAL_FILES = (
    "/etc/containerd/gvisor-shim.toml",
    "/run/containerd/runsc/config.toml",
    "/etc/containerd/runsc/config.toml",
)
#: In the environment: a file to read in place of those.  What starts the shim may set it for one
#: runtime of several, as containerd passes no options on to pods that have no pause container.
VARIABLE = "GVISOR_SHIM_OPTIONS"
DEFAULT_BINARY = "runsc"
DEFAULT_ROOT = "/run/containerd/runsc"
MAX_FILE = 1 << 20

_STRINGS = (
    "binary_name",
    "checkpoint_compression",
    "fs_checkpoints",
    "log_level",
    "log_path",
    "root",
    "share_volumes",
    "shim_cgroup",
)
_NUMBERS = ("io_uid", "io_gid")
_BOOLEANS = (
    "abstract_control_socket",
    "allow_cgroup_parent",
    "fork_server",
    "grouping",
    "pod_checkpoint",
    "port_forward",
    "systemd_cgroup",
    "volume_sockets",
)
#: Known and without effect here: gVisor's hibernate server, and what CRI puts into inline TOML.
_IGNORED = ("enable_hibernate_server", "TypeUrl", "ConfigPath", "ConfigBody")
_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic")
_ID_LIMIT = (1 << 32) - 1


def read(path: str) -> bytes | None:
    """The bytes of the file; None if there is none.  Raises InvalidRequest."""
    try:
        return read_bounded(path, MAX_FILE, follow=True)
    except OSError as error:
        raise InvalidRequest(path, f"can't be read: {(error.strerror or '').lower()}") from None


def read_global(paths: Sequence[str]) -> tuple[str, bytes]:
    """Path and bytes of the file that counts where a call has no options; empty if there is none.

    It is the one that the environment names, else the first of ``paths``.  Raises InvalidRequest.
    """
    named = os.environ.get(VARIABLE, "")
    if named:
        data = read(named) if named.startswith("/") else None
        if data is None:
            raise InvalidRequest(f"{VARIABLE}: {named}", "no such file")
        return named, data
    for path in paths:
        data = read(path)
        if data is not None:
            return path, data
    return "", b""


def parse(where: str, data: bytes) -> Mapping[str, Any]:
    """The TOML in ``data``; ``where`` names it in errors.  Raises InvalidRequest."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(where, "is not UTF-8") from None
    from runtime.base import toml_subset

    document = toml_subset.parse(text)
    if document is not None:
        return document
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(where, f"is not TOML: {error}") from None


def check(where: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keys with their values, and the names of those that have no effect here.

    Raises InvalidRequest naming file, key and reason: a key that is misspelt and then silently
    without effect would be worse than a container that doesn't start.
    """
    found: dict[str, Any] = {}
    ineffective: list[str] = []
    for key, value in document.items():
        place = f"{where}: {key}"
        if key in _STRINGS:
            if not isinstance(value, str) or "\0" in value:
                raise InvalidRequest(place, "must be a string")
            if key == "log_level" and value and value not in _LEVELS:
                raise InvalidRequest(place, f"{value!r} is none of {', '.join(_LEVELS)}")
            if key == "checkpoint_compression" and value not in ("", "flate-best-speed", "none"):
                raise InvalidRequest(place, f"{value!r} is neither flate-best-speed nor none")
            if key == "share_volumes" and value not in ("memory", "all", "none"):
                raise InvalidRequest(place, f"{value!r} is none of memory, all, none")
            if key in ("root", "fs_checkpoints") and value and not value.startswith("/"):
                raise InvalidRequest(place, f"{value!r} is not an absolute path")
        elif key in _NUMBERS:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _ID_LIMIT:
                raise InvalidRequest(place, f"must be an integer from 0 to {_ID_LIMIT}")
        elif key in _BOOLEANS:
            if not isinstance(value, bool):
                raise InvalidRequest(place, "must be true or false")
        elif key == "pod_annotations":
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise InvalidRequest(place, "must be a list of strings")
        elif key == "runsc_config":
            value = _check_flags(place, value)
        elif key in _IGNORED:
            if value is True:
                ineffective.append(key)
            continue
        else:
            raise InvalidRequest(place, "is no option of this shim")
        found[key] = value
    return found, ineffective


def _check_flags(place: str, table: object) -> dict[str, str]:
    if not isinstance(table, dict):
        raise InvalidRequest(place, "must be a table")
    flags: dict[str, str] = {}
    for name, value in table.items():
        bare = name.replace("-", "").replace("_", "").replace(".", "")
        if name.startswith("-") or not (bare.isascii() and bare.isalnum()):
            raise InvalidRequest(f"{place}.{name}", "is not the name of a flag")
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, int):
            value = str(value)
        if not isinstance(value, str) or "\0" in value:
            raise InvalidRequest(f"{place}.{name}", "must be a string")
        flags[name] = value
    return flags


def default_root(namespace: str) -> str:
    """The runtime's root where the operator names none, one for each containerd namespace."""
    return f"{DEFAULT_ROOT}/{namespace}"


def config_of(found: Mapping[str, Any], namespace: str, container_id: str = "") -> RunscConfig:
    """What :func:`check` let through, as values.

    ``root`` gets the containerd namespace appended, as the Go shims do, unless that is empty.
    ``%ID%`` in ``log_path`` becomes ``container_id``; in runsc's flags it is runsc's to replace.
    """
    from runtime.runsc.config import RunscConfig

    root = found.get("root", "")
    log_path = found.get("log_path", "")
    if log_path.endswith("/"):
        log_path += "runsc-shim-%ID%.log"
    if container_id:
        log_path = log_path.replace("%ID%", container_id)
    return RunscConfig(
        binary=found.get("binary_name", "") or DEFAULT_BINARY,
        root=f"{(root or DEFAULT_ROOT).rstrip('/')}/{namespace}".rstrip("/"),
        flags=found.get("runsc_config", {}),
        log_path=log_path,
        log_level=found.get("log_level", ""),
        shim_cgroup=found.get("shim_cgroup", ""),
        io_uid=found.get("io_uid", 0),
        io_gid=found.get("io_gid", 0),
        systemd_cgroup=found.get("systemd_cgroup", False)
        or bool(parse_bool(found.get("runsc_config", {}).get("systemd-cgroup", ""))),
        grouping=found.get("grouping", True),
        abstract_control_socket=found.get("abstract_control_socket", False),
        allow_cgroup_parent=found.get("allow_cgroup_parent", False),
        pod_annotations=tuple(found.get("pod_annotations", ())),
        port_forward=found.get("port_forward", True),
        fs_checkpoints=found.get("fs_checkpoints", ""),
        pod_checkpoint=found.get("pod_checkpoint", False),
        checkpoint_compression=found.get("checkpoint_compression", ""),
        share_volumes=found.get("share_volumes", "memory"),
        volume_sockets=found.get("volume_sockets", False),
    )
