"""A gofer that ends before its container, in pods of real processes, though not of runsc's."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from runtime.base import log
from runtime.base.errors import NotFound, RuntimeFault
from runtime.host.children import Child
from runtime.host.fds import FdSet
from runtime.host.reactor import Reactor
from runtime.sandbox.gofer import Gofer
from runtime.sandbox.gofer_mounts import MountPlan
from runtime.task import kill
from runtime.task.container import Container
from runtime.task.events import TaskExited
from runtime.task.kill import GOFER_TIMEOUT
from shim.observe.counters import Counters
from tests.fakes.sandbox import Bench
from tests.runtime.task.test_create_faults import TIMEOUT, Plant, _until
from tests.shim.handover.test_graph import handed_over

#: Seconds of the grace in these tests: what is to happen after it does, what isn't to doesn't.
SHORT = 0.3
KILLED = "container.killed"


class Stage(Plant):
    """A pod whose root container runs, and the log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._lines = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        log.configure(self._lines, log.INFO)

    def run(self, name: str, *script: str, member: bool = False) -> Container:
        self.create(name, *script, member=member)
        container = self.pod.container(name)
        container.start(time.monotonic() + TIMEOUT)
        return container

    def create(self, name: str, *script: str, member: bool = False) -> None:
        self.pod.create(self.bundle(name, *script, member=member))

    def gofer(self, name: str) -> Gofer:
        return self.pod.container(name).sandbox.gofer_of(name)

    def ended(self, name: str) -> int:
        """The status of its end, once that is told."""
        done = threading.Event()
        init = self.pod.container(name).init
        init.wait(lambda _: done.set())
        assert done.wait(TIMEOUT), f"{name} runs on"
        assert init.exit is not None
        return init.exit.status

    def exits(self) -> list[tuple[str, int]]:
        exits = [each for each in self.events if isinstance(each, TaskExited)]
        return [(each.container_id, each.exit_status) for each in exits]

    def pass_grace(self) -> None:
        """Wait until all is over that may follow a loss until now."""
        passed = threading.Event()
        self.reactor.call_later(2 * SHORT, passed.set)
        assert passed.wait(TIMEOUT)
        assert self.workers.drain(TIMEOUT)

    def said(self, event: str = KILLED) -> list[str]:
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if f"msg={event}" in line or f'msg="{event}"' in line]

    def close(self) -> None:
        super().close()
        log.configure(-1, 0)
        os.close(self._lines)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(kill, "GRACE", SHORT)
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def _lose(gofer: Gofer) -> None:
    assert gofer.child is not None
    gofer.kill()
    gofer.child.wait(TIMEOUT)


def test_the_pod_ends_with_its_root_gofer_that_the_sentry_has_not_missed(stage: Stage) -> None:
    stage.run("root", "directed")
    stage.run("one", "member", "gofer-stays", member=True)
    _lose(stage.gofer("root"))
    assert [stage.ended("root"), stage.ended("one")] == [137, 137]
    assert sorted(stage.exits()) == [("one", 137), ("root", 137)]
    [line] = stage.said()
    assert "container=root" in line and "why=" in line and "killed by signal 9" in line


def test_a_member_ends_with_its_gofer_and_its_neighbours_run_on(stage: Stage) -> None:
    stage.run("root", "directed")
    stage.run("one", "member", "gofer-stays", member=True)
    stage.run("two", "member", "gofer-stays", member=True)
    _lose(stage.gofer("one"))
    assert stage.ended("one") == 137
    stage.pass_grace()
    assert stage.exits() == [("one", 137)]
    assert len(stage.said()) == 1


def test_a_sentry_that_notices_is_left_to_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "GRACE", 10 * TIMEOUT)
    root = stage.run("root", "directed", "watches-gofer")
    _lose(stage.gofer("root"))
    assert stage.ended("root") == 137
    kill._look_after(root, stage.reactor, 9)  # as if the grace were over
    stage.pass_grace()
    assert stage.exits() == [("root", 137)]
    assert stage.said() == []


