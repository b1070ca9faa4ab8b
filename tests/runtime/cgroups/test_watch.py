"""The OOM watch's logic, with a reactor driven by hand and counts from here."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.base.errors import Failed, Unsupported
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.cgroups.watch import OOMWatch, UsageMark, mark_v1, mark_v2, watch_v1, watch_v2


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandReactor:
    """Fires on request.  Keeps what was asked of it."""

    def __init__(self) -> None:
        self.watches: list[tuple[Handle, int, Callable[[int], object]]] = []
        self.timers: list[tuple[Handle, float, Callable[[], object]]] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> Handle:
        handle = Handle()
        self.watches.append((handle, fd, callback))
        return handle

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Handle:
        handle = Handle()
        self.timers.append((handle, seconds, fn))
        return handle

    def fire(self) -> None:
        for handle, _, callback in self.watches:
            if not handle.cancelled:
                callback(select.EPOLLIN)

    def run_timers(self) -> list[float]:
        """Run what is due now, but not what that adds; returns the delays."""
        due, self.timers = self.timers, []
        ran = []
        for handle, seconds, fn in due:
            if not handle.cancelled:
                fn()
                ran.append(seconds)
        return ran


class Kernel:
    def __init__(self) -> None:
        self.count: int | None = 0
        self.seen: list[int] = []
        self.reactor = HandReactor()
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC)
        self.watch: OOMWatch | None = None

    def start(self) -> OOMWatch:
        self.watch = OOMWatch(
            self.reactor, (self.descriptor,), select.EPOLLIN, lambda: self.count, self.seen.append
        )
        return self.watch

    def is_open(self) -> bool:
        try:
            os.fstat(self.descriptor)
        except OSError:
            return False
        return True


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_each_growth_is_told_once(kernel: Kernel) -> None:
    kernel.start()
    kernel.count = 1
    kernel.reactor.fire()
    kernel.reactor.fire()
    kernel.count = 4
    kernel.reactor.fire()
    assert kernel.seen == [1, 4]


def test_kills_before_the_watch_are_told(kernel: Kernel) -> None:
    kernel.count = 2
    kernel.start()
    assert kernel.seen == []  # not from within the caller
    kernel.reactor.run_timers()
    assert kernel.seen == [2]


def test_a_signal_ahead_of_the_count_is_followed_up(kernel: Kernel) -> None:
    kernel.start()
    kernel.reactor.fire()
    assert kernel.seen == []
    kernel.reactor.run_timers()
    kernel.count = 1
    kernel.reactor.run_timers()
    assert kernel.seen == [1]
    assert kernel.reactor.run_timers() == []


def test_looking_again_comes_to_an_end(kernel: Kernel) -> None:
    kernel.start()
    kernel.reactor.fire()
    delays = [kernel.reactor.run_timers() for _ in range(5)]
    assert [len(d) for d in delays] == [1, 1, 1, 0, 0]
    kernel.reactor.fire()
    assert len(kernel.reactor.timers) == 1


def test_a_new_signal_takes_the_place_of_a_second_look(kernel: Kernel) -> None:
    kernel.start()
    kernel.reactor.fire()
    kernel.reactor.fire()
    assert sum(not handle.cancelled for handle, _, _ in kernel.reactor.timers) == 1


def test_cancel_frees_everything(kernel: Kernel) -> None:
    watch = kernel.start()
    kernel.reactor.fire()
    watch.cancel()
    watch.cancel()
    assert not kernel.is_open()
    kernel.count = 1
    assert kernel.reactor.run_timers() == []
    kernel.reactor.fire()
    assert kernel.seen == []


def test_the_watch_ends_with_its_cgroup(kernel: Kernel) -> None:
    kernel.start()
    kernel.count = None
    kernel.reactor.fire()
    assert not kernel.is_open()
    assert kernel.seen == []


def test_it_can_be_cancelled_from_the_callback(kernel: Kernel) -> None:
    watch = kernel.start()
    kernel.seen = []
    watch._callback = lambda count: watch.cancel()
    kernel.count = 1
    kernel.reactor.fire()
    assert not kernel.is_open()


def test_a_reactor_that_is_gone_leaks_nothing(kernel: Kernel) -> None:
    class Stopped(HandReactor):
        def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> Handle:
            raise Failed("reactor is stopped")

    kernel.reactor = Stopped()
    with pytest.raises(Failed):
        kernel.start()
    assert not kernel.is_open()


def test_a_missing_cgroup_is_named() -> None:
    before = os.listdir("/proc/self/fd")
    for start in (watch_v1, watch_v2):
        with pytest.raises(Unsupported) as caught:
            start(HandReactor(), "/nowhere", 0, lambda count: None)
        assert "/nowhere" in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_v1_registers_an_eventfd_and_counts_from_the_baseline(tmp_path: Path) -> None:
    (tmp_path / "cgroup.event_control").touch()
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 3\n")
    reactor, seen = HandReactor(), list[int]()
    watch = watch_v1(reactor, str(tmp_path), 3, seen.append)
    notices = reactor.watches[0][1]
    assert (tmp_path / "cgroup.event_control").read_text().split()[0] == str(notices)
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 5\n")
    os.eventfd_write(notices, 1)
    reactor.fire()
    assert seen == [2]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(notices)  # emptied, or the reactor would spin
    watch.cancel()


def test_v1_a_removed_cgroup_is_no_oom(tmp_path: Path) -> None:
    directory = tmp_path / "cgroup"
    directory.mkdir()
    (directory / "cgroup.event_control").touch()
    (directory / "memory.oom_control").write_text("oom_kill 0\n")
    reactor, seen = HandReactor(), list[int]()
    watch_v1(reactor, str(directory), 0, seen.append)
    (directory / "cgroup.event_control").unlink()
    (directory / "memory.oom_control").unlink()
    directory.rmdir()
    os.eventfd_write(reactor.watches[0][1], 1)
    reactor.fire()
    assert seen == [] and reactor.timers == [] and reactor.watches[0][0].cancelled


def test_v2_reads_memory_events_from_the_start_each_time(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 9\noom_kill 3\n")
    reactor, seen = HandReactor(), list[int]()
    watch = watch_v2(reactor, str(tmp_path), 3, seen.append)
    for count in (4, 7):
        events.write_text(f"oom 9\noom_kill {count}\n")
        reactor.fire()
    assert seen == [1, 4]
    watch.cancel()


# -- marks on use ----------------------------------------------------------------------------


class Marked:
    """A cgroup v2 whose files a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reactor = HandReactor()
        self.passed = 0
        (folder / "memory.high").write_text("max\n")
        self.count(3)

    def count(self, high: int) -> None:
        (self.folder / "memory.events").write_text(f"low 0\nhigh {high}\nmax 9\n")

    @property
    def high(self) -> str:
        return (self.folder / "memory.high").read_text().strip()

    def set(self, high: int) -> UsageMark:
        def passed() -> None:
            self.passed += 1

        return mark_v2(CgroupRoot(), self.reactor, str(self.folder), high, passed)


