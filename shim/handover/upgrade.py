"""Has a running shim become another version of itself.

Owns the order: freeze what moves, write everything down, ask the other version, execute it.  Up to
the last step all can be undone: whatever goes wrong, the shim thaws and runs on, and says why.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from runtime.base.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    class Frozen(Protocol):
        """What moves in a shim, and can be held still."""

        def freeze(self) -> str:
            """Try to hold all still; what is under way, or empty if it is done."""

        def thaw(self) -> None: ...


#: Seconds for calls that are under way to end.
PATIENCE: Final = 15.0
#: Seconds between two tries to find nothing under way.
_PAUSE: Final = 0.05
#: What threads are there for that aren't waited for; by name.
_REASONS: Final = {
    "forker": "it runs processes that end with the thread that started them",
}

_log = get_logger("upgrade")


class Upgrade:
    """The requests, and what has become of them.  Thread-safe but for ``about``'s callers' sake.

    ``in_main`` runs a function in the main thread and returns its result; raises NotHandedOver if
    the shim is about to end.  ``root`` is what is handed over.
    """

    def __init__(
        self,
        root: object,
        arguments: tuple[str, ...],
        parts: Frozen,
        in_main: Callable[[Callable[[], str]], str],
    ) -> None:
        self._root, self._arguments = root, arguments
        self._parts, self._in_main = parts, in_main
        self._lock = threading.Lock()
        self._running = False  # guarded by _lock
        self._asked = 0  # guarded by _lock; requests until now
        self._done = 0  # guarded by _lock; of these, those that are answered
        self._taken = 0  # guarded by _lock; how often another version took over
        self._last: dict[str, Any] = {}  # guarded by _lock; how the last ended
        self._stopping = False  # guarded by _lock
        self._program = ""  # the thread's, once it runs

    def request(self, path: str) -> int:
        """Begin, with the program ``path`` or the one that this shim was started by.

        Returns the request's number: it is over once ``about`` has counted that many.  Doesn't
        block.  A request while one is under way is a part of that one.
        """
        with self._lock:
            if self._running or self._stopping:
                return self._asked
            self._asked += 1
            self._running = True
            number = self._asked
            self._program = path
        threading.Thread(target=self._run, name="upgrade", daemon=True).start()
        return number

    def about(self) -> dict[str, Any]:
        """What is told of it."""
        with self._lock:
            return {
                "asked": self._asked,
                "done": self._done,
                "taken": self._taken,
                "last": dict(self._last),
            }

    def stop(self, timeout: float) -> None:
        """No more of it: the shim ends.  Waits until all has thawed that was frozen."""
        with self._lock:
            self._stopping = True
        for thread in threading.enumerate():
            if thread.name == "upgrade":
                thread.join(timeout)

    def taken_over(self, before: str, at: float) -> None:
        """This process has become another version; ``before`` was the one that asked for it."""
        with self._lock:
            self._taken += 1
            self._end_locked({"from": before, "to": VERSION, "refused": "", "at": at})
        _log.info("upgrade.done", before=before, now=VERSION, s=round(time.time() - at, 3))

    def failed(self, before: str, why: str, at: float) -> None:
        """The other version could not go on after it was executed, and this one is back."""
        with self._lock:
            self._end_locked({"from": VERSION, "to": before, "refused": why, "at": at})
        _log.error("upgrade.failed", why=why)

    def _end_locked(self, last: dict[str, Any]) -> None:
        self._last = last
        self._done = self._asked
        self._running = False

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        began = time.time()
        try:
            why = self._attempt()
        except (RuntimeFault, OSError, MemoryError, RecursionError) as fault:
            why = str(fault) or type(fault).__name__
        except BaseException as bug:
            why = repr(bug)
            _log.exception("upgrade.crashed")
        with self._lock:
            self._end_locked({"from": VERSION, "to": "", "refused": why, "at": began})
        _log.warning("upgrade.refused", why=why)

    def _attempt(self) -> str:
        """Returns why it is not to be, and then all is as it was; else it never returns."""
        from shim.handover import program

        wanted = self._program or _own_program()
        program.check_path(wanted)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                why = self._parts.freeze() or self._still_moving()
                if not why:
                    return self._in_main(lambda: self._become(wanted))
                if why in _REASONS.values():
                    return why
            finally:
                self._parts.thaw()
            if time.monotonic() > deadline or self._stopping:
                return why
            time.sleep(_PAUSE)

    def _still_moving(self) -> str:
        """What runs besides this thread and the main one."""
        ours = (threading.main_thread(), threading.current_thread())
        for _ in range(20):
            others = [each for each in threads() if each not in ours]
            if not others:
                return ""
            why = _REASONS.get(others[0].name, "")
            if why:
                return why
            time.sleep(0.01)  # one that is about to end
        return f"thread {others[0].name} has work to do"

    # -- the main thread -------------------------------------------------------------------

    def _become(self, wanted: str) -> str:
        """Write it all down, ask, and execute.  Returns why that can't be."""
        from shim.handover import program
        from shim.handover.pack import pack

        began = time.monotonic()
        try:
            about = {"program": program.own(), "arguments": self._arguments}
            state = program.keep(pack(self._root, about))
        except RuntimeFault as fault:
            return str(fault)
        try:
            packed = time.monotonic()
            version = program.ask(wanted, self._arguments, state)
            asked = time.monotonic()
            _log.info(
                "upgrade.executing",
                program=wanted,
                version=version,
                packed=round(packed - began, 3),
                asked=round(asked - packed, 3),
            )
            return program.execute(wanted, self._arguments, state)
        except RuntimeFault as fault:
            return str(fault)
        finally:
            os.close(state)


#: All that there are.
threads = threading.enumerate


def _own_program() -> str:
    """The launcher by which this shim was started: a link to it may lead to a newer one by now."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            path = os.fsdecode(file.read(1 << 16).split(b"\0")[0])
    except OSError:
        path = ""
    if path and not path.startswith("/"):
        import shutil

        path = shutil.which(path) or path
    if not path:
        from shim.handover.names import NotHandedOver

        raise NotHandedOver("the program that this shim was started by isn't known")
    return path
