"""One shim for a pod: how its containers find it, what that spares, and what it survives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients import api, cri
from integration.harness.clients.ttrpc import Client
from integration.harness.clients.wire import Schema
from integration.harness.host import footprint
from integration.harness.nodes.node import Node
from integration.harness.nodes.pods import NAMESPACE, Pod, PodNode, kill
from shim.containerd_version import RECORDS


def _members(pods: PodNode, pod: Pod, count: int = 2) -> list[str]:
    containers = [pod.start("sleep", "1000") for _ in range(count)]
    for container in containers:
        assert pods.exec(container, "echo", "well").out == "well\n"
    return containers


@pytest.mark.without_pause
@pytest.mark.core
def test_siblings_cost_no_start_and_no_delete(pods: PodNode) -> None:
    """On containerd 2 the binary is run twice for a pod, whatever is in it; on 1.7 for each
    container.  That holds for the very first pod, too."""
    new = pods.daemon.release >= (2, 0)
    if pods.gvisor:
        for record in Path(RECORDS).glob("*"):  # a host that has just booted
            record.unlink(missing_ok=True)
    pod = pods.pod(variant="counted")
    containers = _members(pods, pod)
    everyone = [pod.id] if new else [pod.id, *containers]
    assert pods.shim_calls(pod.id, *containers) == [("start", each) for each in everyone]
    bundles = [pods.pod_bundle(pod), *map(pods.daemon.bundle, containers)]
    if new:
        replies = {(bundle / "bootstrap.json").read_text() for bundle in bundles}
        assert [json.loads(reply)["version"] for reply in replies] == [3]
    # What containerd 1.7 finds a task by, should it be put back.
    assert len({(bundle / "address").read_text() for bundle in bundles}) == 1 or not pods.gvisor
    pods.stop(containers[0])
    pods.delete(containers[0])
    pods.exec(containers[1], "true")
    pod.remove()
    pods.assert_clean()

    def deletes() -> list[str]:
        calls = pods.shim_calls(pod.id, *containers)
        return sorted(each for action, each in calls if action == "delete")

    until(lambda: deletes() == sorted(everyone), 5, "one delete for each start")


@pytest.mark.core
@pytest.mark.gvisor
def test_a_release_keeps_its_record_beside_others(pods: PodNode) -> None:
    """What is known of one containerd is not forgotten over another on the same host."""
    before = {path.name: path.read_text() for path in Path(RECORDS).glob("*")}
    pods.pod()
    after = {path.name: path.read_text() for path in Path(RECORDS).glob("*")}
    assert before.items() <= after.items()
    info = os.stat(pods.daemon.bin / "containerd")
    mine = [after[name] for name in after if f"-{info.st_ino:x}-" in name]
    if pods.daemon.release >= (2, 3):
        assert not mine  # it tells its version with each start
        return
    release = ".".join(map(str, pods.daemon.release))
    assert len(mine) == 1
    assert mine[0].startswith(release + ".")
    assert Path(RECORDS).stat().st_mode & 0o777 == 0o700


def _annotated(kind: str, group: str, first: bool) -> dict[str, str]:
    if kind == "cri":
        names = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    elif kind == "cri-o":
        names = "io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"
    else:
        return {f"io.containerd.{kind}.v2.group": group}
    return {names[0]: "sandbox" if first else "container", names[1]: group}


def _make(node: Node, annotations: dict[str, str], name: str, **options: Any) -> None:
    spec = node.api.spec("sleep", "1000", container=name)
    spec["annotations"] = annotations
    mounts = node.api.make(name, node.runtime, spec, **options)
    node.api.task("Create", container_id=name, rootfs=mounts)
    node.api.task("Start", container_id=name)


def _end(node: Node, name: str) -> None:
    wait = node.api.task_later("Wait", container_id=name)
    node.api.task("Kill", container_id=name, signal=9)
    wait()
    node.api.task("Delete", container_id=name)


@pytest.mark.gvisor
@pytest.mark.parametrize("kind", ["cri", "cri-o", "gvisor", "runc"])
def test_containers_find_the_shim_by_annotation(node: Node, kind: str) -> None:
    """Those of a pod share its sandbox; those that a label groups share the shim alone."""
    first, second = node.new_id(), node.new_id()
    # A label may name anything, and the pod's sandbox is its first container.
    group = first if kind.startswith("cri") else node.known("some-group")
    for name in (first, second):
        _make(node, _annotated(kind, group, name == first), name)
    address = {(node.daemon.bundle(name) / "address").read_text() for name in (first, second)}
    assert len(address) == 1
    path = Path(address.pop().removeprefix("unix://"))
    assert path == footprint.socket_of(node.daemon, group)
    with Client(path) as shim:
        pids = {shim.call("Connect", id=name).shim_pid for name in (first, second)}
        assert len(pids) == 1
        below = [footprint.command_line(pid) for pid in footprint.descendants(pids.pop())]
        assert sum("boot" in line for line in below) == (1 if kind.startswith("cri") else 2)
        # Whoever leaves, and whoever asks for the end: the shim stays while any is left.
        _end(node, second)
        shim.call("Shutdown", id=second, now=True)
        assert node.exec(first, "echo", "well").out == "well\n"
    _end(node, first)
    footprint.wait_gone(node.daemon, group)


@pytest.mark.gvisor
def test_grouping_can_be_switched_off(node: Node) -> None:
    """A label groups no more; a pod's containers, which are one sandbox, still share a shim."""
    file = node.daemon.folder / "apart.toml"
    file.write_text("grouping = false\n")
    value = Schema("type_url:1 config_path:2").encode(config_path=str(file))
    options = {"options": api.packed("runtimeoptions.v1.Options", value)}

    def shims(kind: str) -> int:
        names = [node.new_id(), node.new_id()]
        group = node.known("other-group") if kind == "runc" else names[0]
        for name in names:
            _make(node, _annotated(kind, group, name == names[0]), name, **options)
        pids = set()
        for name in names:
            address = (node.daemon.bundle(name) / "address").read_text()
            with Client(Path(address.removeprefix("unix://"))) as shim:
                pids.add(shim.call("Connect", id=name).shim_pid)
        for name in reversed(names):
            _end(node, name)
        return len(pids)

    assert shims("runc") == 2
    assert shims("cri") == 1


