"""The arithmetic of task statistics: the host's cgroup figures joined with the sentry's.

Pure: no input or output.  Knows no cgroup files, no urpc and no protobuf.
"""

from __future__ import annotations

import threading

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class NetworkStats(Record):
    """Counters of one interface of the sandbox since it came up."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class SentryStats(Record):
    """The sentry's answer about one container.

    ``cpu_ns`` maps every container of the sandbox to the CPU time that the sentry saw it use,
    in nanoseconds.  ``memory_usage`` (bytes) and ``pids`` are the container's where the sentry
    counts per container, the sandbox's where it doesn't.

    ``own_cpu_ns`` is the asked container's alone, from a cgroup inside the sandbox; a sentry that
    has that leaves ``cpu_ns`` empty.
    """

    cpu_ns: Mapping[str, int]
    own_cpu_ns: int | None = None
    memory_usage: int = 0
    #: Whether that is the container's own, and not a share of the sandbox's.
    owns_memory: bool = False
    pids: int = 0
    networks: tuple[NetworkStats, ...] = ()


class Amount(Record):
    """Use of a resource in bytes.  ``limit`` None is unlimited; ``maximum`` is the peak."""

    usage: int = 0
    limit: int | None = None
    maximum: int = 0
    failures: int = 0


class MemoryEvents(Record):
    """How often limits were met.  v1 knows the last three only, v2 all but them."""

    low: int = 0
    high: int = 0
    max: int = 0
    oom: int = 0
    oom_kill: int = 0
    oom_group_kill: int = 0
    oom_kill_disable: int = 0
    under_oom: int = 0


class DeviceIO(Record):
    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class HugePages(Record):
    size: str
    amount: Amount


class PressureLine(Record):
    """Share of time in percent over 10, 60 and 300 s; ``total`` in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total: int


class Pressure(Record):
    some: PressureLine | None = None
    full: PressureLine | None = None


class HostStats(Record):
    """Counters of one cgroup of the host.  Times in nanoseconds, sizes in bytes.

    ``memory_detail`` is memory.stat as the kernel gives it, with the kernel's names, which
    differ between v1 and v2; the fields before it are what both have (v1: of the whole subtree).
    A file that the host doesn't have counts as zero.
    """

    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0
    cpu_bursts: int = 0
    cpu_burst_ns: int = 0
    memory: Amount = Amount()
    swap: Amount = Amount()
    kernel: Amount = Amount()
    anonymous: int = 0
    file: int = 0
    inactive_file: int = 0
    active_file: int = 0
    page_faults: int = 0
    major_faults: int = 0
    memory_detail: Mapping[str, int] = {}
    memory_events: MemoryEvents = MemoryEvents()
    pids: int = 0
    pids_limit: int | None = None
    io: tuple[DeviceIO, ...] = ()
    huge_pages: tuple[HugePages, ...] = ()
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


class Metrics(HostStats):
    """What is reported about one container."""

    networks: tuple[NetworkStats, ...] = ()


_LEAST_CPU = 1000  # ns; v2's figures are in microseconds


