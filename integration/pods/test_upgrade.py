"""A pod's shim becomes another version: all its containers, their limits and ports go on."""

from __future__ import annotations

import os

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.nodes.pods import PodNode
from integration.pods.test_memory import HOG, limited
from integration.upgrades import address, upgrade, upgrades

pytestmark = pytest.mark.gvisor
#: How often in a row; by hand a hundred times.
TIMES = int(os.environ.get("UPGRADES", "2"))
COUNTS = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); done; echo last $i; exit 7"
SERVER = "nc -ll -p 7002 -e cat & echo ready; sleep 1000"


@pytest.mark.without_pause
def test_a_pod_under_load_goes_on(pods: PodNode) -> None:
    """A log, a terminal, an OOM kill by a container's own limit, a forwarded port, a new member."""
    pod = pods.pod()
    counting = pod.start("sh", "-c", COUNTS, name="counting", **limited(64))
    server = pod.start("sh", "-c", SERVER, name="server")
    pod.wait_log(server, "ready")
    shim = address(pods.daemon, pod.id)
    if pods.streams:
        assert "stream" in upgrade(shim)
        assert pods.exec(server, "echo", "here").out == "here\n"
        return
    pid = pod.shim
    with pods.exec_stream(server, "cat", tty=True) as terminal:
        for each in range(TIMES):
            terminal.write(f"word{each}.\n")
            assert upgrade(shim) == ""
            terminal.expect(f"word{each}.")
            terminal.expect(f"word{each}.")
            assert pods.exec(counting, "echo", "here").out == "here\n"
            assert pods.status(server).state == cri.RUNNING
    assert upgrades(shim)["taken"] == TIMES
    assert pod.shim == pid
    with pods.forward(pod, 7002) as stream:
        stream.write_bytes(b"to and fro\n")
        assert stream.take(11) == b"to and fro\n"
        # While there is a connection, the bytes of which are in this process.
        assert "forwarded port" in upgrade(shim)
        stream.write_bytes(b"again\n")
        assert stream.take(17) == b"to and fro\nagain\n"
    until(lambda: upgrade(shim) == "", 30, "the connection is over")
    hog = pod.start(*HOG, name="hog", **limited(64))
    assert pods.wait_reason(hog, "OOMKilled", 30) == 137
    pods.exec(counting, "touch", "/stop")
    assert pods.wait_exited(counting, 60).exit_code == 7
    log = pod.log(counting).splitlines()
    assert log == [*(str(n) for n in range(len(log) - 1)), f"last {len(log) - 1}"]
    assert upgrade(shim) == ""
    assert pods.status(counting).exit_code == 7
    pods.delete(counting)
