"""A container's system call filter, in the terms that the sentry understands.

The sentry compiles the OCI profile by itself but knows five actions and one error number, and
gives up on, or even crashes at, what else the OCI specification allows (gVisor's
runsc/specutils/seccomp).  What it would not understand is translated here into what is never
weaker, or refused.  Pure.

It looks at the filter once, before a tracer may stop the call (``pkg/sentry/kernel/
task_syscall.go``): what the tracer then makes of the call is carried out unseen, whichever stop it
was.  So a filtered process that may trace could have any call made.  The stops that come between
the look and the call are therefore refused to tracers; debuggers need none of them.
"""

from __future__ import annotations

import errno

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.base.json_fields import Fields

_ALLOW, _ERRNO, _KILL = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL"
_TRACE = "SCMP_ACT_TRACE"
_ACTIONS = {
    _ALLOW: _ALLOW,
    _ERRNO: _ERRNO,
    _KILL: _KILL,
    # The sentry knows no other end.  Its TRAP is no better one: a process that ignores or blocks
    # SIGSYS would go on, with the call's own number for its result.
    "SCMP_ACT_KILL_PROCESS": _KILL,
    "SCMP_ACT_KILL_THREAD": _KILL,
    "SCMP_ACT_LOG": _ALLOW,
    _TRACE: _TRACE,
    "SCMP_ACT_TRAP": "SCMP_ACT_TRAP",
}
_NOTES = {
    "SCMP_ACT_KILL_PROCESS": "a forbidden call ends the thread, not its whole process",
    "SCMP_ACT_LOG": "calls that are only to be logged are not logged",
    _TRACE: "calls that a tracer is to judge fail with ENOSYS: gVisor would not judge them again",
}
# Of the flags of seccomp(2) (OCI runtime-spec, config-linux): what becomes of each.  Without
# threads there is nothing to synchronise, and the sentry never relaxes what it does against
# speculation.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": "",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": "",
    "SECCOMP_FILTER_FLAG_LOG": "refused calls are not logged (SECCOMP_FILTER_FLAG_LOG)",
}
_AGENT_FLAG = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
_OPERATORS = frozenset(
    f"SCMP_CMP_{name}" for name in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE")
)
# The sentry filters calls of its own architecture and runs no others, so it needs none of them (OCI
# runtime-spec, config-linux; libseccomp's seccomp.h).
_ARCHITECTURES = """
    AARCH64 ARM LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 NATIVE PARISC
    PARISC64 PPC PPC64 PPC64LE RISCV64 S390 S390X SH SHEB X32 X86 X86_64
"""
_ARCHITECTURE_NAMES = frozenset(f"SCMP_ARCH_{name}" for name in _ARCHITECTURES.split())
_MAX_ERRNO = 4095
_MAX_VALUE = 0xFFFF_FFFF_FFFF_FFFF

_CLONE3 = "clone3"
# ptrace(2): stops at each call's entry, and the option for stops at SECCOMP_RET_TRACE, which a
# tracer sets or attaches with.
_PTRACE = "ptrace"
_PTRACE_SYSCALL, _PTRACE_SETOPTIONS, _PTRACE_SEIZE = 24, 0x4200, 0x4206
_O_TRACESECCOMP = 1 << 7


class Translation(Record):
    """``profile`` is for the sentry; ``notes`` say in words what is not quite as it was asked."""

    profile: dict[str, Any]
    notes: tuple[str, ...]


