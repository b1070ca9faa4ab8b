"""The rules that tie a container's processes together, on a sandbox that does as it is told."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
)
from runtime.bundle.process_spec import ProcessSpec
from runtime.cgroups.metrics import HostStats
from runtime.sandbox.sandbox import SandboxProcess, SignalMode
from runtime.task.events import TaskExited
from runtime.task.lifecycle import State
from runtime.task.process import Exit, IORequest, size_terminal
from tests.fakes.sandbox import TRUE, Bench, FakeCgroup, FakeIO, not_found


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.workers.drain(5)
    bench.workers.stop()


def inside(pid: int, command: str) -> SandboxProcess:
    return SandboxProcess(
        pid=pid,
        ppid=0,
        uid=0,
        threads=1,
        cpu_percent=0,
        tty="?",
        start_time="",
        cpu_time="",
        command=command,
    )


def exits(bench: Bench) -> list[tuple[str, int]]:
    return [(e.id, e.exit_status) for e in bench.events if isinstance(e, TaskExited)]


# -- order ------------------------------------------------------------------------------------


def test_events_of_a_whole_life_come_in_order(bench: Bench) -> None:
    bench.run()
    pid = bench.exec("e")
    bench.sandbox.end_exec(pid, 3)
    bench.sandbox.end(7)
    bench.container.delete(lambda: None)
    assert bench.names() == [
        "TaskCreated",
        "TaskStarted",
        "TaskExecAdded",
        "TaskExecStarted",
        "TaskExited",
        "TaskExited",
        "TaskDeleted",
    ]
    assert exits(bench) == [("e", 3), ("c", 7)]


def test_a_terminals_signals_reach_the_foreground_of_init_and_of_execs(bench: Bench) -> None:
    io = FakeIO()
    io.terminal = True
    bench.container.init.attach(io)
    bench.run()
    assert io.on_signal is not None
    io.on_signal(28)
    assert bench.workers.drain(5)
    assert bench.sandbox.signals == [("c", 28, 0, SignalMode.FOREGROUND)]
    bench.sandbox.end(0)
    assert io.finished


def test_a_new_terminal_has_the_size_that_the_spec_wants() -> None:
    sizes: list[tuple[int, int]] = []
    io = FakeIO()
    io.resize = lambda width, height: sizes.append((width, height))  # type: ignore[method-assign]
    sized = ProcessSpec(args=("sh",), console_size=(33, 101))
    size_terminal(io, sized)
    assert sizes == []
    io.terminal = True
    size_terminal(io, ProcessSpec(args=("sh",)))
    size_terminal(io, sized)
    assert sizes == [(101, 33)]


def test_a_terminal_is_hung_up_at_an_execs_end_before_its_exit_is_told(bench: Bench) -> None:
    bench.run()
    pid = bench.exec("e")
    order: list[str] = []
    io = bench.io[-1]
    io.finish = lambda: order.append(f"finish after {len(exits(bench))}")  # type: ignore[method-assign]
    bench.sandbox.end_exec(pid, 3)
    assert (order, exits(bench)) == (["finish after 0"], [("e", 3)])


def test_status_and_exit_are_written_down_for_others(bench: Bench) -> None:
    bench.run()
    assert bench.holdings.statuses == ["running"]
    bench.sandbox.end(7)
    assert bench.holdings.exit_recorded.wait(5)
    assert bench.holdings.statuses == ["running", "exit 7"]


def test_inits_exit_is_published_after_the_execs(bench: Bench) -> None:
    bench.run()
    first, second = bench.exec("a"), bench.exec("b")
    bench.sandbox.end(0)
    assert exits(bench) == []
    bench.sandbox.end_exec(second, 9)
    bench.sandbox.end_exec(first, 9)
    assert bench.workers.drain(5)
    assert [who for who, _ in exits(bench)] == ["b", "a", "c"]


def test_an_oom_is_published_once_and_before_the_exit(bench: Bench) -> None:
    bench.run()
    bench.holdings.cgroup.tell_of_kills(1)
    bench.holdings.cgroup.tell_of_kills(2)
    bench.holdings.cgroup.kills = 2
    bench.sandbox.end(137, sentry_died=True)
    assert bench.names()[2:] == ["TaskOOM", "TaskExited"]


def test_an_oom_that_only_the_count_shows_still_precedes_the_exit(bench: Bench) -> None:
    bench.run()
    bench.holdings.cgroup.kills = 1
    bench.sandbox.end(128, sentry_died=True)
    assert bench.names()[2:] == ["TaskOOM", "TaskExited"]
    assert exits(bench) == [("c", 137)]


@pytest.mark.parametrize(("status", "late", "told"), [(1, 0, 137), (5, 0, 5), (1, 6, 1)])
def test_an_end_right_after_an_oom_is_its_kill(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, status: int, late: float, told: int
) -> None:
    """The kernel killed the process on the host that stood for the container's."""
    bench.run()
    bench.holdings.cgroup.kills = 1
    bench.holdings.cgroup.tell_of_kills(1)
    now = time.monotonic() + late
    monkeypatch.setattr("runtime.task.container.time.monotonic", lambda: now)
    bench.sandbox.end(status)
    assert bench.names()[2:] == ["TaskOOM", "TaskExited"]
    assert exits(bench) == [("c", told)]


