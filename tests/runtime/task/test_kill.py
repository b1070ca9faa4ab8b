"""Signals that nobody acknowledges, and SIGKILLs that have no effect."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from runtime.base.errors import (
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unanswered,
    Unreachable,
)
from runtime.sandbox.sandbox import SignalMode
from runtime.task.events import TaskExited
from runtime.task.kill import GOFER_TIMEOUT, SENTRY_TIMEOUT
from runtime.task.process import IORequest
from tests.fakes.sandbox import TIME, TRUE, Bench


@pytest.fixture
def member() -> Bench:
    """A container in a sandbox that isn't its own; it runs."""
    bench = Bench()
    bench.container.is_root = False
    bench.sandbox.start_subcontainer = lambda *_: None  # type: ignore[attr-defined]
    bench.sandbox.wait_container = lambda *_: None  # type: ignore[attr-defined]
    bench.run()
    return bench


def silent() -> None:
    raise Unanswered("signal", 0.8)


def unsent() -> None:
    raise DeadlineExceeded("signal", 0.8)


@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("deliver", [silent, unsent, lambda: None])
def test_a_sigkill_without_effect_is_followed_by_the_gofers_and_the_sentrys(
    member: Bench, deliver: object, everyone: bool
) -> None:
    member.sandbox.deliver = deliver  # type: ignore[assignment]
    member.container.kill("", 9, everyone)
    assert member.sandbox.gofers_killed == []
    member.reactor.pass_time(GOFER_TIMEOUT)
    assert member.sandbox.gofers_killed == ["c"]
    assert not member.sandbox.killed.is_set()
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert member.workers.drain(5)
    assert member.sandbox.killed.is_set()


