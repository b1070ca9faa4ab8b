"""Signals to a container's processes, in whatever state it is.

Owns two rules.  A Kill is answered within a second, because containerd waits: a signal that the
sentry hasn't acknowledged by then is in its socket, as pending as one to a stopped process.  And
SIGKILL ends a container in bounded time.  If the gofer hangs, it is killed, and the sentry ends the
container.  If a FUSE file system of the pod's hangs, its connection is aborted.  If the sentry
itself hangs, it is killed, with everything in the sandbox.  If the sandbox is paused, it goes on:
gVisor can't let one container of it end alone.  A container that outlives its gofer is killed the
same way.  It also owns what a SIGKILL of a session's leader means to the job in the foreground of
its terminal.
"""

from __future__ import annotations

import time
from _weakref import ref

from runtime.base.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    RuntimeFault,
    SandboxGone,
    Unanswered,
    Unreachable,
)
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.host.children import describe_status
from runtime.sandbox.exits import ExitInfo
from runtime.sandbox.sandbox import SignalMode
from runtime.sandbox.signals import HARMLESS, Effect, effect
from runtime.task.lifecycle import HOLDS_EXIT, State
from runtime.task.process import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from runtime.host.reactor import Reactor
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.process import IO, Process

#: Seconds that the sentry has to acknowledge a signal.
KILL_TIMEOUT = 0.8
#: Seconds of these for each signal that goes before the one that was asked for.
_BEFORE_TIMEOUT = 0.2
_SIGHUP, _SIGSTOP = 1, 19
#: Seconds after which a SIGKILL that did not reach the sentry is sent again.
_AGAIN = 0.5
#: Seconds after a SIGKILL for the container to be dead, before its gofer is killed, and before
#: the sentry is.  Both are far beyond what a host needs that is merely busy.
GOFER_TIMEOUT = 3.0
SENTRY_TIMEOUT = 8.0
#: Seconds for a sentry to end a container by itself that has lost its gofer; it takes milliseconds
#: on a quiet host.
GRACE = 2.0
MAX_SIGNAL = 64

_log = get_logger("killing")


if TYPE_CHECKING:

    class Killable(Protocol):
        """What signals need of a container; its own class says what each member is."""

        id: str
        init: Process
        is_root: bool

        @property
        def sandbox(self) -> Sandbox: ...
        @property
        def has_ended(self) -> bool: ...
        def process(self, exec_id: str) -> Process: ...
        def require_created(self) -> None: ...
        def submit(self, task: Callable[[], None]) -> None: ...
        def init_exited(self, info: ExitInfo) -> None: ...

    class Served(Killable, Protocol):
        """What the watch of a gofer needs of its container."""

        killing: Killing


class Gone:
    """Stands for a container that was deleted, for a timer or a task that comes too late."""

    has_ended = True
    is_root = False

    def __init__(self, container_id: str, init: Process) -> None:
        self.id, self.init = container_id, init

    @property
    def sandbox(self) -> Sandbox:
        raise NotFound("container", self.id)

    def process(self, exec_id: str) -> Process:
        raise NotFound("container", self.id)

    def require_created(self) -> None:
        raise NotFound("container", self.id)

    def submit(self, task: Callable[[], None]) -> None:
        """There is nothing to do any more."""

    def init_exited(self, info: ExitInfo) -> None:
        """It has, and was told so."""


