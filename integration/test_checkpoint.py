"""Checkpoint and restore of tasks, with what containerd and ctr have for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients.api import Code, packed, process_spec
from integration.harness.clients.ttrpc import Client, Refused
from integration.harness.host.image import unpack_rootfs
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import Bundle, outcome
from integration.test_network import Namespace, connect

pytestmark = pytest.mark.gvisor

#: Counts in memory, and writes each number to a file that stays open.
COUNTER = "exec 3>>/tmp/log; i=0; while true; do i=$((i+1)); echo $i >&3; sleep 0.05; done"
OPTIONS = "containerd.runc.v1.CheckpointOptions"
EXIT = packed(OPTIONS, b"\x08\x01")


def _numbers(node: Node, container: str) -> list[int]:
    done = node.exec(container, "cat", "/tmp/log")
    assert done.code == 0, done
    return [int(line) for line in done.out.split()]


def counting(node: Node, container: str, least: int = 3) -> int:
    """The last number once the counter is past ``least``; none may be missing before it."""

    def look() -> int:
        seen = _numbers(node, container)
        assert seen == list(range(1, len(seen) + 1))
        return seen[-1] if seen and seen[-1] > least else 0

    return until(look, 10, f"{container} counts past {least}")


def saved(node: Node, container: str, *options: str) -> str:
    """`ctr containers checkpoint --task`; the name of the image."""
    reference = f"localhost/saved:{container}"
    done = node.ctr("containers", "checkpoint", "--task", *options, container, reference)
    assert done.code == 0, done
    return reference


def restored(node: Node, container: str, reference: str, *options: str) -> None:
    line = ("containers", "restore", "--live", *options, node.known(container), reference)
    done = node.ctr(*line)
    assert done.code == 0, done
    assert node.status(container) == "RUNNING"


def _waits(container: str) -> int:
    """How many connections to a sandbox's sentry are open: each is a wait for an exit.

    Without one nobody hears of the end, and what isn't waited for was once taken for ended.
    """
    ends = (
        f"/runsc-{container}.sock",
        f"@runsc-sandbox.{container}",
        f"@runsc-sandbox.{container}@",
    )
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(words[5] == "03" and words[-1].endswith(ends) for words in lines)


@pytest.fixture
def modern(node: Node) -> Node:
    """A node whose runsc can go on after a checkpoint."""
    if node.daemon.generation < "2023":
        pytest.skip("this runsc ends what it checkpoints, and ctr can't ask for that")
    return node


@pytest.mark.core
def test_ctr_checkpoints_and_restores(node: Node, modern: Node) -> None:
    name = node.run_detached("sh", "-c", COUNTER)
    first = counting(node, name)
    reference = saved(node, name)
    assert node.status(name) == "RUNNING"
    assert counting(node, name, first) > first
    node.delete(name)
    again = node.new_id()
    restored(node, again, reference)
    until(lambda: _waits(again) == 1, 5, "its exit is asked for")
    numbers = _numbers(node, again)
    assert numbers[0] == 1
    assert counting(node, again, numbers[-1]) > first
    assert node.metrics(again)
    assert node.exec(again, "sh", "-c", "exit 7").code == 7
    assert node.kill(again, "SIGTERM").code == 0
    node.wait_stopped(again)
    done = node.ctr("tasks", "delete", again)
    assert "exit code 143" in done.err, done


def test_the_original_goes_before_what_was_restored(node: Node, modern: Node) -> None:
    """ctr gives both the same cgroup, as it restores the spec as it was."""
    name = node.run_detached("sh", "-c", COUNTER)
    first = counting(node, name)
    reference = saved(node, name)
    again = node.new_id()
    restored(node, again, reference)
    node.kill(name, "SIGKILL")
    node.wait_stopped(name)
    done = node.ctr("tasks", "delete", name)
    assert "exit code 137" in done.err, done
    assert counting(node, again, first) > first
    node.delete(again)
    node.remove_cgroups(name)


def test_written_files_come_along(node: Node, modern: Node) -> None:
    """With the snapshot's changes as well, and under the same id."""
    name = node.run_detached("sh", "-c", "echo kept > /etc/kept; " + COUNTER)
    first = counting(node, name)
    reference = saved(node, name, "--rw")
    node.delete(name)
    restored(node, name, reference, "--rw")
    assert counting(node, name, first) > first
    assert node.exec(name, "cat", "/etc/kept").out == "kept\n"
    assert "filestore" not in node.exec(name, "ls", "-a", "/").out