def test_one_over_its_own_limit_is_published_and_ended(bench: Bench) -> None:
    bench.run()
    bench.container.out_of_memory(kill=True)
    assert bench.names()[2:] == ["TaskOOM"]
    assert bench.sandbox.signals == [("c", 9, 0, SignalMode.ALL)]
    bench.container.out_of_memory(kill=True)  # its end takes a moment
    bench.sandbox.end(137)
    bench.container.out_of_memory(kill=True)
    assert bench.names()[2:] == ["TaskOOM", "TaskExited"]
    assert len(bench.sandbox.signals) == 2


def test_one_over_its_own_limit_that_has_just_ended(bench: Bench) -> None:
    bench.run()
    bench.sandbox.deliver = not_found
    bench.container.out_of_memory(kill=True)
    bench.sandbox.end(0)
    assert bench.names()[2:] == ["TaskOOM", "TaskExited"]
    assert exits(bench) == [("c", 137)]  # as the event says


# -- start ------------------------------------------------------------------------------------


def test_a_failed_start_leaves_a_stopped_task_that_can_be_deleted(bench: Bench) -> None:
    heard: list[Exit] = []
    bench.container.init.wait(heard.append)

    def fail() -> None:
        raise Failed("exec /nope: no such file")

    bench.sandbox.start = fail
    with pytest.raises(Failed, match="/nope"):
        bench.run()
    assert [e.status for e in heard] == [128]
    assert bench.container.init.state is State.STOPPED
    assert bench.sandbox.killed.is_set()
    bench.container.delete(lambda: None)
    assert bench.names() == ["TaskCreated", "TaskExited", "TaskDeleted"]


def test_a_kill_gets_through_while_start_hangs(bench: Bench) -> None:
    hanging, release = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        assert release.wait(5)
        raise Failed("the sentry is gone")

    bench.sandbox.start = hang
    failed = threading.Event()

    def start() -> None:
        with pytest.raises(Failed):
            bench.run()
        failed.set()

    thread = threading.Thread(target=start)
    thread.start()
    assert hanging.wait(5)
    bench.container.kill("", 9, True)
    assert bench.sandbox.killed.is_set()
    release.set()
    assert failed.wait(5)
    thread.join(5)
    assert exits(bench) == [("c", 137)]


def test_starting_twice_is_refused(bench: Bench) -> None:
    bench.run()
    with pytest.raises(InvalidState):
        bench.run()


# -- exec -------------------------------------------------------------------------------------


