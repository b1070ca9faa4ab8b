"""SIGTERM: a shim ends with what it runs, and not before.

A machine that goes down sends it to every process that is left, and waits for all of them (systemd:
90 seconds).  A stray one must cost no pod, as it does with containerd's shim for runc.
"""

from __future__ import annotations

import time

from runtime.base.log import get_logger
from runtime.task.lifecycle import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.pod import Pod

#: Seconds for which a signal counts; the machine kills what is left before.
LASTS = 120.0
#: Seconds between two looks.
INTERVAL = 0.2
#: Seconds that a sandbox whose root container's gofer has ended may live on.
GRACE = 5.0

_DEAD = (State.STOPPED, State.DELETING, State.DELETED)
_log = get_logger("termination")


class Termination:
    """Ends a shim that was told to, once no container lives and nobody is connected.

    The signal that goes to all ends gofers, and so their containers; but it also ends the stubs in
    which a sentry's programs run, which may keep the sentry from noticing: then it is killed.
    ``request`` is for one thread, ``clients`` counts connections, ``end`` ends the shim.
    """

    def __init__(
        self, pod: Pod, reactor: Reactor, *, clients: Callable[[], int], end: Callable[[], None]
    ) -> None:
        self._pod, self._reactor = pod, reactor
        self._clients, self._end = clients, end
        self._until = 0.0
        #: When a sandbox was first seen without its root container's gofer.
        self._doomed: dict[Sandbox, float] = {}

    def request(self, number: int) -> None:
        """The shim got signal ``number``.  Doesn't block."""
        _log.info("signal.received", signal=number, alive=self._alive())
        looking = time.monotonic() < self._until
        self._until = time.monotonic() + LASTS
        if not looking:
            self._reactor.call_later(0, self._look)

    def _alive(self) -> int:
        return sum(each.init.state not in _DEAD for each in self._pod.all())

    def _end_doomed(self) -> None:
        now = time.monotonic()
        for container in self._pod.all():
            holdings = container.holdings
            if holdings is None or holdings.sandbox is None or not container.is_root:
                continue
            gofer = holdings.sandbox.gofer_child
            if container.init.state in _DEAD or gofer is None or gofer.poll() is None:
                self._doomed.pop(holdings.sandbox, None)
            elif now - self._doomed.setdefault(holdings.sandbox, now) > GRACE:
                _log.warning("sentry.killed", container=container.id, why="its gofer has ended")
                holdings.sandbox.kill()

    def _look(self) -> None:
        self._end_doomed()
        if not self._clients() and not self._alive():
            _log.info("shim.terminated")
            self._end()
        elif time.monotonic() < self._until:
            self._reactor.call_later(INTERVAL, self._look)
        else:
            self._until = 0.0