def translate(profile: Fields) -> Translation:
    """``linux.seccomp`` as the sentry can carry it out.

    Raises InvalidRequest for what isn't a profile, Unsupported for one that needs an agent.
    """
    for index, architecture in enumerate(profile.texts("architectures")):
        if architecture not in _ARCHITECTURE_NAMES:
            where = f"architectures[{index}]"
            raise profile.error(where, f"{architecture[:100]!r} is not an architecture")
    notes = _flags(profile)
    default = _action(profile, "defaultAction", "defaultErrnoRet", notes)
    rules: list[dict[str, Any]] = []
    guarded = named = False
    for rule in profile.all_fields("syscalls"):
        names = rule.texts("names")
        for argument in rule.all_fields("args"):
            # One past the end makes the sentry panic.
            argument.integer("index", 0, 5)
            argument.integer("value", 0, _MAX_VALUE)
            argument.integer("valueTwo", 0, _MAX_VALUE)
            operator = argument.text("op")
            if operator not in _OPERATORS:
                raise argument.error("op", f"{operator[:100]!r} is not an operator")
        absent = _looks_absent(rule, "action", "errnoRet")
        only = absent and set(names) == {_CLONE3}
        action = _action(rule, "action", "errnoRet", {} if only else notes)
        if _PTRACE in names and action in (_ALLOW, _TRACE) and not guarded:
            rules += _no_tracers()
            guarded = True
        if absent and _CLONE3 in names:
            rules.append({**rule.value, "names": [_CLONE3], "action": _TRACE})
            names = tuple(name for name in names if name != _CLONE3)
        named = named or (_CLONE3 in names and not rule.array("args"))
        if names or not absent:
            rules.append({**rule.value, "names": list(names), "action": action})
    if default in (_ALLOW, _TRACE) and not guarded:
        rules += _no_tracers()
    if _looks_absent(profile, "defaultAction", "defaultErrnoRet") and not named:
        rules.append({"names": [_CLONE3], "action": _TRACE})
    return Translation(
        profile={**profile.value, "defaultAction": default, "syscalls": rules},
        notes=tuple(f"seccomp: {note}" for note in notes),
    )


def _no_tracers() -> list[dict[str, Any]]:
    """Rules by which nobody stops between the sentry's look at the filter and the call.

    They stand before the first rule that allows ptrace: of several that match, the first counts.
    """

    def refuse(*args: dict[str, Any]) -> dict[str, Any]:
        return {"names": [_PTRACE], "action": _ERRNO, "args": list(args)}

    def request(number: int) -> dict[str, Any]:
        return {"index": 0, "value": number, "valueTwo": 0, "op": "SCMP_CMP_EQ"}

    event = {
        "index": 3,
        "value": _O_TRACESECCOMP,
        "valueTwo": _O_TRACESECCOMP,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    return [
        refuse(request(_PTRACE_SYSCALL)),
        refuse(request(_PTRACE_SETOPTIONS), event),
        refuse(request(_PTRACE_SEIZE), event),
    ]


def _flags(profile: Fields) -> dict[str, None]:
    """The notes about the profile's flags, as an ordered set."""
    notes: dict[str, None] = {}
    for index, flag in enumerate(profile.texts("flags")):
        where = f"flags[{index}]"
        if flag == _AGENT_FLAG:
            raise Unsupported(f"{profile.where(where)}: gVisor has no seccomp agents ({flag})")
        if flag not in _FLAGS:
            raise profile.error(where, f"{flag[:100]!r} is not a flag")
        if _FLAGS[flag]:
            notes[_FLAGS[flag]] = None
    return notes


def _looks_absent(fields: Fields, name: str, number: str) -> bool:
    """Whether the call is to look as if the kernel didn't know it.

    The sentry's only error is EPERM.  A C library that makes a thread asks for clone3 first and
    takes nothing but ENOSYS for its absence, so for that one call it matters: it gets what a TRACE
    gives that no tracer can take up.
    """
    return fields.text(name) == _ERRNO and fields.integer(number, 0, _MAX_ERRNO) == errno.ENOSYS


def _action(fields: Fields, name: str, number: str, notes: dict[str, None]) -> str:
    given = fields.text(name)
    error = fields.integer(number, 0, _MAX_ERRNO)
    if given == "SCMP_ACT_NOTIFY":
        raise Unsupported(f"{fields.where(name)}: gVisor has no seccomp agents ({given})")
    action = _ACTIONS.get(given)
    if action is None:
        raise InvalidRequest(fields.where(name), f"{given[:100]!r} is not an action")
    if given in _NOTES:
        notes[_NOTES[given]] = None
    elif action == _ERRNO and error not in (None, errno.EPERM):
        notes["a refused call fails with EPERM, whichever error is asked for"] = None
    return action
