# Types of protos/cgroups_v1.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t

class Metrics(_t.Message):
    @property
    def hugetlb(self) -> _t.Messages[HugetlbStat]: ...
    @property
    def pids(self) -> PidsStat: ...
    @property
    def cpu(self) -> CPUStat: ...
    @property
    def memory(self) -> MemoryStat: ...
    @property
    def blkio(self) -> BlkIOStat: ...
    @property
    def rdma(self) -> RdmaStat: ...
    @property
    def network(self) -> _t.Messages[NetworkStat]: ...
    @property
    def cgroup_stats(self) -> CgroupStats: ...
    @property
    def memory_oom_control(self) -> MemoryOomControl: ...
    def __init__(
        self,
        *,
        hugetlb: Iterable[HugetlbStat] | None = ...,
        pids: PidsStat | None = ...,
        cpu: CPUStat | None = ...,
        memory: MemoryStat | None = ...,
        blkio: BlkIOStat | None = ...,
        rdma: RdmaStat | None = ...,
        network: Iterable[NetworkStat] | None = ...,
        cgroup_stats: CgroupStats | None = ...,
        memory_oom_control: MemoryOomControl | None = ...,
    ) -> None: ...

class HugetlbStat(_t.Message):
    usage: int
    max: int
    failcnt: int
    pagesize: str
    def __init__(
        self,
        *,
        usage: int | None = ...,
        max: int | None = ...,
        failcnt: int | None = ...,
        pagesize: str | None = ...,
    ) -> None: ...

class PidsStat(_t.Message):
    current: int
    limit: int
    def __init__(
        self,
        *,
        current: int | None = ...,
        limit: int | None = ...,
    ) -> None: ...

class CPUStat(_t.Message):
    @property
    def usage(self) -> CPUUsage: ...
    @property
    def throttling(self) -> Throttle: ...
    def __init__(
        self,
        *,
        usage: CPUUsage | None = ...,
        throttling: Throttle | None = ...,
    ) -> None: ...

class CPUUsage(_t.Message):
    total: int
    kernel: int
    user: int
    @property
    def per_cpu(self) -> _t.Scalars[int]: ...
    def __init__(
        self,
        *,
        total: int | None = ...,
        kernel: int | None = ...,
        user: int | None = ...,
        per_cpu: Iterable[int] | None = ...,
    ) -> None: ...

class Throttle(_t.Message):
    periods: int
    throttled_periods: int
    throttled_time: int
    def __init__(
        self,
        *,
        periods: int | None = ...,
        throttled_periods: int | None = ...,
        throttled_time: int | None = ...,
    ) -> None: ...

class MemoryStat(_t.Message):
    cache: int
    rss: int
    rss_huge: int
    mapped_file: int
    dirty: int
    writeback: int
    pg_pg_in: int
    pg_pg_out: int
    pg_fault: int
    pg_maj_fault: int
    inactive_anon: int
    active_anon: int
    inactive_file: int
    active_file: int
    unevictable: int
    hierarchical_memory_limit: int
    hierarchical_swap_limit: int
    total_cache: int
    total_rss: int
    total_rss_huge: int
    total_mapped_file: int
    total_dirty: int
    total_writeback: int
    total_pg_pg_in: int
    total_pg_pg_out: int
    total_pg_fault: int
    total_pg_maj_fault: int
    total_inactive_anon: int
    total_active_anon: int
    total_inactive_file: int
    total_active_file: int
    total_unevictable: int
    @property
    def usage(self) -> MemoryEntry: ...
    @property
    def swap(self) -> MemoryEntry: ...
    @property
    def kernel(self) -> MemoryEntry: ...
    @property
    def kernel_tcp(self) -> MemoryEntry: ...
    def __init__(
        self,
        *,
        cache: int | None = ...,
        rss: int | None = ...,
        rss_huge: int | None = ...,
        mapped_file: int | None = ...,
        dirty: int | None = ...,
        writeback: int | None = ...,
        pg_pg_in: int | None = ...,
        pg_pg_out: int | None = ...,
        pg_fault: int | None = ...,
        pg_maj_fault: int | None = ...,
        inactive_anon: int | None = ...,
        active_anon: int | None = ...,
        inactive_file: int | None = ...,
        active_file: int | None = ...,
        unevictable: int | None = ...,
        hierarchical_memory_limit: int | None = ...,
        hierarchical_swap_limit: int | None = ...,
        total_cache: int | None = ...,
        total_rss: int | None = ...,
        total_rss_huge: int | None = ...,
        total_mapped_file: int | None = ...,
        total_dirty: int | None = ...,
        total_writeback: int | None = ...,
        total_pg_pg_in: int | None = ...,
        total_pg_pg_out: int | None = ...,
        total_pg_fault: int | None = ...,
        total_pg_maj_fault: int | None = ...,
        total_inactive_anon: int | None = ...,
        total_active_anon: int | None = ...,
        total_inactive_file: int | None = ...,
        total_active_file: int | None = ...,
        total_unevictable: int | None = ...,
        usage: MemoryEntry | None = ...,
        swap: MemoryEntry | None = ...,
        kernel: MemoryEntry | None = ...,
        kernel_tcp: MemoryEntry | None = ...,
    ) -> None: ...

