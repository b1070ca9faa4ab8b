"""When processes of a sandbox end: pending waits, and what the sentry's own end means.

Owns the pending calls, the reaping of the sentry, and the rule which of two tidings of one exit
counts.  All callbacks are made by the reactor's thread, each exactly once.
"""

from __future__ import annotations

import select
import threading

from runtime.control import shell_status, wait_status
from runtime.errors import RuntimeFault
from runtime.log import get_logger
from runtime.record import Record
from runtime.urpc import Disconnected, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.reactor import Reactor, Timer, Watch
    from runtime.sentry import Sentry
    from runtime.urpc import Connection

_log = get_logger("exits")
_SIGKILL = 9
#: Seconds that a sentry which closed its connections may take to exit before it is killed: it
#: waits up to 15 s for connections that others leave idle.
_EXIT_TIMEOUT = 20.0
_KILLED = 128 + _SIGKILL


class ExitInfo(Record):
    """How a process ended.

    ``status`` is what a shell would say: the exit code, or 128 + the signal.  ``raw`` is the wait
    status where the sentry told it.  ``sentry_died``: the sentry ended before it could tell,
    whoever was the cause; then ``detail`` says what is known of it, unless it was killed on
    purpose.
    """

    status: int
    raw: int | None = None
    sentry_died: bool = False
    detail: str = ""


def exit_of_wait(raw: int) -> ExitInfo:
    """The exit that the sentry reports."""
    return ExitInfo(status=shell_status(raw), raw=raw)


def exit_of_sentry(raw: int, *, started: bool, killed: bool, panic: str, words: str) -> ExitInfo:
    """What the sentry's own wait status says of its init's exit.

    A sentry whose init ended exits with init's code, or 128 + the signal (gVisor
    runsc/cmd/boot.go); a signal from the host, a panic (Go's exit status 2) and a fatal error
    (128, with a message) are its own death.  ``started``: init was; ``killed``: by the shim.
    """
    signo = raw & 0x7F
    code = (raw >> 8) & 0xFF
    if killed and signo == _SIGKILL:
        return ExitInfo(status=_KILLED, sentry_died=True)
    if signo:
        detail = f"sentry killed by signal {signo}"
    elif code == 2 and panic:
        detail = f"sentry panicked: {panic}"
    elif not started or (code == 128 and words):
        detail = f"sentry ended with status {code}"
    else:
        return ExitInfo(status=code)
    if words and words not in detail:
        detail = f"{detail}: {words}"
    return ExitInfo(status=_KILLED, sentry_died=True, detail=detail)


class PendingWait:
    """A wait that is sent and not answered.  ``resolve`` is called once, by the reactor."""

    __slots__ = ("_connection", "_done", "_lock", "_resolve", "_watch")

    def __init__(self, connection: Connection, resolve: Callable[[int | None], None]) -> None:
        self._connection = connection
        self._resolve = resolve
        self._lock = threading.Lock()
        self._watch: Watch | None = None  # guarded by _lock
        self._done = False  # guarded by _lock

    def arm(self, reactor: Reactor) -> None:
        """Have the reactor look for the reply."""
        with self._lock:
            if not self._done:
                self._watch = reactor.watch(
                    self._connection.fileno(), select.EPOLLIN, lambda _: self.look(False)
                )

    def look(self, final: bool) -> None:
        """Take the reply if it is there; in the reactor's thread.

        With ``final``, no reply now means none ever: the sentry is gone.  ``resolve`` gets the
        raw wait status, or None for a sentry that did not tell.
        """
        with self._lock:
            if self._done:
                return
            raw: int | None = None
            try:
                reply = self._connection.feed()
                if reply is not None:
                    raw = wait_status(reply)
                elif not final:
                    return
            except (Disconnected, ProtocolError, RuntimeFault) as fault:
                _log.debug("wait.failed", error=str(fault))
            self._done = True
            if self._watch is not None:
                self._watch.cancel()
            # At once: an idle connection holds up a sentry that wants to exit.
            self._connection.close()
        self._resolve(raw)

    def abandon(self) -> None:
        """Ask no more; ``resolve`` is not called."""
        with self._lock:
            self._done = True
            if self._watch is not None:
                self._watch.cancel()
            self._connection.close()