class Killing:
    """The signals to one container, which has it.  From any thread."""

    def __init__(self, container: Killable, reactor: Reactor) -> None:
        self._of = ref(container)  # or both would wait for the garbage collector
        self._id, self._init = container.id, container.init
        self._reactor = reactor
        # How a container ended whose sentry was killed on its account; written once, by one who
        # is about to kill.
        self.status = 0
        self._saved = False
        self._insisting = False
        #: Lets a paused sandbox go on, with all that this means to its containers; may raise.
        self.thaw: Callable[[], None] = lambda: None

    @property
    def _container(self) -> Killable:
        return self._of() or Gone(self._id, self._init)

    def kill(self, exec_id: str, signo: int, everyone: bool) -> None:
        """Signal init, everything in the container, or an exec.

        Raises NotFound once the process has ended, InvalidRequest for a number that is no
        signal.  Takes a second at most.
        """
        container = self._container
        process = container.process(exec_id)
        if not 0 <= signo <= MAX_SIGNAL:
            raise InvalidRequest("signal", f"{signo} is not between 0 and {MAX_SIGNAL}")
        container.require_created()
        created = process.state is State.CREATED
        # An exec that was never started has no end of its own after init's.
        if not process.alive or (created and exec_id and container.has_ended):
            raise NotFound("process", exec_id or container.id, "process already finished")
        if exec_id and not created:
            began = time.monotonic()
            if signo == SIGKILL:
                self._hang_up(process)
            spent = time.monotonic() - began
            self.signal(signo, process.pid, SignalMode.PROCESS, KILL_TIMEOUT - spent)
            return
        if not created and container.sandbox.restoring and signo not in HARMLESS:
            self.kill_sentry(signo)  # nothing runs before all of the pod is restored
            return
        what = effect(
            signo,
            created=created,
            paused=not created and self.held_back(process),
            is_root=container.is_root and not exec_id,
        )
        if what is Effect.END_SANDBOX:
            self.kill_sentry(signo)
        elif what is Effect.END_CONTAINER:
            self._kill_created(process, signo)
        elif what is not Effect.NOTHING:
            # Whether a paused sandbox goes on is asked once the signal is on its way.
            self.signal(signo, 0, SignalMode.ALL if everyone else SignalMode.PROCESS)

    def held_back(self, process: Process) -> bool:
        """Whether the sentry is frozen, or only half up."""
        return self._container.sandbox.paused or process.state in HOLDS_EXIT

    def _kill_created(self, process: Process, signo: int) -> None:
        """Without a process that could take it: it counts as ended, and never starts."""
        container = self._container
        if process is not container.init:
            process.exited(Exit(status=128 + signo, at=time.time()))
        else:
            container.init_exited(ExitInfo(status=128 + signo))
            if process.state is State.STOPPED:
                # containerd's client deletes it only once its output has come to an end; without
                # one, a daemon that finds it at its start waits for ever.
                container.sandbox.abandon(container.id)

    def kill_sentry(self, signo: int) -> None:
        """End the sandbox on account of a signal to its first container."""
        self.claim(signo)
        self._container.sandbox.kill()

    def claim(self, signo: int) -> None:
        """Have the container's end count as that signal's, unless another was before."""
        self.status = self.status or 128 + signo

    def claim_saved(self) -> None:
        """Have the container's end count as that of a checkpoint, which is a success."""
        self._saved = True

    def outcome(self, info: ExitInfo) -> int:
        """What ``info`` says of init's status, if need be in view of who ended the sentry."""
        if not info.sentry_died:
            return info.status
        return 0 if self._saved else self.status or info.status

    def _hang_up(self, leader: Process) -> None:
        """Have the foreground job of a terminal hear that its session's leader is about to end.

        The kernel tells it once the leader has ended (``disassociate_ctty``, drivers/tty/
        tty_jobctrl.c); the sentry knows a terminal only as long as the leader lives.  That one is
        stopped before, as it may be in the foreground itself and is to end by SIGKILL.
        """
        io = leader.io
        if io is None or not io.terminal:
            return
        container = self._container
        for signo, mode in ((_SIGSTOP, SignalMode.PROCESS), (_SIGHUP, SignalMode.FOREGROUND)):
            try:
                container.sandbox.signal(
                    container.id, signo, pid=leader.pid, mode=mode, timeout=_BEFORE_TIMEOUT
                )
            except RuntimeFault as fault:
                _log.debug("terminal.signal_lost", signal=signo, error=str(fault))
                return

    def signal(self, signo: int, pid: int, mode: SignalMode, timeout: float = KILL_TIMEOUT) -> None:
        """Have the sentry deliver a signal; ``pid`` 0 is init.  Raises NotFound."""
        container = self._container
        to_all = signo == SIGKILL and not pid
        try:
            container.sandbox.signal(container.id, signo, pid=pid, mode=mode, timeout=timeout)
        except DeadlineExceeded as fault:
            if to_all and container.is_root:
                _log.warning("sandbox.kill_forced", container=container.id, why="no answer")
                self.kill_sentry(signo)
                return
            if not isinstance(fault, Unanswered) and not to_all:
                raise
            _log.warning("signal.unacknowledged", container=container.id, signal=signo)
        except (Unreachable, ResourceExhausted) as fault:
            # Nothing has ended by that; who was to be killed still is.
            if not to_all:
                raise
            _log.warning("signal.undelivered", container=container.id, error=str(fault))
            if container.is_root:
                self.kill_sentry(signo)
                return
            self._reactor.call_later(_AGAIN, self._repeat)
        except SandboxGone:
            # It died under our hands; its exit is on the way.
            raise NotFound("process", container.id, "process already finished") from None
        if to_all:
            self.insist()

    def follow_terminal(self, io: IO | None, pid: int) -> None:
        """Deliver what a process's terminal signals, from now on; ``pid`` 0 is init.

        No process on the host has it as its controlling terminal, so the kernel does not.  The
        reactor tells of them, so the call to the sentry is left to a worker.
        """
        if io is None or not io.terminal:
            return
        container = self._container

        def deliver(signo: int) -> None:
            try:
                container.sandbox.signal(container.id, signo, pid=pid, mode=SignalMode.FOREGROUND)
            except RuntimeFault as fault:
                _log.debug("terminal.signal_lost", signal=signo, error=str(fault))

        io.on_signal = lambda signo: container.submit(lambda: deliver(signo))

    def insist(self) -> None:
        """See to it that the container ends, now that it was killed."""
        if self._container.sandbox.paused:
            self._container.submit(self._thaw)
        if self._insisting:
            return
        self._insisting = True
        timers = (
            self._reactor.call_later(GOFER_TIMEOUT, self._kill_gofer),
            self._reactor.call_later(SENTRY_TIMEOUT, self._give_up),
        )

        def ended(_: Exit) -> None:
            for timer in timers:
                timer.cancel()

        self._container.init.wait(ended)

    def _repeat(self) -> None:
        if self._is_stuck():
            self._container.submit(self._kill_again)

    def _kill_again(self) -> None:
        try:
            self.signal(SIGKILL, 0, SignalMode.ALL)
        except RuntimeFault as fault:
            # It has just ended; else the timers do their work.
            _log.debug("signal.not_repeated", container=self._container.id, error=str(fault))

    def _thaw(self) -> None:
        """Let the sandbox go on.  By a worker, as the sentry may take its time."""
        _log.info("sandbox.thawed", container=self._container.id, why="SIGKILL")
        try:
            self.thaw()
        except RuntimeFault as fault:
            # Somebody else resumes it, or it ended; else the timers do their work.
            _log.warning("sandbox.thaw_failed", container=self._container.id, error=str(fault))

    def _is_stuck(self) -> bool:
        return not self._container.has_ended

    def _kill_gofer(self) -> None:
        container = self._container
        if not self._is_stuck():
            return
        if container.sandbox.paused:
            # A pause that was under way when the signal came, or a thaw that failed.
            container.submit(self._thaw)
            return
        if container.is_root:
            self._give_up()
            return
        _log.warning("gofer.killed", container=container.id, why="SIGKILL was of no effect")
        container.sandbox.kill_gofer(container.id)

    def _give_up(self) -> None:
        if not self._is_stuck():
            return
        if self._container.is_root:
            self._kill_forced()
        else:
            self._container.submit(self._let_go_of_files)

    def _let_go_of_files(self) -> None:
        """End what the container may wait for in a file system, if that spares its neighbours.

        By a worker, as it reads the table of mounts.
        """
        from runtime.bundle.fuse import abort_hanging

        if not self._is_stuck():
            return
        if abort_hanging([each.spec.raw for each in self._container.sandbox.members()]):
            self._reactor.call_later(GOFER_TIMEOUT, self._kill_forced)
        else:
            self._kill_forced()

    def _kill_forced(self) -> None:
        if self._is_stuck():
            _log.warning(
                "sandbox.kill_forced",
                container=self._container.id,
                why="SIGKILL was of no effect",
            )
            self._container.sandbox.kill()