class CpuClock:
    """Keeps each container's reported CPU time from going backwards.  Thread-safe.

    The apportioned time shrinks when the sentry's shares shift, and CRI then drops the sample.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, int] = {}  # guarded by _lock

    def advance(self, container_id: str, nanoseconds: int) -> int:
        """The greater of ``nanoseconds`` and what was reported before."""
        with self._lock:
            value = max(nanoseconds, self._last.get(container_id, 0))
            self._last[container_id] = value
            return value

    def known(self) -> list[str]:
        """The containers of which something was reported."""
        with self._lock:
            return list(self._last)

    def forget(self, container_id: str) -> None:
        """The container is gone; the id may be used anew."""
        with self._lock:
            self._last.pop(container_id, None)


def apportion(host_ns: int | None, cpu_ns: Mapping[str, int], container_id: str) -> int:
    """A container's part of the CPU time that the host saw the sandbox use, in nanoseconds.

    runsc's rule (container.go, populateStats): in proportion to the sentry's own figures; split
    evenly while those are all zero; nothing if the sentry lists no container; the sentry's
    figure as it is where the host has none.
    """
    if not cpu_ns:
        return 0
    own = cpu_ns.get(container_id, 0)
    if not host_ns:
        return own
    total = sum(cpu_ns.values())
    if total == 0:
        return host_ns // len(cpu_ns)
    return int(float(own) * (float(host_ns) / float(total)))


def combine(
    host: HostStats | None,
    sentry: SentryStats | None,
    container_id: str,
    *,
    is_root_only: bool | None = None,
    memory_limit: int | None = None,
    pids_limit: int | None = None,
    clock: CpuClock | None = None,
) -> Metrics:
    """One container's metrics from its sandbox's cgroup and the sentry's answer.

    ``is_root_only``: the sandbox holds just this container (None: as ``sentry`` shows).
    ``memory_limit`` and ``pids_limit`` are the container's own limits, where its spec has them; the
    host's limit of processes is none of a container's (see ``settings.py``).

    CPU is apportioned (see :func:`apportion`), and so are its user and system parts.  Throttling,
    pressure and OOM counters are the sandbox's for each of its containers, because all of them
    suffer it together.

    Memory usage, processes and network are the sentry's, as in runsc.  The sentry's usage has no
    reclaimable host page cache in it, so no inactive file pages are reported with it: CRI would
    subtract them to get the working set.  A container alone in its sandbox also gets the other
    figures of the cgroup (faults, kernel, swap, I/O, huge pages), which include the sentry's own
    needs.  In a pod they can't be told apart, and each container reporting the pod's sum would
    count it many times, so they are left out; resident memory is then the sentry's usage.

    Without ``sentry`` (not started, or gone) the cgroup's figures are given as they are.
    """
    if is_root_only is None:
        is_root_only = sentry is None or len(sentry.cpu_ns) <= 1
    source = host if host is not None else HostStats()
    source = source.replace(pids_limit=pids_limit if pids_limit and pids_limit > 0 else None)
    if sentry is None:
        if not is_root_only:
            source = _shared(source)
        cpu = source.cpu_usage_ns if is_root_only else 0
        return _metrics(source, container_id, cpu, memory_limit, clock)
    cpu = apportion(host.cpu_usage_ns if host is not None else None, sentry.cpu_ns, container_id)
    # A container that runs has used some: metrics-server takes 0 for missing, and drops the pod.
    cpu = cpu or _LEAST_CPU
    share = cpu / source.cpu_usage_ns if source.cpu_usage_ns else 0.0
    values = dict((source if is_root_only else _shared(source)).__dict__)
    values.update(
        cpu_user_ns=int(source.cpu_user_ns * share),
        cpu_system_ns=int(source.cpu_system_ns * share),
        pids=sentry.pids,
    )
    if sentry.memory_usage:
        values["memory"] = source.memory.replace(
            usage=sentry.memory_usage,
            maximum=max(source.memory.maximum if is_root_only else 0, sentry.memory_usage),
        )
        values["inactive_file"] = 0
        if not is_root_only:
            values["anonymous"] = sentry.memory_usage
    return _metrics(
        HostStats(**values), container_id, cpu, memory_limit, clock, networks=sentry.networks
    )


class Use(Record):
    """What of a container's metrics is asked for again and again."""

    cpu_usage_ns: int
    memory_usage: int
    memory_limit: int | None
    pids: int


def use(
    host: HostStats | None,
    sentry: SentryStats,
    cpu_ns: Mapping[str, int],
    container_id: str,
    *,
    is_root_only: bool,
    memory_limit: int | None = None,
    clock: CpuClock | None = None,
) -> Use:
    """The same figures as of :func:`combine`, without the others; ``cpu_ns`` is of all."""
    cpu = apportion(host.cpu_usage_ns if host is not None else None, cpu_ns, container_id)
    cpu = cpu or _LEAST_CPU
    usage, inactive = sentry.memory_usage, 0
    if not usage and host is not None and is_root_only:
        usage, inactive = host.memory.usage, host.inactive_file
    limit = memory_limit
    if limit is None or limit <= 0:
        limit = host.memory.limit if host is not None else None
    return Use(
        cpu_usage_ns=clock.advance(container_id, cpu) if clock is not None else cpu,
        memory_usage=usage,
        memory_limit=None if limit is None else max(limit, usage - inactive),
        pids=sentry.pids,
    )


def _shared(host: HostStats) -> HostStats:
    """What of a sandbox's figures holds for each of several containers."""
    return HostStats(
        cpu_usage_ns=host.cpu_usage_ns,
        cpu_periods=host.cpu_periods,
        cpu_throttled_periods=host.cpu_throttled_periods,
        cpu_throttled_ns=host.cpu_throttled_ns,
        cpu_bursts=host.cpu_bursts,
        cpu_burst_ns=host.cpu_burst_ns,
        memory=Amount(limit=host.memory.limit, failures=host.memory.failures),
        memory_events=host.memory_events,
        pids_limit=host.pids_limit,
        cpu_pressure=host.cpu_pressure,
        memory_pressure=host.memory_pressure,
        io_pressure=host.io_pressure,
    )


def _metrics(
    host: HostStats,
    container_id: str,
    cpu_ns: int,
    memory_limit: int | None,
    clock: CpuClock | None,
    *,
    networks: tuple[NetworkStats, ...] = (),
) -> Metrics:
    memory = host.memory
    limit = memory.limit if memory_limit is None or memory_limit <= 0 else memory_limit
    if limit is not None:
        # CRI subtracts the working set from the limit in unsigned numbers.  A container's limit
        # isn't enforced apart from the pod's, so its usage can exceed it.
        limit = max(limit, memory.usage - host.inactive_file)
    values = dict(host.__dict__)
    values.update(
        cpu_usage_ns=clock.advance(container_id, cpu_ns) if clock is not None else cpu_ns,
        memory=memory.replace(limit=limit),
        networks=networks,
    )
    return Metrics(**values)


class MemoryUse(Record):
    """A container's memory in bytes.  ``exact``: its own, and not a share of the sandbox's."""

    bytes: int
    exact: bool
