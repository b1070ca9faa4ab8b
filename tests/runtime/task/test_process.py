"""State, exit latch and event order of one process."""

from __future__ import annotations

import sys
import threading

import pytest

from runtime.base.errors import InvalidState
from runtime.task.events import Event, TaskCreated, TaskExited, TaskOOM, TaskStarted
from runtime.task.lifecycle import Op, State
from runtime.task.process import Exit, IORequest, Process
from tests.fakes.sandbox import FakeIO

DONE = Exit(status=7, at=100.0)


def make() -> tuple[Process, list[Event]]:
    events: list[Event] = []
    return Process("c", "", IORequest(), events.append), events


def created() -> tuple[Process, list[Event]]:
    process, events = make()
    process.commit(Op.CREATED, TaskCreated(container_id="c", bundle="/b", pid=5), 5)
    return process, events


def running() -> tuple[Process, list[Event]]:
    process, events = created()
    process.reserve(Op.START)
    process.commit(Op.STARTED, TaskStarted(container_id="c", pid=5))
    return process, events


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_an_exit_during_start_is_published_after_the_start() -> None:
    process, events = created()
    process.reserve(Op.START)
    process.exited(DONE)
    assert process.exit is None
    assert process.state is State.STARTING
    process.commit(Op.STARTED, TaskStarted(container_id="c", pid=5))
    assert names(events) == ["TaskCreated", "TaskStarted", "TaskExited"]
    assert process.exit == DONE
    assert process.state is State.STOPPED


def test_an_oom_seen_during_start_stays_before_its_exit() -> None:
    process, events = created()
    process.reserve(Op.START)
    process.exited(DONE, TaskOOM(container_id="c"))
    process.commit(Op.STARTED, TaskStarted(container_id="c", pid=5))
    assert names(events)[1:] == ["TaskStarted", "TaskOOM", "TaskExited"]


def test_the_exit_is_written_once() -> None:
    process, events = running()
    assert process.exited(DONE)
    assert not process.exited(Exit(status=9, at=200.0))
    assert process.exit == DONE
    exits = [e for e in events if isinstance(e, TaskExited)]
    assert [(e.id, e.pid, e.exit_status, e.exited_at) for e in exits] == [("c", 5, 7, 100.0)]


def test_waiters_hear_of_the_exit_before_and_after_it() -> None:
    process, _ = running()
    heard: list[Exit] = []
    process.wait(heard.append)
    assert heard == []
    process.exited(DONE)
    process.wait(heard.append)
    assert heard == [DONE, DONE]


def test_a_forgotten_waiter_hears_nothing() -> None:
    process, _ = running()
    heard: list[Exit] = []
    callback = heard.append
    process.wait(callback)
    process.forget_waiter(callback)
    process.forget_waiter(callback)
    process.exited(DONE)
    assert heard == []


def test_a_failed_start_resolves_wait_and_allows_delete() -> None:
    process, events = created()
    heard: list[Exit] = []
    process.wait(heard.append)
    process.reserve(Op.START)
    process.fail_start(Exit(status=128, at=1.0), publish=True)
    assert [e.status for e in heard] == [128]
    assert names(events) == ["TaskCreated", "TaskExited"]
    process.reserve(Op.DELETE)


def test_an_exit_that_came_during_a_start_that_failed_is_not_published_twice() -> None:
    process, events = created()
    process.reserve(Op.START)
    process.exited(DONE)
    process.fail_start(Exit(status=128, at=1.0), publish=True)
    assert names(events) == ["TaskCreated", "TaskExited"]


def test_a_commit_that_an_exit_overtook_queues_nothing() -> None:
    process, events = running()
    process.reserve(Op.PAUSE)
    process.exited(DONE)
    assert not process.commit(Op.PAUSED, TaskOOM(container_id="c"))
    assert process.state is State.STOPPED
    assert names(events)[-1] == "TaskExited"


def test_an_exec_reports_its_own_id() -> None:
    events: list[Event] = []
    process = Process("c", "e", IORequest(), events.append)
    process.commit(Op.CREATED)
    process.reserve(Op.START)
    process.commit(Op.STARTED, None, 12)
    process.exited(DONE)
    (exit,) = events
    assert isinstance(exit, TaskExited)
    assert (exit.container_id, exit.id, exit.pid) == ("c", "e", 12)


def test_illegal_operations_name_the_process() -> None:
    process, _ = created()
    with pytest.raises(InvalidState, match="cannot pause container 'c' in state created"):
        process.reserve(Op.PAUSE)


def test_start_and_exit_racing_always_give_the_same_order() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            process, events = created()
            process.reserve(Op.START)
            gate = threading.Barrier(2)

            def leave(process: Process = process, gate: threading.Barrier = gate) -> None:
                gate.wait(5)
                process.exited(DONE)

            thread = threading.Thread(target=leave)
            thread.start()
            gate.wait(5)
            process.commit(Op.STARTED, TaskStarted(container_id="c", pid=5))
            thread.join(5)
            assert names(events) == ["TaskCreated", "TaskStarted", "TaskExited"]
    finally:
        sys.setswitchinterval(interval)


class Terminal:
    """The part of a stdio that remembers what it was asked."""

    terminal = True
    on_signal = None

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.closed = self.stdin_closed = False

    @property
    def sentry_fds(self) -> tuple[int, int, int]:
        return (0, 1, 2)

    def release_sentry_fds(self) -> None: ...

    def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    def close_stdin(self) -> None:
        self.stdin_closed = True

    def drain(self, timeout: float) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def test_a_resize_before_the_terminal_exists_is_kept_for_it() -> None:
    process, _ = make()
    process.resize(80, 24)
    terminal = Terminal()
    process.attach(terminal)
    process.resize(100, 30)
    assert terminal.sizes == [(80, 24), (100, 30)]


def test_a_close_of_stdin_before_there_is_one_is_kept_for_it() -> None:
    process, _ = make()
    process.close_stdin()
    terminal = Terminal()
    process.attach(terminal)
    assert terminal.stdin_closed


def test_the_stdio_of_a_process_that_ends_may_be_taken_in_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A delete detaches it: whoever looks twice finds none the second time."""
    process, _ = running()
    io = FakeIO()
    looks: list[FakeIO] = [io]
    monkeypatch.setattr(Process, "io", property(lambda _: looks.pop() if looks else None))
    process.finish_io()
    assert io.finished
    process.finish_io()
