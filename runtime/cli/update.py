"""``update``: other limits for a container, from options or as ``linux.resources`` in JSON."""

from __future__ import annotations

import sys

from runtime.base import fastjson, files
from runtime.base.errors import InvalidRequest, reason
from runtime.cli import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

_MAX_JSON = 1 << 20
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
#: Option, section and member of ``linux.resources``.
OPTIONS = (
    ("blkio_weight", "blockIO", "weight"),
    ("cpu_period", "cpu", "period"),
    ("cpu_quota", "cpu", "quota"),
    ("cpu_burst", "cpu", "burst"),
    ("cpu_shares", "cpu", "shares"),
    ("cpu_idle", "cpu", "idle"),
    ("cpu_rt_period", "cpu", "realtimePeriod"),
    ("cpu_rt_runtime", "cpu", "realtimeRuntime"),
    ("cpuset_cpus", "cpu", "cpus"),
    ("cpuset_mems", "cpu", "mems"),
    ("memory", "memory", "limit"),
    ("memory_reservation", "memory", "reservation"),
    ("memory_swap", "memory", "swap"),
    ("pids_limit", "pids", "limit"),
)


def update_verb(args: argparse.Namespace) -> None:
    from runtime.state import loaded_limits

    resources = resources_of(args)
    loaded_limits.update(find.find(args), resources, args.ask_shim)


def resources_of(args: argparse.Namespace) -> dict[str, Any]:
    """The ``linux.resources`` that the command line asks for.  Raises InvalidRequest."""
    found: dict[str, Any] = {}
    for option, section, member in OPTIONS:
        value = getattr(args, option)
        if value is None:
            continue
        if section == "memory":
            value = size(value, "--" + option.replace("_", "-"))
        found.setdefault(section, {})[member] = value
    if args.resources:
        if found:
            raise InvalidRequest("--resources", "is for all limits: no other option goes with it")
        found = _parsed(args.resources)
    if not found:
        raise InvalidRequest("update", "a limit is wanted")
    return found


def size(text: str, field: str) -> int:
    """Bytes, from a number with or without a unit such as k, M, GiB; -1 for no limit."""
    if text == "-1":
        return -1
    word = text.lower().removesuffix("b").removesuffix("i")
    digits = word.rstrip("kmgtp")
    unit = _UNITS.get(word[len(digits) :])
    whole, _, part = digits.partition(".")
    plain = (whole + part).isascii() and (whole + part).isdigit() and whole and len(digits) < 20
    if unit is None or not plain:
        raise InvalidRequest(field, f"{text[:40]!r} is no size, such as 512M")
    return int(whole) * unit + int(part or "0") * unit // int("1" + "0" * len(part))


def _parsed(path: str) -> dict[str, Any]:
    name = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read(_MAX_JSON + 1) if path == "-" else _read(path)
        if len(data) > _MAX_JSON:
            raise InvalidRequest("--resources", f"{name}: is larger than {_MAX_JSON} bytes")
        found = fastjson.loads(data)
    except OSError as error:
        raise InvalidRequest("--resources", f"{name}: {reason(error)}") from None
    except ValueError as error:
        raise InvalidRequest("--resources", f"{name}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest("--resources", f"{name}: not an object")
    return found


def _read(path: str) -> bytes:
    data = files.read_bounded(path, _MAX_JSON, follow=True)
    if data is None:
        raise InvalidRequest("--resources", f"{path}: no such file or directory")
    return data