def test_a_pod_of_two(node: Node, modern: Node) -> None:
    root, member = node.new_id(), node.new_id()
    kind, pod, called = (
        f"io.kubernetes.cri.{key}" for key in ("container-type", "sandbox-id", "container-name")
    )
    for name, marks in (
        (root, {kind: "sandbox", pod: root}),
        (member, {kind: "container", pod: root, called: "worker"}),
    ):
        options = [f"--annotation={key}={value}" for key, value in marks.items()]
        node.run_detached("sh", "-c", COUNTER, container=name, options=options)
    first = [counting(node, name) for name in (root, member)]
    references = [saved(node, name) for name in (root, member)]
    node.delete(member)
    node.delete(root)
    done = node.ctr("containers", "restore", "--live", root, references[0])
    assert done.code == 0, done
    assert node.status(root) == "RUNNING"
    restored(node, member, references[1])
    until(lambda: _waits(root) == 2, 5, "their exits are asked for")
    for name, seen in zip((root, member), first, strict=True):
        assert counting(node, name, seen) > seen
    assert node.kill(member, "SIGKILL", "--all").code == 0
    node.wait_stopped(member)
    assert node.status(root) == "RUNNING"


def test_ctr_tasks_checkpoint(node: Node, modern: Node) -> None:
    name = node.run_detached("sh", "-c", COUNTER)
    with node.api.events() as events:
        done = node.ctr("tasks", "checkpoint", name)
        assert done.code == 0, done
        events.wait(name, "resumed")
        seen = [topic for topic in events.topics(name) if topic not in ("create", "start")]
    # ctr pauses the task itself.
    assert seen == ["paused", "checkpointed", "resumed"]
    assert node.status(name) == "RUNNING"
    assert done.out.startswith("containerd.io/checkpoint/")


@pytest.mark.core
def test_exit_after_the_checkpoint(node: Node) -> None:
    name = node.run_detached("sh", "-c", COUNTER)
    with node.api.events() as events:
        assert node.api.task("Checkpoint", container_id=name, options=EXIT).descriptors
        events.wait_init_exit(name)
        seen = [each for each in events.of(name) if each[0] not in ("create", "start")]
    assert [topic for topic, _ in seen] == ["checkpointed", "exit"]
    assert seen[0][1].checkpoint
    assert seen[1][1].exit_status == 0
    assert node.status(name) == "STOPPED"


def _begin(bundle: Bundle) -> Client:
    bundle.write(bundle.spec("sh", "-c", COUNTER))
    return bundle.start()


def _checkpointed(node: Node, path: Path) -> int:
    """An image of a counter that was ended then; how far it had come."""
    with Bundle(node) as bundle:
        client = _begin(bundle)
        bundle.create()
        client.call("Start", id=bundle.id)
        seen = until(lambda: _read(client, bundle), 10, "it counts")
        client.call("Checkpoint", id=bundle.id, path=str(path), options=EXIT)
        assert client.call("Wait", id=bundle.id).exit_status == 0
        client.call("Delete", id=bundle.id)
    return seen


def _read(client: Client, bundle: Bundle) -> int:
    """How many numbers are in the log, by an exec."""
    name = f"e{len(list(bundle.path.iterdir()))}"
    output = bundle.path / name
    output.touch()
    spec = bundle.spec("cat", "/tmp/log")["process"]
    pair = {"id": bundle.id, "exec_id": name}
    client.call("Exec", spec=process_spec(spec), stdout=str(output), stderr=str(output), **pair)
    client.call("Start", **pair)
    client.call("Wait", **pair)
    client.call("Delete", **pair)
    return len(output.read_text().split())


@pytest.mark.core
def test_an_image_that_is_gone_after_create(node: Node, tmp_path: Path) -> None:
    """containerd unpacks it for Create, and keeps it no longer."""
    path = tmp_path / "image"
    before = _checkpointed(node, path)
    with Bundle(node) as bundle:
        client = _begin(bundle)
        bundle.create(checkpoint=str(path))
        shutil.rmtree(path)
        assert client.call("State", id=bundle.id).status == 1
        client.call("Start", id=bundle.id)
        assert client.call("State", id=bundle.id).status == 2
        until(lambda: _waits(bundle.id) == 1, 30, "its exit is asked for")
        until(lambda: _read(client, bundle) > before, 10, "it goes on")
        assert client.call("Stats", id=bundle.id).stats.value
        assert client.call("Pids", id=bundle.id).processes
        client.call("Pause", id=bundle.id)
        client.call("Resume", id=bundle.id)
        client.call("Kill", id=bundle.id, signal=9, all=True)
        assert client.call("Wait", id=bundle.id).exit_status == 137
        client.call("Delete", id=bundle.id)


