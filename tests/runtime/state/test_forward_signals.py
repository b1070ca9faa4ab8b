import os
import signal
import threading

import pytest

from runtime.state.forward_signals import catch_signals, forward_signals
from tests.runtime.state.test_loaded import Scene, SentryError, scene

__all__ = ["scene"]


class Sink:
    """Takes signals, and tells when it has so many."""

    def __init__(self, wanted: int) -> None:
        self.got: list[int] = []
        self.enough = threading.Event()
        self._wanted = wanted

    def __call__(self, signo: int) -> None:
        self.got.append(signo)
        if len(self.got) == self._wanted:
            self.enough.set()


def test_signals_come_in_order_and_then_as_before() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    sink = Sink(4)
    stop = catch_signals(sink)
    sent = [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN + 3]
    for signo in sent:
        signal.raise_signal(signo)
    assert sink.enough.wait(5)
    stop()
    assert sink.got == sent
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_concerns_this_process_alone_is_kept() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGSEGV)}
    stop = catch_signals(Sink(0))
    assert {n: signal.getsignal(n) for n in before} == before
    stop()


@pytest.mark.parametrize("foreground", [False, True])
def test_to_a_container(scene: Scene, foreground: bool) -> None:
    asked = scene.answer("containerManager.Signal")
    stop = forward_signals(scene.load(), 5, foreground)
    os.kill(os.getpid(), signal.SIGUSR1)
    stop()
    mode = 2 if foreground else 0
    assert asked == [{"CID": "c1", "Signo": signal.SIGUSR1, "PID": 5, "Mode": mode}]


def test_one_that_can_not_be_delivered_stops_nothing(scene: Scene) -> None:
    scene.answer("containerManager.Signal", SentryError("no such process"))
    stop = forward_signals(scene.load())
    for _ in range(2):
        signal.raise_signal(signal.SIGUSR1)
    stop()
    assert len(scene.sentry.requests) == 2
