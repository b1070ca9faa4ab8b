"""Noticing kernel OOM kills, and memory use that passes a mark, without polling.

v1 signals an eventfd that is registered with the memory cgroup; v2 makes memory.events
urgent-readable whenever a counter in it changes.  Both are descriptors for the reactor.
"""

from __future__ import annotations

import os
import select
import threading

from runtime.base.errors import Failed, Unsupported, reason
from runtime.base.log import get_logger
from runtime.cgroups.counters import parse_keyed, v1_oom_kills
from runtime.cgroups.hierarchy import fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from runtime.cgroups.hierarchy import CgroupRoot

    class Cancelable(Protocol):
        def cancel(self) -> None: ...

    class Reactor(Protocol):
        """The part of :class:`runtime.host.reactor.Reactor` that is used here."""

        def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> Cancelable: ...

        def call_later(self, seconds: float, fn: Callable[[], object]) -> Cancelable: ...


_log = get_logger("oom")

# v1 signals when memory ran out, just before the kernel picks its victim, so the counter can be
# read too early.  These are the seconds after which it is read again, following a signal only.
_SECOND_LOOKS = (0.005, 0.05, 0.5)


class OOMWatch:
    """A running watch; ``cancel`` ends it and frees its descriptors.  Thread-safe."""

    def __init__(
        self,
        reactor: Reactor,
        descriptors: tuple[int, ...],
        events: int,
        count: Callable[[], int | None],
        callback: Callable[[int], object],
    ) -> None:
        self._reactor = reactor
        self._count = count
        self._callback = callback
        self._lock = threading.Lock()
        self._descriptors = descriptors  # guarded by _lock; empty once cancelled
        self._timer: Cancelable | None = None  # guarded by _lock
        self._reported = 0  # used in the reactor's thread only
        try:
            # v2 signals changes since the last read, so the first one comes before the watch.
            earlier = count()
            self._watch = reactor.watch(descriptors[0], events, self._ready)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        if earlier:
            with self._lock:
                self._timer = reactor.call_later(0.0, lambda: self._look(0))

    def cancel(self) -> None:
        """Stop; idempotent.  A callback that is about to run at this moment still does."""
        with self._lock:
            if not self._descriptors:
                return
            self._watch.cancel()
            if self._timer is not None:
                self._timer.cancel()
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = ()

    def _ready(self, mask: int) -> None:
        self._look(0)

    def _look(self, attempt: int) -> None:
        with self._lock:
            if not self._descriptors:
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            try:
                count = self._count()
            except OSError as error:
                # Of descriptors, perhaps: what the kernel has said is still to be read.
                _log.warning("oom.count_unreadable", error=error.strerror)
                count, attempt = self._reported, len(_SECOND_LOOKS) - 1
            if count is not None and count <= self._reported and attempt < len(_SECOND_LOOKS):
                delay = _SECOND_LOOKS[attempt]
                self._timer = self._reactor.call_later(delay, lambda: self._look(attempt + 1))
        if count is None:
            self.cancel()
        elif count > self._reported:
            self._reported = count
            self._callback(count)


def watch_v1(
    reactor: Reactor, directory: str, baseline: int, callback: Callable[[int], object]
) -> OOMWatch:
    """Watch the memory cgroup at ``directory``.

    ``callback(count)`` runs in the reactor's thread, with the kills beyond ``baseline``, once for
    each growth that was seen.  Raises Failed or its kin.
    """
    notices = _register_v1(directory, "memory.oom_control", ("",), "oom")

    def count() -> int | None:
        try:
            os.eventfd_read(notices)
        except BlockingIOError:
            pass  # a second look
        # Removing the cgroup signals too, once.
        return v1_oom_kills(directory) - baseline if os.path.isdir(directory) else None

    return _start(reactor, (notices,), select.EPOLLIN, count, callback, directory)


def watch_v2(
    reactor: Reactor, directory: str, baseline: int, callback: Callable[[int], object]
) -> OOMWatch:
    """Watch ``directory`` and what is below it; otherwise like :func:`watch_v1`.

    A change of the file shows as EPOLLPRI, and reading it from the start clears that.
    """
    path = f"{directory}/memory.events"
    try:
        events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise fault(f"watch {path} for oom", error) from error

    def count() -> int | None:
        try:
            text = os.pread(events, 4096, 0).decode("ascii", "replace")
        except OSError:
            return None  # ENODEV: the cgroup is gone
        return parse_keyed(text).get("oom_kill", 0) - baseline

    return _start(reactor, (events,), select.EPOLLPRI, count, callback, directory)


