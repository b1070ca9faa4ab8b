"""One process of a container: its state, its exit latch and its stdio.

Owns the lock under which the state changes and under which the event that tells of the change is
queued, so that the order of events is the order of states.  Knows nothing of sentries: the
container acts between :meth:`Process.reserve` and :meth:`Process.commit`.
"""

from __future__ import annotations

import threading

from runtime.base.errors import InvalidState
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.task.events import TaskExited
from runtime.task.lifecycle import ALIVE, HOLDS_EXIT, Op, State, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.task.events import Event

    class IO(Protocol):
        """What the runtime needs of a process's stdio; ``shim/stdio/process_io.py`` has the real
        one."""

        terminal: bool
        on_signal: Callable[[int], None] | None

        @property
        def sentry_fds(self) -> tuple[int, int, int]: ...
        def release_sentry_fds(self) -> None: ...
        def resize(self, width: int, height: int) -> None: ...
        def close_stdin(self) -> None: ...
        def finish(self) -> None: ...
        def await_reading(self, patience: float, timeout: float) -> None: ...
        def drain(self, timeout: float) -> bool: ...
        def close(self) -> None: ...


_log = get_logger("process")


def size_terminal(io: IO, spec: ProcessSpec) -> None:
    """Give a terminal that was just opened the size that the spec wants, if any."""
    if io.terminal and spec.console_size is not None:
        height, width = spec.console_size
        io.resize(width, height)


class IORequest(Record):
    """Where a process's stdio goes, in the caller's terms."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class OpenStdio(Record):
    """What a process's stdio is opened for, beside where it goes."""

    where: IORequest
    container_id: str
    #: Uid and gid that get the FIFOs, pipes and terminals which the sentry uses.
    owner: tuple[int, int]
    #: A ``time.monotonic()`` value; only a logging program is waited for.
    deadline: float
    #: Whether no process on the host has the terminal as its controlling one.
    emulate_signals: bool = False
    #: Whether jobs may live on after the process, and are not to hold the client's FIFOs then.
    outlived: bool = False


class Pid(Record):
    """A process of a container: ``exec_id`` is empty for init and what it started."""

    pid: int
    exec_id: str = ""


class Exit(Record):
    """How a process ended: shell-style status, and when (seconds since the epoch)."""

    status: int
    at: float


class Snapshot(Record):
    """A consistent view of a process."""

    state: State
    pid: int
    exit: Exit | None
    io: IORequest


