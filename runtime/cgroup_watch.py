"""Noticing kernel OOM kills without polling.

v1 signals an eventfd that is registered with the memory cgroup; v2 makes memory.events
urgent-readable whenever a counter in it changes.  Both are descriptors for the reactor.
"""

from __future__ import annotations

import os
import select
import threading

from runtime.cgroup_root import fault
from runtime.cgroup_stats import parse_keyed, v1_oom_kills
from runtime.errors import Failed
from runtime.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Cancelable(Protocol):
        def cancel(self) -> None: ...

    class Reactor(Protocol):
        """The part of :class:`runtime.reactor.Reactor` that is used here."""

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
            count = self._count()
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
    notices = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            registrar = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(registrar, f"{notices} {control}".encode())
            finally:
                os.close(registrar)
        finally:
            # The kernel has taken what it needs.
            os.close(control)
    except OSError as error:
        os.close(notices)
        raise fault(f"watch {directory} for oom", error) from error

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
        raise Failed(f"watch {directory} for oom: {error.strerror}") from error