def watch_gofer(container: Served, reactor: Reactor) -> None:
    """See to it that the container, which runs, ends with its gofer.  Never raises; idempotent.

    A sentry watches one connection of each gofer and kills the container that loses it.  It does so
    by the number of a descriptor, in a goroutine that may run late: by then that number may mean
    something else (gVisor runsc/boot/loader.go, startGoferMonitor).  Such a container would run on
    without files.  So the shim watches the process itself, leaves the sentry a moment, and then
    does the same.

    A gofer that isn't needed any more ends by itself, with status 0: that is no loss.

    From any thread.  One whose gofer another process has started is left to that, and to the
    sentry.
    """
    try:
        gofer = container.sandbox.gofer_of(container.id)
        gofer.on_loss(reactor, lambda raw: _lost(container, reactor, raw))
    except NotFound:
        return  # it has ended, and is being deleted
    except (RuntimeFault, OSError) as fault:
        _log.warning("gofer.not_watched", container=container.id, error=str(fault))


def _lost(container: Served, reactor: Reactor, raw: int) -> None:
    reactor.call_later(GRACE, lambda: _look_after(container, reactor, raw))


def _look_after(container: Served, reactor: Reactor, raw: int) -> None:
    if container.has_ended or not container.init.alive:
        return
    if container.killing.held_back(container.init):
        # Nothing in it runs, and nothing that is killed ends, before it goes on.
        _lost(container, reactor, raw)
        return
    _log.warning(
        "container.killed",
        container=container.id,
        why="its gofer has ended, and the sentry has not noticed",
        gofer=describe_status(raw),
    )
    container.submit(lambda: _end_served(container))


def _end_served(container: Served) -> None:
    """As for a SIGKILL that containerd asks for, with all that follows if it is of no effect."""
    try:
        container.killing.kill("", SIGKILL, True)
    except NotFound:
        return  # it has just ended
    except RuntimeFault as fault:
        _log.warning("container.kill_failed", container=container.id, error=str(fault))
        container.killing.insist()
