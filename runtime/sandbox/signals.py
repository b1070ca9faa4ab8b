"""What a signal does to a container, whether it is served here or known from its files.

Owns the decision only.  ``task/kill.py``, which holds the processes, and ``state/loaded.py``, which
asks the sentry or signals it by its pid, carry it out.
"""

from __future__ import annotations

from runtime.base.constant import Constant, member
from runtime.base.signals import SIGKILL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Signals whose default action is to do nothing: a container that never ran ignores them.
HARMLESS: Final = frozenset({0, 17, 18, 23, 28})


class Effect(Constant):
    """What to do about a signal to a container."""

    NOTHING: Effect = member("nothing")
    #: The sandbox ends, and all its containers.
    END_SANDBOX: Effect = member("end the sandbox")
    #: A container that never ran counts as ended and never starts.
    END_CONTAINER: Effect = member("end the container")
    DELIVER: Effect = member("deliver")
    #: The sentry delivers it once it is resumed, so the whole sandbox is.
    DELIVER_AND_RESUME: Effect = member("deliver and resume")


def effect(signo: int, *, created: bool, paused: bool, is_root: bool) -> Effect:
    """What a signal does to a container in this state; ``is_root``: the sandbox is its own."""
    if created:
        if signo in HARMLESS:
            return Effect.NOTHING
        return Effect.END_SANDBOX if is_root else Effect.END_CONTAINER
    if paused and signo == SIGKILL:
        return Effect.END_SANDBOX if is_root else Effect.DELIVER_AND_RESUME
    return Effect.DELIVER
