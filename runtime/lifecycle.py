"""The life of a process, as one table: which operation is legal in which state, and what follows.

Pure: no locks, no I/O.  ``process.py`` asks :func:`step` under its lock and acts outside of it.
A slow operation has two steps: it *reserves* a transient state, acts, then *commits* or *fails*.
An exit that is seen while a start is under way is held back by the caller until the commit.
"""

from __future__ import annotations

from enum import Enum

from runtime.errors import InvalidState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final


class State(Enum):
    """Where a process (a container's init, or an exec) stands."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPED = "stopped"
    DELETING = "deleting"
    DELETED = "deleted"


class Op(Enum):
    """What can be done to a process, or happen to it.  The value is the verb used in errors."""

    CREATED = "finish creating"
    CREATE_FAILED = "give up creating"
    START = "start"
    STARTED = "finish starting"
    START_FAILED = "give up starting"
    EXIT = "exit"
    PAUSE = "pause"
    PAUSED = "finish pausing"
    PAUSE_FAILED = "give up pausing"
    RESUME = "resume"
    RESUMED = "finish resuming"
    RESUME_FAILED = "give up resuming"
    DELETE = "delete"
    DELETED = "finish deleting"
    DELETE_FAILED = "give up deleting"


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
    }
)


def step(state: State, op: Op, subject: str = "process") -> State:
    """The state after ``op``.

    Raises InvalidState, naming ``subject``, where the table has no such transition.
    """
    try:
        return TRANSITIONS[state, op]
    except KeyError:
        raise InvalidState(op.value, subject, state.value) from None
