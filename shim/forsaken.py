"""Ends what containerd has forgotten: a shim without containers, containers without a pod.

A client that dies between ``start`` and Create leaves a shim that nobody knows.  And containerd may
have lost a container of a pod (its bundle, its metadata), so that it deletes the pod and never
that container.  Nothing here wakes a shim whose sandbox lives.
"""

from __future__ import annotations

import threading
import time

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from shim import bundles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor
    from runtime.host.workers import Workers
    from runtime.task.pod import Pod

#: Seconds after which an empty shim, or a dead pod's, without a client is forsaken.
PATIENCE = 15.0
#: Seconds in which no container of a dead pod was deleted although somebody is connected, who may
#: be busy with others of them.
QUIET = 60.0

_log = get_logger("forsaken")


class Forsaken:
    """Looks when there is reason to.  From any thread; never blocks its callers."""

    def __init__(
        self,
        pod: Pod,
        reactor: Reactor,
        workers: Workers,
        *,
        clients: Callable[[], int],
        told: Callable[[], bool],
        end_if_wanted: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        """``clients`` counts connections, ``told`` says whether containerd has got all events.

        ``end_if_wanted`` ends an empty shim that was told to end, ``end`` any.
        """
        self._pod = pod
        self._reactor = reactor
        self._workers = workers
        self._clients, self._told = clients, told
        self._end_if_wanted, self._end = end_if_wanted, end
        self._lock = threading.Lock()
        self._looking = False  # guarded by _lock; whether a timer is set
        # Of the reactor's thread: who was left at the last look, and since when.
        self._left: tuple[str, ...] = ()
        self._since = 0.0

    def look_later(self, seconds: float = PATIENCE) -> None:
        """There is reason to look: the last client has gone, or a pod before its containers."""
        with self._lock:
            if self._looking:
                return
            self._looking = True
        self._reactor.call_later(seconds, self._look)

    def _look(self) -> None:
        with self._lock:
            self._looking = False
        left = tuple(self._pod.orphans())
        now = time.monotonic()
        if left != self._left:
            self._left, self._since = left, now
        if not left:
            if not self._clients():
                self._end_if_empty()
        elif (self._clients() and now - self._since < QUIET) or not self._told():
            self.look_later()
        else:
            self._workers.submit(lambda: self._bury(left))

    def _end_if_empty(self) -> None:
        if self._pod.close_if_empty():
            _log.info("shim.forsaken")
            self._end()

    def _bury(self, orphans: tuple[str, ...]) -> None:
        for container_id in orphans:
            try:
                bundle = self._pod.container(container_id).bundle
                self._pod.delete(container_id)
                _log.info("orphan.buried", container=container_id)
                bundles.remove(bundle)
            except (RuntimeFault, OSError) as fault:
                # Its owner may have come after all.
                _log.warning("orphan.unburied", container=container_id, error=str(fault))
        if self._pod.orphans():
            self.look_later(QUIET)
        if self._clients():
            self._end_if_wanted()
        else:
            self._end_if_empty()
