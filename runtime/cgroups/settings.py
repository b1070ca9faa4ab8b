"""Which cgroup files get which values: the translation of limits for v1 and v2.

Pure, but for a reader of present values that is passed in.  It must not write.  Where gVisor's
runsc/cgroup has a rule (what 0 means, v1 to v2 conversions) that rule is used; each departure
says so.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.cgroups.resources import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.resources import Resources

DEFAULT_PERIOD = 100000


class Setting(Record):
    """One write.

    ``field`` is the OCI field that asked for it.  ``key`` is set for files that hold a line per
    key (a device, an interface): it is the key, and ``unset`` is what removes its line again.
    ``optional`` files may be missing or refuse: they are obsolete on newer kernels.
    """

    controller: str
    file: str
    value: str
    field: str
    key: str = ""
    unset: str = ""
    optional: bool = False


def cpu_weight(shares: int) -> int:
    """v1's cpu.shares [2, 262144] as v2's cpu.weight [1, 10000]."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """v1's blkio.weight [10, 1000] as v2's io.weight [1, 10000]."""
    weight = min(max(weight, 10), 1000)
    return 1 + (weight - 10) * 9999 // 990


def swap_max(swap: int, limit: int) -> str | None:
    """v2's memory.swap.max for OCI's memory+swap ``swap`` and memory ``limit``; None: unset.

    Raises ValueError if the two don't fit.
    """
    if swap == 0:
        return "max" if limit == -1 else None
    if swap == -1:
        return "max"
    if limit <= 0:
        raise ValueError("needs a memory limit")
    if swap < limit:
        raise ValueError(f"{swap} is below the memory limit of {limit}")
    return str(swap - limit)


def v1_settings(resources: Resources) -> list[Setting]:
    """The writes for cgroup v1.  Zero means "not set", as in runsc.  Raises InvalidRequest."""
    if resources.unified:
        raise InvalidRequest(f"{PREFIX}.unified", "needs cgroup v2")
    found: list[Setting] = []

    def put(controller: str, file: str, value: int | str | None, field: str) -> None:
        if value:
            found.append(
                Setting(
                    controller=controller, file=file, value=str(value), field=f"{PREFIX}.{field}"
                )
            )

    def put_keyed(controller: str, file: str, key: str, value: int, field: str) -> None:
        found.append(
            Setting(
                controller=controller,
                file=file,
                value=f"{key} {value}",
                field=f"{PREFIX}.{field}",
                key=key,
                unset=f"{key} 0",
            )
        )

    r = resources
    put("memory", "memory.limit_in_bytes", r.memory_limit, "memory.limit")
    put("memory", "memory.soft_limit_in_bytes", r.memory_reservation, "memory.reservation")
    put("memory", "memory.memsw.limit_in_bytes", r.memory_swap, "memory.swap")
    for file, value, field in (
        ("memory.kmem.limit_in_bytes", r.memory_kernel, "memory.kernel"),
        ("memory.kmem.tcp.limit_in_bytes", r.memory_kernel_tcp, "memory.kernelTCP"),
    ):
        put("memory", file, value, field)
        if value:
            found[-1] = found[-1].replace(optional=True)
    put("memory", "memory.swappiness", r.swappiness, "memory.swappiness")
    if r.disable_oom_killer:
        put("memory", "memory.oom_control", 1, "memory.disableOOMKiller")
    put("cpu", "cpu.shares", r.cpu_shares, "cpu.shares")
    put("cpu", "cpu.cfs_quota_us", r.cpu_quota, "cpu.quota")
    put("cpu", "cpu.cfs_period_us", r.cpu_period, "cpu.period")
    put("cpu", "cpu.cfs_burst_us", r.cpu_burst, "cpu.burst")
    put("cpu", "cpu.rt_period_us", r.realtime_period, "cpu.realtimePeriod")
    put("cpu", "cpu.rt_runtime_us", r.realtime_runtime, "cpu.realtimeRuntime")
    if r.cpu_idle is not None:
        put("cpu", "cpu.idle", str(r.cpu_idle), "cpu.idle")
    put("cpuset", "cpuset.cpus", r.cpus, "cpu.cpus")
    put("cpuset", "cpuset.mems", r.mems, "cpu.mems")
    put("pids", "pids.max", _pids(r.pids_limit), "pids.limit")
    for size, limit in r.hugepages:
        put("hugetlb", f"hugetlb.{size}.limit_in_bytes", str(limit), "hugepageLimits")
    put("blkio", "blkio.weight", r.io_weight, "blockIO.weight")
    put("blkio", "blkio.leaf_weight", r.io_leaf_weight, "blockIO.leafWeight")
    for device in r.weight_devices:
        key = f"{device.major}:{device.minor}"
        if device.weight is not None:
            put_keyed("blkio", "blkio.weight_device", key, device.weight, "blockIO.weightDevice")
        if device.leaf_weight is not None:
            put_keyed(
                "blkio", "blkio.leaf_weight_device", key, device.leaf_weight, "blockIO.weightDevice"
            )
    for throttle in r.throttles:
        file, field = _V1_THROTTLES[throttle.kind]
        put_keyed("blkio", file, f"{throttle.major}:{throttle.minor}", throttle.rate, field)
    put("net_cls", "net_cls.classid", r.class_id, "network.classID")
    for name, priority in r.priorities:
        put_keyed("net_prio", "net_prio.ifpriomap", name, priority, "network.priorities")
    found += _rdma(r)
    return found


_V1_THROTTLES = {
    "rbps": ("blkio.throttle.read_bps_device", "blockIO.throttleReadBpsDevice"),
    "wbps": ("blkio.throttle.write_bps_device", "blockIO.throttleWriteBpsDevice"),
    "riops": ("blkio.throttle.read_iops_device", "blockIO.throttleReadIOPSDevice"),
    "wiops": ("blkio.throttle.write_iops_device", "blockIO.throttleWriteIOPSDevice"),
}


#: Threads that a sandbox has of its own (29 with one idle process, on two cores), and for each
#: process inside (2.1 when idle).  A sentry that can't have a thread ends, so that those processes
#: that are allowed must never come to the host's limit.
_OWN_TASKS, _TASKS_OF_PROCESS = 128, 4
_MOST_TASKS = 1 << 22


def _pids(limit: int | None) -> str:
    """What the host grants a sandbox that may have ``limit`` processes."""
    # runsc leaves -1 alone on v1; writing "max" is the same for a new cgroup and lets an update
    # lift a limit.
    if not limit or limit < 0:
        return "max" if limit else ""
    return str(min(_OWN_TASKS + _TASKS_OF_PROCESS * limit, _MOST_TASKS))


def _bytes(value: int | None) -> str:
    return "" if not value else "max" if value < 0 else str(value)


def _rdma(resources: Resources) -> list[Setting]:
    found = []
    for limit in resources.rdma:
        words = [limit.device]
        if limit.hca_handles is not None:
            words.append(f"hca_handle={limit.hca_handles}")
        if limit.hca_objects is not None:
            words.append(f"hca_object={limit.hca_objects}")
        if len(words) > 1:
            found.append(
                Setting(
                    controller="rdma",
                    file="rdma.max",
                    value=" ".join(words),
                    field=f"{PREFIX}.rdma",
                    key=limit.device,
                    unset=f"{limit.device} hca_handle=max hca_object=max",
                )
            )
    return found


def v2_settings(resources: Resources, current: Callable[[str], str | None]) -> list[Setting]:
    """The writes for cgroup v2.  ``current(file)`` reads a file of the cgroup, None if missing.

    Limits that v2 doesn't have are passed over, as in runsc: real-time CPU, kernel memory,
    swappiness, disableOOMKiller, leaf weights, network classes.  Raises InvalidRequest.
    """
    found: list[Setting] = []

    def put(controller: str, file: str, value: str, field: str) -> None:
        if value:
            found.append(
                Setting(controller=controller, file=file, value=value, field=f"{PREFIX}.{field}")
            )

    r = resources
    found += swap_setting(r, current)
    put("memory", "memory.max", _bytes(r.memory_limit), "memory.limit")
    put("memory", "memory.low", _bytes(r.memory_reservation), "memory.reservation")
    if r.cpu_shares:
        put("cpu", "cpu.weight", str(cpu_weight(r.cpu_shares)), "cpu.shares")
    put("cpu", "cpu.max", _cpu_max(r, current), "cpu.quota" if r.cpu_quota else "cpu.period")
    if r.cpu_burst:
        put("cpu", "cpu.max.burst", str(r.cpu_burst), "cpu.burst")
    if r.cpu_idle is not None:
        put("cpu", "cpu.idle", str(r.cpu_idle), "cpu.idle")
    put("cpuset", "cpuset.cpus", r.cpus, "cpu.cpus")
    put("cpuset", "cpuset.mems", r.mems, "cpu.mems")
    put("pids", "pids.max", _pids(r.pids_limit), "pids.limit")
    for size, limit in r.hugepages:
        # runsc writes v1's file name here, which v2 doesn't have.
        put("hugetlb", f"hugetlb.{size}.max", str(limit), "hugepageLimits")
    found += _v2_io(r, current)
    found += _rdma(r)
    for name, value in r.unified:
        put(name.partition(".")[0], name, value, f"unified.{name}")
    return found


def swap_setting(resources: Resources, current: Callable[[str], str | None]) -> list[Setting]:
    """The write of memory.swap.max, if any.

    Apart, because runsc makes it even in a cgroup that it didn't create: Kubernetes makes the
    pod's cgroup without a swap limit and passes that in the OCI spec.  Raises InvalidRequest.
    """
    swap, limit = resources.memory_swap, resources.memory_limit
    if swap is None:
        return []
    field = f"{PREFIX}.memory.swap"
    if limit is None and swap > 0:
        # An update that names only one of the two: the other is what is in force.
        text = current("memory.max") or "max"
        limit = -1 if text == "max" else int(text)
    try:
        value = swap_max(swap, limit or 0)
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error
    if value is None:
        return []
    return [Setting(controller="memory", file="memory.swap.max", value=value, field=field)]


def _cpu_max(resources: Resources, current: Callable[[str], str | None]) -> str:
    quota, period = resources.cpu_quota, resources.cpu_period
    if not quota and not period:
        return ""
    if not quota or not period:
        # One without the other keeps the other as it is; runsc would lift the quota if only a
        # period were named.
        words = (current("cpu.max") or "").split()
        old_quota, old_period = words if len(words) == 2 else ("max", str(DEFAULT_PERIOD))
    text = ("max" if quota < 0 else str(quota)) if quota else old_quota
    return f"{text} {period or old_period}"


def _v2_io(resources: Resources, current: Callable[[str], str | None]) -> list[Setting]:
    found: list[Setting] = []
    if resources.io_weight or resources.weight_devices:
        bfq = current("io.bfq.weight")
        if resources.io_weight:
            file, value = (
                ("io.bfq.weight", str(resources.io_weight))
                if bfq is not None
                else ("io.weight", str(io_weight(resources.io_weight)))
            )
            found.append(
                Setting(
                    controller="io",
                    file=file,
                    value=value,
                    field=f"{PREFIX}.blockIO.weight",
                    key="default",
                    unset="default 100",
                )
            )
        # A kernel older than 5.4 gives one bare number here, and has no weights per device.
        if bfq is not None and not bfq.isdigit():
            for device in resources.weight_devices:
                if device.weight is not None:
                    key = f"{device.major}:{device.minor}"
                    found.append(
                        Setting(
                            controller="io",
                            file="io.bfq.weight",
                            value=f"{key} {device.weight}",
                            field=f"{PREFIX}.blockIO.weightDevice",
                            key=key,
                            unset=f"{key} default",
                        )
                    )
    for throttle in resources.throttles:
        key = f"{throttle.major}:{throttle.minor}"
        found.append(
            Setting(
                controller="io",
                file="io.max",
                value=f"{key} {throttle.kind}={throttle.rate or 'max'}",
                field=f"{PREFIX}.blockIO",
                key=key,
                unset=f"{key} rbps=max wbps=max riops=max wiops=max",
            )
        )
    return found
