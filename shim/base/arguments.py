"""The command line: flags as Go's ``flag`` package reads them, and the action.

Owns which flags exist.  Does nothing with them.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: ``take-over`` is what a running shim executes another version with (``shim/handover``).
ACTIONS = ("start", "delete", "take-over")
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_SWITCHES = {
    "debug": "debug",
    "v": "version",
    "version": "version",
    "info": "info",
    "check": "check",
}
_VALUES = {
    "namespace": "namespace",
    "id": "id",
    "bundle": "bundle",
    "address": "address",
    "publish-binary": "publish_binary",
    "socket": "socket",
    "debug-socket": "debug_socket",
    "state": "state",
}


class Invocation(Record):
    """What the shim was called with.  ``action`` is empty for the daemon itself."""

    action: str = ""
    namespace: str = ""
    id: str = ""
    bundle: str = ""
    address: str = ""
    publish_binary: str = ""
    socket: str = ""
    debug_socket: str = ""
    debug: bool = False
    version: bool = False
    info: bool = False
    #: Of ``take-over``: the number of the descriptor, and whether it is to be checked only.
    state: str = ""
    check: bool = False


def parse(argv: Sequence[str]) -> Invocation:
    """Read the arguments that follow the program's name.

    One dash or two, ``-k v`` or ``-k=v``; the first argument that is no flag ends them and is the
    action (Go's ``flag``, as containerd's ``pkg/shim`` uses it).  Flags of later containerds are
    skipped: one takes the next argument with it unless that looks like a flag or is the action
    at the very end.  Raises InvalidRequest for a flag without its value, an odd switch value or
    an unknown action.
    """
    found: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        argument = rest[0]
        if len(argument) < 2 or argument[0] != "-":
            break
        del rest[0]
        if argument == "--":
            break
        name, equals, value = argument.lstrip("-").partition("=")
        if name in _SWITCHES:
            if equals and value not in _TRUE + _FALSE:
                raise InvalidRequest(f"-{name}", f"{value!r} is not a boolean")
            found[_SWITCHES[name]] = not equals or value in _TRUE
        elif name in _VALUES:
            if not equals:
                if not rest:
                    raise InvalidRequest(f"-{name}", "needs an argument")
                value = rest.pop(0)
            found[_VALUES[name]] = value
        elif not equals and rest and not rest[0].startswith("-"):
            # Unknown: its value goes too, but never the action.
            rest = rest[1:] if len(rest) > 1 or rest[0] not in ACTIONS else rest
    if rest:
        if rest[0] not in ACTIONS:
            raise InvalidRequest("action", f"{rest[0]!r} is neither start nor delete")
        found["action"] = rest[0]
    return Invocation(**found)


def check_id(name: str, value: str) -> str:
    """``value`` if it can be one element of a path.  Raises InvalidRequest naming ``name``."""
    if not value:
        raise InvalidRequest(name, "cannot be empty")
    if "/" in value or "\0" in value or value in (".", "..") or len(value) > 1024:
        raise InvalidRequest(name, f"{value[:80]!r} is not an identifier")
    return value
