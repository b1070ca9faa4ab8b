"""Each domain exception has one code, and children are not shadowed by their parents."""

from __future__ import annotations

import pytest

from runtime.base import errors
from shim.base import status

EXAMPLES = [
    (errors.NotFound("container", "c"), 5),
    (errors.AlreadyExists("container", "c"), 6),
    (errors.InvalidState("start", "container 'c'", "running"), 9),
    (errors.InvalidRequest("signal", "99 is no signal"), 3),
    (errors.Unsupported("checkpoint"), 12),
    (errors.ResourceExhausted("128 descriptors"), 8),
    (errors.SandboxGone(1), 14),
    (errors.Unreachable("sandbox"), 14),
    (errors.DeadlineExceeded("boot", 5), 4),
    (errors.Failed("mount"), 2),
]


@pytest.mark.parametrize(("fault", "code"), EXAMPLES)
def test_each_fault_has_its_code_and_keeps_its_words(fault: errors.RuntimeFault, code: int) -> None:
    assert status.of(fault) == (code, str(fault), True)


def test_no_fault_is_without_a_code() -> None:
    assert {type(fault) for fault, _ in EXAMPLES} == set(errors.RuntimeFault.__subclasses__())


def test_what_nobody_expected_is_unknown_and_worth_a_traceback() -> None:
    assert status.of(KeyError("x")) == (2, "KeyError: 'x'", False)


def test_messages_are_bounded() -> None:
    assert len(status.of(errors.Failed("x" * 100_000))[1]) == status.MAX_MESSAGE
