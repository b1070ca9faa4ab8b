"""A check around each test: no descriptor and no child process is left over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.host.spawn import Child

WAIT = 10.0


def open_fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing itself
    return found


def our_children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that was joined may take a moment to go
    return sorted(found)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    # A first call may open things that stay, such as the random device.
    fds, kids = open_fds(), our_children()
    yield
    assert open_fds() == fds
    # Zombies that other tests of this process have left may be reaped meanwhile.
    assert set(our_children()) <= set(kids)


def run(child: Child) -> int:
    with child:
        return os.waitstatus_to_exitcode(child.wait(WAIT))
