"""Which files get which values, and which input is refused under which name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.cgroups import resources as cgroup_resources
from runtime.cgroups import settings as cgroup_limits


def v1(resources: Mapping[str, Any]) -> dict[str, str]:
    settings = cgroup_limits.v1_settings(cgroup_resources.parse(resources))
    return {f"{s.controller}:{s.file}": s.value for s in settings}


def v2(resources: Mapping[str, Any], **files: str) -> dict[str, str]:
    present = {name.replace("_", "."): text for name, text in files.items()}
    settings = cgroup_limits.v2_settings(cgroup_resources.parse(resources), present.get)
    return {f"{s.controller}:{s.file}": s.value for s in settings}


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 1), (1, 1), (2, 1), (1024, 39), (2048, 79), (262144, 10000), (1 << 40, 10000)],
)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert cgroup_limits.cpu_weight(shares) == weight


@pytest.mark.parametrize(("weight", "io"), [(1, 1), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(weight: int, io: int) -> None:
    assert cgroup_limits.io_weight(weight) == io


@pytest.mark.parametrize(
    ("swap", "limit", "value"),
    [
        (0, 0, None),
        (0, 100, None),
        (0, -1, "max"),
        (-1, 100, "max"),
        (-1, 0, "max"),
        (100, 100, "0"),
        (150, 100, "50"),
    ],
)
def test_swap_max(swap: int, limit: int, value: str | None) -> None:
    assert cgroup_limits.swap_max(swap, limit) == value


@pytest.mark.parametrize(("swap", "limit"), [(100, 0), (100, -1), (99, 100)])
def test_swap_that_does_not_fit_the_limit(swap: int, limit: int) -> None:
    with pytest.raises(ValueError):
        cgroup_limits.swap_max(swap, limit)


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        ({}, {}),
        ({"memory": None, "cpu": {}, "unified": {}, "pids": None}, {}),
        ({"memory": {"limit": 0}, "cpu": {"shares": 0}, "pids": {"limit": 0}}, {}),
        (
            {
                "memory": {
                    "limit": 1,
                    "reservation": 2,
                    "swap": 3,
                    "kernel": 4,
                    "kernelTCP": 5,
                    "swappiness": 6,
                    "disableOOMKiller": True,
                }
            },
            {
                "memory:memory.limit_in_bytes": "1",
                "memory:memory.soft_limit_in_bytes": "2",
                "memory:memory.memsw.limit_in_bytes": "3",
                "memory:memory.kmem.limit_in_bytes": "4",
                "memory:memory.kmem.tcp.limit_in_bytes": "5",
                "memory:memory.swappiness": "6",
                "memory:memory.oom_control": "1",
            },
        ),
        ({"memory": {"disableOOMKiller": False}}, {}),
        (
            {
                "cpu": {
                    "shares": 1,
                    "quota": -1,
                    "period": 3,
                    "burst": 7,
                    "idle": 0,
                    "realtimeRuntime": 4,
                    "realtimePeriod": 5,
                    "cpus": "0-1",
                    "mems": "0",
                }
            },
            {
                "cpu:cpu.shares": "1",
                "cpu:cpu.cfs_quota_us": "-1",
                "cpu:cpu.cfs_period_us": "3",
                "cpu:cpu.cfs_burst_us": "7",
                "cpu:cpu.idle": "0",
                "cpu:cpu.rt_runtime_us": "4",
                "cpu:cpu.rt_period_us": "5",
                "cpuset:cpuset.cpus": "0-1",
                "cpuset:cpuset.mems": "0",
            },
        ),
        ({"pids": {"limit": 7}}, {"pids:pids.max": "156"}),
        ({"pids": {"limit": 1 << 40}}, {"pids:pids.max": str(1 << 22)}),
        ({"pids": {"limit": -1}}, {"pids:pids.max": "max"}),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1G", "limit": 9}]},
            {
                "hugetlb:hugetlb.2MB.limit_in_bytes": "0",
                "hugetlb:hugetlb.1G.limit_in_bytes": "9",
            },
        ),
        (
            {
                "blockIO": {
                    "weight": 1,
                    "leafWeight": 2,
                    "weightDevice": [{"major": 1, "minor": 2, "weight": 3, "leafWeight": 4}],
                    "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 3}],
                    "throttleWriteIOPSDevice": [{"major": 4, "minor": 5, "rate": 6}],
                }
            },
            {
                "blkio:blkio.weight": "1",
                "blkio:blkio.leaf_weight": "2",
                "blkio:blkio.weight_device": "1:2 3",
                "blkio:blkio.leaf_weight_device": "1:2 4",
                "blkio:blkio.throttle.read_bps_device": "1:2 3",
                "blkio:blkio.throttle.write_iops_device": "4:5 6",
            },
        ),
        (
            {"network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 2}]}},
            {"net_cls:net_cls.classid": "1", "net_prio:net_prio.ifpriomap": "eth0 2"},
        ),
        (
            {"rdma": {"mlx5_0": {"hcaHandles": 3}, "mlx5_1": {}}},
            {"rdma:rdma.max": "mlx5_0 hca_handle=3"},
        ),
        ({"devices": [{"allow": False, "access": "rwm"}]}, {}),
    ],
)
def test_v1(resources: Mapping[str, Any], files: dict[str, str]) -> None:
    assert v1(resources) == files


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        ({}, {}),
        ({"cpu": {"shares": 1024}}, {"cpu:cpu.weight": "39"}),
        ({"cpu": {"quota": 50, "period": 100}}, {"cpu:cpu.max": "50 100"}),
        ({"cpu": {"quota": -1, "period": 100}}, {"cpu:cpu.max": "max 100"}),
        ({"cpu": {"quota": 50}}, {"cpu:cpu.max": "50 100000"}),
        ({"cpu": {"burst": 7}}, {"cpu:cpu.max.burst": "7"}),
        ({"cpu": {"realtimePeriod": 7}}, {}),
        (
            {"memory": {"limit": 5, "reservation": -1}},
            {"memory:memory.max": "5", "memory:memory.low": "max"},
        ),
        ({"memory": {"limit": -1}}, {"memory:memory.max": "max"}),
        (
            {"memory": {"limit": 5, "swap": 5}},
            {"memory:memory.swap.max": "0", "memory:memory.max": "5"},
        ),
        ({"memory": {"kernel": 5, "swappiness": 5, "disableOOMKiller": True}}, {}),
        ({"pids": {"limit": -1}}, {"pids:pids.max": "max"}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, {"hugetlb:hugetlb.2MB.max": "4"}),
        ({"blockIO": {"weight": 500, "leafWeight": 4}}, {"io:io.weight": "4950"}),
        (
            {"blockIO": {"throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 6}]}},
            {"io:io.max": "8:0 wbps=6"},
        ),
        (
            {"memory": {"limit": 5}, "unified": {"memory.high": "max"}},
            {"memory:memory.max": "5", "memory:memory.high": "max"},
        ),
        ({"network": {"classID": 3}}, {}),
    ],
)
def test_v2(resources: Mapping[str, Any], files: dict[str, str]) -> None:
    assert v2(resources) == files


def test_v2_uses_bfq_where_it_is() -> None:
    wanted = {"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 1, "weight": 9}]}}
    settings = cgroup_limits.v2_settings(
        cgroup_resources.parse(wanted), {"io.bfq.weight": "default 100"}.get
    )
    assert [s.value for s in settings] == ["500", "8:1 9"]
    assert v2(wanted, io_bfq_weight="100") == {"io:io.bfq.weight": "500"}
    assert v2(wanted) == {"io:io.weight": "4950"}


def test_v2_keeps_the_other_half_of_a_partial_update() -> None:
    assert v2({"cpu": {"period": 50000}}, cpu_max="2000 100000") == {"cpu:cpu.max": "2000 50000"}
    assert v2({"cpu": {"quota": 3000}}, cpu_max="2000 20000") == {"cpu:cpu.max": "3000 20000"}
    assert v2({"memory": {"swap": 150}}, memory_max="100") == {"memory:memory.swap.max": "50"}


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"limit": "1"}}, "linux.resources.memory.limit"),
        ({"memory": {"limit": True}}, "linux.resources.memory.limit"),
        ({"memory": {"limit": 1.5}}, "linux.resources.memory.limit"),
        ({"memory": {"limit": -2}}, "linux.resources.memory.limit"),
        ({"memory": {"limit": 1 << 63}}, "linux.resources.memory.limit"),
        ({"memory": []}, "linux.resources.memory"),
        ({"memory": {"disableOOMKiller": 1}}, "linux.resources.memory.disableOOMKiller"),
        ({"cpu": {"shares": -1}}, "linux.resources.cpu.shares"),
        ({"cpu": {"cpus": 3}}, "linux.resources.cpu.cpus"),
        ({"cpu": {"cpus": "0\n1"}}, "linux.resources.cpu.cpus"),
        ({"cpu": {"mems": "x"}}, "linux.resources.cpu.mems"),
        ({"cpu": {"idle": 2}}, "linux.resources.cpu.idle"),
        ({"pids": {"limit": "max"}}, "linux.resources.pids.limit"),
        ({"blockIO": {"weight": 65536}}, "linux.resources.blockIO.weight"),
        ({"blockIO": {"weightDevice": {}}}, "linux.resources.blockIO.weightDevice"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 1, "minor": 2}]}},
            "linux.resources.blockIO.throttleReadBpsDevice[0].rate",
        ),
        (
            {"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]},
            "linux.resources.hugepageLimits[0].pageSize",
        ),
        (
            {"hugepageLimits": [{"pageSize": "", "limit": 1}]},
            "linux.resources.hugepageLimits[0].pageSize",
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}] * 2000},
            "linux.resources.hugepageLimits",
        ),
        (
            {"network": {"priorities": [{"name": "a b", "priority": 1}]}},
            "linux.resources.network.priorities[0].name",
        ),
        ({"rdma": {"a b": {"hcaHandles": 1}}}, "linux.resources.rdma"),
        ({"unified": {"memory/x.y": "1"}}, "linux.resources.unified"),
        ({"unified": {"nodot": "1"}}, "linux.resources.unified"),
        ({"unified": {"cgroup.procs": "1"}}, "linux.resources.unified"),
        ({"unified": {"cgroup.subtree_control": "-memory"}}, "linux.resources.unified"),
        ({"unified": {"memory.high": 3}}, "linux.resources.unified.memory.high"),
        ("text", "linux.resources"),
    ],
)
def test_wrong_input_is_refused_by_name(resources: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cgroup_resources.parse(resources)
    assert caught.value.field == field


def test_unified_needs_v2() -> None:
    with pytest.raises(InvalidRequest) as caught:
        v1({"unified": {"memory.high": "1"}})
    assert caught.value.field == "linux.resources.unified"


@pytest.mark.parametrize(
    ("memory", "present"), [({"swap": 100}, "max"), ({"limit": 200, "swap": 100}, "max")]
)
def test_v2_swap_without_a_fitting_limit(memory: dict[str, int], present: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        v2({"memory": memory}, memory_max=present)
    assert caught.value.field == "linux.resources.memory.swap"