@pytest.mark.parametrize("helps", [True, False])
def test_a_file_system_that_hangs_is_ended_before_the_neighbours_are(
    member: Bench, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    monkeypatch.setattr("runtime.bundle.fuse.abort_hanging", lambda specs: ["/volume"])
    member.container.kill("", 9, True)
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert member.workers.drain(5)
    assert not member.sandbox.killed.is_set()
    if helps:
        member.sandbox.end(137)
    member.reactor.pass_time(GOFER_TIMEOUT)
    assert member.sandbox.killed.is_set() is not helps


def test_a_sigkill_that_has_an_effect_is_enough(member: Bench) -> None:
    member.container.kill("", 9, True)
    member.container.kill("", 9, True)
    assert len(member.reactor.timers) == 2
    member.sandbox.end(137)
    assert all(timer.cancelled for timer in member.reactor.timers)


def test_the_foreground_job_hears_of_the_kill_of_its_sessions_leader(member: Bench) -> None:
    pid = member.exec("e")
    io = member.container.process("e").io
    assert io is not None
    end = ("c", 9, pid, SignalMode.PROCESS)
    member.container.kill("e", 9, False)
    assert member.sandbox.signals == [end]
    io.terminal = True
    member.sandbox.signals.clear()
    member.container.kill("e", 15, False)
    member.container.kill("e", 9, False)
    hold, job = ("c", 19, pid, SignalMode.PROCESS), ("c", 1, pid, SignalMode.FOREGROUND)
    assert member.sandbox.signals == [("c", 15, pid, SignalMode.PROCESS), hold, job, end]
    # Who doesn't answer isn't asked for what only goes before.
    member.sandbox.signals.clear()
    asked: list[None] = []

    def once() -> None:
        asked.append(None)
        if len(asked) == 1:
            silent()

    member.sandbox.deliver = once
    member.container.kill("e", 9, False)
    assert member.sandbox.signals == [end]


def test_an_end_that_waits_for_its_execs_is_an_end(member: Bench) -> None:
    pid = member.exec("e")
    member.container.kill("", 9, True)
    member.sandbox.end(137)
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert member.sandbox.gofers_killed == []
    assert not member.sandbox.killed.is_set()
    member.sandbox.end_exec(pid, 137)
    ended = threading.Event()
    member.container.init.wait(lambda _: ended.set())
    assert ended.wait(5)


def test_the_first_containers_sandbox_ends_in_the_gofers_place() -> None:
    bench = Bench()
    bench.run()
    bench.container.kill("", 9, False)
    bench.reactor.pass_time(GOFER_TIMEOUT)
    assert bench.sandbox.killed.is_set()
    assert bench.container.init.exit is not None
    assert bench.container.init.exit.status == 137


def test_a_sigkill_lets_a_paused_sandbox_go_on(member: Bench) -> None:
    thawed: list[str] = []

    def thaw() -> None:
        thawed.append(member.container.id)
        member.sandbox.paused = False
        member.sandbox.end(137)

    member.container.killing.thaw = thaw
    member.sandbox.paused = True
    member.container.kill("", 15, False)
    assert member.workers.drain(5)
    assert thawed == []  # a SIGTERM stays pending
    member.container.kill("", 9, False)
    assert member.workers.drain(5)
    assert thawed == ["c"]
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert member.sandbox.gofers_killed == []
    assert not member.sandbox.killed.is_set()


def test_a_pause_that_overtakes_a_sigkill_is_undone(member: Bench) -> None:
    thawed: list[str] = []
    member.container.killing.thaw = lambda: thawed.append("c")
    member.container.kill("", 9, False)
    member.sandbox.paused = True
    member.reactor.pass_time(GOFER_TIMEOUT)
    assert member.workers.drain(5)
    assert thawed == ["c"]
    assert member.sandbox.gofers_killed == []


def test_a_paused_sandbox_that_cannot_go_on_is_killed(member: Bench) -> None:
    def refused() -> None:
        raise DeadlineExceeded("resume", 0.8)

    member.container.killing.thaw = refused
    member.sandbox.paused = True
    member.container.kill("", 9, True)
    member.reactor.pass_time(GOFER_TIMEOUT)
    assert member.workers.drain(5)
    assert not member.sandbox.killed.is_set()
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert member.workers.drain(5)
    assert member.sandbox.killed.is_set()


def test_a_signal_that_is_sent_counts_as_pending(member: Bench) -> None:
    member.sandbox.deliver = silent
    member.container.kill("", 15, False)
    assert member.reactor.timers == []
    member.sandbox.deliver = unsent
    with pytest.raises(DeadlineExceeded):
        member.container.kill("", 15, False)


def test_a_kill_of_an_exec_is_no_kill_of_its_container(member: Bench) -> None:
    member.exec("e")
    member.sandbox.deliver = silent
    member.container.kill("e", 9, False)
    assert member.reactor.timers == []


def test_an_exec_that_never_ran_has_no_end_after_inits() -> None:
    bench = Bench()
    bench.run()
    bench.container.add_exec("e", TRUE, IORequest(), time.monotonic() + TIME)
    bench.sandbox.end(0)
    with pytest.raises(NotFound):
        bench.container.kill("e", 9, False)
    assert bench.names()[-1] == "TaskExited"
    assert isinstance(bench.events[-1], TaskExited)
    assert bench.events[-1].id == "c"


def broken() -> None:
    raise Unreachable("sandbox lives")


def exhausted() -> None:
    raise ResourceExhausted("connect: too many open files")


@pytest.mark.parametrize("lack", [broken, exhausted])
def test_a_sigkill_that_did_not_arrive_is_sent_again(
    member: Bench, lack: Callable[[], None]
) -> None:
    member.sandbox.deliver = lack
    member.container.kill("", 9, True)
    assert member.sandbox.signals == []
    delivered = threading.Event()
    member.sandbox.deliver = delivered.set
    member.reactor.pass_time(0.5)
    assert delivered.wait(5)
    member.workers.drain(5)
    assert [signo for _, signo, *_ in member.sandbox.signals] == [9]
    assert member.sandbox.gofers_killed == [] and not member.sandbox.killed.is_set()
    member.sandbox.end(137)
    member.reactor.pass_time(SENTRY_TIMEOUT)
    assert not member.sandbox.killed.is_set()


@pytest.mark.parametrize("lack", [broken, exhausted])
def test_other_signals_that_did_not_arrive_are_errors(
    member: Bench, lack: Callable[[], None]
) -> None:
    member.sandbox.deliver = lack
    with pytest.raises((Unreachable, ResourceExhausted)):
        member.container.kill("", 15, False)
    assert member.container.init.alive


@pytest.mark.parametrize("lack", [broken, exhausted])
def test_a_sandbox_that_hears_no_sigkill_gets_it_from_the_kernel(lack: Callable[[], None]) -> None:
    bench = Bench()
    bench.run()
    bench.sandbox.deliver = lack
    bench.container.kill("", 9, True)
    assert bench.sandbox.killed.is_set()
