"""What the operator asked for: options of the request, or a configuration file of the host.

Owns the option messages, the keys of the file and the order in which files are looked for.  Never
looks into a bundle or at annotations: those come from the pod, not from the operator.

Options come as ``runtimeoptions.v1.Options`` (CRI: the path of a TOML file, or TOML inline) or as
``containerd.runc.v1.Options`` (``ctr --runc-*``, Docker, clients that know no other).  Without
options the first of :data:`GLOBAL_FILES` that exists is read; they are not merged.
"""

from __future__ import annotations

from runtime.errors import InvalidRequest
from runtime.files import read_bounded
from runtime.record import Record
from shim import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.config import RunscConfig

#: Our own file first, so that a host can run gVisor's shim and this one with different settings;
#: then the two that gVisor's shim reads (pkg/shim/v1/runsc/options.go; its third, config.toml in
#: the working directory, is not read here: that is the bundle).
GLOBAL_FILES = (
    "/etc/containerd/gvisor-shim.toml",
    "/run/containerd/runsc/config.toml",
    "/etc/containerd/runsc/config.toml",
)
DEFAULT_BINARY = "runsc"
DEFAULT_ROOT = "/run/containerd/runsc"
MAX_FILE = 1 << 20

_CRI = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options")
_RUNC = ("containerd.runc.v1.Options", "containerd.linux.runc.CreateOptions")
#: Names that can't be gVisor: clients that were written for runc send them whatever the runtime.
_FOREIGN_BINARIES = ("runc", "crun", "youki", "kata-runtime")
_STRINGS = ("binary_name", "root", "log_level", "log_path", "shim_cgroup")
_NUMBERS = ("io_uid", "io_gid")
_BOOLEANS = ("grouping", "systemd_cgroup")
#: Known and without effect here: gVisor's hibernate server, and what CRI puts into inline TOML.
_IGNORED = ("enable_hibernate_server", "TypeUrl", "ConfigPath", "ConfigBody")
_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic")
_ID_LIMIT = (1 << 32) - 1


class StartOptions(Record):
    """The options that ``start`` itself acts on."""

    grouping: bool = True
    shim_cgroup: str = ""


def _short_name(type_url: str) -> str:
    return type_url.rpartition("/")[2]


def _source(type_url: str, value: bytes) -> tuple[str, bytes]:
    """Where the TOML comes from, and the TOML; it is empty where there is none.

    Raises InvalidRequest if the message is broken or the file it names can't be read.
    """
    if type_url and value and _short_name(type_url) in _CRI:
        path, body = "", b""
        try:
            for field, content in wire.fields(value):
                if field == 2:
                    path = wire.text(content)
                elif field == 3:
                    body = wire.blob(content)
        except wire.WireError as error:
            raise InvalidRequest("runtime options", str(error)) from None
        if path:
            data = _read(path)
            if data is None:
                raise InvalidRequest(path, "no such file")
            return path, data
        if len(body) > MAX_FILE:
            raise InvalidRequest("runtime options: config_body", f"is larger than {MAX_FILE} bytes")
        if body:
            return "runtime options", body
    for path in GLOBAL_FILES:
        data = _read(path)
        if data is not None:
            return path, data
    return "", b""


def _read(path: str) -> bytes | None:
    try:
        return read_bounded(path, MAX_FILE, follow=True)
    except OSError as error:
        raise InvalidRequest(path, f"can't be read: {(error.strerror or '').lower()}") from None


def _parse_toml(where: str, data: bytes) -> Mapping[str, Any]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(where, "is not UTF-8") from None
    from shim import toml_subset

    document = toml_subset.parse(text)
    if document is not None:
        return document
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(where, f"is not TOML: {error}") from None


