"""Files that a process lets go of without waiting for their release.

Who closes a packet socket last, or a virtual machine of KVM's, waits for an RCU grace period or
longer; for a process that ends this is part of its end.  A reference that an io_uring holds is
given back by a thread of the kernel's.  So as long as a ring of ours holds such a file, the end
of a process that has it open takes no time, and neither does the end of the ring.  The ring is
never enabled, so nothing can be asked of it (io_uring_setup(2), IORING_SETUP_R_DISABLED).  The
idea is gVisor's (pkg/pinring).
"""

from __future__ import annotations

import os
import threading

from runtime.base.log import get_logger
from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_logger("pin_ring")


class PinRing:
    """Made when it is first needed; a host that permits no ring is one without.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1  # guarded by _lock
        self._closed = False  # guarded by _lock

    def to_donate(self) -> int:
        """The descriptor of a ring that another process pins its files in, or -1; stays ours."""
        with self._lock:
            self._open_locked()
            return self._fd

    def pin(self, fds: Sequence[int]) -> None:
        """Hold these files, whose descriptors stay the caller's.  Once; never raises.

        A no-op after ``to_donate``, as a ring takes files once, and after ``close``.
        """
        with self._lock:
            if not fds or self._fd >= 0:
                return
            self._open_locked()
            if self._fd < 0:
                return
            try:
                linux.pin_files(self._fd, fds)
            except OSError as error:
                _log.debug("files.not_pinned", count=len(fds), error=str(error))
                self._close_locked()

    def close(self) -> None:
        """Let go of the files.  Idempotent."""
        with self._lock:
            self._closed = True
            self._close_locked()

    def _open_locked(self) -> None:
        if self._closed or self._fd >= 0:
            return
        try:
            self._fd = linux.disabled_ring()
        except OSError as error:
            # Hosts switch io_uring off (kernel.io_uring_disabled), or filter it.
            _log.debug("ring.not_made", error=str(error))

    def _close_locked(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