def test_a_mark_is_a_soft_limit_for_as_long_as_it_stands(tmp_path: Path) -> None:
    scene = Marked(tmp_path)
    mark = scene.set(4096)
    assert scene.high == "4096"
    scene.reactor.fire()  # for another counter of the file
    assert scene.passed == 0
    scene.count(4)
    scene.reactor.fire()
    assert scene.passed == 1
    mark.cancel()
    mark.cancel()
    assert scene.high == "max"
    scene.reactor.fire()
    assert scene.passed == 1


def test_a_soft_limit_of_somebody_else_stays(tmp_path: Path) -> None:
    scene = Marked(tmp_path)
    (tmp_path / "memory.high").write_text("1000\n")
    with pytest.raises(Unsupported, match="set already"):
        scene.set(4096)
    assert scene.high == "1000" and scene.reactor.watches == []


def test_marks_in_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unsupported):
        mark_v1(HandReactor(), str(tmp_path), 1, 2, lambda: None)
    with pytest.raises(Unsupported):
        mark_v2(CgroupRoot(), HandReactor(), str(tmp_path), 2, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_marks_of_v1_are_registered_with_the_kernel(tmp_path: Path) -> None:
    """Both of them for one descriptor; zero is none."""
    (tmp_path / "memory.usage_in_bytes").touch()
    control = tmp_path / "cgroup.event_control"
    control.touch()
    reactor = HandReactor()
    calls: list[int] = []
    mark = mark_v1(reactor, str(tmp_path), 0, 77, lambda: calls.append(1))
    eventfd, file, high = control.read_text().split()
    assert high == "77" and int(file) != int(eventfd) == reactor.watches[0][1]
    reactor.fire()
    assert calls == []  # nothing was signalled
    os.eventfd_write(int(eventfd), 1)
    reactor.fire()
    assert calls == [1]
    mark.cancel()
    reactor.fire()
    assert calls == [1]
