"""A short soak, and what its checks find: `make soak` runs long ones."""

from __future__ import annotations

import pytest

from integration.harness.nodes.pods import PodNode
from integration.harness.soak.soak import Soak
from integration.harness.soak.soak_checks import event_flaws, log_flaws
from integration.harness.soak.soak_plan import PHASES, VICTIMS, Part, plan

#: In its first eight lives shim, sentry, gofer and containerd are each killed once.
_SEED = 4639
_COUNTS = Part("c0", "counts", 3, 7, ())
_WAITS = Part("c0", "waits", 0, 7, ())
_WHOLE = [("create", "c"), ("start", "c"), ("exec-added", "e"), ("exec-started", "e")]
_WHOLE += [("exit", "e"), ("exit", "c"), ("delete", "c")]


@pytest.mark.gvisor
def test_a_short_soak_finds_nothing(pods: PodNode) -> None:
    soak = Soak(pods, _SEED)
    try:
        soak.run(8)
        assert soak.findings == [], "\n".join(soak.summary())
    finally:
        soak.close()


def test_the_short_soak_kills_each_once() -> None:
    strikes = [plan(_SEED, number).strike for number in range(8)]
    victims = {strike.victim for strike in strikes if strike is not None}
    assert victims >= {"shim", "sentry", "gofer", "containerd"}
    assert plan(_SEED, 3) == plan(_SEED, 3) != plan(_SEED, 4)
    every = {strike.victim for n in range(400) if (strike := plan(1, n).strike) is not None}
    assert every == {*VICTIMS, "containerd"}
    assert {each.phase for n in range(100) for each in plan(1, n).upgrades} == {*PHASES}


def _log(*words: str) -> str:
    return "".join(f"2026-01-01T00:00:00Z stdout F {word}\n" for word in words)


@pytest.mark.parametrize(
    ("part", "log", "written", "whole", "flaw"),
    [
        (_COUNTS, _log("1", "2", "3"), 3, True, ""),
        (_COUNTS, _log("1", "2"), 0, True, "has 2 of 3 lines"),
        (_COUNTS, _log("1", "2"), 0, False, ""),
        (_COUNTS, _log("1", "2"), 3, False, "has 2 of 3 lines"),
        (_COUNTS, _log("1", "3"), 0, False, "has '3' in line 2 of 2"),
        (_COUNTS, _log("1", "1"), 0, False, "has '1' in line 2 of 2"),
        (_COUNTS, "x stdout P 1\n", 0, False, "broken line"),
        (_WAITS, _log("1", "2", "bye"), 2, True, ""),
        (_WAITS, _log("1", "2"), 2, True, "lacks its last words"),
        (_WAITS, _log("1", "2"), 2, False, ""),
        (_WAITS, _log("1", "bye"), 2, False, "has 1 of 2 lines"),
    ],
)
def test_flaws_of_logs(part: Part, log: str, written: int, whole: bool, flaw: str) -> None:
    found = log_flaws(part, log, written, whole)
    assert len(found) == bool(flaw) and flaw in "".join(found)


@pytest.mark.parametrize(
    ("lost", "flaw"),
    [
        (None, ""),
        (1, "exit of c precedes its start"),
        (2, "never added"),
        (4, "no exit of exec e"),
        (5, "no exit"),
        (6, "delete isn't last"),
    ],
)
def test_flaws_of_events(lost: int | None, flaw: str) -> None:
    told = [each for number, each in enumerate(_WHOLE) if number != lost]
    if lost == 1:
        told.append(_WHOLE[1])  # it comes too late
    found = "\n".join(event_flaws("c", told, whole=True))
    assert flaw in found and bool(flaw) == bool(found)


@pytest.mark.parametrize("double", range(len(_WHOLE)))
def test_an_event_told_twice_or_out_of_order_is_a_flaw(double: int) -> None:
    if _WHOLE[double][0] not in ("exec-added", "exec-started"):
        assert event_flaws("c", [*_WHOLE[: double + 1], *_WHOLE[double:]], whole=True)
    turned = [*_WHOLE]
    turned.insert(0, turned.pop(double))
    assert bool(event_flaws("c", turned, whole=True)) == (double > 0)
