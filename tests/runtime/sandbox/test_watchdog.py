"""What was killed and doesn't end is looked into, as long as there is hope."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.bundle import fuse
from runtime.sandbox.watchdog import PATIENCE, Watchdog
from tests.fakes.sandbox import FakeReactor


class Killed:
    """A process that ends when a test says so."""

    def __init__(self) -> None:
        self.raw: int | None = None

    def poll(self) -> int | None:
        return self.raw


@pytest.fixture
def aborts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(fuse, "abort_hanging", found.append)
    return found


def settle() -> None:
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("watchdog"):
            thread.join(20)


def test_those_that_end_are_left_alone(aborts: list[Any]) -> None:
    reactor, child = FakeReactor(), Killed()
    watchdog = Watchdog(reactor, list, lambda: [child])  # type: ignore[arg-type, list-item]
    watchdog.killed()
    watchdog.killed()
    assert len(reactor.timers) == 1
    child.raw = 9
    reactor.pass_time(PATIENCE)
    settle()
    assert (aborts, reactor.timers) == ([], [])


def test_survivors_are_helped_and_given_up_in_the_end(aborts: list[Any]) -> None:
    reactor, child = FakeReactor(), Killed()
    watchdog = Watchdog(reactor, list, lambda: [child])  # type: ignore[arg-type, list-item]
    watchdog.killed()
    for _ in range(10):
        reactor.pass_time(PATIENCE)
        settle()
    assert 1 <= len(aborts) < 10
    assert reactor.timers == [], "nothing wakes the shim for ever"
    watchdog.killed()
    assert len(reactor.timers) == 1
