"""A sandbox's restore from an image, container by container.

Owns the count of containers that are still missing, and the sentry's calls.  A sentry loads its
image when the last of the image's containers is there: until then none of them runs, and few calls
work.
"""

from __future__ import annotations

import threading

from runtime.base.errors import DeadlineExceeded, ResourceExhausted, Unanswered
from runtime.host.fds import FdSet
from runtime.sandbox.sentry import open_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.runsc.control import Control
    from runtime.runsc.flags import Settings
    from runtime.sandbox.checkpoint_image import Image


class Restore:
    """The restore of one sandbox.  Thread-safe."""

    def __init__(self, image: Image) -> None:
        """``image`` stays the caller's; it is not needed any more after ``root``."""
        self.image = image
        self._lock = threading.Lock()
        self._begun = False  # guarded by _lock
        self._missing = image.containers  # guarded by _lock

    @property
    def complete(self) -> bool:
        """Whether all containers of the image run; others are started as usual."""
        with self._lock:
            return not self._missing

    @property
    def waiting(self) -> bool:
        """Whether the root container is there, and others are missing."""
        with self._lock:
            return self._begun and bool(self._missing)

    def go_on(self) -> None:
        """Another process has restored the root container, and perhaps others."""
        with self._lock:
            self._begun = True
            self._missing = max(self._missing - 1, 1)

    def root(self, control: Control, settings: Settings, sandbox_id: str, timeout: float) -> None:
        """Hand the image to the sentry.  Raises as ``Control.restore`` does."""
        image = self.image
        with FdSet() as ours:
            device = open_device(settings, ours)
            control.restore(
                sandbox_id,
                image.fds if device < 0 else (*image.fds, device),
                paged=image.paged,
                device=device >= 0,
                timeout=timeout,
            )
        with self._lock:
            self._begun = True
            self._missing -= 1
        image.close()

    def member(
        self,
        control: Control,
        give_up: Callable[[], None],
        argument: Mapping[str, Any],
        fds: tuple[int, ...],
        timeout: float,
    ) -> None:
        """Restore another container; ``give_up`` is called, to end the sandbox, if it fails.

        Not where the sentry was never asked, as the sandbox is as good as before.
        """
        try:
            control.restore_subcontainer(argument, fds, timeout)
        except BaseException as fault:
            if isinstance(fault, (ResourceExhausted, DeadlineExceeded)) and not isinstance(
                fault, Unanswered
            ):
                raise
            give_up()  # half of a pod can't run, and the sentry can't be asked again
            raise
        with self._lock:
            self._missing -= 1
