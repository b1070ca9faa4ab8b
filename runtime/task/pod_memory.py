"""Memory of a sandbox's containers: which to report as OOM-killed, and which exceeds its limit.

Owns two rules.  A kill by the kernel, which can only hit the sandbox as a whole, is put down to
the container that used the most.  A container that uses more than its own limit is ended as the
kernel would have ended it, by an OOM event and a SIGKILL, while the others live on.

Only the sentry can tell its containers' memory apart, so it has to be asked.  It is asked when the
kernel says that the sandbox's use has moved as far as could matter (a mark on the host's cgroup),
so a pod whose memory stands still is never looked at.  ``cgroups/watch.py`` knows how marks are
set.
"""

from __future__ import annotations

import threading
import time

from runtime.base.errors import (
    DeadlineExceeded,
    Failed,
    ResourceExhausted,
    RuntimeFault,
    Unreachable,
    Unsupported,
)
from runtime.base.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from runtime.cgroups.metrics import MemoryUse
    from runtime.cgroups.watch import Cancelable, Reactor

    class Host(Protocol):
        """The part of :class:`runtime.cgroups.factory.Cgroup` that is used here: the sandbox's."""

        def oom_kills(self) -> int: ...
        def memory_usage(self) -> int | None: ...
        def memory_limit(self) -> int | None: ...
        def watch_oom(self, reactor: Reactor, callback: Callable[[int], object]) -> Cancelable: ...
        def watch_usage(
            self, reactor: Reactor, low: int, high: int, callback: Callable[[], object]
        ) -> Cancelable: ...

    class Sentry(Protocol):
        """Each call may block for so many seconds; of ``hold`` and ``release`` it keeps count."""

        def memory(self, container_id: str, timeout: float) -> MemoryUse: ...
        def file_memory(self, timeout: float) -> int: ...
        def hold(self, timeout: float) -> None: ...
        def release(self, timeout: float) -> None: ...

    class Member(Protocol):
        """A container of the sandbox."""

        @property
        def id(self) -> str: ...
        @property
        def is_pause(self) -> bool: ...
        @property
        def memory_limit(self) -> int | None: ...
        @property
        def runs(self) -> bool: ...
        @property
        def gofer_killed(self) -> bool: ...
        def out_of_memory(self, kill: bool) -> None: ...

    class Submitter(Protocol):
        def submit(self, fn: Callable[[], object]) -> bool: ...


_log = get_logger("memory")

#: A look is due when a container may have come this near to its limit: a part of it, or bytes.
_FINENESS = 64
_FINEST = 1 << 20
#: Seconds that the sentry gets for each answer.
_TIMEOUT = 5.0
#: Seconds between two looks at least, and as a multiple of what the last one took.
_PAUSE, _PAUSE_FACTOR, _LONGEST_PAUSE = 0.005, 2.0, 0.25
#: Looking may take this part of a core for long, so that a container which swings around a mark
#: doesn't keep the shim at work; this many seconds of looking may run ahead of it, when it matters.
_SHARE, _AHEAD, _LONGEST_REST = 0.05, 0.25, 2.0
#: Seconds between two cheap checks, within a rest, of whether the sandbox grows dangerously.
_GLANCE = 0.05
#: Seconds after a look or a mark that has failed: the cgroup may be about to go, or the host be
#: short of something for a while.
_RECOVERY = 1.0
#: A sandbox that at its present rate is this many seconds from the kernel's limit is held still
#: while it is looked at, and looked at without delay.
_URGENT = 2.0
#: Seconds that the sentry gets to hold its containers, or to let them go.
_HOLD_TIMEOUT = 5.0


