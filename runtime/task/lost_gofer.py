"""A container doesn't outlive its gofer, whether its sentry has noticed the end or not.

A sentry watches one connection of each gofer and kills the container that loses it.  It does so by
the number of a descriptor, in a goroutine that may run late: by then that number may mean something
else (gVisor runsc/boot/loader.go, startGoferMonitor).  Such a container would run on without files.
So the shim watches the process itself, leaves the sentry a moment, and then does the same.

A gofer that isn't needed any more ends by itself, with status 0: that is no loss.
"""

from __future__ import annotations

from runtime.base.errors import NotFound, RuntimeFault
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.host.children import describe_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from runtime.host.reactor import Reactor
    from runtime.task.kill import Killable, Killing

    class Served(Killable, Protocol):
        """What is needed of a container."""

        killing: Killing


_log = get_logger("lost_gofer")
#: Seconds for a sentry to end a container by itself; it takes milliseconds on a quiet host.
GRACE = 2.0


def watch(container: Served, reactor: Reactor) -> None:
    """See to it that the container, which runs, ends with its gofer.  Never raises; idempotent.

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
    reactor.call_later(GRACE, lambda: _look(container, reactor, raw))


def _look(container: Served, reactor: Reactor, raw: int) -> None:
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
    container.submit(lambda: _end(container))


def _end(container: Served) -> None:
    """As for a SIGKILL that containerd asks for, with all that follows if it is of no effect."""
    try:
        container.killing.kill("", SIGKILL, True)
    except NotFound:
        return  # it has just ended
    except RuntimeFault as fault:
        _log.warning("container.kill_failed", container=container.id, error=str(fault))
        container.killing.insist()