def test_a_gofer_that_nobody_needs_ends_by_itself(stage: Stage) -> None:
    """As this sentry's does, which closes its connection: with status 0."""
    stage.run("root", "directed")
    stage.run("one", "member", member=True)
    child = stage.gofer("one").child
    assert child is not None and child.wait(TIMEOUT) == 0
    stage.pass_grace()
    assert stage.exits() == [] and stage.said() == []


def test_a_created_container_waits_for_its_start_which_fails(stage: Stage) -> None:
    stage.run("root", "directed")
    stage.create("one", "member", "gofer-stays", member=True)
    gofer = stage.gofer("one")
    # What it tells is gone with it, as if it had ended before.
    assert select.select([gofer.mounts_fd], [], [], TIMEOUT)[0]
    os.read(gofer.mounts_fd, 1 << 16)
    _lose(gofer)
    stage.pass_grace()
    assert stage.exits() == []
    with pytest.raises(RuntimeFault, match="gofer"):
        stage.pod.container("one").start(time.monotonic() + TIMEOUT)
    assert stage.exits() == [("one", 128)] and stage.said() == []


def test_a_start_that_comes_through_in_spite_of_it_is_followed_by_the_end(stage: Stage) -> None:
    stage.run("root", "directed")
    stage.create("one", "member", "gofer-stays", member=True)
    gofer = stage.gofer("one")
    assert select.select([gofer.mounts_fd], [], [], TIMEOUT)[0], "it has told its mounts"
    _lose(gofer)
    stage.pod.container("one").start(time.monotonic() + TIMEOUT)
    assert stage.ended("one") == 137
    assert stage.exits() == [("one", 137)]


def test_what_is_paused_ends_when_it_goes_on(stage: Stage) -> None:
    stage.run("root", "directed")
    stage.run("one", "member", "gofer-stays", member=True)
    stage.pod.pause("root")
    _lose(stage.gofer("one"))
    stage.pass_grace()
    assert stage.pod.container("one").sandbox.paused, "it was let go on"
    assert stage.exits() == [] and stage.said() == []
    stage.pod.resume("root")
    assert stage.ended("one") == 137
    assert len(stage.said()) == 1


@pytest.mark.parametrize("member", [False, True])
def test_the_end_of_a_container_is_no_loss(stage: Stage, member: bool) -> None:
    name = "one" if member else "root"
    stage.run("root", "directed", "gofer-stays")
    if member:
        stage.run("one", "member", "gofer-stays", member=True)
    before = len(os.listdir("/proc/self/fd"))
    stage.pod.container(name).kill("", 9, True)
    stage.ended(name)
    stage.pod.delete(name)
    stage.pass_grace()
    assert stage.exits() == [(name, 137)] and stage.said() == []
    assert len(os.listdir("/proc/self/fd")) < before


def test_no_descriptor_and_no_thread_is_taken_for_it(stage: Stage) -> None:
    stage.run("root", "directed", "gofer-stays")
    container = stage.pod.container("root")
    child = stage.gofer("root").child
    assert child is not None
    watch = stage.reactor._watches[child.pidfd]
    before = stage.seen()
    for _ in range(3):
        kill.watch_gofer(container, stage.reactor)
    assert stage.reactor._watches[child.pidfd] is watch
    after = stage.seen()
    assert (after["descriptors"], after["threads"]) == (before["descriptors"], before["threads"])


def test_a_start_that_fails_leaves_no_watch(stage: Stage) -> None:
    stage.create("root", "start-fails", "/bin/nothing", "128")
    container, gofer = stage.pod.container("root"), stage.gofer("root")
    with pytest.raises(RuntimeFault):
        container.start(time.monotonic() + TIMEOUT)
    assert gofer._watch is None
    assert gofer.child is not None and gofer.child.pidfd not in stage.reactor._watches


