"""A gofer that ends unnoticed by its sentry: the shim ends what it served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from integration.harness.base import linux
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.nodes.pods import Pod, PodNode, kill
from integration.upgrades import address, upgrade

pytestmark = pytest.mark.gvisor


@contextmanager
def _killed_unnoticed(pod: Pod, container: str) -> Iterator[None]:
    """Its connections stay open while its files are gone: the sentry sees no end of them."""
    gofer = pod.gofer(container)
    with ExitStack() as kept:
        for fd in os.listdir(f"/proc/{gofer}/fd"):
            with suppress(FileNotFoundError):  # it has closed it
                if os.readlink(f"/proc/{gofer}/fd/{fd}").startswith("socket:"):
                    kept.callback(os.close, linux.take_fd(gofer, int(fd)))
        kill(gofer)
        yield


def test_what_it_served_ends_and_nothing_else(pods: PodNode) -> None:
    """The root gofer's is the pod; here another version of the shim has taken over before."""
    pod = pods.pod()
    one, other = pod.start("sleep", "1000"), pod.start("sleep", "1000")
    with _killed_unnoticed(pod, one):
        assert pods.wait_exited(one).exit_code == 137
        assert pods.exec(other, "echo", "here").out == "here\n"
        _was_told(pods, one)
    pods.delete(one)
    if not pods.streams:
        assert upgrade(address(pods.daemon, pod.id)) == ""
    if not pod.goferless:
        with _killed_unnoticed(pod, pod.id):
            assert pods.wait_exited(other).exit_code == 137
            until(lambda: pod.status.state == cri.NOT_READY, 10, "the pod has ended")
            _was_told(pods, pod.id)


def _was_told(pods: PodNode, container: str) -> None:
    lines = [line for line in pods.daemon.log_tail(500).splitlines() if "container.killed" in line]
    assert sum(f"container={container}" in line for line in lines) == 1, lines
