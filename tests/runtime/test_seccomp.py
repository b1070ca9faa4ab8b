from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import InvalidRequest, Unsupported
from runtime.json_fields import Fields
from runtime.seccomp import translate

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def run(**profile: Any) -> dict[str, Any]:
    return translate(Fields({"defaultAction": ALLOW, **profile}, "config.json", "linux.seccomp"))


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


def test_a_call_that_is_to_look_absent() -> None:
    """The sentry answers all with EPERM, which makes C libraries give up instead of falling
    back; ENOSYS is what a trace without a tracer gives."""
    assert run(syscalls=rule(errnoRet=38))["syscalls"][0]["action"] == "SCMP_ACT_TRACE"
    assert run(syscalls=rule(errnoRet=1))["syscalls"][0]["action"] == ERRNO
    assert run(defaultAction=ERRNO, defaultErrnoRet=38)["defaultAction"] == "SCMP_ACT_TRACE"


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
    ],
)
def test_malformed(profile: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        run(**profile)


def test_agents() -> None:
    with pytest.raises(Unsupported, match="no seccomp agents"):
        run(syscalls=rule(action="SCMP_ACT_NOTIFY"))
