"""The steps of a clean-up: all are done, whatever fails, and what failed is told at the end."""

from __future__ import annotations

from runtime.base.errors import Failed, RuntimeFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """Runs all steps of a clean-up and remembers which failed."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, Exception]] = []

    def run(self, what: str, step: Callable[[], object]) -> bool:
        """Do one; ``what`` names it.  False if it failed."""
        try:
            step()
        except (RuntimeFault, OSError, ValueError) as fault:
            self._faults.append((what, fault))
            return False
        return True

    def finish(self) -> None:
        """Raise Failed with all that failed, from the first of them, if anything did."""
        if self._faults:
            text = "; ".join(f"{what}: {fault}" for what, fault in self._faults)
            raise Failed(text) from self._faults[0][1]
