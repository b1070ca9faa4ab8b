"""When processes of a sandbox end: what the sentry is asked, and what its own end means.

Owns the pending calls, the reaping of the sentry, and two rules: what counts as an exit, and which
of two reports of the same exit counts.  The reactor's thread makes all callbacks, each exactly
once, whatever another of them raises.
"""

from __future__ import annotations

import select
import threading
import time

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.base.signals import SIGKILL
from runtime.runsc.control import shell_status, wait_status
from runtime.runsc.urpc import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.host.reactor import Reactor, Timer, Watch
    from runtime.runsc.control import Control
    from runtime.runsc.urpc import Connection
    from runtime.sandbox.sentry import Sentry

_log = get_logger("exits")
#: Seconds that a sentry whose init has ended, or at whose socket nobody listens, may take to exit
#: before it is killed: it waits up to 15 s for connections that others leave idle.
_EXIT_TIMEOUT = 20.0
#: Seconds for which init's exit is kept back until the sentry has ended, whose pid stands for it.
_GONE_TIMEOUT = 0.2
#: Seconds before a sentry is asked again for an exit, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_KILLED = 128 + SIGKILL


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
    if killed and signo == SIGKILL:
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


class Inquiry:
    """One exit that the sentry is asked for, and asked again wherever the asking fails.

    ``tell`` is called once, by the reactor, with the raw wait status, or with None where the
    sentry can't tell it: it has said that there is no such process any more, or has ended.  An
    error of a call is neither, whatever it is: a sentry that restores closes its connections, and
    a host may have run out of descriptors.
    """

    def __init__(
        self,
        control: Control,
        container_id: str,
        pid: int,
        tell: Callable[[Inquiry, int | None], None],
        deserted: Callable[[], None],
        reactor: Reactor,
    ) -> None:
        """Of an exec, or with ``pid`` 0 of the container's init.

        ``deserted`` is called where nobody has listened at the socket for as long as a sentry may
        take to end that has closed it.
        """
        self._control, self._reactor = control, reactor
        self._tell, self._deserted = tell, deserted
        self._of = container_id, pid
        self._lock = threading.Lock()
        self._connection: Connection | None = None  # guarded by _lock; with a request sent on it
        self._looking = False  # guarded by _lock; whether that asks if the process is there still
        self._watch: Watch | None = None  # guarded by _lock
        self._timer: Timer | None = None  # guarded by _lock
        self._pause = _FIRST_PAUSE  # guarded by _lock
        self._done = False  # guarded by _lock
        self._refused_since: float | None = None  # guarded by _lock

    def begin(self, connection: Connection | None = None) -> None:
        """Ask; or a wait has been sent on ``connection``, which is this object's from now on."""
        with self._lock:
            if self._done:
                if connection is not None:
                    connection.close()
                return
            self._ask_locked(False, connection)

    def _ask_locked(self, looking: bool, connection: Connection | None = None) -> None:
        self._looking = looking
        try:
            if connection is None:
                post = self._control.post_look if looking else self._control.post_wait
                connection = post(*self._of)
            self._connection = connection
            self._refused_since = None
            self._watch = self._reactor.watch(
                connection.fileno(), select.EPOLLIN, lambda _: self.look(False)
            )
        except Exception as error:  # whatever it is, the process may live
            if not isinstance(error, Refused):
                self._refused_since = None
            elif self._refused_since is None:
                self._refused_since = time.monotonic()
            elif time.monotonic() - self._refused_since > _EXIT_TIMEOUT:
                self._reactor.call_soon(self._deserted)
            self._later_locked(error)

    def _later_locked(self, why: object) -> None:
        self._drop_locked()
        first = self._pause == _FIRST_PAUSE
        (_log.warning if first else _log.debug)(
            "wait.asked_again", container=self._of[0], pid=self._of[1], error=str(why)
        )
        self._timer = self._reactor.call_later(self._pause, self.begin)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _drop_locked(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            # At once: an idle connection holds up a sentry that wants to exit.
            connection.close()

    def look(self, final: bool) -> None:
        """Take the reply if it is there; in the reactor's thread.

        With ``final``, no reply now means none ever: the sentry has ended.
        """
        with self._lock:
            if self._done:
                return
            raw, over = self._take_locked()
            if raw is None and not over and not final:
                return
            self._finish_locked()
        self._tell(self, raw)

    def _take_locked(self) -> tuple[int | None, bool]:
        """The status, and whether there is no such process any more; asks on if it is neither."""
        if self._connection is None:
            return None, False
        looking, fault = self._looking, None
        try:
            reply = self._connection.feed()
            if reply is None:
                return None, False
            if not looking:
                return wait_status(reply), False
            if self._control.is_over(reply, self._of[1]):
                return None, True
        except RuntimeFault as error:
            # The sentry's own word.  It may not have heard of the process yet, or not any more.
            fault = error
        except Exception as error:
            self._later_locked(error)
            return None, False
        if looking:
            self._later_locked(fault or "it is there")
        else:
            _log.debug("wait.refused", container=self._of[0], pid=self._of[1], error=str(fault))
            self._drop_locked()
            self._ask_locked(True)
        return None, False

    def _finish_locked(self) -> None:
        self._done = True
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._drop_locked()

    def abandon(self) -> None:
        """Ask no more; ``tell`` is not called."""
        with self._lock:
            self._finish_locked()


class Exits:
    """The exits of one sandbox.  Thread-safe; nothing blocks but ``settle``."""

    def __init__(self, sandbox_id: str, sentry: Sentry, control: Control, reactor: Reactor) -> None:
        self._sandbox_id = sandbox_id
        self._sentry = sentry
        self._control = control
        self._reactor = reactor
        self._lock = threading.Lock()
        self._started = False  # guarded by _lock
        self._killed = False  # guarded by _lock; by the shim
        self._told: ExitInfo | None = None  # guarded by _lock; the sentry's word on init's exit
        self._init_exit: ExitInfo | None = None  # guarded by _lock; written once
        self._init_callbacks: list[Callable[[ExitInfo], None]] = []  # guarded by _lock
        self._death_callbacks: list[Callable[[int], None]] = []  # guarded by _lock
        self._inquiries: set[Inquiry] = set()  # guarded by _lock
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
    def told(self) -> bool:
        """Whether the sentry has told the end of init, after which it ends by itself."""
        with self._lock:
            return self._told is not None

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

    def ask(self, container_id: str, pid: int, callback: Callable[[ExitInfo], None]) -> None:
        """Ask for the exit of an exec, or with ``pid`` 0 of a further container's init."""
        self._begin(container_id, pid, lambda raw: callback(_exit_or_lost(raw)), None)

    def ask_init(self, connection: Connection | None) -> None:
        """Ask for the exit of init; or a wait for it has been sent on ``connection``."""
        self._begin(self._sandbox_id, 0, self._init_answered, connection)

    # -- what happens ----------------------------------------------------------------------

    def _begin(
        self,
        container_id: str,
        pid: int,
        tell: Callable[[int | None], None],
        connection: Connection | None,
    ) -> None:
        def told(inquiry: Inquiry, raw: int | None) -> None:
            with self._lock:
                self._inquiries.discard(inquiry)
            _guarded(tell, raw)

        inquiry = Inquiry(self._control, container_id, pid, told, self._give_up, self._reactor)
        with self._lock:
            ended = self._raw is not None
            if not ended:
                self._inquiries.add(inquiry)
        inquiry.begin(connection)
        if ended:
            self._reactor.call_soon(lambda: inquiry.look(True))

    def _init_answered(self, raw: int | None) -> None:
        if raw is not None:
            info = exit_of_wait(raw)
            with self._lock:
                self._told = info
                gone = self._raw is not None
            if not gone:
                # Who hears of the end may look at the pid that Create has reported.
                self._reactor.call_later(_GONE_TIMEOUT, lambda: self._latch_init(info))
        # The sentry is to be gone soon; its own status fills in for what it couldn't tell.
        with self._lock:
            if self._raw is None and self._overdue is None:
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
            _guarded(callback, info)

    def abandon(self) -> None:
        """Ask for no exit any more: the sandbox goes on without this process."""
        with self._lock:
            inquiries, self._inquiries = self._inquiries, set()
        if self._watch is not None:
            self._watch.cancel()
        for inquiry in inquiries:
            inquiry.abandon()

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
            inquiries = list(self._inquiries)
            started, killed = self._started, self._killed
        # Replies that came before the end count.
        for inquiry in inquiries:
            inquiry.look(True)
        with self._lock:
            info = self._told
        if info is None:
            try:
                panic, words = self._sentry.log.panic(), self._sentry.log.message()
            except OSError:
                panic = words = ""
            info = exit_of_sentry(raw, started=started, killed=killed, panic=panic, words=words)
        self._latch_init(info)
        self._sentry.ring.close()
        with self._lock:
            callbacks, self._death_callbacks = self._death_callbacks, []
        for callback in callbacks:
            _guarded(callback, raw)
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


def _guarded(callback: Callable[[Any], None], argument: object) -> None:
    """Make a call whose failure must not keep others from being made."""
    try:
        callback(argument)
    except Exception:
        _log.exception("exit.callback_failed")