@pytest.mark.gvisor
def test_both_services_answer_for_every_container(pods: PodNode) -> None:
    """A daemon may fall back to version 2 at any time, for tasks of any origin."""
    pod = pods.pod()
    containers = _members(pods, pod)
    socket = footprint.socket_of(pods.daemon, pod.id)
    for service in api.TASK_SERVICES:
        with Client(socket, service) as shim:
            for each in (pod.id, *containers):
                assert shim.call("State", id=each).status == 2
                assert shim.call("Pids", id=each).processes
            shim.call("Shutdown", id=containers[0], now=True)
    assert pods.exec(containers[0], "echo", "well").out == "well\n"


def _delete(pods: PodNode, container: str) -> subprocess.CompletedProcess[bytes]:
    """`delete` as containerd runs it when it has lost a connection."""
    bundle = pods.daemon.bundle(container)
    flags = ["-namespace", NAMESPACE, "-address", str(pods.daemon.address), "-id", container]
    return subprocess.run(
        [peers.shim_path(pods.runtime, pods.daemon.version), *flags, "-bundle", bundle, "delete"],
        cwd=bundle,
        env=pods.daemon.environment(),
        capture_output=True,
        timeout=10,
    )


@pytest.mark.gvisor
def test_delete_of_a_member_leaves_a_live_pod_alone(pods: PodNode) -> None:
    pod = pods.pod()
    containers = _members(pods, pod)
    mounts = pods.mounts()
    for container in containers:
        done = _delete(pods, container)
        assert (done.returncode, done.stderr) == (0, b"")
    assert pods.mounts() == mounts
    for container in containers:
        assert pods.exec(container, "echo", "well").out == "well\n"
        assert pods.status(container).state == cri.RUNNING


@pytest.mark.gvisor
def test_delete_of_a_dead_pod_takes_every_member(pods: PodNode) -> None:
    """Since containerd 2 nobody deletes the members: the sandbox's delete does it for all."""
    pod = pods.pod(variant="counted")
    containers = _members(pods, pod, 3)
    pods.stop(containers[2])
    kill(pod.shim)
    calls = [("start", pod.id), ("delete", pod.id)]
    until(lambda: pods.shim_calls(pod.id, *containers) == calls, 10, "the sandbox's delete")
    ended = [pods.wait_exited(c) for c in containers[:2]]
    assert {each.exit_code for each in ended} <= {137, 255}
    until(lambda: not pods.processes(), 5, "no process is left")
    rootfs = [f"{pods.daemon.bundle(c)}/rootfs" for c in (pod.id, *containers)]
    assert not set(rootfs) & set(pods.mounts())
    state = pods.daemon.folder / "runsc" / NAMESPACE
    assert not [path for path in state.glob("*") if path.is_file()]
    # Had it waited for the members' own, they would not have come.
    assert pods.shim_calls(pod.id, *containers) == calls
    pod.remove()
    pods.assert_clean()


@pytest.mark.gvisor
def test_containerd_is_upgraded_and_put_back(short_folder: Path) -> None:
    """Pods run on below another release, are joined by containers, and can be removed by it."""
    if "custom" in (*peers.CONTAINERDS, *peers.RUNSCS):
        pytest.skip("names the releases itself")
    node = PodNode(short_folder / "up", "1.7", peers.RUNSCS[-1], peers.GVISOR, 90)
    try:
        node.start()
        old = node.pod()
        containers = {old: _members(node, old)}
        script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done"
        counting = old.start("sh", "-c", script)
        node.become("2.1")
        containers[old] += _members(node, old, 1)
        new = node.pod()
        containers[new] = _members(node, new)
        _look_after(node, containers)
        node.become("1.7")
        containers[new] += _members(node, new, 1)
        _look_after(node, containers)
        node.stop(counting)
        numbers = [int(line) for line in old.log(counting).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        for pod in (new, old):
            pod.remove()
    finally:
        try:
            node.clean()
            node.assert_clean()
        finally:
            node.remove()


def _look_after(node: PodNode, containers: dict[Pod, list[str]]) -> None:
    for pod, members in containers.items():
        assert pod.status.state == cri.READY
        for member in members:
            assert node.status(member).state == cri.RUNNING
            assert node.exec(member, "echo", "well").out == "well\n"
    assert len(node.shims()) == len(containers)