def test_an_exec_id_is_taken_once(bench: Bench) -> None:
    bench.run()
    bench.container.add_exec("e", TRUE, IORequest(), 0)
    with pytest.raises(AlreadyExists):
        bench.container.add_exec("e", TRUE, IORequest(), 0)


def test_an_exec_that_fails_to_start_resolves_its_wait_and_can_be_deleted(bench: Bench) -> None:
    bench.run()
    bench.container.add_exec("e", TRUE, IORequest(), 0)
    heard: list[Exit] = []
    bench.container.process("e").wait(heard.append)
    bench.sandbox.start = not_found
    with pytest.raises(NotFound):
        bench.container.start_exec("e", 0)
    assert [e.status for e in heard] == [128]
    assert bench.io[0].closed
    bench.container.delete_exec("e")
    with pytest.raises(NotFound):
        bench.container.process("e")


def test_an_exec_whose_stdio_cannot_be_opened_frees_its_id(bench: Bench) -> None:
    bench.run()
    bench.refuse_io = not_found
    with pytest.raises(NotFound):
        bench.container.add_exec("e", TRUE, IORequest(), 0)
    bench.refuse_io = lambda: None
    bench.container.add_exec("e", TRUE, IORequest(), 0)
    assert bench.names().count("TaskExecAdded") == 1


def test_deleting_the_container_closes_the_stdio_of_execs_that_never_ran(bench: Bench) -> None:
    bench.run()
    bench.container.add_exec("e", TRUE, IORequest(), 0)
    bench.sandbox.end(0)
    bench.container.delete(lambda: None)
    assert bench.io[0].closed


def test_no_exec_starts_after_init_ended(bench: Bench) -> None:
    bench.run()
    bench.container.add_exec("e", TRUE, IORequest(), 0)
    bench.sandbox.end(0)
    with pytest.raises(InvalidState):
        bench.container.start_exec("e", 0)
    with pytest.raises(InvalidState):
        bench.container.add_exec("f", TRUE, IORequest(), 0)


def test_a_running_exec_is_not_deleted(bench: Bench) -> None:
    bench.run()
    pid = bench.exec("e")
    with pytest.raises(InvalidState, match="running"):
        bench.container.delete_exec("e")
    bench.sandbox.end_exec(pid, 4)
    assert bench.container.delete_exec("e")[1].status == 4


# -- kill -------------------------------------------------------------------------------------


def test_kill_all_and_kill_one_reach_the_sentry(bench: Bench) -> None:
    bench.run()
    bench.container.kill("", 15, False)
    bench.container.kill("", 9, True)
    pid = bench.exec("e")
    bench.container.kill("e", 2, False)
    assert bench.sandbox.signals == [
        ("c", 15, 0, SignalMode.PROCESS),
        ("c", 9, 0, SignalMode.ALL),
        ("c", 2, pid, SignalMode.PROCESS),
    ]


@pytest.mark.parametrize("signo", [-1, 65, 9999])
def test_what_is_no_signal_is_refused_by_its_number(bench: Bench, signo: int) -> None:
    bench.run()
    with pytest.raises(InvalidRequest, match=str(signo)):
        bench.container.kill("", signo, False)
    assert bench.sandbox.signals == []


def test_killing_what_has_ended_is_not_found(bench: Bench) -> None:
    bench.run()
    bench.sandbox.end(0)
    for _ in range(2):
        with pytest.raises(NotFound, match="already finished"):
            bench.container.kill("", 9, True)


@pytest.mark.parametrize(("signo", "status"), [(9, 137), (15, 143)])
def test_a_created_container_can_be_killed(bench: Bench, signo: int, status: int) -> None:
    bench.container.kill("", signo, False)
    assert exits(bench) == [("c", status)]
    assert bench.container.init.state is State.STOPPED


def test_signal_0_and_ignored_signals_leave_a_created_container_alone(bench: Bench) -> None:
    for signo in (0, 17, 28):
        bench.container.kill("", signo, False)
    assert bench.container.init.state is State.CREATED


