"""The operator's choices: options of the request, or a configuration file of the host.

Owns the option messages; ``runtime/runsc/options_file.py`` owns the file and its keys.  Never looks
into a bundle or at annotations: those come from the pod, not from the operator.

Options come as ``runtimeoptions.v1.Options`` (CRI: the path of a TOML file, or TOML inline) or as
``containerd.runc.v1.Options`` (``ctr --runc-*``, Docker, clients that know no other).  Without
options the file is read that the environment names, else the first of :data:`GLOBAL_FILES` that
exists; they are not merged.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.runsc.options_file import (
    GLOBAL_FILES,
    MAX_FILE,
    check,
    config_of,
    parse,
    read,
    read_global,
)
from shim.ttrpc import protobuf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.runsc.config import RunscConfig

_CRI = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options")
_RUNC = ("containerd.runc.v1.Options", "containerd.linux.runc.CreateOptions")
#: Names that can't be gVisor: clients that were written for runc send them whatever the runtime.
_FOREIGN_BINARIES = ("runc", "crun", "youki", "kata-runtime")
_ID_LIMIT = (1 << 32) - 1


class StartOptions(Record):
    """The options that ``start`` itself acts on."""

    grouping: bool = True
    shim_cgroup: str = ""
    #: Whether a fork server may do it, and be left behind for the next; None: as the host says.
    fork_server: bool | None = None


def _short_name(type_url: str) -> str:
    return type_url.rpartition("/")[2]


def _source(type_url: str, value: bytes) -> tuple[str, bytes]:
    """Where the TOML comes from, and the TOML; it is empty where there is none.

    Raises InvalidRequest if the message is broken or the file it names can't be read.
    """
    if type_url and value and _short_name(type_url) in _CRI:
        path, body = "", b""
        try:
            for field, content in protobuf.fields(value):
                if field == 2:
                    path = protobuf.text(content)
                elif field == 3:
                    body = protobuf.blob(content)
        except protobuf.Malformed as error:
            raise InvalidRequest("runtime options", str(error)) from None
        if path:
            data = read(path)
            if data is None:
                raise InvalidRequest(path, "no such file")
            return path, data
        if len(body) > MAX_FILE:
            raise InvalidRequest("runtime options: config_body", f"is larger than {MAX_FILE} bytes")
        if body:
            return "runtime options", body
    return read_global(GLOBAL_FILES)


def _runc(value: bytes) -> dict[str, Any]:
    """The part of runc's options that means something here.  Raises InvalidRequest."""
    found: dict[str, Any] = {}
    try:
        for field, content in protobuf.fields(value):
            if field == 3:
                found["shim_cgroup"] = protobuf.text(content)
            elif field == 4:
                found["io_uid"] = protobuf.number(content) & _ID_LIMIT
            elif field == 5:
                found["io_gid"] = protobuf.number(content) & _ID_LIMIT
            elif field == 6:
                found["binary_name"] = protobuf.text(content)
            elif field == 7:
                found["root"] = protobuf.text(content)
            elif field == 9:
                found["systemd_cgroup"] = bool(protobuf.number(content))
    except protobuf.Malformed as error:
        raise InvalidRequest("runtime options", str(error)) from None
    name = found.get("binary_name", "").rpartition("/")[2]
    if name in _FOREIGN_BINARIES:
        # A client that always fills in runc's defaults.  Running runc under this shim can't
        # work, and failing would lock such clients out, so runsc is used; so is our root, as
        # the one that comes along is runc's.
        del found["binary_name"]
        found.pop("root", None)
    return check("runtime options", found)[0]


def _settings(type_url: str, value: bytes) -> tuple[dict[str, Any], list[str], str]:
    if type_url and value and _short_name(type_url) in _RUNC:
        base_where, base = _source("", b"")
        document = check(base_where, parse(base_where, base))[0] if base else {}
        return {**document, **_runc(value)}, [], base_where
    where, data = _source(type_url, value)
    if not data:
        return {}, [], where
    return *check(where, parse(where, data)), where


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
        if not any(mark in data for mark in (b"grouping", b"shim_cgroup", b"fork_server", b"\\")):
            return StartOptions()
        found = check(where, parse(where, data))[0]
    else:
        found = _settings(type_url, value)[0]
    return StartOptions(
        grouping=found.get("grouping", True),
        shim_cgroup=found.get("shim_cgroup", ""),
        fork_server=found.get("fork_server"),
    )


def decode(type_url: str, value: bytes, namespace: str, *, container_id: str = "") -> RunscConfig:
    """The operator's configuration.

    ``type_url`` and ``value`` are the request's Any; both empty, an empty value or a type that
    isn't known (which is logged) mean the host's file or the defaults.  ``root`` gets the
    namespace appended, as the Go shims do.  ``%ID%`` in ``log_path`` becomes ``container_id``;
    in runsc's flags it is runsc's to replace.  Raises InvalidRequest naming file, key and reason.
    """
    if type_url and value and not is_known(type_url):
        _warn("options.type_unknown", type_url=type_url)
        type_url, value = "", b""
    found, ineffective, where = _settings(type_url, value)
    for key in ineffective:
        _warn("options.key_ignored", key=key, file=where)
    return config_of(found, namespace, container_id)


def _warn(event: str, **fields: object) -> None:
    from runtime.base.log import get_logger

    get_logger("options").warning(event, **fields)
