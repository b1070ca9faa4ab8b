"""The benchmark's timeline of a pod's life tells of each step, in an order that can be."""

from __future__ import annotations

import pytest

from integration.harness.figures import timeline
from integration.harness.nodes.pods import PodNode

pytestmark = pytest.mark.gvisor


def test_timeline_of_a_pod(pods: PodNode) -> None:
    found = timeline.record(pods, "gvisor", 2)
    assert len(found) == 2
    lines = timeline.table(found)
    names = [line[19:] for line in lines[1:]]
    order = [
        "containerd begins the pod",
        "shim serves",
        "creation: boot begins",
        "sentry is started",
        "sentry answers",
        "sentry has the network",
        "sentry has started init",
        "containerd has run the pod",
        "creation: gofer begins",
        "containerd has started the container",
        "shim has hung up",
        "containerd has removed the pod",
    ]
    assert [name for name in names if name in order] == order, lines
