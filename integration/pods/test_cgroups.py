"""Where a pod's sandbox and its containers are in the host's cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness.base.linux import unified_cgroups
from integration.harness.base.peers import runsc
from integration.harness.host.footprint import cgroup_files
from integration.harness.nodes.pods import PodNode
from runtime.runsc.release import probe

pytestmark = pytest.mark.gvisor

PARENT = "dev.gvisor.spec.cgroup-parent"


def memory_cgroup(pid: int) -> str:
    """The cgroup of a process, on v1 that of its memory."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if unified_cgroups() else "memory" in controllers.split(","):
            return path
    raise AssertionError(f"process {pid} has no such cgroup")


def empty(path: str) -> bool:
    """Whether a cgroup is there, without processes."""
    return cgroup_files("memory", path, "cgroup.procs") == [""]


@pytest.mark.without_pause
@pytest.mark.skipif(unified_cgroups(), reason="about v1; v2 has scopes, see integration/vm")
def test_a_slice(pods: PodNode) -> None:
    """systemd's form of paths: all of the pod is in its slice, each container has its scope."""
    first, _, second = pods.cgroup.partition("-")
    name = f"{pods.cgroup}-pod1.slice"
    place = f"/{first}.slice/{first}-{second}.slice/{name}"
    pod = pods.pod(linux={"cgroup_parent": name})
    container = pod.start("sleep", "1000")
    for pid in (pod.sentry(), *pod.own_gofers(), pod.gofer(container)):
        assert memory_cgroup(pid) == place
    scopes = [f"{place}/cri-containerd-{each}.scope" for each in (pod.id, container)]
    assert [empty(scope) for scope in scopes] == [True, True]
    pods.stop(container)
    pods.delete(container)
    assert [empty(scope) for scope in scopes] == [True, False]
    pod.remove()
    assert cgroup_files("memory", place, "cgroup.procs") == []


@pytest.mark.without_pause
@pytest.mark.parametrize("form", ["path", "slice"])
def test_a_parent_that_is_named(pods: PodNode, form: str) -> None:
    """The annotation puts all of the pod there, if it is inside of the pod's own cgroup;
    containers are found under their own paths."""
    parent, prefix = f"/{pods.cgroup}/podown", "/"
    named = place = f"{parent}/low"
    if form == "slice":
        if unified_cgroups():
            pytest.skip("a slice gets a scope on v2, see integration/vm")
        first, _, second = pods.cgroup.partition("-")
        parent, named = (f"{pods.cgroup}-podown{end}.slice" for end in ("", "-low"))
        above = f"/{first}.slice/{first}-{second}.slice/{parent}"
        place, prefix = f"{above}/{named}", "/cri-containerd-"
    limit = {"resources": {"memory_limit_in_bytes": 300 << 20}, "cgroup_parent": parent}
    pod = pods.pod(annotations={PARENT: named}, linux=limit)
    container = pod.start("sleep", "1000")
    for pid in (pod.sentry(), *pod.own_gofers(), pod.gofer(container)):
        assert memory_cgroup(pid) == place
    file = "memory.max" if unified_cgroups() else "memory.limit_in_bytes"
    assert cgroup_files("memory", place, file) == [str(300 << 20)]
    top, end = (parent, "") if form == "path" else (place.rpartition("/")[0], ".scope")
    assert all(empty(f"{top}{prefix}{each}{end}") for each in (pod.id, container))
    pod.remove()
    assert cgroup_files("memory", place, "cgroup.procs") == []


def test_a_containers_limits_are_seen_inside(pods: PodNode) -> None:
    """The JVM and others size themselves by them: by the container's own, not by the pod's."""
    if not probe(str(runsc(pods.daemon.generation)), "").mounts_cgroups:
        pytest.skip("this runsc shows no cgroups")
    pod = pods.pod(linux={"resources": {"cpu_quota": 90000, "memory_limit_in_bytes": 400 << 20}})
    limit = {"cpu_quota": 50000, "cpu_period": 100000, "memory_limit_in_bytes": 100 << 20}
    container = pod.start("sleep", "1000", linux={"resources": limit})
    other = pod.start("sleep", "1000")
    names = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "memory/memory.limit_in_bytes")

    def seen(container: str) -> list[int]:
        files = [f"/sys/fs/cgroup/{name}" for name in names]
        return [int(line) for line in pods.exec(container, "cat", *files).out.split()]

    assert seen(container) == list(limit.values())
    limit = {"cpu_quota": 70000, "memory_limit_in_bytes": 200 << 20}
    pods.call("UpdateContainerResources", container_id=container, linux=limit)
    assert seen(container) == [70000, 100000, 200 << 20]
    assert seen(other)[2] >= 400 << 20


@pytest.mark.without_pause
def test_a_pods_author_stays_in_the_pods_cgroup(pods: PodNode) -> None:
    """Whatever the annotation names: its limits hold, and others' cgroups are not joined."""
    foreign = f"/{pods.cgroup}/foreign"
    limit = {"resources": {"memory_limit_in_bytes": 300 << 20}}
    pod = pods.pod(annotations={PARENT: foreign}, linux=limit)
    place = memory_cgroup(pod.sentry())
    assert place == pod.cgroup or place.startswith(pod.cgroup + "/")
    file = "memory.max" if unified_cgroups() else "memory.limit_in_bytes"
    assert cgroup_files("memory", place, file) == [str(300 << 20)]
    assert cgroup_files("memory", foreign, "cgroup.procs") == []
    assert f"cgroup.parent_refused component=creation container={pod.id}" in pods.daemon.log_tail()
