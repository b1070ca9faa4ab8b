"""A sandbox's memory, as its sentry reports it.

Owns reading the answers of the sentry's ``Usage`` calls (gVisor pkg/sentry/control/usage.go).
"""

from __future__ import annotations

import os
import struct

from runtime.base.errors import Failed
from runtime.base.record import Record


class Usage(Record):
    """Memory of a sandbox in bytes, by what it is used for."""

    system: int = 0
    anonymous: int = 0
    page_cache: int = 0
    mapped: int = 0
    tmpfs: int = 0
    ramdiskfs: int = 0
    unknown: int = 0
    total: int = 0


class UsageFiles:
    """The memory of a sandbox as its files tell it, without asking the sentry again.

    A context manager; not for several threads.
    """

    def __init__(self, stats_fd: int, memory_fd: int) -> None:
        self._fds = [stats_fd, memory_fd]

    def read(self) -> Usage:
        """Mapped, other (``unknown``) and total memory now.  Raises OSError once it is gone."""
        stats_fd, memory_fd = self._fds
        # The first word of the shared page (gVisor pkg/sentry/usage, RTMemoryStats).
        (mapped,) = struct.unpack("<Q", os.pread(stats_fd, 8, 0))
        unknown = os.fstat(memory_fd).st_blocks * 512
        return Usage(mapped=mapped, unknown=unknown, total=mapped + unknown)

    def close(self) -> None:
        """Idempotent."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> UsageFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_usage(found: object) -> Usage:
    """What ``Usage.Collect`` answers.  Raises Failed if it is malformed."""
    if not isinstance(found, dict):
        raise Failed("Usage.Collect: malformed result")

    def number(name: str) -> int:
        value = found.get(name) or 0
        if type(value) is not int or value < 0:
            raise Failed("Usage.Collect: malformed result")
        return value

    return Usage(
        system=number("System"),
        anonymous=number("Anonymous"),
        page_cache=number("PageCache"),
        mapped=number("Mapped"),
        tmpfs=number("Tmpfs"),
        ramdiskfs=number("Ramdiskfs"),
        unknown=number("Unknown"),
        total=number("Total"),
    )