def test_a_sentry_that_does_not_act_on_sigkill_is_killed(bench: Bench) -> None:
    bench.run()

    def hang() -> None:
        raise DeadlineExceeded("signal", 0.8)

    bench.sandbox.deliver = hang
    bench.container.kill("", 9, True)
    assert exits(bench) == [("c", 137)]
    assert bench.sandbox.killed.is_set()


def test_sigkill_ends_a_paused_container(bench: Bench) -> None:
    bench.run()
    bench.sandbox.paused = True
    bench.container.kill("", 9, True)
    assert exits(bench) == [("c", 137)]


# -- delete -----------------------------------------------------------------------------------


def test_a_running_container_is_not_deleted(bench: Bench) -> None:
    bench.run()
    with pytest.raises(InvalidState, match="cannot delete a running process"):
        bench.container.delete(lambda: None)
    assert bench.holdings.releases == 0


def test_an_id_is_free_once_its_containers_deletion_is_told(bench: Bench) -> None:
    """Else the events of the next one with that id could come before it."""
    told: list[list[str]] = []
    bench.container.delete(lambda: told.append(bench.names()))
    assert [names[-1] for names in told] == ["TaskDeleted"]


def test_a_deleted_container_goes_without_the_garbage_collector(bench: Bench) -> None:
    """What was to be seen to later finds nothing, and whoever asks is told."""
    bench.run()
    bench.sandbox.end_exec(bench.exec("e"), 3)
    killing, gone = bench.container.killing, weakref.ref(bench.container)
    bench.container.kill("", 9, True)
    assert bench.container.metrics()
    bench.sandbox.end(9)
    bench.container.delete(lambda: None)
    assert bench.workers.drain(5)
    signals = list(bench.sandbox.signals)
    bench.memory.remove("c")
    bench.sandbox.on_exit = lambda _: None
    gc.disable()
    try:
        del bench.container
        assert gone() is None
    finally:
        gc.enable()
    for late in (killing._repeat, killing._kill_gofer, killing._give_up, killing._kill_again):
        late()
    killing._let_go_of_files()
    with pytest.raises(NotFound):
        killing.kill("", 9, False)
    assert bench.sandbox.signals == signals and not bench.sandbox.gofers_killed


def test_deleting_a_created_container_reports_its_end(bench: Bench) -> None:
    _, exit = bench.container.delete(lambda: None)
    assert exit.status == 137
    assert bench.names() == ["TaskCreated", "TaskExited", "TaskDeleted"]


def test_a_second_delete_shares_the_first_ones_outcome(bench: Bench) -> None:
    bench.run()
    bench.sandbox.end(5)
    entered, release = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert release.wait(5)

    bench.holdings.refuse = slow
    outcomes: list[tuple[int, Exit]] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(bench.container.delete(lambda: None)))
        for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(5)
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join(5)
    assert len(outcomes) == 2
    assert outcomes[0] == outcomes[1]
    assert bench.holdings.releases == 1
    assert bench.names().count("TaskDeleted") == 1


def test_a_delete_that_failed_can_be_made_again(bench: Bench) -> None:
    bench.run()
    bench.sandbox.end(5)

    def refuse() -> None:
        raise Failed("rmdir: device busy")

    bench.holdings.refuse = refuse
    with pytest.raises(Failed, match="busy"):
        bench.container.delete(lambda: None)
    assert bench.container.init.state is State.STOPPED
    bench.holdings.refuse = lambda: None
    assert bench.container.delete(lambda: None)[1].status == 5


# -- looking ----------------------------------------------------------------------------------


