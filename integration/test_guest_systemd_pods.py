"""Kubernetes pods in systemd's slices and scopes: see `integration/vm --systemd`."""

from __future__ import annotations

import pytest

from integration.guest import scene
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.nodes.pods import Pod, PodNode, kill
from integration.test_guest_pods import MIB, SLEEP, UPDATE, hog, limited
from integration.test_guest_systemd import in_shell

pytestmark = pytest.mark.skipif(
    bool(scene.lacking()) or not scene.systemd_booted(), reason="needs a guest with systemd"
)


def show(unit: str, *properties: str) -> list[str]:
    words = [f"--property={name}" for name in properties]
    lines = in_shell("systemctl", "show", *words, unit).split()
    found = dict(line.split("=", 1) for line in lines)
    return [found[name] for name in properties]


def in_a_slice(pods: PodNode, variant: str = "", **sums: int) -> tuple[Pod, str]:
    """A pod as of a kubelet with systemd's driver, and where its cgroup is."""
    name = f"kubepods-burstable-pod{pods.cgroup.replace('-', '_')}.slice"
    linux = {"cgroup_parent": name, "resources": sums} if sums else {"cgroup_parent": name}
    pod = pods.pod(variant=variant, linux=linux)
    return pod, f"/kubepods.slice/kubepods-burstable.slice/{name}"


def scopes() -> set[str]:
    command = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "cri-containerd-*")
    return {line.split()[0] for line in in_shell(*command).splitlines()}


def test_a_pod_in_scopes(guest_pods: PodNode) -> None:
    """Each container has a scope in the pod's slice that systemd knows, and keeps."""
    pods = guest_pods
    pod, place = in_a_slice(pods, memory_limit_in_bytes=120 * MIB)
    container = pod.start(*SLEEP, **limited(40))
    sandbox, own = (f"cri-containerd-{each}.scope" for each in (pod.id, container))
    assert scopes() == {sandbox, own}
    what = ("ActiveState", "ControlGroup", "Slice", "MemoryMax")
    slice_name = place.rpartition("/")[2]
    assert show(sandbox, *what) == ["active", f"{place}/{sandbox}", slice_name, str(120 * MIB)]
    assert show(own, *what) == ["active", f"{place}/{own}", slice_name, str(40 * MIB)]
    for pid in (pod.sentry(), *pod.own_gofers(), pod.gofer(container)):
        assert scene.cgroup_of(pid) == f"{place}/{sandbox}"

    pods.call(UPDATE, container_id=container, linux={"memory_limit_in_bytes": 60 * MIB})
    assert show(own, "MemoryMax") == [str(60 * MIB)]
    assert show(sandbox, "MemoryMax") == [str(140 * MIB)]
    assert scene.text(f"{place}/{sandbox}", "memory.max") == str(140 * MIB)
    with pytest.raises(Refused):
        refused = {"memory_limit_in_bytes": 50 * MIB, "cpu_quota": 10, "cpu_period": 100000}
        pods.call(UPDATE, container_id=container, linux=refused)
    assert show(own, "MemoryMax") + show(sandbox, "MemoryMax") == [str(60 * MIB), str(140 * MIB)]

    pods.stop(container)
    pods.delete(container)
    assert scopes() == {sandbox}
    # The count of kills can still be read when nothing of the sandbox is left in the scope.
    whole = pod.start(*hog(400))
    assert pods.wait_reason(whole, "OOMKilled", 60) == 137
    pod.remove()
    assert scopes() == set()
    assert not scene.exists(f"{place}/{sandbox}")


def test_a_pod_in_scopes_without_a_pause_container(guest_pods: PodNode) -> None:
    pods = guest_pods
    pod, place = in_a_slice(pods, "shim", memory_limit_in_bytes=120 * MIB)
    container = pod.start(*SLEEP, **limited(40))
    sandbox, own = (f"cri-containerd-{each}.scope" for each in (pod.id, container))
    assert scopes() == {sandbox, own}
    what = ("ActiveState", "ControlGroup", "Slice", "MemoryMax")
    slice_name = place.rpartition("/")[2]
    assert show(sandbox, *what) == ["active", f"{place}/{sandbox}", slice_name, str(120 * MIB)]
    assert show(own, *what) == ["active", f"{place}/{own}", slice_name, str(40 * MIB)]
    for pid in (pod.sentry(), pod.gofer(container)):
        assert scene.cgroup_of(pid) == f"{place}/{sandbox}"
    whole = pod.start(*hog(400))
    assert pods.wait_reason(whole, "OOMKilled", 60) == 137
    # containerd closes a container's connection once it has heard of its end, also below a Kill.
    assert pods.wait_reason(container, "Error", 60) == 137
    pod.remove()
    assert scopes() == set()
    assert not scene.exists(f"{place}/{sandbox}")


def test_scopes_of_a_dead_shim(guest_pods: PodNode) -> None:
    pods = guest_pods
    pod, _ = in_a_slice(pods)
    container = pod.start(*SLEEP)
    assert len(scopes()) == 2
    kill(pod.shim)
    until(lambda: pod.status.state == cri.NOT_READY, 30, "the pod is known to be dead")
    pods.wait_exited(container, 30)
    pod.remove()
    assert scopes() == set()
