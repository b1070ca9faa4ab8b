"""Metrics as the messages that containerd expects: v1's on a host with cgroup v1, else v2's.

Owns the mapping of :class:`runtime.cgroups.metrics.Metrics` to containerd/cgroups' ``Metrics``.
The generated code of the version that isn't used is never loaded.

containerd's CRI plugin computes ``limit - (usage - inactive file)`` in unsigned numbers, and
takes a limit above 2**62 for none.  So no limit is sent as 2**64 - 1, never as 0.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from protos import cgroups_v1_pb2, cgroups_v2_pb2
    from runtime.cgroups.metrics import Amount, Metrics, Pressure

V1_TYPE = "io.containerd.cgroups.v1.Metrics"
V2_TYPE = "io.containerd.cgroups.v2.Metrics"

UNLIMITED = (1 << 64) - 1

# v1: field of the message -> name in memory.stat, where they differ.
_V1_NAMES = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
}
_V1_FIELDS = (
    "cache",
    "rss",
    "rss_huge",
    "mapped_file",
    "dirty",
    "writeback",
    "pg_pg_in",
    "pg_pg_out",
    "pg_fault",
    "pg_maj_fault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
)
# v2: fields named as in memory.stat.
_V2_FIELDS = (
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
)
# Counters that the kernel split in two after the message was defined (5.9).
_V2_SPLIT = ("workingset_refault", "workingset_activate")


def to_any(mode: str, metrics: Metrics) -> tuple[str, bytes]:
    """The type URL and the encoded message for a host of ``mode`` (``v1`` or ``v2``).

    The type follows the host, whichever cgroup driver is in use: containerd's metrics plugin
    rejects the other one.
    """
    if mode == "v2":
        return V2_TYPE, _v2(metrics).SerializeToString()
    return V1_TYPE, _v1(metrics).SerializeToString()


def _limit(limit: int | None) -> int:
    return UNLIMITED if limit is None or limit <= 0 else min(limit, UNLIMITED)


def _v1(m: Metrics) -> cgroups_v1_pb2.Metrics:
    from protos import cgroups_v1_pb2 as pb

    message = pb.Metrics()
    message.pids.current = m.pids
    # Here 0 is "none", as in containerd's own reader.
    message.pids.limit = m.pids_limit or 0
    usage, throttling = message.cpu.usage, message.cpu.throttling
    usage.total, usage.user, usage.kernel = m.cpu_usage_ns, m.cpu_user_ns, m.cpu_system_ns
    throttling.periods = m.cpu_periods
    throttling.throttled_periods = m.cpu_throttled_periods
    throttling.throttled_time = m.cpu_throttled_ns
    memory = message.memory
    for field in _V1_FIELDS:
        name = _V1_NAMES.get(field, field)
        setattr(memory, field, m.memory_detail.get(name, 0))
        setattr(memory, f"total_{field}", m.memory_detail.get(f"total_{name}", 0))
    # What was settled with the sentry's figures goes before the kernel's.
    memory.rss = memory.total_rss = m.anonymous
    memory.cache = memory.total_cache = m.file
    memory.inactive_file = memory.total_inactive_file = m.inactive_file
    memory.active_file = memory.total_active_file = m.active_file
    memory.total_pg_fault, memory.total_pg_maj_fault = m.page_faults, m.major_faults
    memory.hierarchical_memory_limit = _limit(m.memory.limit)
    memory.hierarchical_swap_limit = _limit(m.memory_detail.get("hierarchical_memsw_limit"))
    _entry(memory.usage, m.memory)
    _entry(memory.swap, m.swap)
    _entry(memory.kernel, m.kernel)
    events = m.memory_events
    message.memory_oom_control.oom_kill_disable = events.oom_kill_disable
    message.memory_oom_control.under_oom = events.under_oom
    message.memory_oom_control.oom_kill = events.oom_kill
    for device in m.io:
        numbers = {"major": device.major, "minor": device.minor}
        for op, size, count in (
            ("Read", device.read_bytes, device.reads),
            ("Write", device.write_bytes, device.writes),
        ):
            message.blkio.io_service_bytes_recursive.add(op=op, value=size, **numbers)
            message.blkio.io_serviced_recursive.add(op=op, value=count, **numbers)
    for pages in m.huge_pages:
        message.hugetlb.add(
            pagesize=pages.size,
            usage=pages.amount.usage,
            max=pages.amount.maximum,
            failcnt=pages.amount.failures,
        )
    for network in m.networks:
        message.network.add(**{name: getattr(network, name) for name in network._fields})
    return message


def _entry(entry: cgroups_v1_pb2.MemoryEntry, amount: Amount) -> None:
    entry.limit = _limit(amount.limit)
    entry.usage, entry.max, entry.failcnt = amount.usage, amount.maximum, amount.failures


def _v2(m: Metrics) -> cgroups_v2_pb2.Metrics:
    from protos import cgroups_v2_pb2 as pb

    message = pb.Metrics()
    message.pids.current, message.pids.limit = m.pids, _limit(m.pids_limit)
    cpu = message.cpu
    cpu.usage_usec = m.cpu_usage_ns // 1000
    cpu.user_usec, cpu.system_usec = m.cpu_user_ns // 1000, m.cpu_system_ns // 1000
    cpu.nr_periods, cpu.nr_throttled = m.cpu_periods, m.cpu_throttled_periods
    cpu.throttled_usec = m.cpu_throttled_ns // 1000
    cpu.nr_bursts, cpu.burst_usec = m.cpu_bursts, m.cpu_burst_ns // 1000
    _pressure(cpu.psi, m.cpu_pressure)
    memory = message.memory
    detail = m.memory_detail
    for field in _V2_FIELDS:
        setattr(memory, field, detail.get(field, 0))
    for field in _V2_SPLIT:
        split = detail.get(f"{field}_anon", 0) + detail.get(f"{field}_file", 0)
        setattr(memory, field, detail.get(field, split))
    memory.anon, memory.file = m.anonymous, m.file
    memory.inactive_file, memory.active_file = m.inactive_file, m.active_file
    memory.pgfault, memory.pgmajfault = m.page_faults, m.major_faults
    memory.usage, memory.usage_limit = m.memory.usage, _limit(m.memory.limit)
    memory.max_usage = m.memory.maximum
    memory.swap_usage, memory.swap_max_usage = m.swap.usage, m.swap.maximum
    # Unlike memory's, swap's limit is often 0 and means it.
    memory.swap_limit = UNLIMITED if m.swap.limit is None else m.swap.limit
    _pressure(memory.psi, m.memory_pressure)
    for name in ("low", "high", "max", "oom", "oom_kill", "oom_group_kill"):
        setattr(message.memory_events, name, getattr(m.memory_events, name))
    for device in m.io:
        message.io.usage.add(
            major=device.major,
            minor=device.minor,
            rbytes=device.read_bytes,
            wbytes=device.write_bytes,
            rios=device.reads,
            wios=device.writes,
        )
    _pressure(message.io.psi, m.io_pressure)
    for pages in m.huge_pages:
        message.hugetlb.add(
            pagesize=pages.size,
            current=pages.amount.usage,
            max=_limit(pages.amount.limit),
            failcnt=pages.amount.failures,
        )
    for network in m.networks:
        message.network.add(**{name: getattr(network, name) for name in network._fields})
    return message


def _pressure(psi: cgroups_v2_pb2.PSIStats, pressure: Pressure | None) -> None:
    if pressure is None:
        return
    for target, line in ((psi.some, pressure.some), (psi.full, pressure.full)):
        if line is not None:
            target.avg10, target.avg60, target.avg300 = line.avg10, line.avg60, line.avg300
            target.total = line.total