class _Figures:
    """What is known of one container."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.used: int | None = None
        self.exact = False
        self.grown = 0  # since the look before

    def forget(self) -> None:
        self.used, self.grown = None, 0


class PodMemory:
    """Watches one sandbox.  Thread-safe.

    Under its lock cgroup files are read, and those of processes and limits are taken.

    The sentry is called by ``workers``, and by whoever calls ``note``: its calls may block.
    """

    def __init__(
        self,
        sandbox_id: str,
        host: Host,
        sentry: Sentry,
        reactor: Reactor,
        workers: Submitter,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._hold, self._release = sentry.hold, sentry.release
        self._measure, self._measure_files = sentry.memory, sentry.file_memory
        self._clock = clock
        self._reactor = reactor
        self._workers = workers
        self._log = _log.bind(sandbox=sandbox_id)
        self._lock = threading.Lock()
        self._members: dict[str, _Figures] = {}  # guarded by _lock; in the order of creation
        self._kills = 0  # guarded by _lock; by the kernel, as far as somebody was blamed
        self._blamed = ""  # guarded by _lock
        self._total = 0  # guarded by _lock; what the host counted at the last look
        self._mark: Cancelable | None = None  # guarded by _lock
        self._high = 0  # guarded by _lock; where the mark is, in bytes
        self._timer: Cancelable | None = None  # guarded by _lock
        self._looking = False  # guarded by _lock
        self._urgent = False  # guarded by _lock; the next look is one while all are held
        # Guarded by _lock; when the host's use was read last, and what it was.
        self._seen = (0.0, 0)
        self._again = False  # guarded by _lock; something changed during a look
        self._pause = _PAUSE  # guarded by _lock
        self._debt = 0.0  # guarded by _lock; seconds of looking that are ahead of its share
        self._paid = clock()  # guarded by _lock; until when the share has been counted
        self._markless = False  # guarded by _lock; the host can't set marks
        self._closed = False  # guarded by _lock
        self._watch: Cancelable | None = None

    def open(self) -> None:
        """Begin to watch for kills.  Raises Failed, and Unsupported without that controller."""
        self._watch = self._host.watch_oom(self._reactor, self._killed)

    def close(self) -> None:
        """Watch no longer; what is known stays.  Idempotent."""
        with self._lock:
            self._closed = True
            self._disarm_locked()
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    # -- who is in it ----------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """A container has been created."""
        with self._lock:
            for figures in self._members.values():
                if not figures.exact:
                    figures.forget()  # it is alone no longer
            self._members[member.id] = _Figures(member)
            if self._mark is not None and self._stands_locked(member):
                return
        self.refresh()

    def remove(self, container_id: str) -> None:
        """A container is gone."""
        with self._lock:
            self._members.pop(container_id, None)
            if self._mark is not None and not self._wanted_locked():
                self._disarm_locked()

    def _stands_locked(self, newcomer: Member) -> bool:
        """Whether the mark will be passed before a newcomer can have too much."""
        limit, now = newcomer.memory_limit, self._host.memory_usage()
        return limit is None or (now is not None and self._high <= now + limit)

    def refresh(self) -> None:
        """Containers or limits have changed: look, if anything depends on what is to be seen."""
        with self._lock:
            if self._closed or not self._wanted_locked():
                self._disarm_locked()
                return
            if self._looking:
                self._again = True
                return
            self._disarm_locked()
            self._looking = True
        self._workers.submit(self._look)

    def note(self, container_id: str, usage: MemoryUse) -> None:
        """The sentry was asked by somebody else; may end the container."""
        with self._lock:
            figures = self._members.get(container_id)
            if figures is None or self._closed:
                return
        try:
            usage = self._without_files([(figures.member, usage)])[0][1]
        except RuntimeFault:
            return  # it is looked at again in any case
        with self._lock:
            self._record_locked(figures, usage)
            over = self._over_locked(figures, usage)
        if over:
            self._end(figures.member, usage)

    def require_room(self, container_id: str, limit: int) -> None:
        """Raise Failed if a container already holds more than ``limit`` bytes.

        The kernel takes no such limit of its cgroups' (v1: EBUSY), but here the container would
        be ended for it.  Of one whose use can't be told apart nothing is known.  Asks the sentry,
        and raises what keeps it from telling now.
        """
        with self._lock:
            figures = self._members.get(container_id)
        if figures is None or not figures.member.runs:
            return
        try:
            usage = self._measure(container_id, _TIMEOUT)
        except (ResourceExhausted, Unreachable, DeadlineExceeded):
            raise
        except RuntimeFault as fault:
            self._log.debug("memory.unknown", container=container_id, error=str(fault))
            return
        with self._lock:
            known = usage.exact or self._alone_locked()
        if not known or usage.bytes <= limit:
            return
        used = max(usage.bytes - self._files(), 0)
        if used > limit:
            raise Failed(f"unable to set memory limit to {limit} (current usage: {used})")

    # -- the kernel's kills ----------------------------------------------------------------

    def claims(self, container_id: str) -> bool:
        """Whether the kernel killed for memory, and this container is to blame.

        Counts afresh, so it may be asked right before an exit is published.
        """
        try:
            count = self._host.oom_kills()
        except OSError as error:
            self._log.warning("oom.count_unreadable", error=str(error))
            count = 0
        with self._lock:
            self._blame_locked(count)
            return self._blamed == container_id

    def _killed(self, count: int) -> None:
        """The kernel's notification, in the reactor's thread."""
        with self._lock:
            self._blame_locked(count)
            found = self._members.get(self._blamed)
        if found is not None:
            found.member.out_of_memory(kill=False)

    def _blame_locked(self, count: int) -> None:
        if count <= self._kills:
            return
        self._kills = count
        living = [f for f in self._members.values() if f.member.runs]
        # A kill that hits a gofer ends the container that it served, whoever used the memory.
        hit = [f for f in living if f.member.gofer_killed]
        culprit = _culprit(hit or living, self._total, self._host.memory_limit())
        self._blamed = culprit.member.id if culprit is not None else ""
        self._log.info("oom.attributed", container=self._blamed, kills=count)

    # -- looking ---------------------------------------------------------------------------

    def _wanted_locked(self) -> bool:
        """Whether there is something to tell apart, or a limit that the kernel doesn't see."""
        workloads = [f.member for f in self._members.values() if not f.member.is_pause]
        if any(self._binds(member) for member in workloads):
            return True
        return len(workloads) > 1 and self._host.memory_limit() is not None

    def _binds(self, member: Member) -> bool:
        """Whether a container's own limit is met before the sandbox's."""
        limit = member.memory_limit
        if limit is None:
            return False
        whole = self._host.memory_limit()
        return whole is None or limit < whole

    def _look(self) -> None:
        """Ask for everybody's memory, end who has too much, and set the next mark.

        However it goes, there is another look or a mark afterwards, as long as any is wanted.
        """
        with self._lock:
            urgent, self._urgent = self._urgent, False
        total = None
        try:
            total = self._look_while_held() if urgent else self._look_at_all()
        except Exception as error:  # whatever it is, the limits are to be kept
            self._log.warning("memory.look_failed", error=repr(error))
        with self._lock:
            again, self._again = self._again, False
            if self._closed or not self._wanted_locked():
                self._looking = False
                return
            if total is None:
                self._pause = _RECOVERY
                self._look_later_locked()
                return
            step = self._step_locked(total)
        # Without the lock, which the reactor takes: the kernel may reclaim memory in this.
        mark = self._mark_at(total, step) if not again else None
        with self._lock:
            if self._armed_locked(mark, total, step, again):
                return
            if not self._hurries_locked():
                self._look_later_locked()
                return
            self._looking = self._urgent = True
        self._workers.submit(self._look)

    def _look_while_held(self) -> int | None:
        """What grows so fast would be at the kernel's limit before the answers are here, and the
        kernel ends the whole sandbox."""
        try:
            self._hold(_HOLD_TIMEOUT)
        except (DeadlineExceeded, Unreachable) as fault:
            # It is held as soon as the sentry gets to it, which was to be first.
            self._log.warning("memory.held_late", error=str(fault))
        except RuntimeFault as fault:
            self._log.debug("memory.not_held", error=str(fault))
            return self._look_at_all()
        try:
            return self._look_at_all()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Once per hold, not more often: at one too many the sentry ends."""
        try:
            self._release(_HOLD_TIMEOUT)
        except ResourceExhausted as fault:
            # Nothing was sent.
            self._log.warning("memory.not_released", error=str(fault))
            self._reactor.call_later(_RECOVERY, lambda: self._workers.submit(self._let_go))
        except RuntimeFault as fault:
            self._log.warning("memory.release_unknown", error=str(fault))

    def _look_at_all(self) -> int | None:
        begin = time.monotonic()
        with self._lock:
            members = [f.member for f in self._members.values()]
        # Before the containers are asked: what is taken meanwhile must count as still to come, or
        # the mark would be set beyond a use that nobody has seen and that stands still from now on.
        total = self._host.memory_usage()
        asked: list[tuple[Member, MemoryUse]] = []
        for member in members:
            if member.is_pause or not member.runs:
                continue
            try:
                asked.append((member, self._measure(member.id, _TIMEOUT)))
            except (ResourceExhausted, Unreachable):
                raise  # what is lacking is ours, and a mark would say that it is below it
            except RuntimeFault as fault:
                self._log.debug("memory.unknown", container=member.id, error=str(fault))
        asked = self._without_files(asked)
        over = []
        with self._lock:
            for member, usage in asked:
                figures = self._members.get(member.id)
                if figures is not None:
                    self._record_locked(figures, usage)
                    if self._over_locked(figures, usage):
                        over.append((figures.member, usage))
            self._total = total or 0
            self._seen = self._clock(), self._total
            self._pause = self._pause_locked(time.monotonic() - begin)
        for member, usage in over:
            self._end(member, usage)
        return total

    def _pause_locked(self, cost: float) -> float:
        """Seconds until the next look, after one that took ``cost``."""
        now = self._clock()
        self._debt = max(self._debt - _SHARE * (now - self._paid), 0.0) + cost
        self._paid = now
        pause = min(max(_PAUSE, _PAUSE_FACTOR * cost), _LONGEST_PAUSE)
        return max(pause, min((self._debt - _AHEAD) / _SHARE, _LONGEST_REST))

    def _without_files(
        self, asked: list[tuple[Member, MemoryUse]]
    ) -> list[tuple[Member, MemoryUse]]:
        """The figures without files that are mapped or cached, as far as that may matter.

        The kernel would drop such pages rather than kill.  The sentry tells only how many all
        containers have; they are taken off each that seems to have too much.  Raises what keeps
        it from telling now.
        """
        limits = [member.memory_limit for member, _ in asked]
        if not any(
            limit is not None and usage.bytes > limit
            for limit, (_, usage) in zip(limits, asked, strict=True)
        ):
            return asked
        files = self._files()
        return [
            (member, usage)
            if limit is None or usage.bytes <= limit
            else (member, usage.replace(bytes=max(usage.bytes - files, 0)))
            for limit, (member, usage) in zip(limits, asked, strict=True)
        ]

    def _files(self) -> int:
        try:
            return self._measure_files(_TIMEOUT)
        except (ResourceExhausted, Unreachable, DeadlineExceeded):
            raise  # nobody is ended for what isn't known
        except RuntimeFault as fault:
            self._log.debug("memory.files_unknown", error=str(fault))
            return 0

    def _record_locked(self, figures: _Figures, usage: MemoryUse) -> None:
        if usage.exact or self._alone_locked():
            before = figures.used
            figures.grown = max(usage.bytes - before, 0) if before is not None else 0
            figures.used, figures.exact = usage.bytes, usage.exact

    def _over_locked(self, figures: _Figures, usage: MemoryUse) -> bool:
        limit = figures.member.memory_limit
        if limit is None or figures.member.is_pause or usage.bytes <= limit:
            return False
        return usage.exact or self._alone_locked()

    def _alone_locked(self) -> bool:
        """Whether a share of the sandbox's memory is a container's own: there is no other."""
        return sum(not f.member.is_pause for f in self._members.values()) == 1

    def _end(self, member: Member, usage: MemoryUse) -> None:
        self._log.info(
            "memory.own_limit_exceeded",
            container=member.id,
            used=usage.bytes,
            limit=member.memory_limit,
        )
        try:
            member.out_of_memory(kill=True)
        except RuntimeFault as fault:
            # It is looked at again at the next mark.
            self._log.warning("memory.not_ended", container=member.id, error=str(fault))

    # -- marks -----------------------------------------------------------------------------

    def _mark_at(self, total: int, step: int) -> Cancelable | None:
        """A mark at both sides of ``total``.  None if there can be none (now)."""
        if self._markless:
            return None
        try:
            return self._host.watch_usage(
                self._reactor, max(total - step, 0), total + step, self._passed
            )
        except Unsupported as fault:
            with self._lock:
                self._markless = True
            self._log.warning("memory.unwatched", error=str(fault))
        except (RuntimeFault, OSError, MemoryError) as fault:
            self._log.debug("memory.mark_failed", error=str(fault))
            with self._lock:
                self._pause = _RECOVERY
        return None

    def _armed_locked(self, mark: Cancelable | None, total: int, step: int, again: bool) -> bool:
        """End a look by its mark, so far from ``total`` that nothing can have happened before it
        is passed.  False if it has been passed already, or there is none: look once more.
        """
        self._looking = False
        again, self._again = again or self._again, False
        self._mark, self._high = mark, total + step
        if self._closed or not self._wanted_locked():
            self._disarm_locked()
            return True
        if not again:
            if self._markless:
                return True
            now = self._host.memory_usage()
            if mark is not None and (now is None or abs(now - total) < step):
                return True
        self._disarm_locked()
        return False

    def _step_locked(self, total: int) -> int:
        steps = []
        for figures in self._members.values():
            member = figures.member
            limit = member.memory_limit
            if limit is not None and not member.is_pause and self._binds(member):
                left = limit - (figures.used or 0)
                steps.append(max(left, limit // _FINENESS, _FINEST))
        whole = self._host.memory_limit()
        if whole is not None:
            # A part of the way to where the kernel kills: the nearer that is, the less may come
            # after the last look.
            steps.append(max((whole - total) // 4, whole // _FINENESS, _FINEST))
        return min(steps, default=_FINEST)

    def _passed(self) -> None:
        """A mark was passed; in the reactor's thread."""
        with self._lock:
            self._disarm_locked()
            if self._looking:
                self._again = True
                return
            if self._closed:
                return
            if not self._hurries_locked():
                self._look_later_locked()
                return
            self._looking = self._urgent = True
        self._workers.submit(self._look)

    def _hurries_locked(self) -> bool:
        """Whether the sandbox grows so fast that the kernel may soon end it for one's excess."""
        whole, now = self._host.memory_limit(), self._host.memory_usage()
        if whole is None or now is None:
            return False
        if not any(f.member.runs and self._binds(f.member) for f in self._members.values()):
            return False
        at, before = self._seen
        grown, elapsed = now - before, self._clock() - at
        return grown > 0 and (whole - now) * elapsed < grown * _URGENT

    def _look_later_locked(self) -> None:
        self._looking = True
        self._rest_locked(self._pause)

    def _rest_locked(self, left: float) -> None:
        if left <= _LONGEST_PAUSE or left == _RECOVERY:
            look = self._look
            self._timer = self._reactor.call_later(left, lambda: self._workers.submit(look))
        else:
            self._timer = self._reactor.call_later(_GLANCE, lambda: self._glance(left - _GLANCE))

    def _glance(self, left: float) -> None:
        """Within a long rest, in the reactor's thread: is it to be cut short?"""
        with self._lock:
            if self._closed:
                return
            if not self._hurries_locked():
                self._rest_locked(left)
                return
            self._urgent = True
        self._workers.submit(self._look)

    def _disarm_locked(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.cancel()
        if self._closed and self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _culprit(figures: Iterable[_Figures], total: int, limit: int | None) -> _Figures | None:
    """Who used the most when the kernel killed.

    What the sandbox took since the last look went to those that grew before it, in proportion.
    What none is known to have had, one of those whose use is unknown had: rather one that may
    use any amount than one with a limit, and rather the youngest.
    """
    everybody = list(figures)
    candidates = [f for f in everybody if not f.member.is_pause] or everybody
    known = [f for f in candidates if f.used is not None]
    unknown = [f for f in candidates if f.used is None]
    at_the_end = max(limit or 0, total)
    unseen = at_the_end - total
    growth = sum(f.grown for f in known)

    def final(figure: _Figures) -> float:
        share = unseen * figure.grown / growth if growth else 0.0
        return (figure.used or 0) + share

    first = max(known, key=final, default=None)
    if not unknown:
        return first
    if first is not None and final(first) > at_the_end - sum(f.used or 0 for f in known):
        return first
    unlimited = [f for f in unknown if f.member.memory_limit is None]
    return (unlimited or unknown)[-1]
