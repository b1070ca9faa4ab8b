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


@pytest.mark.core
def test_ctr_checkpoints_and_restores(node: Node) -> None:
    if node.daemon.generation < "2023":
        pytest.skip("ctr can't ask for exit, and this runsc does nothing else")
    name = node.run_detached("sh", "-c", COUNTER)
    first = _counting(node, name)
    done = node.ctr("containers", "checkpoint", "--task", name, "localhost/saved:1")
    assert done.code == 0, done
    assert node.status(name) == "RUNNING"
    assert _counting(node, name, first) > first
    node.delete(name)
    again = node.new_id()
    done = node.ctr("containers", "restore", "--live", again, "localhost/saved:1")
    assert done.code == 0, done
    assert node.status(again) == "RUNNING"
    numbers = _numbers(node, again)
    assert numbers[0] == 1
    assert _counting(node, again, numbers[-1]) > first
    assert node.metrics(again)
    node.kill(again, "SIGTERM")
    done = node.ctr("tasks", "delete", again)
    print(done)