class Process:
    """State machine and exit latch of an init or exec.  All methods may be called by any thread.

    ``emit`` must not block: it is called with the process's lock held.
    """

    def __init__(
        self,
        container_id: str,
        exec_id: str,
        io_request: IORequest,
        emit: Callable[[Event], None],
        spec: ProcessSpec | None = None,
    ) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.io_request = io_request
        self.spec = spec
        self.subject = (
            f"exec {exec_id!r} of container {container_id!r}"
            if exec_id
            else f"container {container_id!r}"
        )
        self._emit = emit
        self._lock = threading.Lock()
        self._state = State.CREATING  # guarded by _lock
        self._pid = 0  # guarded by _lock
        self._exit: Exit | None = None  # guarded by _lock; written once
        self._held: tuple[Exit, Event | None] | None = None  # guarded by _lock; came too early
        self._waiters: list[Callable[[Exit], None]] = []  # guarded by _lock
        self._io: IO | None = None  # guarded by _lock
        self._size: tuple[int, int] | None = None  # guarded by _lock; a resize before the start
        self._stdin_closed = False  # guarded by _lock; so was a CloseIO

    def stdio(self, owner: tuple[int, int], deadline: float, *, guest: bool = False) -> OpenStdio:
        """What is to be opened for it; ``guest`` says that it is another sandbox's container."""
        is_exec = bool(self.exec_id)
        return OpenStdio(
            where=self.io_request,
            container_id=self.container_id,
            owner=owner,
            deadline=deadline,
            emulate_signals=is_exec or guest,
            outlived=is_exec,
        )

    # -- reading --------------------------------------------------------------------------

    @property
    def state(self) -> State:
        with self._lock:
            return self._state

    @property
    def pid(self) -> int:
        with self._lock:
            return self._pid

    @property
    def exit(self) -> Exit | None:
        with self._lock:
            return self._exit

    @property
    def alive(self) -> bool:
        """Whether signals can still reach it (a created init counts)."""
        with self._lock:
            return self._state in ALIVE and self._exit is None

    @property
    def started(self) -> bool:
        """Whether it was started and has not ended."""
        with self._lock:
            return self._state in ALIVE and self._state is not State.CREATED

    def snapshot(self) -> Snapshot:
        with self._lock:
            return Snapshot(state=self._state, pid=self._pid, exit=self._exit, io=self.io_request)

    # -- the state machine ----------------------------------------------------------------

    def reserve(self, op: Op) -> State:
        """Enter the transient state of ``op`` and return the state that was left.

        Raises InvalidState.
        """
        with self._lock:
            before = self._state
            self._state = step(before, op, self.subject)
            return before

    def commit(
        self, op: Op, event: Event | None = None, pid: int = 0, never: Exit | None = None
    ) -> bool:
        """Leave a transient state, queue ``event``, then replay an exit that was held back.

        ``never`` is what is known from now on as the end of a process that never ran.  False when
        an exit overtook the operation, and nothing was queued.
        """
        fire: list[Callable[[Exit], None]] = []
        done: Exit | None = None
        with self._lock:
            try:
                self._state = step(self._state, op, self.subject)
            except InvalidState:
                return False
            if pid:
                self._pid = pid
            if event is not None:
                self._emit(event)
            if self._held is not None:
                (done, first), self._held = self._held, None
                if first is not None:
                    self._emit(first)
                fire = self._latch_locked(done)
            elif never is not None and self._exit is None:
                self._exit = done = never
                fire, self._waiters = self._waiters, []
        if done is not None:
            _tell(fire, done)
        return True

    def exited(self, exit: Exit, first: Event | None = None) -> bool:
        """Record the exit, once; queue ``first`` (an OOM) and TaskExited, then call the waiters.

        While a start or a checkpoint is under way the exit is held back until it commits.  False
        if the exit was known already.
        """
        with self._lock:
            if self._exit is not None or self._held is not None:
                return False
            if self._state in HOLDS_EXIT:
                self._held = (exit, first)
                return True
            if first is not None:
                self._emit(first)
            fire = self._latch_locked(exit)
        _tell(fire, exit)
        return True

    def fail_start(self, exit: Exit, publish: bool) -> None:
        """Roll a start back to STOPPED, so that Wait resolves and Delete is legal."""
        with self._lock:
            self._held = None
            self._state = step(self._state, Op.START_FAILED, self.subject)
            self._exit = exit
            fire, self._waiters = self._waiters, []
            if publish:
                self._emit(self._exit_event_locked(exit))
        _tell(fire, exit)

    def drop(self, never: Exit) -> None:
        """Give up an exec whose container is deleted: close its stdio and let nobody wait on.

        Does nothing while it is being created or deleted: who does that finds it gone.
        """
        try:
            self.reserve(Op.DELETE)
        except InvalidState:
            return
        io = self.detach()
        if io is not None:
            io.close()
        self.commit(Op.DELETED, never=never)

    def _latch_locked(self, exit: Exit) -> list[Callable[[Exit], None]]:
        self._state = step(self._state, Op.EXIT, self.subject)
        self._exit = exit
        self._emit(self._exit_event_locked(exit))
        fire, self._waiters = self._waiters, []
        return fire

    def _exit_event_locked(self, exit: Exit) -> TaskExited:
        return TaskExited(
            container_id=self.container_id,
            id=self.exec_id or self.container_id,
            pid=self._pid,
            exit_status=exit.status,
            exited_at=exit.at,
        )

    def wait(self, callback: Callable[[Exit], None]) -> None:
        """Call ``callback`` once with the exit: now if it is known, else from the thread that
        learns of it.  The callback must not block.

        Raises InvalidState for what is being created: there may never be such a process.
        """
        with self._lock:
            if self._state is State.CREATING:
                raise InvalidState("wait for", self.subject, self._state.value)
            if self._exit is None:
                self._waiters.append(callback)
                return
            known = self._exit
        callback(known)

    def forget_waiter(self, callback: Callable[[Exit], None]) -> None:
        """Drop a waiter whose caller is gone."""
        with self._lock:
            if callback in self._waiters:
                self._waiters.remove(callback)

    # -- stdio ----------------------------------------------------------------------------

    def attach(self, io: IO) -> None:
        """Take over the stdio; what was asked of it before there was one is done now."""
        with self._lock:
            self._io = io
            size, stdin_closed = self._size, self._stdin_closed
        if size is not None:
            io.resize(*size)
        if stdin_closed:
            io.close_stdin()

    @property
    def io(self) -> IO | None:
        with self._lock:
            return self._io

    def finish_io(self) -> None:
        """Tell the stdio, unless a delete has taken it already, that the process has ended."""
        io = self.io
        if io is not None:
            io.finish()

    def detach(self) -> IO | None:
        """Give the stdio up to the caller, who closes it."""
        with self._lock:
            io, self._io = self._io, None
            return io

    def resize(self, width: int, height: int) -> None:
        with self._lock:
            io = self._io
            if io is None:
                self._size = (width, height)
        if io is not None:
            io.resize(width, height)

    def close_stdin(self) -> None:
        with self._lock:
            io = self._io
            self._stdin_closed = True
        if io is not None:
            io.close_stdin()


def _tell(waiters: list[Callable[[Exit], None]], exit: Exit) -> None:
    """Tell all of them, whatever one of them raises."""
    for waiter in waiters:
        try:
            waiter(exit)
        except Exception:
            _log.exception("exit.waiter_failed")
