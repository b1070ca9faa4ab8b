from __future__ import annotations

from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.json_fields import Fields
from runtime.bundle.seccomp import Translation, translate

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def translation(**profile: Any) -> Translation:
    return translate(Fields({"defaultAction": ALLOW, **profile}, "config.json", "linux.seccomp"))


def run(**profile: Any) -> dict[str, Any]:
    return translation(**profile).profile


def notes(**profile: Any) -> tuple[str, ...]:
    return translation(**profile).notes


def decide(profile: dict[str, Any], name: str, *args: int) -> str:
    """What the sentry does with a call: the first rule that matches counts."""

    def fits(argument: dict[str, Any]) -> bool:
        given, value = [*args, 0, 0, 0, 0, 0, 0][argument["index"]], argument["value"]
        if argument["op"] == "SCMP_CMP_MASKED_EQ":
            return bool(given & value == argument["valueTwo"])
        assert argument["op"] == "SCMP_CMP_EQ"
        return bool(given == value)

    for each in profile["syscalls"]:
        if name in each["names"] and all(map(fits, each.get("args", ()))):
            return str(each["action"])
    return str(profile["defaultAction"])


def rule(**fields: Any) -> list[dict[str, Any]]:
    return [{"names": ["mkdir"], "action": ERRNO, **fields}]


def test_what_the_sentry_knows_stays() -> None:
    argument = {"index": 5, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    profile = {
        "defaultAction": ERRNO,
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rule(args=[argument]),
    }
    assert run(**profile) == profile
    assert notes(**profile) == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("KILL_PROCESS", "KILL"),
        ("KILL_THREAD", "KILL"),
        ("LOG", "ALLOW"),
        ("TRAP", "TRAP"),
    ],
)
def test_actions(given: str, expected: str) -> None:
    given, expected = f"SCMP_ACT_{given}", f"SCMP_ACT_{expected}"
    assert run(defaultAction=given)["defaultAction"] == expected
    assert run(syscalls=rule(action=given))["syscalls"][0]["action"] == expected


@pytest.mark.parametrize(
    ("profile", "note"),
    [
        ({"defaultAction": "SCMP_ACT_LOG"}, "not logged"),
        ({"flags": ["SECCOMP_FILTER_FLAG_LOG"]}, "not logged"),
        ({"defaultAction": "SCMP_ACT_KILL_PROCESS"}, "ends the thread"),
        ({"defaultAction": "SCMP_ACT_TRACE"}, "ENOSYS"),
        ({"defaultAction": ERRNO, "defaultErrnoRet": 13}, "EPERM"),
        ({"syscalls": rule(errnoRet=38)}, "EPERM"),
        ({"syscalls": rule(names=["clone3", "mkdir"], errnoRet=38)}, "EPERM"),
        ({"syscalls": rule(names=["clone3"], errnoRet=38)}, ""),
        ({"syscalls": rule(errnoRet=1)}, ""),
        ({"flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}, ""),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]}, ""),
    ],
)
def test_what_is_not_quite_as_asked_is_told(profile: dict[str, Any], note: str) -> None:
    told = notes(**profile)
    assert len(told) == bool(note) and all(note in each for each in told)


def test_a_call_that_is_to_look_absent() -> None:
    """The sentry answers all with EPERM.  A C library takes that for the end where it asks for
    clone3, so that one call is left to a tracer that there can't be."""
    assert decide(run(syscalls=rule(errnoRet=38)), "mkdir") == ERRNO
    for profile in (
        {"syscalls": rule(names=["clone3"], errnoRet=38)},
        {"syscalls": rule(names=["mkdir", "clone3"], errnoRet=38)},
        {"defaultAction": ERRNO, "defaultErrnoRet": 38},
    ):
        done = run(**profile)
        assert (decide(done, "clone3"), decide(done, "mkdir")) != ("SCMP_ACT_TRACE",) * 2
        assert decide(done, "clone3") == "SCMP_ACT_TRACE"
    # What a rule says of it comes first.
    profile = {"defaultAction": ERRNO, "defaultErrnoRet": 38}
    assert decide(run(**profile, syscalls=rule(names=["clone3"])), "clone3") == ERRNO
    assert decide(run(**profile, syscalls=rule(names=["clone3"], action=ALLOW)), "clone3") == ALLOW
    assert "clone3" not in str(run(syscalls=rule()))


SYSCALL, CONT, SETOPTIONS, SEIZE, EVENTS = 24, 7, 0x4200, 0x4206, 0x80


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"syscalls": rule(names=["clone3"], errnoRet=38)},
        {"syscalls": rule(action="SCMP_ACT_TRACE")},
        {"defaultAction": ERRNO, "syscalls": rule(names=["open", "ptrace"], action=ALLOW)},
        {"defaultAction": ERRNO, "syscalls": rule(names=["ptrace"], action="SCMP_ACT_LOG")},
        {"defaultAction": "SCMP_ACT_TRACE"},
    ],
)
def test_no_tracer_gets_between_the_filter_and_the_call(profile: dict[str, Any]) -> None:
    done = run(**profile)
    for request, options in (
        (SYSCALL, 0),
        (SETOPTIONS, EVENTS),
        (SETOPTIONS, EVENTS | 1),
        (SEIZE, EVENTS | 0x100),
    ):
        assert decide(done, "ptrace", request, 1, 0, options) == ERRNO
    permitted = ALLOW if profile.get("defaultAction") != "SCMP_ACT_TRACE" else "SCMP_ACT_TRACE"
    for request, options in ((CONT, 0), (SETOPTIONS, 1), (SEIZE, 0x100), (0, 0)):
        assert decide(done, "ptrace", request, 1, 0, options) == permitted


@pytest.mark.parametrize("action", [ERRNO, "SCMP_ACT_KILL", "SCMP_ACT_TRAP"])
def test_a_profile_without_ptrace_stays_as_strict(action: str) -> None:
    for profile in ({"defaultAction": action}, {"syscalls": rule(names=["ptrace"], action=action)}):
        assert decide(run(**profile), "ptrace", SYSCALL) == action


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ({"defaultAction": "SCMP_ACT_MAYBE"}, "linux.seccomp.defaultAction"),
        ({"defaultAction": None}, "linux.seccomp.defaultAction"),
        ({"syscalls": rule(action="x")}, r"linux.seccomp.syscalls\[0\].action"),
        ({"syscalls": rule(names=[1])}, r"syscalls\[0\].names"),
        ({"syscalls": rule(args=[{"index": 6, "op": "SCMP_CMP_EQ"}])}, r"args\[0\].index"),
        ({"syscalls": rule(args=[{"index": 0, "op": "=="}])}, r"args\[0\].op"),
        ({"syscalls": [7]}, r"syscalls\[0\]"),
        ({"syscalls": rule(errnoRet=5000)}, "errnoRet"),
        ({"flags": ["SECCOMP_FILTER_FLAG_X"]}, r"flags\[0\].*is not a flag"),
        ({"architectures": ["SCMP_ARCH_X86", "ARM"]}, r"architectures\[1\].*'ARM' is not an arch"),
    ],
)
def test_malformed(profile: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        run(**profile)


def test_agents() -> None:
    with pytest.raises(Unsupported, match="no seccomp agents"):
        run(syscalls=rule(action="SCMP_ACT_NOTIFY"))
    with pytest.raises(Unsupported, match="no seccomp agents"):
        run(flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