def test_another_version_of_the_shim_watches_on() -> None:
    """It takes over what is watched, and hears of what has ended meanwhile."""
    reactor, gofer, counters = Reactor(), Gofer(MountPlan(confs=()), FdSet()), Counters()
    reactor.start()
    process = subprocess.Popen(["sleep", "1000"])
    gofer.child = Child(process.pid, os.pidfd_open(process.pid), 0, "gofer")
    try:
        gofer.on_loss(reactor, partial(counters.took, "lost"))
        reactor.freeze()
        process.kill()
        found, other, same = handed_over([reactor, gofer, counters])
        found.thaw()
        done = threading.Event()
        _until(lambda: other._watch is not None and not other._watch._active)
        other.on_loss(found, lambda _: done.set())
        other.on_loss(found, lambda _: done.set())
        found.call_later(0.1, done.set)
        assert done.wait(TIMEOUT)
        assert same.snapshot()["stages"]["lost"][0] == 1
        found.stop()
    finally:
        gofer.child.close()
        process.kill()
        process.wait()


# -- the decision alone ------------------------------------------------------------------------


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.container.is_root = False
    bench.sandbox.wait_container = lambda *_: None  # type: ignore[attr-defined]
    return bench


class LostGofer:
    """One that tells of its loss when a test says so."""

    lose: Callable[[int], None]

    def on_loss(self, reactor: object, callback: Callable[[int], None]) -> None:
        self.lose = callback


def _run(bench: Bench) -> LostGofer:
    gofer = LostGofer()
    bench.sandbox.gofer_of = lambda cid: gofer  # type: ignore[method-assign]
    bench.run()
    return gofer


def test_nothing_is_asked_of_the_sentry_within_the_grace(bench: Bench) -> None:
    gofer = _run(bench)
    gofer.lose(9)
    bench.reactor.pass_time(kill.GRACE / 2)
    assert bench.workers.drain(5) and bench.sandbox.signals == []
    bench.reactor.pass_time(kill.GRACE)
    assert bench.workers.drain(5)
    assert [each[:2] for each in bench.sandbox.signals] == [("c", 9)]


@pytest.mark.parametrize("fault", [RuntimeFault("internal"), None])
def test_a_kill_without_effect_is_followed_by_what_follows_any(
    bench: Bench, fault: RuntimeFault | None
) -> None:
    gofer = _run(bench)

    def deliver() -> None:
        if fault is not None:
            raise fault

    bench.sandbox.deliver = deliver
    gofer.lose(11)
    bench.reactor.pass_time(kill.GRACE)
    assert bench.workers.drain(5)
    bench.reactor.pass_time(GOFER_TIMEOUT)
    assert bench.sandbox.gofers_killed == ["c"]


def test_a_container_that_has_just_ended_is_not_killed(bench: Bench) -> None:
    def gone() -> None:
        raise NotFound("process", "c")

    gofer = _run(bench)
    bench.sandbox.deliver = gone
    gofer.lose(9)
    bench.reactor.pass_time(kill.GRACE)
    assert bench.workers.drain(5)
    bench.reactor.pass_time(GOFER_TIMEOUT)
    assert bench.sandbox.gofers_killed == []


def test_a_restore_that_waits_for_others_ends_with_the_sandbox(bench: Bench) -> None:
    gofer = _run(bench)
    bench.sandbox.restoring = True
    gofer.lose(9)
    bench.reactor.pass_time(kill.GRACE)
    assert bench.workers.drain(5)
    assert bench.sandbox.killed.is_set()


def test_a_gofer_that_cannot_be_watched_fails_no_start(bench: Bench) -> None:
    def refuses(*_: object) -> None:
        raise OSError(28, "no space left on device")

    gofer = LostGofer()
    gofer.on_loss = refuses  # type: ignore[assignment,method-assign]
    bench.sandbox.gofer_of = lambda cid: gofer  # type: ignore[method-assign]
    bench.run()
    assert bench.container.runs
