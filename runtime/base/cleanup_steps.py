"""The steps of a clean-up.  Each is done whatever fails, and all failures are told at the end."""

from __future__ import annotations

from runtime.base.errors import Failed, RuntimeFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """Runs all steps of a clean-up and remembers which failed."""

    def __init__(self) -> None:
        #: What failed, and how, in words.
        self.faults: list[str] = []
        self._first: Exception | None = None

    def run(self, what: str, step: Callable[..., object], *args: object) -> bool:
        """Do one; ``what`` names it.  False if it failed."""
        try:
            step(*args)
        except (RuntimeFault, OSError, ValueError) as fault:
            self._first = self._first or fault
            self.faults.append(f"{what}: {fault}")
            return False
        return True

    def finish(self, what: str = "") -> None:
        """Raise Failed with all that failed, from the first of them, if anything did."""
        if self.faults:
            raise Failed(what + "; ".join(self.faults)) from self._first
