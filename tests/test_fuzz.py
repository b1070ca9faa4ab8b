"""Short runs of the fuzzers, and what their checks find: `make fuzz` runs long ones."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protos import events_pb2 as pb
from tests.fuzz import calls
from tests.fuzz.calls import Action, attempt, event_flaws, script, shrink
from tests.fuzz.targets import TARGETS, descriptors

#: Mutations of each target's seeds, and scripts of calls.
_MUTATIONS, _SCRIPTS = 60, range(3)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_good_input_raise_only_what_is_declared(name: str) -> None:
    target = TARGETS[name]
    dice = random.Random(name)
    for seed in target.seeds:
        target.run(seed)
    before = descriptors()
    for _ in range(_MUTATIONS):
        target.run(_mutated(dice, dice.choice(target.seeds)))
    assert descriptors() == before


def _mutated(dice: random.Random, data: bytes) -> bytes:
    """Some bytes changed, put in, taken out or doubled."""
    out = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(out) + 1)
        end = min(len(out), at + dice.randrange(9))
        new = (bytes(dice.choices(b'\0\1\xff"{}[]:,=-0 9ae', k=dice.randrange(5))), out[at:end] * 2)
        out[at:end] = dice.choice(new)
    return bytes(out)


@pytest.mark.parametrize("seed", _SCRIPTS)
def test_random_calls_at_a_whole_shim(seed: int) -> None:
    outcome = attempt(script(seed), calls.stdio(seed))
    assert outcome.flaws == []
    assert outcome.calls > 10
    assert outcome.events


def test_a_script_comes_from_its_seed() -> None:
    assert script(5) == script(5) != script(6)
    assert {each.what for seed in range(60) for each in script(seed)} == set(calls._WEIGHTS)


def test_a_script_is_shrunk_to_what_fails() -> None:
    whole = script(1)
    wanted = [whole[7], whole[31]]
    assert shrink(whole, lambda s: [a for a in s if a in wanted] == wanted, 500) == wanted


def test_a_flaw_of_the_shim_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer's own proof: a shim that forgets one event in a life."""
    whole = calls.Whole
    monkeypatch.setattr("runtime.task.container.TaskStarted", lambda **_: None)
    lived = [("create", "root"), ("start", "root"), ("wait", "root"), ("exit", "root")]
    actions = [Action(0, what, cid, "", 7, False) for what, cid in lived]
    actions.insert(3, Action(0, "rest", "root", "", 99, False))
    flaws = attempt(actions).flaws
    assert calls.Whole is whole
    assert flaws == []  # the table has an exit of what was created and never started
    monkeypatch.setattr("runtime.task.container.TaskDeleted", lambda **_: None)
    assert "root ends stopped: create, exit" in attempt(actions).flaws


def _init(*topics: str) -> list[tuple[str, Any]]:
    ends = {"/tasks/exit": pb.TaskExit(container_id="c", id="c")}
    return [(t, ends.get(t, pb.TaskStart(container_id="c"))) for t in topics]


_LIFE = ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")


@pytest.mark.parametrize(
    ("topics", "flaw"),
    [
        (_LIFE, ""),
        (_LIFE * 2, ""),
        (("/tasks/create", "/tasks/exit", "/tasks/delete"), ""),
        (("/tasks/create", "/tasks/delete"), ""),
        (_LIFE[:3], "ends stopped"),
        (_LIFE[1:], "InvalidState"),
        ((*_LIFE, "/tasks/exit"), "InvalidState"),
        ((*_LIFE[:3], "/tasks/exit", _LIFE[3]), "InvalidState"),
        ((_LIFE[0], _LIFE[2], _LIFE[1], _LIFE[3]), "InvalidState"),
        ((_LIFE[0], "/tasks/paused", *_LIFE[1:]), "InvalidState"),
        ((*_LIFE[:2], "/tasks/paused", "/tasks/resumed", *_LIFE[2:]), ""),
    ],
)
def test_events_that_the_table_forbids(topics: tuple[str, ...], flaw: str) -> None:
    found = "\n".join(event_flaws("c", _init(*topics)))
    assert flaw in found
    assert bool(flaw) == bool(found)


def test_events_of_execs_that_the_table_forbids() -> None:
    create, start, end, delete = _init(*_LIFE)
    added = ("/tasks/exec-added", pb.TaskExecAdded(container_id="c", exec_id="e"))
    begun = ("/tasks/exec-started", pb.TaskExecStarted(container_id="c", exec_id="e"))
    over = ("/tasks/exit", pb.TaskExit(container_id="c", id="e"))
    assert not event_flaws("c", [create, start, added, begun, over, end, delete])
    assert event_flaws("c", [create, start, added, begun, end, over, delete])
    assert event_flaws("c", [create, start, begun, over, end, delete])
    assert event_flaws("c", [create, start, added, begun, over, over, end, delete])
