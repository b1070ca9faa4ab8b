"""Where a pod's sandbox and its containers are in the host's cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness.footprint import cgroup_files
from integration.harness.linux import unified_cgroups
from integration.harness.pods import PodNode

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


@pytest.mark.skipif(unified_cgroups(), reason="about v1; v2 has scopes, see integration/vm")
def test_a_slice(pods: PodNode) -> None:
    """systemd's form of paths: all of the pod is in its slice, each container has its scope."""
    first, _, second = pods.cgroup.partition("-")
    name = f"{pods.cgroup}-pod1.slice"
    place = f"/{first}.slice/{first}-{second}.slice/{name}"
    pod = pods.pod(linux={"cgroup_parent": name})
    container = pod.start("sleep", "1000")
    for pid in (pod.sentry(), pod.gofer(pod.id), pod.gofer(container)):
        assert memory_cgroup(pid) == place
    scopes = [f"{place}/cri-containerd-{each}.scope" for each in (pod.id, container)]
    assert [empty(scope) for scope in scopes] == [True, True]
    pods.stop(container)
    pods.delete(container)
    assert [empty(scope) for scope in scopes] == [True, False]
    pod.remove()
    assert cgroup_files("memory", place, "cgroup.procs") == []


@pytest.mark.parametrize("form", ["path", "slice"])
def test_a_parent_that_is_named(pods: PodNode, form: str) -> None:
    """The annotation puts all of the pod there; containers are found under their own paths."""
    named, place = f"/{pods.cgroup}/named", f"/{pods.cgroup}/named"
    if form == "slice":
        if unified_cgroups():
            pytest.skip("a slice gets a scope on v2, see integration/vm")
        first, _, second = pods.cgroup.partition("-")
        named = f"{pods.cgroup}-named.slice"
        place = f"/{first}.slice/{first}-{second}.slice/{named}"
    limit = {"resources": {"memory_limit_in_bytes": 300 << 20}}
    pod = pods.pod(annotations={PARENT: named}, linux=limit)
    container = pod.start("sleep", "1000")
    for pid in (pod.sentry(), pod.gofer(pod.id), pod.gofer(container)):
        assert memory_cgroup(pid) == place
    file = "memory.max" if unified_cgroups() else "memory.limit_in_bytes"
    assert cgroup_files("memory", place, file) == [str(300 << 20)]
    assert empty(f"{pod.cgroup}/{pod.id}") and empty(f"{pod.cgroup}/{container}")
    pod.remove()
    assert cgroup_files("memory", place, "cgroup.procs") == []
