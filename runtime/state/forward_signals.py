"""Passes this process's signals on to a container that it waits for.

Owns which signals are passed on, and their order.  For a program's main thread.  The daemon never
loads it: containerd tells it of a container's signals.
"""

from __future__ import annotations

import threading

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from runtime.runsc.control import SignalMode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.state.loaded import StoredContainer

#: Those that can't be caught, that tell of this process's own faults, and that are the kernel's
#: word to it alone: its children, its sockets, its pipes.
_KEPT = frozenset({4, 5, 6, 7, 8, 9, 11, 13, 17, 19, 23, 31, 32, 33})
_LAST = 64

_log = get_logger("forwarding")


def forward_signals(
    container: StoredContainer, pid: int = 0, foreground: bool = False
) -> Callable[[], None]:
    """Pass signals on from now on; the result ends that.

    They go to process ``pid`` of the container, 0 for its init, or with ``foreground`` to the
    foreground group of that process's terminal.  Only to be called in the main thread.
    """
    control = container.control()
    mode = SignalMode.FOREGROUND if foreground else SignalMode.PROCESS

    def deliver(signo: int) -> None:
        try:
            control.signal(container.id, signo, pid, mode, 5.0)
        except RuntimeFault as fault:
            # It is about to end, or has no terminal; whoever waits for it learns of its end.
            _log.warning("signal.not_forwarded", signal=signo, error=str(fault))

    return catch_signals(deliver)


def catch_signals(deliver: Callable[[int], None]) -> Callable[[], None]:
    """Call ``deliver`` with each signal that comes, in their order and on a thread of its own.

    The result ends that and restores what there was.  Only to be called in the main thread.
    """
    import signal
    from queue import SimpleQueue

    queue: SimpleQueue[int] = SimpleQueue()
    before = {}
    for signo in range(1, _LAST + 1):
        if signo not in _KEPT:
            before[signo] = signal.signal(signo, lambda number, _: queue.put(number))

    def work() -> None:
        while signo := queue.get():
            deliver(signo)

    thread = threading.Thread(target=work, name="signals", daemon=True)
    thread.start()

    def stop() -> None:
        for signo, handler in before.items():
            signal.signal(signo, handler)
        queue.put(0)
        thread.join(5.0)

    return stop
