# Types of protos/cgroups_v2.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t

class Metrics(_t.Message):
    @property
    def pids(self) -> PidsStat: ...
    @property
    def cpu(self) -> CPUStat: ...
    @property
    def memory(self) -> MemoryStat: ...
    @property
    def rdma(self) -> RdmaStat: ...
    @property
    def io(self) -> IOStat: ...
    @property
    def hugetlb(self) -> _t.Messages[HugeTlbStat]: ...
    @property
    def memory_events(self) -> MemoryEvents: ...
    @property
    def network(self) -> _t.Messages[NetworkStat]: ...
    def __init__(
        self,
        *,
        pids: PidsStat | None = ...,
        cpu: CPUStat | None = ...,
        memory: MemoryStat | None = ...,
        rdma: RdmaStat | None = ...,
        io: IOStat | None = ...,
        hugetlb: Iterable[HugeTlbStat] | None = ...,
        memory_events: MemoryEvents | None = ...,
        network: Iterable[NetworkStat] | None = ...,
    ) -> None: ...

class PSIData(_t.Message):
    avg10: float
    avg60: float
    avg300: float
    total: int
    def __init__(
        self,
        *,
        avg10: float | None = ...,
        avg60: float | None = ...,
        avg300: float | None = ...,
        total: int | None = ...,
    ) -> None: ...

class PSIStats(_t.Message):
    @property
    def some(self) -> PSIData: ...
    @property
    def full(self) -> PSIData: ...
    def __init__(
        self,
        *,
        some: PSIData | None = ...,
        full: PSIData | None = ...,
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
    usage_usec: int
    user_usec: int
    system_usec: int
    nr_periods: int
    nr_throttled: int
    throttled_usec: int
    @property
    def psi(self) -> PSIStats: ...
    nr_bursts: int
    burst_usec: int
    def __init__(
        self,
        *,
        usage_usec: int | None = ...,
        user_usec: int | None = ...,
        system_usec: int | None = ...,
        nr_periods: int | None = ...,
        nr_throttled: int | None = ...,
        throttled_usec: int | None = ...,
        psi: PSIStats | None = ...,
        nr_bursts: int | None = ...,
        burst_usec: int | None = ...,
    ) -> None: ...

class MemoryStat(_t.Message):
    anon: int
    file: int
    kernel_stack: int
    slab: int
    sock: int
    shmem: int
    file_mapped: int
    file_dirty: int
    file_writeback: int
    anon_thp: int
    inactive_anon: int
    active_anon: int
    inactive_file: int
    active_file: int
    unevictable: int
    slab_reclaimable: int
    slab_unreclaimable: int
    pgfault: int
    pgmajfault: int
    workingset_refault: int
    workingset_activate: int
    workingset_nodereclaim: int
    pgrefill: int
    pgscan: int
    pgsteal: int
    pgactivate: int
    pgdeactivate: int
    pglazyfree: int
    pglazyfreed: int
    thp_fault_alloc: int
    thp_collapse_alloc: int
    usage: int
    usage_limit: int
    swap_usage: int
    swap_limit: int
    max_usage: int
    swap_max_usage: int
    @property
    def psi(self) -> PSIStats: ...
    def __init__(
        self,
        *,
        anon: int | None = ...,
        file: int | None = ...,
        kernel_stack: int | None = ...,
        slab: int | None = ...,
        sock: int | None = ...,
        shmem: int | None = ...,
        file_mapped: int | None = ...,
        file_dirty: int | None = ...,
        file_writeback: int | None = ...,
        anon_thp: int | None = ...,
        inactive_anon: int | None = ...,
        active_anon: int | None = ...,
        inactive_file: int | None = ...,
        active_file: int | None = ...,
        unevictable: int | None = ...,
        slab_reclaimable: int | None = ...,
        slab_unreclaimable: int | None = ...,
        pgfault: int | None = ...,
        pgmajfault: int | None = ...,
        workingset_refault: int | None = ...,
        workingset_activate: int | None = ...,
        workingset_nodereclaim: int | None = ...,
        pgrefill: int | None = ...,
        pgscan: int | None = ...,
        pgsteal: int | None = ...,
        pgactivate: int | None = ...,
        pgdeactivate: int | None = ...,
        pglazyfree: int | None = ...,
        pglazyfreed: int | None = ...,
        thp_fault_alloc: int | None = ...,
        thp_collapse_alloc: int | None = ...,
        usage: int | None = ...,
        usage_limit: int | None = ...,
        swap_usage: int | None = ...,
        swap_limit: int | None = ...,
        max_usage: int | None = ...,
        swap_max_usage: int | None = ...,
        psi: PSIStats | None = ...,
    ) -> None: ...

class MemoryEvents(_t.Message):
    low: int
    high: int
    max: int
    oom: int
    oom_kill: int
    oom_group_kill: int
    def __init__(
        self,
        *,
        low: int | None = ...,
        high: int | None = ...,
        max: int | None = ...,
        oom: int | None = ...,
        oom_kill: int | None = ...,
        oom_group_kill: int | None = ...,
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

class IOStat(_t.Message):
    @property
    def usage(self) -> _t.Messages[IOEntry]: ...
    @property
    def psi(self) -> PSIStats: ...
    def __init__(
        self,
        *,
        usage: Iterable[IOEntry] | None = ...,
        psi: PSIStats | None = ...,
    ) -> None: ...

class IOEntry(_t.Message):
    major: int
    minor: int
    rbytes: int
    wbytes: int
    rios: int
    wios: int
    def __init__(
        self,
        *,
        major: int | None = ...,
        minor: int | None = ...,
        rbytes: int | None = ...,
        wbytes: int | None = ...,
        rios: int | None = ...,
        wios: int | None = ...,
    ) -> None: ...

class HugeTlbStat(_t.Message):
    current: int
    max: int
    pagesize: str
    failcnt: int
    def __init__(
        self,
        *,
        current: int | None = ...,
        max: int | None = ...,
        pagesize: str | None = ...,
        failcnt: int | None = ...,
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
