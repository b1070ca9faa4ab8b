"""The life of a process, as one table: which operation is legal in which state, and what follows.

Pure: no locks, no I/O.  ``process.py`` asks :func:`step` under its lock and acts outside of it.
A slow operation has two steps: it *reserves* a transient state, acts, then *commits* or *fails*.
The caller holds an exit back that it sees while a start or a checkpoint is under way, until the
commit.
"""

from __future__ import annotations

from runtime.base.constant import Constant, member
from runtime.base.errors import InvalidState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar, Final


class State(Constant):
    """Where a process (a container's init, or an exec) stands."""

    CREATING: ClassVar[State] = member("creating")
    CREATED: ClassVar[State] = member("created")
    STARTING: ClassVar[State] = member("starting")
    RUNNING: ClassVar[State] = member("running")
    PAUSING: ClassVar[State] = member("pausing")
    PAUSED: ClassVar[State] = member("paused")
    RESUMING: ClassVar[State] = member("resuming")
    CHECKPOINTING: ClassVar[State] = member("checkpointing")
    #: A checkpoint of what was paused, and will be again.
    CHECKPOINTING_PAUSED: ClassVar[State] = member("checkpointing_paused")
    STOPPED: ClassVar[State] = member("stopped")
    DELETING: ClassVar[State] = member("deleting")
    DELETED: ClassVar[State] = member("deleted")


class Op(Constant):
    """What can be done to a process, or happen to it.  The value is the verb used in errors."""

    CREATED: ClassVar[Op] = member("finish creating")
    CREATE_FAILED: ClassVar[Op] = member("give up creating")
    START: ClassVar[Op] = member("start")
    STARTED: ClassVar[Op] = member("finish starting")
    START_FAILED: ClassVar[Op] = member("give up starting")
    EXIT: ClassVar[Op] = member("exit")
    PAUSE: ClassVar[Op] = member("pause")
    PAUSED: ClassVar[Op] = member("finish pausing")
    PAUSE_FAILED: ClassVar[Op] = member("give up pausing")
    RESUME: ClassVar[Op] = member("resume")
    RESUMED: ClassVar[Op] = member("finish resuming")
    RESUME_FAILED: ClassVar[Op] = member("give up resuming")
    CHECKPOINT: ClassVar[Op] = member("checkpoint")
    CHECKPOINTED: ClassVar[Op] = member("finish checkpointing")
    CHECKPOINT_FAILED: ClassVar[Op] = member("give up checkpointing")
    DELETE: ClassVar[Op] = member("delete")
    DELETED: ClassVar[Op] = member("finish deleting")
    DELETE_FAILED: ClassVar[Op] = member("give up deleting")


TRANSITIONS: Final[Mapping[tuple[State, Op], State]] = {
    (State.CREATING, Op.CREATED): State.CREATED,
    (State.CREATING, Op.CREATE_FAILED): State.DELETED,
    (State.CREATED, Op.START): State.STARTING,
    (State.CREATED, Op.EXIT): State.STOPPED,
    (State.CREATED, Op.DELETE): State.DELETING,
    (State.STARTING, Op.STARTED): State.RUNNING,
    (State.STARTING, Op.START_FAILED): State.STOPPED,
    (State.RUNNING, Op.EXIT): State.STOPPED,
    (State.RUNNING, Op.PAUSE): State.PAUSING,
    (State.PAUSING, Op.PAUSED): State.PAUSED,
    (State.PAUSING, Op.PAUSE_FAILED): State.RUNNING,
    (State.PAUSING, Op.EXIT): State.STOPPED,
    (State.PAUSED, Op.EXIT): State.STOPPED,
    (State.PAUSED, Op.RESUME): State.RESUMING,
    (State.RESUMING, Op.RESUMED): State.RUNNING,
    (State.RESUMING, Op.RESUME_FAILED): State.PAUSED,
    (State.RESUMING, Op.EXIT): State.STOPPED,
    (State.RUNNING, Op.CHECKPOINT): State.CHECKPOINTING,
    (State.CHECKPOINTING, Op.CHECKPOINTED): State.RUNNING,
    (State.CHECKPOINTING, Op.CHECKPOINT_FAILED): State.RUNNING,
    (State.PAUSED, Op.CHECKPOINT): State.CHECKPOINTING_PAUSED,
    (State.CHECKPOINTING_PAUSED, Op.CHECKPOINTED): State.PAUSED,
    (State.CHECKPOINTING_PAUSED, Op.CHECKPOINT_FAILED): State.PAUSED,
    (State.STOPPED, Op.DELETE): State.DELETING,
    (State.DELETING, Op.EXIT): State.DELETING,
    (State.DELETING, Op.DELETED): State.DELETED,
    (State.DELETING, Op.DELETE_FAILED): State.STOPPED,
}

#: States in which the process exists for the sentry and signals reach it.
ALIVE: Final = frozenset(
    {
        State.CREATED,
        State.STARTING,
        State.RUNNING,
        State.PAUSING,
        State.PAUSED,
        State.RESUMING,
        State.CHECKPOINTING,
        State.CHECKPOINTING_PAUSED,
    }
)

#: States in which an exit is held back until the operation is over, so that its event comes
#: first: a task that a checkpoint ends was checkpointed before it ended.
HOLDS_EXIT: Final = frozenset({State.STARTING, State.CHECKPOINTING, State.CHECKPOINTING_PAUSED})


def step(state: State, op: Op, subject: str = "process") -> State:
    """The state after ``op``.

    Raises InvalidState, naming ``subject``, where the table has no such transition.
    """
    try:
        return TRANSITIONS[state, op]
    except KeyError:
        raise InvalidState(op.value, subject, state.value) from None
