"""Pods that somebody paused behind CRI's back: they can be looked at, stopped and removed."""

from __future__ import annotations

import time

import pytest

from integration.harness.base.waiting import until
from integration.harness.nodes import gates
from integration.harness.nodes.pods import PodNode

pytestmark = pytest.mark.gvisor

#: Seconds in which CRI must be able to take a paused pod away, with something for a busy machine.
_REMOVAL = 5
#: Seconds in which CRI must tell figures, whatever state pods are in.
_STATS = 5


def _task_status(pods: PodNode, container: str) -> str:
    lines = pods.ctr("task", "list").splitlines()
    return next((line.split()[2] for line in lines if line.startswith(container)), "")


@pytest.mark.core
@pytest.mark.parametrize("resumed", [False, True], ids=["paused", "resumed"])
@pytest.mark.parametrize("who", ["member", "pod"])
def test_a_paused_pod_is_removed(pods: PodNode, who: str, resumed: bool) -> None:
    pod = pods.pod()
    member = pod.start("sleep", "1000")
    pod.start("sleep", "1000")
    target = pod.id if who == "pod" and not pods.without_pause else member
    pods.ctr("task", "pause", target)
    if resumed:
        pods.ctr("task", "resume", target)
    began = time.monotonic()
    pods.clean()
    assert time.monotonic() - began < _REMOVAL
    pods.assert_clean()


def test_sigkill_of_a_paused_member_lets_the_others_go_on(pods: PodNode) -> None:
    pod = pods.pod()
    member, sibling = pod.start("sleep", "1000"), pod.start("sleep", "1000")
    pods.ctr("task", "pause", member)
    assert _task_status(pods, sibling) == "PAUSED"
    pods.stop(member)
    assert pods.wait_exited(member).exit_code == 137
    until(lambda: _task_status(pods, sibling) == "RUNNING", 5, "the sibling runs")
    assert pods.exec(sibling, "echo", "here").out == "here\n"


def test_figures_are_told_while_pods_stand_still(pods: PodNode) -> None:
    paused, hanging, busy = pods.pod(), pods.pod(), pods.pod()
    members = [pod.start("sleep", "1000") for pod in (paused, hanging)]
    pods.ctr("task", "pause", members[0])
    sentry = hanging.sentry()
    gates.freeze(sentry)
    try:
        for _ in range(2):
            container = busy.start("sleep", "1000")
            calls = [
                pods.cri.call_later(method, 20)
                for method in ("ListContainerStats", "ListPodSandboxStats")
            ]
            began = time.monotonic()
            pods.stop(container)
            containers, _pods = (call() for call in calls)
            assert time.monotonic() - began < _STATS
            assert containers.stats
    finally:
        gates.thaw(sentry)