def _check(where: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
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
            if key == "root" and value and not value.startswith("/"):
                raise InvalidRequest(place, f"{value!r} is not an absolute path")
        elif key in _NUMBERS:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _ID_LIMIT:
                raise InvalidRequest(place, f"must be an integer from 0 to {_ID_LIMIT}")
        elif key in _BOOLEANS:
            if not isinstance(value, bool):
                raise InvalidRequest(place, "must be true or false")
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


def _runc(value: bytes) -> dict[str, Any]:
    """The part of runc's options that means something here.  Raises InvalidRequest."""
    found: dict[str, Any] = {}
    try:
        for field, content in wire.fields(value):
            if field == 3:
                found["shim_cgroup"] = wire.text(content)
            elif field == 4:
                found["io_uid"] = wire.number(content) & _ID_LIMIT
            elif field == 5:
                found["io_gid"] = wire.number(content) & _ID_LIMIT
            elif field == 6:
                found["binary_name"] = wire.text(content)
            elif field == 7:
                found["root"] = wire.text(content)
            elif field == 9:
                found["systemd_cgroup"] = bool(wire.number(content))
    except wire.WireError as error:
        raise InvalidRequest("runtime options", str(error)) from None
    name = found.get("binary_name", "").rpartition("/")[2]
    if name in _FOREIGN_BINARIES:
        # A client that always fills in runc's defaults.  Running runc under this shim can't
        # work, and failing would lock such clients out, so runsc is used; so is our root, as
        # the one that comes along is runc's.
        del found["binary_name"]
        found.pop("root", None)
    return _check("runtime options", found)[0]


def _settings(type_url: str, value: bytes) -> tuple[dict[str, Any], list[str], str]:
    if type_url and value and _short_name(type_url) in _RUNC:
        base_where, base = _source("", b"")
        document = _check(base_where, _parse_toml(base_where, base))[0] if base else {}
        return {**document, **_runc(value)}, [], base_where
    where, data = _source(type_url, value)
    if not data:
        return {}, [], where
    return *_check(where, _parse_toml(where, data)), where


def is_known(type_url: str) -> bool:
    """Whether options of that type are understood (others are ignored, with a warning)."""
    return _short_name(type_url) in _CRI + _RUNC


def start_options(type_url: str, value: bytes) -> StartOptions:
    """The options that ``start`` acts on, without parsing a file that has none of them.

    Raises InvalidRequest where it has them and is wrong.
    """
    if not (type_url and value and _short_name(type_url) in _RUNC):
        where, data = _source(type_url, value)
        # A key may be written with escapes in quotes, hence the backslash.
        if not any(mark in data for mark in (b"grouping", b"shim_cgroup", b"\\")):
            return StartOptions()
        found = _check(where, _parse_toml(where, data))[0]
    else:
        found = _settings(type_url, value)[0]
    return StartOptions(
        grouping=found.get("grouping", True), shim_cgroup=found.get("shim_cgroup", "")
    )


def default_root(namespace: str) -> str:
    """The runtime's root where the operator names none, one for each containerd namespace."""
    return f"{DEFAULT_ROOT}/{namespace}"


def decode(type_url: str, value: bytes, namespace: str, *, container_id: str = "") -> RunscConfig:
    """The operator's configuration.

    ``type_url`` and ``value`` are the request's Any; both empty, an empty value or a type that
    isn't known (which is logged) mean the host's file or the defaults.  ``root`` gets the
    namespace appended, as the Go shims do.  ``%ID%`` in ``log_path`` becomes ``container_id``;
    in runsc's flags it is runsc's to replace.  Raises InvalidRequest naming file, key and reason.
    """
    from runtime.config import RunscConfig

    if type_url and value and not is_known(type_url):
        _warn("options.type_unknown", type_url=type_url)
        type_url, value = "", b""
    found, ineffective, where = _settings(type_url, value)
    for key in ineffective:
        _warn("options.key_ignored", key=key, file=where)
    root = found.get("root", "")
    log_path = found.get("log_path", "")
    if log_path.endswith("/"):
        log_path += "runsc-shim-%ID%.log"
    if container_id:
        log_path = log_path.replace("%ID%", container_id)
    return RunscConfig(
        binary=found.get("binary_name", "") or DEFAULT_BINARY,
        root=f"{root.rstrip('/')}/{namespace}" if root else default_root(namespace),
        flags=found.get("runsc_config", {}),
        log_path=log_path,
        log_level=found.get("log_level", ""),
        shim_cgroup=found.get("shim_cgroup", ""),
        io_uid=found.get("io_uid", 0),
        io_gid=found.get("io_gid", 0),
        systemd_cgroup=found.get("systemd_cgroup", False),
        grouping=found.get("grouping", True),
    )


def _warn(event: str, **fields: object) -> None:
    from runtime.log import get_logger

    get_logger("options").warning(event, **fields)
