"""What the kubelet's summary is made of: stats of containers and of pods."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.nodes.pods import Pod, PodNode, kill


def _containers(pods: PodNode) -> dict[str, Any]:
    found = pods.call("ListContainerStats").stats
    return {each.attributes.id: each for each in found}


def _cpu(stats: Any) -> int:
    return int(stats.cpu.usage_core_nano_seconds.value)


@pytest.mark.core
def test_container_stats(pods: PodNode) -> None:
    """CPU is told apart by container and never goes back; memory is there."""
    pod = pods.pod()
    busy = pod.start("sh", "-c", "while true; do :; done")
    idle = pod.start("sleep", "1000")
    first = until(lambda: _containers(pods), 5, "stats")
    assert set(first) == {busy, idle}
    until(
        lambda: _cpu(_containers(pods)[busy]) - _cpu(first[busy]) > 5e8,
        15,
        "half a second of CPU is counted",
    )
    later = _containers(pods)
    assert _cpu(later[idle]) >= _cpu(first[idle])
    assert _cpu(later[idle]) - _cpu(first[idle]) < (_cpu(later[busy]) - _cpu(first[busy])) / 2
    for each in later.values():
        assert 0 < each.memory.working_set_bytes.value < 4 << 30
        assert each.memory.usage_bytes.value < 4 << 30
        # An unlimited container has no number that wrapped around.
        assert each.memory.available_bytes.value < 1 << 62
    one = pods.call("ContainerStats", container_id=busy).stats
    assert _cpu(one) >= _cpu(later[busy])


@pytest.mark.without_pause
@pytest.mark.core
def test_pod_stats(pods: PodNode) -> None:
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    stats = until(lambda: _pod(pods, pod), 5, "stats of the pod")
    assert _cpu(stats.linux) > 0
    assert 0 < stats.linux.memory.working_set_bytes.value < 4 << 30
    assert stats.linux.network.default_interface.name == "eth0"
    assert stats.linux.process.process_count.value >= 1
    assert [each.attributes.id for each in stats.linux.containers] == [container]
    before = stats.linux.network.default_interface.rx_bytes.value
    pods.exec(container, "ping", "-c", "3", "-i", "0.2", "-W", "2", pods.network.host4)
    after = pods.call("PodSandboxStats", pod_sandbox_id=pod.id).stats
    assert after.linux.network.default_interface.rx_bytes.value >= before


def _pod(pods: PodNode, pod: Pod) -> Any:
    found = [s for s in pods.call("ListPodSandboxStats").stats if s.attributes.id == pod.id]
    return found[0] if found else None


def test_stats_never_fail_for_the_node(pods: PodNode) -> None:
    """Whatever state a container is in, the list of the others is told."""
    pod, other = pods.pod(), pods.pod()
    running = other.start("sleep", "1000")
    pod.create("sleep", "1000")
    ended = pod.start("true")
    killed = pod.start("sleep", "1000")
    pods.wait_exited(ended)
    for _ in range(5):
        assert running in _containers(pods)
        assert _pod(pods, other) is not None
    pods.stop(killed)
    pod.stop()
    assert running in _containers(pods)
    assert _pod(pods, other) is not None


@pytest.mark.gvisor
def test_stats_while_others_hang_and_die(pods: PodNode) -> None:
    """The lists are there in time: what a container does is its own affair."""
    good, frozen, dead = (pods.pod() for _ in range(3))
    running = good.start("sleep", "1000")
    for pod in (frozen, dead):
        for _ in range(3):
            pod.start("sleep", "1000")
    kill(dead.sentry())
    sentry = frozen.sentry()
    os.kill(sentry, signal.SIGSTOP)
    try:
        for turn in range(3):
            began = time.monotonic()
            assert running in _containers(pods)
            # The frozen sandbox is waited for once, not for each of its containers.
            assert time.monotonic() - began < (5 if turn == 0 else 2)
    finally:
        os.kill(sentry, signal.SIGCONT)
