"""Kubernetes pods on real cgroup v2 with every controller: see `integration/vm`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.guest import scene
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Api, Refused
from integration.harness.nodes.pods import PodNode

pytestmark = pytest.mark.skipif(bool(scene.lacking()), reason=scene.lacking() or "-")

MIB = 1 << 20
SLEEP = ("sleep", "1000")
UPDATE = "UpdateContainerResources"
CONTROLLERS = {"cpu", "cpuset", "io", "memory", "pids"}


def hog(mib: int) -> tuple[str, ...]:
    """Takes that much memory at once, and again."""
    return ("dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1000")


def limited(mib: int) -> dict[str, object]:
    return {"linux": {"resources": {"memory_limit_in_bytes": mib * MIB}}}


@pytest.fixture
def api(guest_pods: PodNode) -> Iterator[Api]:
    api = Api(guest_pods.daemon)
    yield api
    api.close()


def test_a_pod_in_cgroups_of_our_own(guest_pods: PodNode, api: Api) -> None:
    """The sandbox is in a leaf below the pod's cgroup, which hands every controller down."""
    pods = guest_pods
    sums = {"memory_limit_in_bytes": 120 * MIB, "cpu_quota": 150000, "cpu_period": 100000}
    pod = pods.pod(linux={"resources": sums})
    leaf = f"{pod.cgroup}/{pod.id}"
    first = pod.start(*SLEEP, **limited(40))
    own = f"{pod.cgroup}/{first}"
    assert set(scene.text(pod.cgroup, "cgroup.subtree_control").split()) >= CONTROLLERS
    below = scene.children(pod.shim)
    assert {scene.cgroup_of(pid) for pid in below} == {leaf}
    assert scene.members(own) == set()
    limits = ("memory.max", "cpu.max")
    assert [scene.text(leaf, file) for file in limits] == [str(120 * MIB), "150000 100000"]

    pods.call(UPDATE, container_id=first, linux={"memory_limit_in_bytes": 60 * MIB})
    assert scene.text(own, "memory.max") == str(60 * MIB)
    assert scene.text(leaf, "memory.max") == str(140 * MIB)
    with pytest.raises(Refused):
        # The kernel takes no quota below a millisecond; nothing of it holds then.
        refused = {"memory_limit_in_bytes": 50 * MIB, "cpu_quota": 10, "cpu_period": 100000}
        pods.call(UPDATE, container_id=first, linux=refused)
    assert scene.text(own, "memory.max") == str(60 * MIB)
    assert scene.text(leaf, "memory.max") == str(140 * MIB)

    with api.events() as events:
        over = pod.start(*hog(60), **limited(24))
        assert pods.wait_reason(over, "OOMKilled", 60) == 137
        assert pods.status(first).state == cri.RUNNING
        assert pod.status.state == cri.READY
        # The mark is taken away with the last whom it could concern.
        whole = pod.start(*hog(400))
        assert pods.wait_reason(whole, "OOMKilled", 60) == 137
        assert pods.wait_reason(first, "Error", 60) == 137
        for each in (over, whole):
            topics = events.topics(each)
            assert topics.count("oom") == 1 and topics.index("oom") < topics.index("exit"), topics
        assert "oom" not in events.topics(first) + events.topics(pod.id)


def test_a_sandbox_has_the_overhead_of_its_pod(guest_pods: PodNode) -> None:
    """What the kubelet has written into the pod's cgroup, and tells CRI nothing of."""
    sums = {"memory_limit_in_bytes": 120 * MIB, "cpu_quota": 150000, "cpu_period": 100000}
    pod = guest_pods.prepare(linux={"resources": sums})
    scene.make(pod.cgroup)
    scene.write(pod.cgroup, "memory.max", str(184 * MIB))
    scene.write(pod.cgroup, "cpu.max", "160000 100000")
    pod.run()
    leaf = f"{pod.cgroup}/{pod.id}"
    assert scene.text(leaf, "memory.max") == str(184 * MIB)
    assert scene.text(leaf, "cpu.max") == "160000 100000"
    first = pod.start(*SLEEP, **limited(40))
    guest_pods.call(UPDATE, container_id=first, linux={"memory_limit_in_bytes": 60 * MIB})
    assert scene.text(leaf, "memory.max") == str(204 * MIB)


def test_a_pod_without_a_pause_container(guest_pods: PodNode, api: Api) -> None:
    """The shim's own sandbox is in such a leaf as well, with the pod's sums and its overhead."""
    pods = guest_pods
    sums = {"memory_limit_in_bytes": 100 * MIB, "cpu_quota": 150000, "cpu_period": 100000}
    overhead = {"memory_limit_in_bytes": 20 * MIB, "cpu_quota": 10000, "cpu_period": 100000}
    pod = pods.pod(variant="shim", linux={"resources": sums, "overhead": overhead})
    leaf = f"{pod.cgroup}/{pod.id}"
    first = pod.start(*SLEEP, **limited(40))
    own = f"{pod.cgroup}/{first}"
    assert {scene.cgroup_of(pid) for pid in scene.children(pod.shim)} == {leaf}
    assert scene.members(own) == set()
    limits = ("memory.max", "cpu.max")
    assert [scene.text(leaf, file) for file in limits] == [str(120 * MIB), "160000 100000"]
    assert scene.text(own, "memory.max") == str(40 * MIB)
    pods.call(UPDATE, container_id=first, linux={"memory_limit_in_bytes": 60 * MIB})
    assert scene.text(own, "memory.max") == str(60 * MIB)
    assert scene.text(leaf, "memory.max") == str(140 * MIB)
    figures = pods.call("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux
    assert figures.memory.working_set_bytes.value > MIB

    with api.events() as events:
        over = pod.start(*hog(60), **limited(24))
        assert pods.wait_reason(over, "OOMKilled", 60) == 137
        assert pods.status(first).state == cri.RUNNING
        assert pod.status.state == cri.READY
        whole = pod.start(*hog(400))
        assert pods.wait_reason(whole, "OOMKilled", 60) == 137
        assert pods.wait_reason(first, "Error", 60) == 137
        until(lambda: pod.status.state == cri.NOT_READY, 60, "the sandbox has ended")
        for each in (over, whole):
            topics = events.topics(each)
            assert topics.count("oom") == 1 and topics.index("oom") < topics.index("exit"), topics
        assert "oom" not in events.topics(first)
    pod.remove()
    assert not scene.exists(leaf) and not scene.exists(own)


def test_scores_can_be_lowered(guest_pods: PodNode) -> None:
    """With every capability: down to the lowest workload's, and back when it goes."""
    pods = guest_pods
    pod = pods.pod()
    sentry = pod.sentry()
    original = scene.oom_score(sentry)
    container = pod.start(*SLEEP, linux={"resources": {"oom_score_adj": 990}})
    assert scene.oom_score(sentry) == 990
    pods.stop(container)
    pods.delete(container)
    assert scene.oom_score(sentry) == original
