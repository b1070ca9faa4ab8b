"""Joining the host's figures with the sentry's."""

from __future__ import annotations

import threading

import pytest

from runtime.cgroups.metrics import (
    Amount,
    CpuClock,
    DeviceIO,
    HostStats,
    MemoryEvents,
    NetworkStats,
    SentryStats,
    apportion,
    combine,
    use,
)

HOST = HostStats(
    cpu_usage_ns=1000,
    cpu_user_ns=600,
    cpu_system_ns=400,
    cpu_throttled_periods=3,
    memory=Amount(usage=500, limit=2000, maximum=700, failures=1),
    anonymous=300,
    inactive_file=40,
    page_faults=9,
    memory_events=MemoryEvents(oom_kill=2),
    pids=77,
    pids_limit=100,
    io=(DeviceIO(major=8, minor=0, read_bytes=5),),
)
ETH0 = NetworkStats(name="eth0", rx_bytes=5)


@pytest.mark.parametrize(
    ("host", "cpu", "result"),
    [
        (1000, {}, 0),
        (None, {}, 0),
        (None, {"a": 7, "b": 9}, 7),
        (0, {"a": 7, "b": 9}, 7),
        (1000, {"a": 7}, 1000),
        (1000, {"a": 25, "b": 75}, 250),
        (1000, {"b": 75}, 0),
        (1001, {"a": 0, "b": 0}, 500),
        (16 * 10**9, {"a": 16 * 10**9, "b": 16 * 10**9}, 8 * 10**9),
    ],
)
def test_apportion(host: int | None, cpu: dict[str, int], result: int) -> None:
    assert apportion(host, cpu, "a") == result


def test_a_container_alone_gets_all_of_the_cgroup() -> None:
    sentry = SentryStats(cpu_ns={"a": 5}, memory_usage=200, pids=3, networks=(ETH0,))
    metrics = combine(HOST, sentry, "a", pids_limit=100)
    assert (metrics.cpu_usage_ns, metrics.cpu_user_ns, metrics.cpu_system_ns) == (1000, 600, 400)
    assert metrics.memory == Amount(usage=200, limit=2000, maximum=700, failures=1)
    # The sentry's usage has no reclaimable host pages in it that CRI could subtract.
    assert metrics.inactive_file == 0
    assert (metrics.anonymous, metrics.page_faults) == (300, 9)
    assert (metrics.pids, metrics.pids_limit) == (3, 100)
    assert metrics.io == HOST.io
    assert metrics.networks == (ETH0,)
    assert metrics.memory_events.oom_kill == 2


def test_a_container_of_several_gets_its_part() -> None:
    sentry = SentryStats(cpu_ns={"a": 1, "b": 3}, memory_usage=200, pids=3)
    metrics = combine(HOST, sentry, "a")
    assert (metrics.cpu_usage_ns, metrics.cpu_user_ns, metrics.cpu_system_ns) == (250, 150, 100)
    assert metrics.memory == Amount(usage=200, limit=2000, maximum=200, failures=1)
    assert (metrics.anonymous, metrics.inactive_file) == (200, 0)
    assert (metrics.page_faults, metrics.io) == (0, ())
    # These hold for the sandbox, hence for each in it.
    assert metrics.memory_events.oom_kill == 2
    assert metrics.cpu_throttled_periods == 3
    assert metrics.pids == 3


def test_an_idle_container_of_several_uses_no_memory() -> None:
    sentry = SentryStats(cpu_ns={"pause": 0, "a": 3})
    assert combine(HOST, sentry, "pause").memory.usage == 0


def test_who_is_alone_can_be_said() -> None:
    sentry = SentryStats(cpu_ns={"pause": 0}, memory_usage=8)
    assert combine(HOST, sentry, "pause", is_root_only=False).io == ()
    assert combine(HOST, sentry, "pause", is_root_only=True).io == HOST.io


def test_the_host_stands_in_for_a_sentry_without_memory_figures() -> None:
    metrics = combine(HOST, SentryStats(cpu_ns={"a": 5}), "a")
    assert (metrics.memory.usage, metrics.inactive_file) == (500, 40)


def test_without_the_sentry_the_cgroup_speaks() -> None:
    metrics = combine(HOST, None, "a")
    assert (metrics.cpu_usage_ns, metrics.memory.usage, metrics.pids) == (1000, 500, 77)
    assert combine(HOST, None, "a", is_root_only=False).cpu_usage_ns == 0


def test_without_a_cgroup_the_sentry_speaks() -> None:
    sentry = SentryStats(cpu_ns={"a": 5, "b": 5}, memory_usage=200, pids=3)
    metrics = combine(None, sentry, "a")
    assert (metrics.cpu_usage_ns, metrics.memory.usage, metrics.memory.limit) == (5, 200, None)
    assert combine(None, None, "a").memory.limit is None


@pytest.mark.parametrize(
    ("limit", "reported"), [(None, 2000), (0, 2000), (-1, 2000), (1500, 1500), (100, 200)]
)
def test_the_limit_never_lies_below_the_working_set(limit: int | None, reported: int) -> None:
    sentry = SentryStats(cpu_ns={"a": 1, "b": 3}, memory_usage=200)
    assert combine(HOST, sentry, "a", memory_limit=limit).memory.limit == reported


def test_the_clock_never_goes_back() -> None:
    clock = CpuClock()
    shares = [{"a": 5, "b": 5}, {"a": 5, "b": 95}, {"a": 9, "b": 1}]
    seen = [combine(HOST, SentryStats(cpu_ns=cpu), "a", clock=clock).cpu_usage_ns for cpu in shares]
    assert seen == [500, 500, 900]
    assert clock.advance("b", 7) == 7
    clock.forget("a")
    assert clock.advance("a", 1) == 1


def test_the_clock_is_shared_by_threads() -> None:
    clock = CpuClock()
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait(5)
        values = [clock.advance("a", n) for n in range(500)]
        assert values == sorted(values)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert clock.advance("a", 0) == 499


def test_a_container_that_runs_has_used_some_cpu() -> None:
    """An idle pause container, which metrics-server would take for missing: a microsecond."""
    host, sentry = HostStats(cpu_usage_ns=900), SentryStats(cpu_ns={"pause": 0, "b": 9})
    assert combine(host, sentry, "pause").cpu_usage_ns == 1000
    assert combine(host, None, "pause", is_root_only=False).cpu_usage_ns == 0


@pytest.mark.parametrize("host", [None, HOST, HOST.replace(cpu_usage_ns=0, memory=Amount())])
@pytest.mark.parametrize("cpu_ns", [{}, {"a": 0, "b": 0}, {"a": 30, "b": 10}, {"b": 5}])
@pytest.mark.parametrize("memory", [0, 5000])
@pytest.mark.parametrize("limit", [None, 0, 3000])
@pytest.mark.parametrize("alone", [True, False])
def test_the_brief_figures_are_those_of_all(
    host: HostStats | None, cpu_ns: dict[str, int], memory: int, limit: int | None, alone: bool
) -> None:
    sentry = SentryStats(cpu_ns=cpu_ns, memory_usage=memory, pids=3)
    whole = combine(host, sentry, "a", is_root_only=alone, memory_limit=limit)
    brief = use(host, sentry, cpu_ns, "a", is_root_only=alone, memory_limit=limit)
    assert brief.cpu_usage_ns == whole.cpu_usage_ns and brief.pids == whole.pids
    assert (brief.memory_usage, brief.memory_limit) == (whole.memory.usage, whole.memory.limit)
