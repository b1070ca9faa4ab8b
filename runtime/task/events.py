"""What happened, as frozen records; ``shim/events.py`` turns them into topics and messages.

Field meanings follow containerd's ``api/events/task.proto``.  Times are seconds since the epoch.
"""

from __future__ import annotations

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.bundle.mount_options import RootfsMount


class Event(Record):
    """Base: ``container_id`` is the task's id."""

    container_id: str


class TaskCreated(Event):
    """The task exists; its init has not run yet."""

    bundle: str
    pid: int
    rootfs: tuple[RootfsMount, ...] = ()
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    checkpoint: str = ""


class TaskStarted(Event):
    """Init runs."""

    pid: int


class TaskExecAdded(Event):
    """An exec is registered."""

    exec_id: str


class TaskExecStarted(Event):
    """An exec runs."""

    exec_id: str
    pid: int


class TaskExited(Event):
    """A process ended; ``id`` is the exec's id, or the container's for init."""

    id: str
    pid: int
    exit_status: int
    exited_at: float


class TaskOOM(Event):
    """The kernel or the sentry killed the container for memory."""


class TaskPaused(Event):
    """All of the sandbox is frozen."""


class TaskResumed(Event):
    """The sandbox runs again."""


class TaskCheckpointed(Event):
    """An image was written to ``path``."""

    path: str


class TaskDeleted(Event):
    """The task, or the exec named by ``id``, is gone."""

    id: str
    pid: int
    exit_status: int
    exited_at: float
