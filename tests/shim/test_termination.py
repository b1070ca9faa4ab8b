"""A shim that was sent SIGTERM ends with what it runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.task.pod import Pod
from shim import termination
from shim.termination import GRACE, INTERVAL, LASTS, Termination
from tests.fakes.sandbox import Bench

SIGTERM = 15


class Gofer:
    def __init__(self) -> None:
        self.ended = False

    def poll(self) -> int | None:
        return 0 if self.ended else None


class Shim:
    """A pod of one container, told to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(termination.time, "monotonic", lambda: self.now)
        self.bench = Bench("root")
        self.bench.container.settled.set()
        self.gofer: Any = Gofer()
        self.bench.sandbox.gofer_child = self.gofer
        pod = Pod(self.bench.context)
        pod._containers["root"] = self.bench.container
        self.clients, self.ended = 0, threading.Event()
        reactor: Any = self.bench.reactor
        self.termination = Termination(
            pod, reactor, clients=lambda: self.clients, end=self.ended.set
        )
        self.bench.run()
        self.termination.request(SIGTERM)
        self.bench.reactor.pass_time(0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.bench.reactor.pass_time(seconds)


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Shim:
    return Shim(monkeypatch)


def test_it_ends_with_its_last_container(shim: Shim) -> None:
    shim.pass_time(INTERVAL)
    assert not shim.ended.is_set()
    shim.bench.sandbox.end(143)
    shim.pass_time(INTERVAL)
    assert shim.ended.is_set()


def test_a_client_may_still_ask(shim: Shim) -> None:
    shim.clients = 1
    shim.bench.sandbox.end(143)
    shim.pass_time(INTERVAL)
    assert not shim.ended.is_set()
    shim.clients = 0
    shim.pass_time(INTERVAL)
    assert shim.ended.is_set()


def test_the_signal_is_forgotten_and_may_come_again(shim: Shim) -> None:
    shim.pass_time(LASTS + 1)
    assert shim.bench.reactor.timers == []
    shim.bench.sandbox.end(0)
    assert not shim.ended.is_set()
    shim.termination.request(SIGTERM)
    shim.bench.reactor.pass_time(0)
    assert shim.ended.is_set()


def test_signals_share_one_look(shim: Shim) -> None:
    shim.termination.request(SIGTERM)
    assert len(shim.bench.reactor.timers) == 1


def test_a_sentry_that_does_not_notice_its_gofers_end(shim: Shim) -> None:
    shim.gofer.ended = True
    shim.pass_time(INTERVAL)
    shim.pass_time(GRACE)
    assert not shim.bench.sandbox.killed.is_set()
    shim.pass_time(INTERVAL)
    assert shim.bench.sandbox.killed.is_set()


def test_a_living_gofer_is_no_reason(shim: Shim) -> None:
    for _ in range(3):
        shim.pass_time(GRACE)
    assert not shim.bench.sandbox.killed.is_set()
