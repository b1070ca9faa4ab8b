"""Metrics on the wire, and containerd's arithmetic on them."""

from __future__ import annotations

import pytest

# The last is what the pool of messages tries itself out with; the daemon has it loaded anyway.
from protos import cgroups_v1_pb2, cgroups_v2_pb2, wkt_pb2  # noqa: F401
from runtime.cgroups.metrics import (
    Amount,
    DeviceIO,
    HugePages,
    MemoryEvents,
    Metrics,
    NetworkStats,
    Pressure,
    PressureLine,
)
from shim.metrics import to_any

MAX = (1 << 64) - 1

FULL = Metrics(
    cpu_usage_ns=3_000_999,
    cpu_user_ns=2_000_000,
    cpu_system_ns=1_000_000,
    cpu_periods=4,
    cpu_throttled_periods=5,
    cpu_throttled_ns=6_000,
    cpu_bursts=7,
    cpu_burst_ns=8_000,
    memory=Amount(usage=100, limit=1000, maximum=150, failures=2),
    swap=Amount(usage=10, limit=0, maximum=11),
    kernel=Amount(usage=5),
    anonymous=60,
    file=30,
    inactive_file=20,
    active_file=10,
    page_faults=12,
    major_faults=13,
    memory_detail={
        "pgpgin": 1,
        "total_mapped_file": 2,
        "hierarchical_memsw_limit": 3,
        "slab": 4,
        "workingset_refault_anon": 5,
        "workingset_refault_file": 6,
        "rss": 999,
    },
    memory_events=MemoryEvents(low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6),
    pids=9,
    pids_limit=50,
    io=(DeviceIO(major=8, minor=1, read_bytes=1, write_bytes=2, reads=3, writes=4),),
    huge_pages=(HugePages(size="2MB", amount=Amount(usage=1, maximum=2, failures=3)),),
    cpu_pressure=Pressure(some=PressureLine(avg10=0.5, avg60=1, avg300=2, total=99)),
    networks=(
        NetworkStats(
            name="eth0",
            rx_bytes=1,
            rx_packets=2,
            rx_errors=3,
            rx_dropped=4,
            tx_bytes=5,
            tx_packets=6,
            tx_errors=7,
            tx_dropped=8,
        ),
    ),
)


def v1(metrics: Metrics) -> cgroups_v1_pb2.Metrics:
    kind, data = to_any("v1", metrics)
    assert kind == "io.containerd.cgroups.v1.Metrics"
    return cgroups_v1_pb2.Metrics.FromString(data)


def v2(metrics: Metrics) -> cgroups_v2_pb2.Metrics:
    kind, data = to_any("v2", metrics)
    assert kind == "io.containerd.cgroups.v2.Metrics"
    return cgroups_v2_pb2.Metrics.FromString(data)


def test_v1() -> None:
    m = v1(FULL)
    assert (m.cpu.usage.total, m.cpu.usage.user, m.cpu.usage.kernel) == (
        3_000_999,
        2_000_000,
        1_000_000,
    )
    assert m.cpu.throttling.throttled_time == 6_000
    assert (m.memory.usage.usage, m.memory.usage.limit, m.memory.usage.max) == (100, 1000, 150)
    assert m.memory.usage.failcnt == 2
    assert (m.memory.rss, m.memory.total_rss) == (60, 60)
    assert (m.memory.cache, m.memory.total_inactive_file, m.memory.total_active_file) == (
        30,
        20,
        10,
    )
    assert (m.memory.total_pg_fault, m.memory.total_pg_maj_fault) == (12, 13)
    assert (m.memory.pg_pg_in, m.memory.total_mapped_file) == (1, 2)
    assert m.memory.hierarchical_swap_limit == 3
    assert m.memory_oom_control.oom_kill == 5
    assert (m.pids.current, m.pids.limit) == (9, 50)
    sizes = [(e.op, e.major, e.minor, e.value) for e in m.blkio.io_service_bytes_recursive]
    assert sizes == [("Read", 8, 1, 1), ("Write", 8, 1, 2)]
    assert [e.value for e in m.blkio.io_serviced_recursive] == [3, 4]
    assert [(h.pagesize, h.usage, h.max, h.failcnt) for h in m.hugetlb] == [("2MB", 1, 2, 3)]
    assert [(n.name, n.rx_bytes, n.tx_dropped) for n in m.network] == [("eth0", 1, 8)]


def test_v2() -> None:
    m = v2(FULL)
    assert (m.cpu.usage_usec, m.cpu.user_usec, m.cpu.system_usec) == (3000, 2000, 1000)
    assert (m.cpu.nr_throttled, m.cpu.throttled_usec, m.cpu.burst_usec) == (5, 6, 8)
    assert (m.memory.usage, m.memory.usage_limit, m.memory.max_usage) == (100, 1000, 150)
    assert (m.memory.anon, m.memory.file, m.memory.inactive_file) == (60, 30, 20)
    assert (m.memory.pgfault, m.memory.pgmajfault) == (12, 13)
    assert (m.memory.slab, m.memory.workingset_refault) == (4, 11)
    assert m.memory.swap_limit == 0  # no swap allowed, not "no limit"
    assert m.memory_events.oom_kill == 5
    assert (m.pids.current, m.pids.limit) == (9, 50)
    assert [(d.major, d.rbytes, d.wios) for d in m.io.usage] == [(8, 1, 4)]
    assert [(h.pagesize, h.current, h.max, h.failcnt) for h in m.hugetlb] == [("2MB", 1, MAX, 3)]
    assert (m.cpu.psi.some.avg10, m.cpu.psi.some.total) == (0.5, 99)
    assert not m.cpu.psi.HasField("full")
    assert not m.memory.HasField("psi")
    assert [(n.name, n.rx_dropped, n.tx_bytes) for n in m.network] == [("eth0", 4, 5)]


def test_what_is_not_limited_is_never_zero() -> None:
    for limit in (None, 0):
        metrics = Metrics(memory=Amount(usage=5, limit=limit))
        old, new = v1(metrics), v2(metrics)
        assert old.memory.usage.limit == old.memory.hierarchical_memory_limit == MAX
        assert new.memory.usage_limit == new.memory.swap_limit == new.pids.limit == MAX
    assert v1(Metrics()).pids.limit == 0


def cri(usage: int, inactive_file: int, limit: int) -> tuple[int, int]:
    """(working set, available) as containerd's CRI plugin has it, in uint64."""
    working_set = usage - inactive_file if inactive_file < usage else 0
    return working_set, 0 if limit > 1 << 62 else (limit - working_set) % (1 << 64)


@pytest.mark.parametrize(
    ("metrics", "result"),
    [
        (FULL, (80, 920)),
        (Metrics(), (0, 0)),
        (Metrics(memory=Amount(usage=5)), (5, 0)),
        (Metrics(memory=Amount(usage=5, limit=5)), (5, 0)),
    ],
)
def test_cri_can_reckon_with_it(metrics: Metrics, result: tuple[int, int]) -> None:
    old, new = v1(metrics).memory, v2(metrics).memory
    assert cri(old.usage.usage, old.total_inactive_file, old.usage.limit) == result
    assert cri(new.usage, new.inactive_file, new.usage_limit) == result