def test_pids_show_init_under_the_pid_that_create_reported(bench: Bench) -> None:
    assert [p.pid for p in bench.container.pids()] == [bench.sandbox.pid]
    bench.run()
    pid = bench.exec("e")
    bench.sandbox.inside = [
        inside(1, "sh"),
        inside(pid, "true"),
    ]
    assert [(p.pid, p.exec_id) for p in bench.container.pids()] == [
        (bench.sandbox.pid, ""),
        (pid, "e"),
    ]


def test_a_stopped_task_has_its_init_still_or_containerd_takes_it_for_a_leak(bench: Bench) -> None:
    bench.run()
    bench.sandbox.end(0)
    assert [p.pid for p in bench.container.pids()] == [bench.sandbox.pid]


@pytest.mark.parametrize("oom", [False, True])
def test_the_last_metrics_stay_readable_until_the_delete(bench: Bench, oom: bool) -> None:
    bench.run()
    last = bench.container.metrics()
    bench.sandbox.memory_usage += 1
    bench.holdings.cgroup.kills = int(oom)
    bench.sandbox.end(137, sentry_died=oom)
    assert bench.container.metrics() == last


def test_metrics_of_an_ended_task_that_nobody_asked_for_before_are_its_cgroups(
    bench: Bench,
) -> None:
    bench.run()
    bench.sandbox.end(0)
    bench.holdings.cgroup.counted = HostStats(cpu_usage_ns=5000)
    assert bench.container.metrics().cpu_usage_ns == 5000


def test_metrics_of_a_task_whose_end_is_about_to_be_told(bench: Bench) -> None:
    bench.run()
    last = bench.container.metrics()
    bench.sandbox.measured = not_found
    assert bench.container.metrics() == last


def test_update_reaches_the_cgroup_before_the_start_and_not_after_the_end(bench: Bench) -> None:
    limits = {"memory": {"limit": 1 << 26}}
    bench.container.update(limits)
    bench.run()
    bench.sandbox.end(0)
    with pytest.raises(NotFound):
        bench.container.update(limits)
    assert bench.holdings.cgroup.updates == [limits]


def test_a_members_limit_below_its_use_changes_nothing(bench: Bench) -> None:
    bench.run()
    container, own = bench.container, FakeCgroup()
    holdings: Any = bench.holdings
    holdings.cgroup, holdings.own_cgroup = None, own
    container.is_root = False
    container.limits.set({"memory": {"limit": 128 << 20}})
    bench.used = 50 << 20
    with pytest.raises(Failed, match=f"usage: {50 << 20}"):
        container.update({"memory": {"limit": 1 << 20}, "cpu": {"shares": 7}})
    assert (own.updates, container.memory_limit) == ([], 128 << 20)
    container.update({"memory": {"limit": 60 << 20}})
    assert container.memory_limit == 60 << 20
    bench.used = 70 << 20  # it is about to be ended; a higher limit comes in time
    container.update({"memory": {"limit": 65 << 20}})
    assert container.memory_limit == 65 << 20


def test_a_container_sees_its_limits_from_its_start_and_those_of_updates(bench: Bench) -> None:
    bench.container.limits.set(first := {"pids": {"limit": 9}})
    bench.container.update({"cpu": {"quota": 5}})
    shown = bench.sandbox.shown
    assert shown == []
    bench.run()
    bench.container.update({"pids": {"limit": 7}})
    assert shown == [{**first, "cpu": {"quota": 5}}, {"pids": {"limit": 7}, "cpu": {"quota": 5}}]

    def fail(*_: object) -> None:
        raise Failed("no such file")

    bench.sandbox.show_limits = fail  # type: ignore[method-assign]
    bench.container.update({"pids": {"limit": 6}})


@pytest.mark.parametrize(("width", "height"), [(70000, 1), (1, 70000)])
def test_a_size_that_no_terminal_has_is_refused(bench: Bench, width: int, height: int) -> None:
    with pytest.raises(InvalidRequest, match="70000"):
        bench.container.resize("", width, height)


def test_resizing_to_nothing_is_legal(bench: Bench) -> None:
    bench.container.resize("", 0, 0)
