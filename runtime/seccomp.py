"""A container's system call filter, in the terms that the sentry understands.

The sentry compiles the OCI profile by itself but knows five actions and one error number, and
gives up on, or even crashes at, what else the OCI specification allows (gVisor's
runsc/specutils/seccomp).  What it would not understand is translated here, or refused.  Pure.
"""

from __future__ import annotations

import errno

from runtime.errors import InvalidRequest, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.json_fields import Fields

_ERRNO, _TRACE = "SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"
_ACTIONS = {
    "SCMP_ACT_ALLOW": "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_KILL": "SCMP_ACT_KILL",
    # The sentry ends the thread, with SIGSYS, which for most is all of the process.
    "SCMP_ACT_KILL_PROCESS": "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_THREAD": "SCMP_ACT_KILL",
    "SCMP_ACT_LOG": "SCMP_ACT_ALLOW",
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_TRAP": "SCMP_ACT_TRAP",
}
_OPERATORS = frozenset(
    f"SCMP_CMP_{name}" for name in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE")
)
_MAX_ERRNO = 4095
_MAX_VALUE = 0xFFFF_FFFF_FFFF_FFFF


def translate(profile: Fields) -> dict[str, Any]:
    """``linux.seccomp`` as the sentry can carry it out.

    Raises InvalidRequest for what isn't a profile, Unsupported for one that needs an agent.
    """
    result = dict(profile.value)
    result["defaultAction"] = _action(profile, "defaultAction", "defaultErrnoRet")
    rules = []
    for rule in profile.all_fields("syscalls"):
        rule.texts("names")
        for argument in rule.all_fields("args"):
            # One past the end makes the sentry panic.
            argument.integer("index", 0, 5)
            argument.integer("value", 0, _MAX_VALUE)
            argument.integer("valueTwo", 0, _MAX_VALUE)
            operator = argument.text("op")
            if operator not in _OPERATORS:
                raise argument.error("op", f"{operator[:100]!r} is not an operator")
        rules.append({**rule.value, "action": _action(rule, "action", "errnoRet")})
    result["syscalls"] = rules
    return result


def _action(fields: Fields, name: str, number: str) -> str:
    given = fields.text(name)
    error = fields.integer(number, 0, _MAX_ERRNO)
    if given == "SCMP_ACT_NOTIFY":
        raise Unsupported(f"{fields.where(name)}: gVisor has no seccomp agents ({given})")
    action = _ACTIONS.get(given)
    if action is None:
        raise InvalidRequest(fields.where(name), f"{given[:100]!r} is not an action")
    if action == _ERRNO and error == errno.ENOSYS:
        # The sentry's only error is EPERM, but a C library asks for a newer call first and takes
        # nothing but ENOSYS for its absence.  That is what an untraced TRACE gives.
        return _TRACE
    return action
