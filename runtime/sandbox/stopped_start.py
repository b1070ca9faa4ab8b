"""Starts init without running it: it exists, and other processes can run beside it.

The sentry has no call for this.  But a process that is made while the sandbox is frozen runs
nothing before the thaw, and takes its pending signals first: a SIGSTOP that was sent meanwhile
stops it before its first instruction.  All containers of the sandbox stand still for that moment.
"""

from __future__ import annotations

import time

from runtime.base.errors import NotFound
from runtime.runsc.control import SignalMode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.runsc.control import Control

_SIGCONT, _SIGSTOP = 18, 19


def start(
    control: Control, cid: str, call: Callable[[], None], held: bool, deadline: float
) -> None:
    """Make the call that starts the container's init; with ``held`` it stops at once.

    Raises what the calls raise; the sandbox isn't left frozen.
    """
    if not held:
        call()
        return
    control.pause(_left(deadline))
    try:
        call()
        control.signal(cid, _SIGSTOP, 0, SignalMode.PROCESS, _left(deadline))
    finally:
        control.resume(_left(deadline))


def let_go(control: Control, cid: str, deadline: float) -> None:
    """Let an init run that was started held.  No error if it was killed meanwhile."""
    try:
        control.signal(cid, _SIGCONT, 0, SignalMode.PROCESS, _left(deadline))
    except NotFound:
        return


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