def _start(
    reactor: Reactor,
    descriptors: tuple[int, ...],
    events: int,
    count: Callable[[], int | None],
    callback: Callable[[int], object],
    directory: str,
) -> OOMWatch:
    try:
        return OOMWatch(reactor, descriptors, events, count, callback)
    except OSError as error:
        raise Failed(f"watch {directory} for oom: {reason(error)}") from error


def _register_v1(directory: str, file: str, arguments: Iterable[str], what: str) -> int:
    """A new eventfd that is signalled for a file's event, once registered for each argument."""
    notices = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            registrar = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                for argument in arguments:
                    os.write(registrar, f"{notices} {control} {argument}".rstrip().encode())
            finally:
                os.close(registrar)
        finally:
            # The kernel has taken what it needs.
            os.close(control)
    except OSError as error:
        os.close(notices)
        raise fault(f"watch {directory} for {what}", error) from error
    return notices


class UsageMark:
    """A mark that waits to be passed; ``cancel`` takes it away.  Thread-safe."""

    def __init__(
        self,
        reactor: Reactor,
        descriptor: int,
        events: int,
        passed: Callable[[], bool],
        callback: Callable[[], object],
        undo: Callable[[], object] | None = None,
    ) -> None:
        self._passed = passed
        self._callback = callback
        self._undo = undo
        self._lock = threading.Lock()
        self._descriptor = descriptor  # guarded by _lock; -1 once cancelled
        try:
            self._watch = reactor.watch(descriptor, events, self._ready)
        except BaseException:
            os.close(descriptor)
            raise

    def cancel(self) -> None:
        """Stop; idempotent.  A callback that is about to run at this moment still does."""
        with self._lock:
            if self._descriptor < 0:
                return
            self._watch.cancel()
            os.close(self._descriptor)
            self._descriptor = -1
        if self._undo is not None:
            self._undo()

    def _ready(self, mask: int) -> None:
        with self._lock:
            if self._descriptor < 0 or not self._passed():
                return
        self._callback()


def mark_v1(
    reactor: Reactor, directory: str, low: int, high: int, callback: Callable[[], object]
) -> UsageMark:
    """Call back once the use of a memory cgroup falls below ``low`` or rises above ``high`` bytes.

    From the reactor's thread; again at each further passing, until cancelled.  The kernel looks
    at its marks after some 128 pages that came or went on a CPU.  Raises Failed or its kin.
    """
    marks = [str(mark) for mark in (low, high) if mark > 0]
    notices = _register_v1(directory, "memory.usage_in_bytes", marks, "its use")

    def passed() -> bool:
        try:
            os.eventfd_read(notices)
        except BlockingIOError:
            return False
        return True

    try:
        return UsageMark(reactor, notices, select.EPOLLIN, passed, callback)
    except OSError as error:
        raise Failed(f"watch {directory} for its use: {reason(error)}") from error


def mark_v2(
    root: CgroupRoot, reactor: Reactor, directory: str, high: int, callback: Callable[[], object]
) -> UsageMark:
    """Call back once the use of a cgroup of ours rises above ``high`` bytes.

    The mark is memory.high, which the kernel counts in memory.events when it is exceeded, and
    beyond which it holds the processes up: whoever is called back has to cancel the mark or set
    it anew.  Nothing tells that use has fallen.  Raises Unsupported if somebody else has set a
    memory.high, Failed or its kin.
    """
    limit, path = f"{directory}/memory.high", f"{directory}/memory.events"
    try:
        if root.read(limit) != "max":
            raise Unsupported(f"{limit} is set already")
        events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise fault(f"watch {directory} for its use", error) from error

    def count() -> int:
        text = os.pread(events, 4096, 0).decode("ascii", "replace")
        return parse_keyed(text).get("high", 0)

    def lift() -> None:
        try:
            root.write(limit, "max")
        except OSError as error:
            _log.debug("mark.not_lifted", file=limit, error=error.strerror)

    try:
        before = count()
    except OSError as error:
        os.close(events)
        raise fault(f"watch {directory} for its use", error) from error

    def passed() -> bool:
        try:
            return count() > before
        except OSError:
            return True  # gone

    try:
        mark = UsageMark(reactor, events, select.EPOLLPRI, passed, callback, lift)
    except OSError as error:
        raise Failed(f"watch {directory} for its use: {reason(error)}") from error
    try:
        root.write(limit, str(high))
    except OSError as error:
        mark.cancel()
        raise fault(f"write {limit}", error) from error
    return mark