@pytest.mark.parametrize("harm", ["truncated", "missing", "link"])
def test_bad_images_are_refused_by_create(node: Node, tmp_path: Path, harm: str) -> None:
    path = tmp_path / "image"
    _checkpointed(node, path)
    state = path / "checkpoint.img"
    if harm == "missing":
        state.unlink()
    elif harm == "link":
        state.rename(path / "other")
        state.symlink_to("other")
    else:
        state.write_bytes(state.read_bytes()[:-1])
    with Bundle(node) as bundle:
        client = _begin(bundle)
        with pytest.raises(Refused) as refused:
            bundle.create(checkpoint=str(path))
        wanted = Code.NOT_FOUND if harm == "missing" else Code.INVALID_ARGUMENT
        assert refused.value.code == wanted, refused.value
        assert str(path) in refused.value.message
        assert outcome(client, "State", id=bundle.id) == Code.NOT_FOUND


@pytest.mark.core
def test_images_that_the_sentry_refuses_leave_a_task_to_delete(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "image"
    _checkpointed(node, path)
    state = path / "checkpoint.img"
    data = state.read_bytes()
    state.write_bytes(data[: len(data) // 2])
    (path / "gvisor-shim.json").unlink()  # as of runsc itself: only the sentry can tell
    with Bundle(node) as bundle:
        client = _begin(bundle)
        bundle.create(checkpoint=str(path))
        with pytest.raises(Refused, match=r"restore .*EOF"):
            client.call("Start", id=bundle.id)
        assert client.call("State", id=bundle.id).status == 3
        assert client.call("Wait", id=bundle.id).exit_status
        client.call("Delete", id=bundle.id)


def test_half_a_pod(node: Node, modern: Node, tmp_path: Path) -> None:
    """Nothing hangs while a container is missing, and a signal ends it."""
    path, own = tmp_path / "image", tmp_path / "own"
    own.mkdir()
    unpack_rootfs(own)
    rootfs = [{"type": "bind", "source": str(own), "options": ["rbind", "rw"]}]
    kind, pod = (f"io.kubernetes.cri.{key}" for key in ("container-type", "sandbox-id"))
    for restoring in (False, True):
        with Bundle(node) as bundle, Bundle(node) as other:
            for each, role in ((bundle, "sandbox"), (other, "container")):
                spec = each.spec("sh", "-c", COUNTER)
                spec["annotations"] = {kind: role, pod: bundle.id}
                each.write(spec)
            client = bundle.start()
            bundle.create(checkpoint=str(path) if restoring else "")
            client.call("Start", id=bundle.id)
            other.client = client
            if not restoring:
                other.create(rootfs=rootfs)
                assert outcome(client, "Checkpoint", id=bundle.id, path=str(path)) == 9
                client.call("Start", id=other.id)
                client.call("Checkpoint", id=other.id, path=str(path), options=EXIT)
                assert client.call("Wait", id=bundle.id).exit_status == 0
                assert client.call("Wait", id=other.id).exit_status == 0
                client.call("Delete", id=other.id)
                other.client = None
                continue
            assert client.call("State", id=bundle.id).status == 2
            spec = process_spec(other.spec("true")["process"])
            client.call("Exec", id=bundle.id, exec_id="x", spec=spec)
            assert outcome(client, "Start", id=bundle.id, exec_id="x")
            assert outcome(client, "Pause", id=bundle.id) == 9
            assert outcome(client, "Checkpoint", id=bundle.id, path=str(tmp_path / "new")) == 9
            assert client.call("Pids", id=bundle.id).processes
            outcome(client, "Stats", id=bundle.id)
            # The root container's image is what counts.
            other.create(rootfs=rootfs, checkpoint=str(tmp_path / "nowhere"))
            client.call("Kill", id=bundle.id, signal=15)
            assert client.call("Wait", id=bundle.id).exit_status == 143
            client.call("Delete", id=other.id)
            other.client = None


def test_gvctl_checkpoints_and_restores(node: Node, modern: Node, tmp_path: Path) -> None:
    """What the shim runs; the shim hears of an end that is no failure."""
    kept, image = tmp_path / "kept", tmp_path / "image"
    root = tmp_path / "root"
    with Bundle(node) as bundle:
        spec = bundle.spec("sh", "-c", COUNTER)
        spec["root"]["path"] = str(bundle.rootfs)
        bundle.write(spec)
        client = bundle.start()
        bundle.create(rootfs=[])
        client.call("Start", id=bundle.id)
        until(lambda: _read(client, bundle), 10, "it counts")
        ours = ("--namespace", node.daemon.namespace)
        _gvctl(node, *ours, "checkpoint", "--leave-running", "--image-path", str(kept), bundle.id)
        assert client.call("State", id=bundle.id).status == 2
        before = _read(client, bundle)
        line = ("checkpoint", "--compression", "none", "--image-path", str(image), bundle.id)
        _gvctl(node, *ours, *line)
        assert client.call("Wait", id=bundle.id).exit_status == 0
        client.call("Delete", id=bundle.id)
        assert (image / "pages.img").stat().st_size > (kept / "checkpoint.img").stat().st_size
        name, options = node.new_id(), ("-b", str(bundle.path), "-d")
        theirs = ("--root", str(root))
        _gvctl(node, *theirs, "restore", *options, "--image-path", str(image), name)
        try:
            log = _gvctl(node, *theirs, "exec", name, "cat", "/tmp/log").split()
            assert len(log) >= before
            assert log == [str(number) for number in range(1, len(log) + 1)]
        finally:
            _gvctl(node, *theirs, "delete", "-f", name)


def test_gvctl_leaves_out_what_has_stopped(node: Node, modern: Node, tmp_path: Path) -> None:
    """And the shim, which knows nothing of that, deletes it as ever."""
    own, image = tmp_path / "own", tmp_path / "image"
    own.mkdir()
    unpack_rootfs(own)
    rootfs = [{"type": "bind", "source": str(own), "options": ["rbind", "rw"]}]
    kind, pod = (f"io.kubernetes.cri.{key}" for key in ("container-type", "sandbox-id"))
    with Bundle(node) as bundle, Bundle(node) as other:
        for each, role in ((bundle, "sandbox"), (other, "container")):
            spec = each.spec("sleep", "1000")
            spec["annotations"] = {kind: role, pod: bundle.id}
            each.write(spec)
        client = bundle.start()
        bundle.create()
        client.call("Start", id=bundle.id)
        other.client = client
        other.create(rootfs=rootfs)
        client.call("Start", id=other.id)
        client.call("Kill", id=other.id, signal=9)
        assert client.call("Wait", id=other.id).exit_status == 137
        where = ("--namespace", node.daemon.namespace)
        words = ("checkpoint", "--leave-running", "--image-path", str(image), bundle.id)
        _gvctl(node, *where, *words)
        assert len(json.loads((image / "gvisor-shim.json").read_text())["containers"]) == 1
        assert client.call("State", id=bundle.id).status == 2
        assert client.call("Delete", id=other.id).exit_status == 137
        other.client = None
        client.call("Kill", id=bundle.id, signal=9)
        assert client.call("Wait", id=bundle.id).exit_status == 137
        client.call("Delete", id=bundle.id)


def test_gvctl_saves_the_network_that_the_shim_took_over(
    node: Node, modern: Node, tmp_path: Path
) -> None:
    image, theirs = tmp_path / "image", ("--root", str(tmp_path / "root"))
    pod, peer = Namespace(), Namespace()
    try:
        connect(pod, peer)
        pod.ip("address", "add", "10.211.8.2/24", "dev", "eth0")
        with Bundle(node) as bundle:
            spec = bundle.spec("sleep", "1000")
            spec["root"]["path"] = str(bundle.rootfs)
            kinds = [each for each in spec["linux"]["namespaces"] if each["type"] != "network"]
            spec["linux"]["namespaces"] = [*kinds, {"type": "network", "path": pod.path}]
            bundle.write(spec)
            client = bundle.start()
            bundle.create(rootfs=[])
            client.call("Start", id=bundle.id)
            assert "10.211.8.2" not in pod.ip("address")
            where = ("--namespace", node.daemon.namespace)
            _gvctl(node, *where, "checkpoint", "--image-path", str(image), bundle.id)
            assert client.call("Wait", id=bundle.id).exit_status == 0
            client.call("Delete", id=bundle.id)
            name, options = node.new_id(), ("-b", str(bundle.path), "-d")
            _gvctl(node, *theirs, "restore", *options, "--image-path", str(image), name)
            try:
                assert "10.211.8.2" in _gvctl(node, *theirs, "exec", name, "ip", "address")
            finally:
                _gvctl(node, *theirs, "delete", "-f", name)
    finally:
        pod.close()
        peer.close()


def _gvctl(node: Node, *arguments: str) -> str:
    runsc = str(peers.runsc(node.daemon.generation))
    program = Path(sys.executable).with_name("gvctl")
    # A detached container keeps the output that it is given, so that is no pipe.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [program, "--runsc", runsc, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=30,
        )
        output.seek(0)
        text = output.read().decode()
    assert done.returncode == 0, text
    return text
