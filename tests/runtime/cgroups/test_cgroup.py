"""Creating, updating, joining and removing cgroups, on made-up v1 and v2 hosts."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.cgroups import factory, remove
from tests.fakes.cgroupfs import FakeHost


@pytest.fixture
def v1(tmp_path: Path) -> FakeHost:
    return FakeHost(str(tmp_path), "v1")


@pytest.fixture
def v2(tmp_path: Path) -> FakeHost:
    return FakeHost(str(tmp_path), "v2")


def tree(host: FakeHost) -> set[str]:
    """All cgroups, as paths below the root; without the mount points on v1."""
    found = {
        os.path.relpath(os.path.join(base, name), host.path)
        for base, names, _ in os.walk(host.path)
        for name in names
    }
    return {path for path in found if host.mode == "v2" or "/" in path}


def test_the_host_mode(v1: FakeHost, tmp_path: Path) -> None:
    assert factory.host_mode(v1) == "v1"
    assert factory.host_mode(FakeHost(str(tmp_path / "other"), "v2")) == "v2"


# -- v1 -------------------------------------------------------------------------------------


def test_the_table_of_mounts_is_read_once(v1: FakeHost, tmp_path: Path) -> None:
    factory.create("/a", {}, root=v1)
    for table in tmp_path.glob("**/mountinfo"):
        table.unlink()
    assert not list(tmp_path.glob("**/mountinfo"))
    factory.create("/b", {}, root=v1)
    assert "memory/b" in tree(v1)


def test_v1_create(v1: FakeHost) -> None:
    group = factory.create(
        "/a/b", {"memory": {"limit": 100}, "cpu": {"shares": 7}, "pids": {"limit": 3}}, root=v1
    )
    mounts = ["cpu,cpuacct", "cpuset", "memory", "blkio", "pids", "systemd"]
    assert tree(v1) == {f"{m}/a" for m in mounts} | {f"{m}/a/b" for m in mounts}
    assert v1.get("memory/a/b/memory.limit_in_bytes") == "100"
    assert v1.get("cpu,cpuacct/a/b/cpu.shares") == "7"
    assert v1.get("pids/a/b/pids.max") == "140"
    # Only the cgroup itself is limited, not the parent that had to be made.
    assert v1.get("pids/a/pids.max") == "max"
    # One file per hierarchy, though cpu and cpuacct share theirs.
    assert sorted(group.join_files) == sorted(f"{v1.path}/{m}/a/b/tasks" for m in mounts)
    assert group.open_dir_fd() is None
    assert group.owned
    group.remove()
    assert tree(v1) == set()
    group.remove()


@pytest.mark.parametrize("path", ["/a/b", "s-x.slice:p:c"])
@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_plan_says_what_will_be_made(tmp_path: Path, mode: str, path: str) -> None:
    host = FakeHost(str(tmp_path), mode)
    before = tree(host)
    factory.create("/a", {}, root=host)  # somebody's, who made it before
    plan = factory.plan(path, root=host)
    assert factory.plan(path, root=host) == plan
    group = factory.create(path, {}, root=host)
    made = group.to_json()
    assert {tuple(paths) for paths in plan["own"].values()} == {
        tuple(paths) for paths in made["own"].values()
    }
    assert {**plan, "own": 0} == {**made, "own": 0}
    remove.remove_from_json(plan, 1.0)
    assert {p for p in tree(host) - before if p.rpartition("/")[2] != "a"} == set()
    remove.remove_from_json(plan, 1.0)


def test_v1_an_empty_cpuset_that_exists_is_filled_and_a_full_one_is_left(v1: FakeHost) -> None:
    os.makedirs(f"{v1.path}/cpuset/empty")
    os.makedirs(f"{v1.path}/cpuset/full")
    v1.set("cpuset/full/cpuset.cpus", "3")
    v1.set("cpuset/full/cpuset.mems", "0")
    factory.create("/empty", None, root=v1)
    assert (v1.get("cpuset/empty/cpuset.cpus"), v1.get("cpuset/empty/cpuset.mems")) == ("0-3", "0")
    before = len(v1.writes)
    factory.create("/full", None, root=v1)
    assert [write for write in v1.writes[before:] if write[0].startswith("cpuset/full/")] == []


def test_v1_cpus_come_from_the_nearest_ancestor_that_has_some(v1: FakeHost) -> None:
    os.makedirs(f"{v1.path}/cpuset/a")
    group = factory.create("/a/b/c", {"cpu": {"cpus": "1-2"}}, root=v1)
    assert v1.get("cpuset/a/cpuset.cpus") == "0-3"
    assert v1.get("cpuset/a/b/cpuset.cpus") == "0-3"
    assert v1.get("cpuset/a/b/c/cpuset.cpus") == "1-2"
    assert v1.get("cpuset/a/b/c/cpuset.mems") == "0"
    assert group.cpu_count() == 2


def test_v1_an_existing_cgroup_is_neither_limited_nor_removed(v1: FakeHost) -> None:
    os.makedirs(f"{v1.path}/memory/pod")
    group = factory.create("/pod", {"memory": {"limit": 100}, "pids": {"limit": 3}}, root=v1)
    assert v1.get("memory/pod/memory.limit_in_bytes") == "9223372036854771712"
    assert v1.get("pids/pod/pids.max") == "140"
    group.update({"memory": {"limit": 200}, "pids": {"limit": 4}})
    assert v1.get("memory/pod/memory.limit_in_bytes") == "9223372036854771712"
    assert v1.get("pids/pod/pids.max") == "144"
    assert f"{v1.path}/memory/pod/tasks" in group.join_files
    group.remove()
    assert tree(v1) == {"memory/pod"}


def test_v1_parents_in_use_by_others_stay(v1: FakeHost) -> None:
    first = factory.create("/shared/one", {}, root=v1)
    second = factory.create("/shared/two", {}, root=v1)
    first.remove()
    assert tree(v1) == {p for p in tree(v1) if p.endswith(("/shared", "/shared/two"))}
    assert len(tree(v1)) == 12
    # The second found the parent there, so it is not the second's to remove.
    second.remove()
    assert {p.split("/", 1)[1] for p in tree(v1)} == {"shared"}


def test_v1_a_failed_creation_leaves_nothing(v1: FakeHost) -> None:
    v1.refuse["pids/a/b/pids.max"] = errno.EINVAL
    with pytest.raises(Failed) as caught:
        factory.create("/a/b", {"pids": {"limit": 3}}, root=v1)
    assert str(caught.value).startswith("linux.resources.pids.limit: write '140' to ")
    assert str(caught.value).endswith("/pids/a/b/pids.max: Invalid argument")
    assert tree(v1) == set()


def test_v1_a_missing_controller_matters_only_if_a_limit_needs_it(v1: FakeHost) -> None:
    factory.create("/a", {"hugepageLimits": []}, root=v1).remove()
    with pytest.raises(Unsupported) as caught:
        factory.create("/a", {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, root=v1)
    assert "linux.resources.hugepageLimits" in str(caught.value)
    assert tree(v1) == set()


def test_a_refused_mkdir_is_told_apart(v1: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        if path.endswith("memory/a/b"):  # its parent could be made, and must go again
            raise PermissionError(errno.EACCES, "Permission denied", path)
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(factory.CgroupDenied):
        factory.create("/a/b", {}, root=v1)
    assert tree(v1) == set()


def test_a_parent_that_vanishes_meanwhile_is_made_again(
    v1: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(f"{v1.path}/memory/a")
    real = os.mkdir
    vanished: list[str] = []

    def mkdir(path: str, mode: int = 0o777) -> None:
        if path.endswith("memory/a/b") and not vanished:
            vanished.append(path)
            os.rmdir(f"{v1.path}/memory/a")
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    group = factory.create("/a/b", {}, root=v1)
    assert vanished and "memory/a/b" in tree(v1)
    group.remove()
    assert tree(v1) == set()


@pytest.mark.parametrize(("before", "after"), [(100, 200), (200, 100), (100, 100)])
def test_v1_memory_and_swap_move_together(v1: FakeHost, before: int, after: int) -> None:
    group = factory.create("/a", {"memory": {"limit": before, "swap": before}}, root=v1)
    group.update({"memory": {"limit": after, "swap": after}})
    assert v1.get("memory/a/memory.limit_in_bytes") == str(after)
    assert v1.get("memory/a/memory.memsw.limit_in_bytes") == str(after)


@pytest.mark.parametrize(
    ("quota", "burst"), [((100, 50), (200, 150)), ((200, 150), (100, 50)), ((100, 50), (40, 20))]
)
def test_v1_quota_and_burst_move_together(
    v1: FakeHost, quota: tuple[int, int], burst: tuple[int, int]
) -> None:
    group = factory.create("/a", {"cpu": {"quota": quota[0], "burst": quota[1]}}, root=v1)
    group.update({"cpu": {"quota": burst[0], "burst": burst[1]}})
    assert v1.get("cpu,cpuacct/a/cpu.cfs_quota_us") == str(burst[0])
    assert v1.get("cpu,cpuacct/a/cpu.cfs_burst_us") == str(burst[1])


def test_v1_a_failed_update_restores_every_file(v1: FakeHost) -> None:
    group = factory.create(
        "/a",
        {
            "memory": {"limit": 100, "swap": 100},
            "cpu": {"shares": 5, "quota": 90, "burst": 80},
            "blockIO": {"throttleWriteBpsDevice": [{"major": 1, "minor": 1, "rate": 1}]},
        },
        root=v1,
    )
    before = dict(v1.files)
    v1.writes.clear()
    v1.refuse["pids/a/pids.max"] = errno.EBUSY
    with pytest.raises(Failed) as caught:
        group.update(
            {
                "memory": {"limit": 200, "swap": 300, "disableOOMKiller": True},
                "cpu": {"shares": 6, "quota": 50, "burst": 10, "cpus": "1"},
                "pids": {"limit": 9},
                "blockIO": {
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}],
                    "throttleWriteBpsDevice": [{"major": 9, "minor": 9, "rate": 7}],
                },
            }
        )
    assert "pids.max: Device or resource busy" in str(caught.value)
    assert ("memory/a/memory.limit_in_bytes", "200") in v1.writes
    assert ("cpu,cpuacct/a/cpu.shares", "6") in v1.writes
    assert {k: v for k, v in v1.files.items() if k in before} == before
    assert v1.get("memory/a/memory.oom_control").startswith("oom_kill_disable 0")


def test_v1_keyed_files_are_restored_by_key(v1: FakeHost) -> None:
    group = factory.create("/a", {}, root=v1)
    # The last setting to be written, so that all of the throttles were written before.
    v1.refuse["blkio/a/blkio.throttle.write_bps_device"] = errno.ENODEV
    devices = [{"major": 8, "minor": 0, "rate": 7}, {"major": 9, "minor": 9, "rate": 7}]
    with pytest.raises(Failed):
        group.update(
            {
                "blockIO": {
                    "throttleReadBpsDevice": devices,
                    "throttleWriteBpsDevice": devices,
                }
            }
        )
    assert ("blkio/a/blkio.throttle.read_bps_device", "8:0 7") in v1.writes
    assert v1.get("blkio/a/blkio.throttle.read_bps_device") == "8:0 100"


def test_v1_an_invalid_update_writes_nothing(v1: FakeHost) -> None:
    group = factory.create("/a", {}, root=v1)
    v1.writes.clear()
    with pytest.raises(InvalidRequest):
        group.update({"memory": {"limit": 100}, "pids": {"limit": "x"}})
    with pytest.raises(Unsupported):
        group.update({"memory": {"limit": 100}, "rdma": {"d": {"hcaHandles": 1}}})
    with pytest.raises(Unsupported) as caught:
        # The controller is there, this file of it isn't.
        group.update({"memory": {"limit": 100}, "cpu": {"realtimePeriod": 5}})
    assert "cpu.rt_period_us does not exist" in str(caught.value)
    assert v1.writes == []


def test_v1_an_obsolete_limit_is_passed_over(v1: FakeHost) -> None:
    group = factory.create("/a", {"memory": {"kernel": 5}}, root=v1)
    group.update({"memory": {"kernel": 6, "limit": 100}})
    assert v1.get("memory/a/memory.limit_in_bytes") == "100"


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_limit_below_the_usage_can_be_refused(tmp_path: Path, mode: str) -> None:
    host = FakeHost(str(tmp_path), mode)
    group = factory.create("/a", {}, root=host)
    host.writes.clear()
    with pytest.raises(Failed):
        group.update({"memory": {"limit": 100, "checkBeforeUpdate": True}})
    assert host.writes == []
    group.update({"memory": {"limit": 5000, "checkBeforeUpdate": True}})
    assert group.memory_limit() == 5000


def test_v1_the_tightest_limit_of_the_chain_counts(v1: FakeHost) -> None:
    group = factory.create("/a/b", {"memory": {"limit": 500}}, root=v1)
    assert group.cpu_quota() is None
    assert group.memory_limit() == 500
    v1.set("memory/a/memory.limit_in_bytes", "300")
    v1.set("cpu,cpuacct/a/cpu.cfs_quota_us", "50000")
    v1.set("cpu,cpuacct/a/b/cpu.cfs_quota_us", "300000")
    assert group.memory_limit() == 300
    assert group.cpu_quota() == (50000, 100000)


def test_v1_no_limit_is_none(v1: FakeHost) -> None:
    assert factory.create("/a", {}, root=v1).memory_limit() is None


def test_v1_a_relative_path_counts_from_our_own_cgroup(tmp_path: Path) -> None:
    host = FakeHost(str(tmp_path), "v1", membership="4:memory:/mine\n3:cpuset:/\n0::/\n")
    os.mkdir(f"{host.path}/memory/mine")
    group = factory.create("x", {}, root=host)
    assert {"memory/mine/x", "cpuset/x", "pids/x"} <= tree(host)
    group.remove()
    assert tree(host) == {"memory/mine"}


def test_systemds_form_gives_the_directory_of_the_scope(v1: FakeHost) -> None:
    group = factory.create("a-b.slice:p:n", {}, systemd=True, root=v1)
    assert "memory/a.slice/a-b.slice/p-n.scope" in tree(v1)
    assert group.unit == "p-n.scope"


# -- v2 -------------------------------------------------------------------------------------


def test_v2_create(v2: FakeHost) -> None:
    group = factory.create(
        "/a/b", {"memory": {"limit": 100, "swap": 150}, "unified": {"memory.high": "90"}}, root=v2
    )
    assert tree(v2) == {"a", "a/b"}
    assert v2.get("a/b/memory.max") == "100"
    assert v2.get("a/b/memory.swap.max") == "50"
    assert v2.get("a/b/memory.high") == "90"
    assert set(v2.get("a/cgroup.subtree_control").split()) >= {"cpu", "memory", "pids", "io"}
    # Nothing is handed further down: the leaf holds the processes.
    assert v2.get("a/b/cgroup.subtree_control") == ""
    assert group.join_files == ()
    descriptor = group.open_dir_fd()
    assert descriptor is not None
    try:
        assert os.readlink(f"/proc/self/fd/{descriptor}") == f"{v2.path}/a/b"
    finally:
        os.close(descriptor)
    assert group.cpu_count() == 4
    group.remove()
    assert tree(v2) == set()


def test_v2_an_existing_cgroup_gets_only_its_swap_limit(v2: FakeHost) -> None:
    v2.write(f"{v2.path}/cgroup.subtree_control", "+memory +pids")
    os.mkdir(f"{v2.path}/pod")
    group = factory.create(
        "/pod", {"memory": {"limit": 100, "swap": 150}, "pids": {"limit": 3}}, root=v2
    )
    assert v2.get("pod/memory.max") == "max"
    assert v2.get("pod/pids.max") == "max"
    assert v2.get("pod/memory.swap.max") == "50"
    group.update({"memory": {"limit": 70}, "pids": {"limit": 3}})
    assert v2.get("pod/memory.max") == "max"
    assert not group.owned
    group.remove()
    assert tree(v2) == {"pod"}


def test_v2_a_parent_that_holds_processes_hands_nothing_down(v2: FakeHost) -> None:
    v2.write(f"{v2.path}/cgroup.subtree_control", "+memory")
    os.mkdir(f"{v2.path}/pod")
    v2.refuse["pod/cgroup.subtree_control"] = errno.EBUSY
    group = factory.create("/pod/x", {}, root=v2)
    group.remove()
    with pytest.raises(Unsupported) as caught:
        factory.create("/pod/x", {"memory": {"limit": 5}}, root=v2)
    assert "memory cgroup controller" in str(caught.value)
    assert tree(v2) == {"pod"}


def test_v2_one_refused_controller_does_not_cost_the_others(v2: FakeHost) -> None:
    class Picky(FakeHost):
        def write(self, path: str, value: str) -> None:
            if path.endswith("subtree_control") and "cpuset" in value:
                raise OSError(errno.EINVAL, "Invalid argument", path)
            super().write(path, value)

    v2.__class__ = Picky
    factory.create("/a", {"memory": {"limit": 5}}, root=v2)
    assert v2.get("a/memory.max") == "5"


def test_v2_a_failed_creation_leaves_nothing(v2: FakeHost) -> None:
    v2.refuse["a/b/pids.max"] = errno.ERANGE
    with pytest.raises(Failed):
        factory.create("/a/b", {"pids": {"limit": 3}}, root=v2)
    assert tree(v2) == set()


def test_v2_a_failed_update_restores_every_file(v2: FakeHost) -> None:
    group = factory.create("/a", {"cpu": {"quota": 5, "period": 10}}, root=v2)
    before = {
        name: v2.get(f"a/{name}")
        for name in ("memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "io.weight")
    }
    v2.writes.clear()
    v2.refuse["a/memory.high"] = errno.EIO
    with pytest.raises(Failed):
        group.update(
            {
                "memory": {"limit": 100, "swap": 100},
                "cpu": {"shares": 9999, "quota": 6},
                "blockIO": {
                    "weight": 20,
                    "throttleReadIOPSDevice": [
                        {"major": 8, "minor": 0, "rate": 4},
                        {"major": 9, "minor": 0, "rate": 4},
                    ],
                },
                "unified": {"memory.high": "5"},
            }
        )
    assert ("a/cpu.max", "6 10") in v2.writes
    assert {name: v2.get(f"a/{name}") for name in before} == before
    assert v2.get("a/io.max") == "8:0 rbps=5 wbps=max riops=max wiops=max"


def test_v2_the_tightest_limit_of_the_chain_counts(v2: FakeHost) -> None:
    group = factory.create("/a/b", {"cpu": {"quota": 100, "period": 100}}, root=v2)
    assert group.memory_limit() is None
    v2.set("a/memory.max", "300")
    v2.set("a/cpu.max", "20 100")
    assert group.memory_limit() == 300
    assert group.cpu_quota() == (20, 100)


def test_v2_a_relative_path_counts_from_the_parent_of_our_own_cgroup(tmp_path: Path) -> None:
    host = FakeHost(str(tmp_path), "v2", membership="0::/system.slice/containerd.service\n")
    os.makedirs(f"{host.path}/system.slice/containerd.service")
    factory.create("x", {}, root=host)
    assert "system.slice/x" in tree(host)


# -- both -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_json_round_trip(tmp_path: Path, mode: str) -> None:
    host = FakeHost(str(tmp_path), mode)
    group = factory.create("a.slice:p:n", {"pids": {"limit": 5}}, root=host)
    data = json.loads(json.dumps(group.to_json()))
    again = factory.from_json(data, host)
    assert again.to_json() == group.to_json()
    assert again.join_files == group.join_files
    again.update({"pids": {"limit": 6}})
    again.remove()
    assert tree(host) == set()


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_clean_up_needs_the_json_only(tmp_path: Path, mode: str) -> None:
    host = FakeHost(str(tmp_path), mode)
    data = json.loads(json.dumps(factory.create("/a/b", {}, root=host).to_json()))
    remove.remove_from_json(data, 1.0)
    assert tree(host) == set()
    remove.remove_from_json(data, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "v3"},
        {"own": None},
        {"own": {"cpu": ["relative"]}},
        {"own": {"cpu": ["/sys/fs/cgroup/cpu/../../x"]}},
        {"own": {"cpu": [3]}},
        {"directories": []},
        {"directories": {"cpu": "x"}},
        {"path": 3},
    ],
)
def test_broken_json_is_refused(v1: FakeHost, change: dict[str, Any]) -> None:
    data = factory.create("/a", {}, root=v1).to_json() | change
    with pytest.raises(InvalidRequest):
        factory.from_json(data, v1)


def test_a_cgroup_in_use_is_reported_and_the_rest_removed(v1: FakeHost) -> None:
    group = factory.create("/a/b", {}, root=v1)
    os.makedirs(f"{v1.path}/pids/a/b/child/inner")
    procs = Path(f"{v1.path}/pids/a/b/child/inner/cgroup.procs")
    procs.write_text("1\n")
    with pytest.raises(Failed) as caught:
        group.remove(0.01)
    assert f"{v1.path}/pids/a/b" in str(caught.value)
    assert not os.path.exists(f"{v1.path}/memory/a/b")
    procs.unlink()
    group.remove()
    assert tree(v1) == set()


def test_empty_cgroups_below_one_of_ours_do_not_hold_it(v1: FakeHost) -> None:
    group = factory.create("/a/b", {}, root=v1)
    os.makedirs(f"{v1.path}/pids/a/b/child/inner")
    os.makedirs(f"{v1.path}/pids/a/other/inner")
    group.remove(0.01)
    assert tree(v1) == {"pids/a", "pids/a/other", "pids/a/other/inner"}, "only below its own"
