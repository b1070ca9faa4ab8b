"""Pods without a pause container: `sandboxer = "shim"`, containerd's Sandbox API."""

from __future__ import annotations

import os
import signal

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.nodes.pods import Pod, PodNode

pytestmark = pytest.mark.gvisor


@pytest.fixture(autouse=True)
def able(pods: PodNode) -> None:
    if pods.daemon.release < (2, 1):
        pytest.skip("containerd before 2.1 asks no shim for sandboxes")


@pytest.fixture
def pod(pods: PodNode) -> Pod:
    return pods.pod(variant="shim", dns_config={"servers": ["192.0.2.1"], "searches": ["a.test"]})


def test_life(pods: PodNode, pod: Pod) -> None:
    """Two members that share what a pod shares, logs, exec, figures, stop and removal."""
    script = "echo started; echo $HOSTNAME >/dev/shm/name; exec httpd -f -p 8080 -h /etc"
    first = pod.start("sh", "-c", script, name="first")
    second = pod.start("sleep", "1000", name="second")
    pod.wait_log(first, "started")
    until(lambda: pods.exec(second, "cat", "/dev/shm/name").out, 10, "what the first wrote")
    assert pods.exec(second, "cat", "/dev/shm/name").out == f"{pod.name}\n"
    assert pods.exec(second, "hostname").out == f"{pod.name}\n"
    assert pods.exec(second, "cat", "/etc/resolv.conf").out == (
        "search a.test\nnameserver 192.0.2.1\n"
    )
    with pods.forward(pod, 8080) as stream:
        stream.write_bytes(b"GET /notice HTTP/1.0\r\n\r\n")
        stream.wait()
        assert stream.answer.endswith(b"made for the tests\n")
    assert pod.status.state == cri.READY
    assert pod.info["pid"] == pod.sentry()
    assert len(pod.gofers()) == 2 + len(pod.own_gofers())
    stats = pods.call("PodSandboxStats", pod_sandbox_id=pod.id).stats
    assert stats.attributes.id == pod.id
    pods.stop(first)
    assert pods.wait_exited(first).exit_code == 137
    pods.delete(first)
    assert pods.exec(second, "echo", "on").out == "on\n"
    pod.stop()
    assert pod.status.state == cri.NOT_READY
    assert pods.wait_exited(second).exit_code == 137
    pod.remove()
    pods.assert_clean()


def test_an_end_by_itself(pods: PodNode, pod: Pod) -> None:
    """The sentry's death ends the sandbox and its members."""
    member = pod.start("sleep", "1000")
    os.kill(pod.sentry(), signal.SIGKILL)
    assert pods.wait_exited(member).exit_code == 137
    until(lambda: pod.status.state == cri.NOT_READY, 10, "the sandbox has ended")
    pod.remove()
    pods.assert_clean()


def test_containerd_comes_back(pods: PodNode, pod: Pod) -> None:
    member = pod.start("sleep", "1000")
    pods.restart(kill=True)
    assert pod.status.state == cri.READY
    assert pods.exec(member, "echo", "on").out == "on\n"
    later = pod.start("sleep", "1000", name="later")
    os.kill(pod.sentry(), signal.SIGKILL)
    for each in (member, later):
        assert pods.wait_exited(each).exit_code == 137
    until(lambda: pod.status.state == cri.NOT_READY, 10, "the sandbox has ended")
    pod.remove()
    pods.assert_clean()


def test_a_start_that_fails(pods: PodNode) -> None:
    """Nothing is left of it, and the words arrive."""
    with pytest.raises(Refused, match=r"kernel\.shm_rmid_forced"):
        pods.pod(variant="shim", linux={"sysctls": {"kernel.shm_rmid_forced": "1"}})
    pods.assert_clean()
