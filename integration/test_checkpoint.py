"""Checkpoint and restore of tasks, with what containerd and ctr have for it."""

from __future__ import annotations

import pytest

from integration.harness.api import packed
from integration.harness.node import Node
from integration.harness.waiting import until

pytestmark = pytest.mark.gvisor

#: Counts in memory, and writes each number to a file that stays open.
COUNTER = "exec 3>>/tmp/log; i=0; while true; do i=$((i+1)); echo $i >&3; sleep 0.05; done"
OPTIONS = "containerd.runc.v1.CheckpointOptions"
EXIT = packed(OPTIONS, b"\x08\x01")


def _numbers(node: Node, container: str) -> list[int]:
    done = node.exec(container, "cat", "/tmp/log")
    assert done.code == 0, done
    return [int(line) for line in done.out.split()]


def _counting(node: Node, container: str, least: int = 3) -> int:
    """The last number once the counter is past ``least``; none may be missing before it."""

    def look() -> int:
        seen = _numbers(node, container)
        assert seen == list(range(1, len(seen) + 1))
        return seen[-1] if seen and seen[-1] > least else 0

    return until(look, 10, f"{container} counts past {least}")


def _saved(node: Node, container: str, *options: str) -> str:
    """`ctr containers checkpoint --task`; the name of the image."""
    reference = f"localhost/saved:{container}"
    done = node.ctr("containers", "checkpoint", "--task", *options, container, reference)
    assert done.code == 0, done
    return reference


def _restored(node: Node, container: str, reference: str, *options: str) -> None:
    line = ("containers", "restore", "--live", *options, node.known(container), reference)
    done = node.ctr(*line)
    assert done.code == 0, done
    assert node.status(container) == "RUNNING"


@pytest.fixture
def modern(node: Node) -> Node:
    """A node whose runsc can go on after a checkpoint."""
    if node.daemon.generation < "2023":
        pytest.skip("this runsc ends what it checkpoints, and ctr can't ask for that")
    return node


@pytest.mark.core
def test_ctr_checkpoints_and_restores(node: Node, modern: Node) -> None:
    name = node.run_detached("sh", "-c", COUNTER)
    first = _counting(node, name)
    reference = _saved(node, name)
    assert node.status(name) == "RUNNING"
    assert _counting(node, name, first) > first
    node.delete(name)
    again = node.new_id()
    _restored(node, again, reference)
    numbers = _numbers(node, again)
    assert numbers[0] == 1
    assert _counting(node, again, numbers[-1]) > first
    assert node.metrics(again)
    assert node.exec(again, "sh", "-c", "exit 7").code == 7
    assert node.kill(again, "SIGTERM").code == 0
    node.wait_stopped(again)
    done = node.ctr("tasks", "delete", again)
    assert "exit code 143" in done.err, done


def test_written_files_come_along(node: Node, modern: Node) -> None:
    """With the snapshot's changes as well, and under the same id."""
    name = node.run_detached("sh", "-c", "echo kept > /etc/kept; " + COUNTER)
    first = _counting(node, name)
    reference = _saved(node, name, "--rw")
    node.delete(name)
    _restored(node, name, reference, "--rw")
    assert _counting(node, name, first) > first
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
    first = [_counting(node, name) for name in (root, member)]
    references = [_saved(node, name) for name in (root, member)]
    node.delete(member)
    node.delete(root)
    done = node.ctr("containers", "restore", "--live", root, references[0])
    assert done.code == 0, done
    assert node.status(root) == "RUNNING"
    _restored(node, member, references[1])
    for name, seen in zip((root, member), first, strict=True):
        assert _counting(node, name, seen) > seen
    assert node.kill(member, "SIGKILL", "--all").code == 0
    node.wait_stopped(member)
    assert node.status(root) == "RUNNING"