class MemoryEntry(_t.Message):
    limit: int
    usage: int
    max: int
    failcnt: int
    def __init__(
        self,
        *,
        limit: int | None = ...,
        usage: int | None = ...,
        max: int | None = ...,
        failcnt: int | None = ...,
    ) -> None: ...

class MemoryOomControl(_t.Message):
    oom_kill_disable: int
    under_oom: int
    oom_kill: int
    def __init__(
        self,
        *,
        oom_kill_disable: int | None = ...,
        under_oom: int | None = ...,
        oom_kill: int | None = ...,
    ) -> None: ...

class BlkIOStat(_t.Message):
    @property
    def io_service_bytes_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_serviced_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_queued_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_service_time_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_wait_time_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_merged_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def io_time_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    @property
    def sectors_recursive(self) -> _t.Messages[BlkIOEntry]: ...
    def __init__(
        self,
        *,
        io_service_bytes_recursive: Iterable[BlkIOEntry] | None = ...,
        io_serviced_recursive: Iterable[BlkIOEntry] | None = ...,
        io_queued_recursive: Iterable[BlkIOEntry] | None = ...,
        io_service_time_recursive: Iterable[BlkIOEntry] | None = ...,
        io_wait_time_recursive: Iterable[BlkIOEntry] | None = ...,
        io_merged_recursive: Iterable[BlkIOEntry] | None = ...,
        io_time_recursive: Iterable[BlkIOEntry] | None = ...,
        sectors_recursive: Iterable[BlkIOEntry] | None = ...,
    ) -> None: ...

class BlkIOEntry(_t.Message):
    op: str
    device: str
    major: int
    minor: int
    value: int
    def __init__(
        self,
        *,
        op: str | None = ...,
        device: str | None = ...,
        major: int | None = ...,
        minor: int | None = ...,
        value: int | None = ...,
    ) -> None: ...

class RdmaStat(_t.Message):
    @property
    def current(self) -> _t.Messages[RdmaEntry]: ...
    @property
    def limit(self) -> _t.Messages[RdmaEntry]: ...
    def __init__(
        self,
        *,
        current: Iterable[RdmaEntry] | None = ...,
        limit: Iterable[RdmaEntry] | None = ...,
    ) -> None: ...

class RdmaEntry(_t.Message):
    device: str
    hca_handles: int
    hca_objects: int
    def __init__(
        self,
        *,
        device: str | None = ...,
        hca_handles: int | None = ...,
        hca_objects: int | None = ...,
    ) -> None: ...

class NetworkStat(_t.Message):
    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int
    def __init__(
        self,
        *,
        name: str | None = ...,
        rx_bytes: int | None = ...,
        rx_packets: int | None = ...,
        rx_errors: int | None = ...,
        rx_dropped: int | None = ...,
        tx_bytes: int | None = ...,
        tx_packets: int | None = ...,
        tx_errors: int | None = ...,
        tx_dropped: int | None = ...,
    ) -> None: ...

class CgroupStats(_t.Message):
    nr_sleeping: int
    nr_running: int
    nr_stopped: int
    nr_uninterruptible: int
    nr_io_wait: int
    def __init__(
        self,
        *,
        nr_sleeping: int | None = ...,
        nr_running: int | None = ...,
        nr_stopped: int | None = ...,
        nr_uninterruptible: int | None = ...,
        nr_io_wait: int | None = ...,
    ) -> None: ...
