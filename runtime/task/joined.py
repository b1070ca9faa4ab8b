"""One outcome for all callers that ask for the same thing while it is being done."""

from __future__ import annotations

import threading

from runtime.base.errors import DeadlineExceeded, InvalidState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.task.process import Exit


class Joined:
    """The outcome of one delete, for everybody who asked for it meanwhile."""

    def __init__(self) -> None:
        #: Whether a second caller waits; guarded by the container's lock.
        self.shared = False
        self._done = threading.Event()
        self._outcome: tuple[int, Exit] | None = None
        self._fault: BaseException | None = None

    def finish(self, outcome: tuple[int, Exit]) -> None:
        self._outcome = outcome
        self._done.set()

    def fail(self, fault: BaseException) -> None:
        self._fault = fault
        self._done.set()

    def result(self) -> tuple[int, Exit]:
        # The first caller's own bounds end it; this one only must never be the one that hangs.
        if not self._done.wait(60):
            raise DeadlineExceeded("delete", 60)
        if self._outcome is None:
            raise self._fault or InvalidState("delete", "container", "unknown")
        return self._outcome
