"""Stages of what takes long, such as a container's creation, for whoever measures or traces them.

A stage costs next to nothing while nobody observes.  One observer per process.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Observer(Protocol):
        """Told of each stage by the thread that it runs in; must not block or raise."""

        def begin(self, name: str) -> object:
            """A stage begins; what is returned is handed to ``end``."""

        def end(self, begun: object, error: BaseException | None) -> None:
            """It has ended, with this exception or none."""


_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Have stages that begin from now on told to ``observer``."""
    global _observer
    _observer = observer


class stage:
    """``with stage("boot"): ...``: a stage is what happens within.  Stages nest by thread."""

    __slots__ = ("_begun", "_name", "_observer")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._observer = observer = _observer
        if observer is not None:
            self._begun = observer.begin(self._name)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._observer is not None:
            self._observer.end(self._begun, error)
