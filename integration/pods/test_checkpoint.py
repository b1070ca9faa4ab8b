"""CRI's CheckpointContainer, which the kubelet has for forensics: an archive of one container."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.nodes.pods import PodNode

pytestmark = [pytest.mark.gvisor, pytest.mark.without_pause]
#: A step of containerd's that copies a whole file system.
TIMEOUT = 60


@pytest.fixture(autouse=True)
def able(pods: PodNode) -> None:
    if pods.daemon.release < (2, 1):
        pytest.skip("containerd before 2.1 has no such call")
    link = pods.daemon.folder / "bin" / "criu"
    if not link.is_symlink():
        link.symlink_to(peers.criu())


def test_a_container_is_saved_and_goes_on(pods: PodNode, tmp_path: Path) -> None:
    pod = pods.pod()
    script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"
    container = pod.start("sh", "-c", script)
    pod.wait_log(container, "3\n")
    archive = tmp_path / "saved.tar"
    pods.call(
        "CheckpointContainer",
        TIMEOUT + 10,
        container_id=container,
        location=str(archive),
        timeout=TIMEOUT,
    )
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert "checkpoint/checkpoint.img" in names and "checkpoint/gvisor-shim.json" in names
    assert {"spec.dump", "config.dump", "rootfs-diff.tar"} <= set(names)
    before = len(pod.log(container).split())
    until(lambda: len(pod.log(container).split()) > before, 10, "it counts on")
    assert pods.exec(container, "echo", "here").out == "here\n"
    lines = [int(line) for line in pod.log(container).split()]
    assert lines == list(range(1, len(lines) + 1))


def test_what_cannot_be_saved_goes_on(pods: PodNode, tmp_path: Path) -> None:
    """A pod of which a container is created and not started: the words arrive."""
    pod = pods.pod()
    running, created = pod.start("sleep", "1000"), pod.create("sleep", "1000")
    archive = tmp_path / "saved.tar"
    with pytest.raises(Refused):
        pods.call("CheckpointContainer", 30, container_id=created, location=str(archive))
    assert not archive.exists()
    assert pods.status(running).state == cri.RUNNING
    assert pods.exec(running, "echo", "here").out == "here\n"
