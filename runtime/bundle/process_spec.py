"""The typed view of an OCI process, for a container's init as for an exec.

An exec's process comes from outside as JSON; nothing of it is believed unchecked.  Pure.
Field meanings follow the OCI runtime specification, ``config.md`` "Process".
"""

from __future__ import annotations

import os

from runtime.base.json_fields import Fields, parse_object
from runtime.base.record import Record
from runtime.bundle.capabilities import NAMES, Capabilities, known, mask_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Bytes of JSON that are accepted for a process or a whole spec.
MAX_JSON = 10 << 20
#: Bytes of a path, less its final NUL, as the kernel and the sentry have it.
PATH_MAX = 4095
_MAX_ID = 0xFFFF_FFFF
_MAX_LIMIT = 0xFFFF_FFFF_FFFF_FFFF
#: Arguments and environment together, as the sentry has no smaller bound of its own (bytes).
MAX_ARGUMENTS = 4 << 20


#: The sets of a process, as the specification calls them.
CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")


#: What no process of a container can have apart from the first.
_CONTAINERS = (
    "rlimits",
    "oomScoreAdj",
    "apparmorProfile",
    "selinuxLabel",
    "ioPriority",
    "scheduler",
    "execCPUAffinity",
)


class Rlimit(Record):
    """A resource limit; ``type`` is a name such as RLIMIT_NOFILE."""

    type: str
    soft: int
    hard: int


class ProcessSpec(Record):
    """What to run and as whom."""

    args: tuple[str, ...]
    #: The program where that isn't what ``args[0]`` names.
    executable: str = ""
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    #: None where the JSON has no capabilities at all.
    capabilities: Capabilities | None = None
    #: Names that no capability has.  The OCI specification has a warning for them.
    unknown_capabilities: tuple[str, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    no_new_privileges: bool = False
    #: (height, width) in characters.
    console_size: tuple[int, int] | None = None
    #: The members that only a container has, as they were given.
    containers: Mapping[str, Any] = {}


def parse_process(data: bytes | dict[str, Any], where: str) -> ProcessSpec:
    """Check and read an OCI process; ``where`` names its origin, such as ``exec spec``.

    Raises InvalidRequest naming the member that is wrong.
    """
    value = parse_object(data, where, MAX_JSON) if isinstance(data, bytes) else data
    return read_process(Fields(value, where))


def read_process(fields: Fields) -> ProcessSpec:
    """Like :func:`parse_process`, for an object inside a larger document."""
    args = fields.texts("args")
    if not args:
        raise fields.error("args", "must name a program")
    if not args[0]:
        raise fields.error("args[0]", "must not be empty")
    env = fields.texts("env")
    if sum(map(len, args)) + sum(map(len, env)) > MAX_ARGUMENTS:
        raise fields.error("args", f"is, with the environment, larger than {MAX_ARGUMENTS} bytes")
    cwd = fields.text("cwd") or "/"
    if not cwd.startswith("/"):
        raise fields.error("cwd", f"{cwd[:200]!r} is not an absolute path")
    if len(os.fsencode(cwd)) > PATH_MAX:
        raise fields.error("cwd", f"is longer than {PATH_MAX} bytes")
    user = fields.fields("user") or Fields({}, "")
    return ProcessSpec(
        args=args,
        env=env,
        cwd=cwd,
        terminal=fields.boolean("terminal"),
        uid=user.integer("uid", 0, _MAX_ID) or 0,
        gid=user.integer("gid", 0, _MAX_ID) or 0,
        additional_gids=user.integers("additionalGids", 0, _MAX_ID),
        capabilities=_capabilities(fields.fields("capabilities")),
        unknown_capabilities=_unknown_capabilities(fields.fields("capabilities")),
        rlimits=_rlimits(fields),
        oom_score_adj=fields.integer("oomScoreAdj", -1000, 1000),
        no_new_privileges=fields.boolean("noNewPrivileges"),
        console_size=_console_size(fields.fields("consoleSize")),
        containers={
            name: value for name, value in fields.value.items() if name in _CONTAINERS and value
        },
    )


def unlike_container(process: ProcessSpec, init: ProcessSpec) -> tuple[str, ...]:
    """The members by which an exec asks for what only its container has, and has otherwise.

    Callers such as CRI repeat the container's own in each exec.
    """
    return tuple(
        name for name, value in process.containers.items() if init.containers.get(name) != value
    )


def _capabilities(fields: Fields | None) -> Capabilities | None:
    if fields is None:
        return None

    def mask(name: str) -> int:
        return mask_of(known(fields.texts(name)), fields.where(name))

    return Capabilities(
        bounding=mask("bounding"),
        effective=mask("effective"),
        inheritable=mask("inheritable"),
        permitted=mask("permitted"),
        ambient=mask("ambient"),
    )


def _unknown_capabilities(fields: Fields | None) -> tuple[str, ...]:
    if fields is None:
        return ()
    names = [name for kind in CAPABILITY_SETS for name in fields.texts(kind)]
    return tuple(dict.fromkeys(name for name in names if name not in NAMES))


def _rlimits(fields: Fields) -> tuple[Rlimit, ...]:
    result: dict[str, Rlimit] = {}
    for each in fields.all_fields("rlimits"):
        kind = each.text("type")
        if not kind.startswith("RLIMIT_"):
            raise each.error("type", f"{kind!r} is not the name of a limit")
        soft, hard = (each.integer(name, 0, _MAX_LIMIT) or 0 for name in ("soft", "hard"))
        if soft > hard:
            raise each.error("soft", "is above the hard limit")
        if kind in result:
            raise each.error("type", f"{kind} is given twice")
        result[kind] = Rlimit(type=kind, soft=soft, hard=hard)
    return tuple(result.values())


def _console_size(fields: Fields | None) -> tuple[int, int] | None:
    if fields is None:
        return None
    height, width = (fields.integer(name, 0, 0xFFFF) or 0 for name in ("height", "width"))
    return (height, width) if height and width else None
