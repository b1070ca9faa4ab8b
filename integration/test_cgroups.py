"""Cgroups against the kernel: limits, statistics, OOM kills, removal.  Without containerd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.base.errors import Failed
from runtime.cgroups import factory, remove
from runtime.cgroups.cgroup import Cgroup
from runtime.host.reactor import Reactor
from shim.bootstrap import join_cgroup

WAIT = 20.0
MIB = 1 << 20
MODE = factory.host_mode()

JOIN = 'for f in $FILES; do echo 0 > "$f" || exit 99; done; exec "$@"'
HOG = f"b = bytearray(0); [b.extend(bytes({MIB})) for _ in range(400)]"


def _pids(group: Cgroup) -> tuple[int, ...]:
    """The processes in it, by the first of its directories."""
    directory = next(iter(group.to_json()["directories"].values()))
    with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
        return tuple(int(word) for word in file.read().split())


class Place:
    """Makes cgroups below one of its own, and removes whatever a test left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: list[Cgroup] = []
        self.children: list[subprocess.Popen[str]] = []

    def create(self, below: str, resources: dict[str, Any] | None = None) -> Cgroup:
        group = factory.create(f"/{self.name}/{below}", resources or {})
        self.groups.append(group)
        return group

    def run(self, group: Cgroup, *command: str) -> subprocess.Popen[str]:
        """Start a command in the cgroup, as the shim does: the process itself writes "0"."""
        files = group.join_files or tuple(
            f"{path}/cgroup.procs" for path in group.to_json()["directories"].values()
        )
        child = subprocess.Popen(
            ["sh", "-c", JOIN, "sh", *command],
            env={**os.environ, "FILES": " ".join(files)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        return child

    def left(self) -> list[str]:
        """Directories of ours that exist."""
        return [
            os.path.join(mount, self.name)
            for mount in factory.CgroupRoot().mounts().values()
            if os.path.exists(os.path.join(mount, self.name))
        ]

    def clean(self) -> None:
        for child in self.children:
            child.kill()
            child.wait(WAIT)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
        for group in reversed(self.groups):
            group.remove()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place(f"gvisor-test-{os.getpid()}")
    assert place.left() == []
    try:
        yield place
    finally:
        place.clean()
    assert place.left() == []


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.start()
    yield reactor
    reactor.stop()


def wait_for_line(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"


def test_limits_and_statistics(place: Place) -> None:
    group = place.create(
        "a/b",
        {
            "memory": {"limit": 64 * MIB},
            "cpu": {"shares": 512, "quota": 10000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 20},
        },
    )
    assert group.memory_limit() == 64 * MIB
    assert group.cpu_quota() == (10000, 100000)
    assert group.cpu_count() == 1
    assert _pids(group) == ()
    burn = "import time; t=time.process_time\nwhile t() < 0.06: pass\nprint('ready'); input()"
    child = place.run(group, sys.executable, "-c", burn)
    wait_for_line(child)
    assert _pids(group) == (child.pid,)
    stats = group.stats()
    assert stats.cpu_usage_ns >= 50_000_000
    assert stats.cpu_user_ns + stats.cpu_system_ns > 0
    assert stats.cpu_throttled_periods > 0 and stats.cpu_throttled_ns > 0
    assert MIB < stats.memory.usage <= stats.memory.maximum <= 64 * MIB
    assert stats.memory.limit == 64 * MIB
    assert stats.anonymous > MIB and stats.page_faults > 0
    assert (stats.pids, stats.pids_limit) == (1, 128 + 4 * 20)
    assert stats.memory_events.oom_kill == 0


def test_reading_statistics_is_cheap(place: Place) -> None:
    group = place.create("a")
    best = WAIT
    for _ in range(50):
        start = time.perf_counter()
        group.stats()
        best = min(best, time.perf_counter() - start)
    assert best < 0.001


@pytest.mark.skipif(MODE == "v2", reason="v1's rule about memory and swap")
def test_memory_and_swap_rise_and_fall(place: Place) -> None:
    group = place.create("a", {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}})
    for size in (128, 32, 64):
        group.update({"memory": {"limit": size * MIB, "swap": size * MIB}})
        assert group.stats().memory.limit == group.stats().swap.limit == size * MIB


def test_quota_and_burst_rise_and_fall(place: Place) -> None:
    group = place.create("a", {"cpu": {"quota": 20000, "period": 100000, "burst": 10000}})
    for quota, burst in ((80000, 70000), (15000, 5000)):
        group.update({"cpu": {"quota": quota, "burst": burst}})
        assert group.cpu_quota() == (quota, 100000)


def test_a_failed_update_changes_nothing(place: Place) -> None:
    group = place.create("a", {"memory": {"limit": 64 * MIB}, "cpu": {"quota": 20000}})
    with pytest.raises(Failed) as caught:
        # The kernel takes no quota below a millisecond.
        group.update({"memory": {"limit": 128 * MIB}, "cpu": {"quota": 10}, "pids": {"limit": 5}})
    assert "linux.resources.cpu.quota" in str(caught.value)
    assert group.memory_limit() == 64 * MIB
    assert group.cpu_quota() == (20000, 100000)
    assert group.stats().pids_limit is None


def test_a_failed_creation_leaves_nothing(place: Place) -> None:
    with pytest.raises(Failed):
        place.create("a/b", {"cpu": {"quota": 10}})
    assert place.left() == []


def test_an_oom_kill_is_seen(place: Place, reactor: Reactor) -> None:
    group = place.create("a", {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}})
    seen: list[int] = []
    told = threading.Event()

    def callback(count: int) -> None:
        seen.append(count)
        told.set()

    watch = group.watch_oom(reactor, callback)
    child = place.run(group, sys.executable, "-c", HOG)
    assert child.wait(WAIT) == -signal.SIGKILL
    # Already there when the exit is known; no notification needed.
    assert group.oom_kills() == 1
    assert group.stats().memory_events.oom_kill == 1
    assert told.wait(WAIT)
    watch.cancel()
    assert seen == [1]
    # A cgroup that lives on is a fresh start for whoever takes it over.
    assert factory.create(f"/{place.name}/a", {}).oom_kills() == 0


# Takes 24 MiB when it is told to, and lets go of them when it is told so again.
STEPS = f"""
import mmap
print("ready", flush=True)
input()
held = mmap.mmap(-1, {24 * MIB})
for at in range(0, {24 * MIB}, 4096):
    held[at] = 1
print("ready", flush=True)
input()
held.close()
print("ready", flush=True)
input()
"""


def test_use_that_passes_a_mark_is_told(place: Place, reactor: Reactor) -> None:
    group = place.create("a")
    child = place.run(group, sys.executable, "-c", STEPS)
    wait_for_line(child)
    assert child.stdin is not None
    told = threading.Event()
    before = group.memory_usage()
    assert before is not None and before > 0
    quiet = group.watch_usage(reactor, 0, before + 400 * MIB, told.set)
    quiet.cancel()
    mark = group.watch_usage(reactor, max(before - 8 * MIB, 0), before + 8 * MIB, told.set)
    child.stdin.write("\n")
    child.stdin.flush()
    assert told.wait(WAIT)
    mark.cancel()
    wait_for_line(child)
    if MODE == "v1":
        told.clear()
        now = group.memory_usage()
        assert now is not None and now > before + 16 * MIB
        mark = group.watch_usage(reactor, now - 8 * MIB, now + 400 * MIB, told.set)
        child.stdin.write("\n")
        child.stdin.flush()
        assert told.wait(WAIT)
        mark.cancel()
    else:
        high = group.to_json()["directories"][""] + "/memory.high"
        with open(high) as file:
            assert file.read() == "max\n"


def test_an_ordinary_end_is_no_oom(place: Place, reactor: Reactor) -> None:
    group = place.create("a", {"memory": {"limit": 32 * MIB}})
    seen: list[int] = []
    watch = group.watch_oom(reactor, seen.append)
    child = place.run(group, "true")
    assert child.wait(WAIT) == 0
    group.remove()  # signals the watch on v1
    passed = threading.Event()
    reactor.call_later(0.02, passed.set)
    assert passed.wait(WAIT)
    assert seen == [] and group.oom_kills() == 0
    watch.cancel()


def test_removal_waits_for_the_last_process(place: Place) -> None:
    group = place.create("a/b")
    child = place.run(group, "sh", "-c", "echo ready; read x")
    wait_for_line(child)
    with pytest.raises(Failed) as caught:
        group.remove(0.05)
    assert "still in use" in str(caught.value)
    assert child.stdin is not None
    ending = threading.Timer(0.05, child.stdin.close)
    ending.start()
    start = time.monotonic()
    group.remove(WAIT)
    assert time.monotonic() - start < 2
    ending.join()
    assert place.left() == []


def test_a_cgroup_is_left_to_those_who_live_in_it(place: Place) -> None:
    """Such as a container that was restored, whose spec has the cgroup of its original."""
    group = place.create("a/b")
    child = place.run(group, "sh", "-c", "trap '' TERM; echo ready; read x")
    wait_for_line(child)
    began = time.monotonic()
    group.remove(WAIT)
    assert remove.STRANGERS_PATIENCE <= time.monotonic() - began < WAIT
    assert place.left() != [] and child.poll() is None
    os.kill(child.pid, signal.SIGSTOP)  # stopped, it is as alive
    group.remove(WAIT)
    child.kill()
    group.remove(WAIT)
    assert place.left() == []


def test_a_clean_up_removes_by_the_record(place: Place) -> None:
    data = place.create("a/b").to_json()
    again = factory.from_json(data)
    child = place.run(again, "sh", "-c", "echo ready; exec sleep 60")
    wait_for_line(child)
    child.kill()
    child.wait(WAIT)
    remove.remove_from_json(data, WAIT)
    assert place.left() == []


def test_the_shim_joins_a_cgroup(place: Place) -> None:
    group = place.create("shims")
    program = "import os, sys; from shim.bootstrap import join_cgroup; join_cgroup(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; print('ready', flush=True); input()", group.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        wait_for_line(child)
        inside = _pids(group)
        child.communicate("\n")
    assert inside == (child.pid,)
    with pytest.raises(Failed):
        join_cgroup(f"/{place.name}/missing")