class Exits:
    """The exits of one sandbox.  Thread-safe; nothing blocks but ``settle``."""

    def __init__(self, sandbox_id: str, sentry: Sentry, reactor: Reactor) -> None:
        self._sandbox_id = sandbox_id
        self._sentry = sentry
        self._reactor = reactor
        self._lock = threading.Lock()
        self._started = False  # guarded by _lock
        self._killed = False  # guarded by _lock; by the shim
        self._init_exit: ExitInfo | None = None  # guarded by _lock; written once
        self._init_callbacks: list[Callable[[ExitInfo], None]] = []  # guarded by _lock
        self._death_callbacks: list[Callable[[int], None]] = []  # guarded by _lock
        self._waits: set[PendingWait] = set()  # guarded by _lock
        self._overdue: Timer | None = None  # guarded by _lock
        self._raw: int | None = None  # guarded by _lock; the sentry's status, written once
        self._settled = threading.Event()
        self._watch: Watch | None = None

    def watch(self) -> None:
        """Have the reactor look for the sentry's end."""
        pidfd = self._sentry.child.pidfd
        self._watch = self._reactor.watch(pidfd, select.EPOLLIN, lambda _: self.look())

    # -- what the sandbox does -------------------------------------------------------------

    def starting(self, under_way: bool) -> None:
        """Init is about to be started, so the sentry's status may be init's; or wasn't."""
        with self._lock:
            self._started = under_way

    def killing(self) -> None:
        """The shim is about to kill the sentry."""
        with self._lock:
            self._killed = self._killed or self._raw is None

    @property
    def started(self) -> bool:
        """Whether init's start was asked for and didn't fail."""
        with self._lock:
            return self._started

    @property
    def raw(self) -> int | None:
        """The sentry's wait status once it is reaped."""
        with self._lock:
            return self._raw

    # -- who wants to know -----------------------------------------------------------------

    def on_init(self, callback: Callable[[ExitInfo], None]) -> None:
        """Call back when init has ended, or is known to have."""
        with self._lock:
            known = self._init_exit
            if known is None:
                self._init_callbacks.append(callback)
                return
        self._reactor.call_soon(lambda: callback(known))

    def on_death(self, callback: Callable[[int], None]) -> None:
        """Call back with its wait status when the sentry has ended."""
        with self._lock:
            known = self._raw
            if known is None:
                self._death_callbacks.append(callback)
                return
        self._reactor.call_soon(lambda: callback(known))

    def pend(self, connection: Connection, callback: Callable[[ExitInfo], None]) -> None:
        """Call back with the reply to a wait that was sent on ``connection``."""
        self._pend(connection, lambda raw: callback(_exit_or_lost(raw)))

    def lost(self, callback: Callable[[ExitInfo], None], why: str) -> None:
        """Call back for a wait that could not be sent."""
        info = ExitInfo(status=_KILLED, sentry_died=True, detail=why)
        self._reactor.call_soon(lambda: callback(info))

    def pend_init(self, connection: Connection | None) -> None:
        """A wait for init was sent on ``connection``; None if it could not be sent."""
        if connection is None:
            self._init_answered(None)
        else:
            self._pend(connection, self._init_answered)

    # -- what happens ----------------------------------------------------------------------

    def _pend(self, connection: Connection, resolve: Callable[[int | None], None]) -> None:
        def resolved(raw: int | None) -> None:
            with self._lock:
                self._waits.discard(pending)
            resolve(raw)

        pending = PendingWait(connection, resolved)
        with self._lock:
            ended = self._raw is not None
            if not ended:
                self._waits.add(pending)
        if ended:
            self._reactor.call_soon(lambda: pending.look(True))
        else:
            pending.arm(self._reactor)

    def _init_answered(self, raw: int | None) -> None:
        if raw is not None:
            self._latch_init(exit_of_wait(raw))
        # Whatever it was, the sentry is to be gone soon; its own status fills in for a reply
        # that didn't come.
        with self._lock:
            if self._raw is None:
                self._overdue = self._reactor.call_later(_EXIT_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        _log.warning("sandbox.exit_overdue", sandbox=self._sandbox_id, pid=self._sentry.child.pid)
        self._sentry.kill()

    def _latch_init(self, info: ExitInfo) -> None:
        with self._lock:
            if self._init_exit is not None:
                return
            self._init_exit = info
            callbacks, self._init_callbacks = self._init_callbacks, []
        for callback in callbacks:
            callback(info)

    def abandon(self) -> None:
        """Ask for no exit any more: the sandbox goes on without this process."""
        with self._lock:
            waits, self._waits = self._waits, set()
        if self._watch is not None:
            self._watch.cancel()
        for pending in waits:
            pending.abandon()

    def look(self) -> None:
        """Reap the sentry if it has ended, and tell all that follows from it.  Idempotent.

        In the reactor's thread, or once that has stopped.
        """
        raw = self._sentry.child.poll()
        if raw is None:
            return
        if self._watch is not None:
            self._watch.cancel()
        with self._lock:
            if self._raw is not None:
                return
            self._raw = raw
            if self._overdue is not None:
                self._overdue.cancel()
            waits = list(self._waits)
            started, killed = self._started, self._killed
        # Replies that came before the end count.
        for pending in waits:
            pending.look(True)
        log = self._sentry.log
        self._latch_init(
            exit_of_sentry(
                raw, started=started, killed=killed, panic=log.panic(), words=log.message()
            )
        )
        with self._lock:
            callbacks, self._death_callbacks = self._death_callbacks, []
        for callback in callbacks:
            callback(raw)
        self._settled.set()

    def settle(self, timeout: float) -> None:
        """Wait until all exits of a sentry that has ended are told."""
        # The reactor tells them, so that there is one order; unless it is the caller, or stopped.
        if self._reactor.inside() or not self._settled.wait(timeout):
            self.look()


def _exit_or_lost(raw: int | None) -> ExitInfo:
    if raw is not None:
        return exit_of_wait(raw)
    return ExitInfo(status=_KILLED, sentry_died=True)
