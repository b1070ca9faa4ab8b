"""The transition table, pair by pair."""

from __future__ import annotations

import pytest

from runtime.base.errors import InvalidState
from runtime.task.lifecycle import ALIVE, HOLDS_EXIT, TRANSITIONS, Op, State, step

PAIRS = [(state, op) for state in State.members for op in Op.members]


@pytest.mark.parametrize(("state", "op"), PAIRS)
def test_every_pair_steps_or_says_why_not(state: State, op: Op) -> None:
    if (state, op) in TRANSITIONS:
        assert step(state, op) is TRANSITIONS[state, op]
    else:
        with pytest.raises(InvalidState) as caught:
            step(state, op, "container 'c'")
        assert str(caught.value) == f"cannot {op.value} container 'c' in state {state.value}"


def test_deleted_is_final() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.DELETED]


@pytest.mark.parametrize("state", sorted(ALIVE - HOLDS_EXIT, key=lambda s: s.value))
def test_an_exit_is_legal_wherever_something_lives(state: State) -> None:
    assert step(state, Op.EXIT) is State.STOPPED


@pytest.mark.parametrize("state", [State.STARTING, State.CHECKPOINTING, State.CHECKPOINTING_PAUSED])
def test_an_exit_during_start_or_checkpoint_must_be_held_back(state: State) -> None:
    assert state in HOLDS_EXIT
    assert (state, Op.EXIT) not in TRANSITIONS


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_a_checkpoint_leaves_things_as_they_were(state: State) -> None:
    within = step(state, Op.CHECKPOINT)
    assert step(within, Op.CHECKPOINTED) is step(within, Op.CHECKPOINT_FAILED) is state


@pytest.mark.parametrize("state", [*sorted(ALIVE - {State.CREATED}, key=lambda s: s.value)])
def test_nothing_that_runs_can_be_deleted(state: State) -> None:
    with pytest.raises(InvalidState):
        step(state, Op.DELETE)


@pytest.mark.parametrize(
    "transient",
    [
        State.CREATING,
        State.STARTING,
        State.PAUSING,
        State.RESUMING,
        State.CHECKPOINTING,
        State.CHECKPOINTING_PAUSED,
        State.DELETING,
    ],
)
def test_every_transient_state_can_be_left_by_success_and_by_failure(transient: State) -> None:
    ways = {op for (state, op) in TRANSITIONS if state is transient}
    assert any(op.value.startswith("finish") for op in ways)
    assert any(op.value.startswith("give up") for op in ways)
