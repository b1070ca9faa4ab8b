"""runsc's own commands on the containers of a pod: each is its own, and their sandbox is one."""

from __future__ import annotations

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.runsc import Runsc
from integration.harness.nodes.pods import NAMESPACE, PodNode


@pytest.mark.core
@pytest.mark.gvisor
def test_commands_on_each_container_of_a_pod(pods: PodNode) -> None:
    runsc = Runsc(pods.daemon.generation, pods.daemon.folder / "runsc" / NAMESPACE)
    file = pods.daemon.folder / "gvisor.toml"
    options = file.read_text()
    # An old release's runsc looks for no other control socket.
    file.write_text(options + "abstract_control_socket = true\n")
    try:
        pod = pods.pod()
    finally:
        file.write_text(options)
    first = pod.start("sleep", "1000")
    second = pod.start("sleep", "1001")
    listed = {row["id"]: row for row in runsc.json("list", "-format", "json")}
    assert {listed[c]["status"] for c in (pod.id, first, second)} == {"running"}
    assert len({listed[c]["pid"] for c in (pod.id, first, second)}) == 1
    assert runsc.ok("exec", first, "echo", "first") == "first\n"
    assert runsc.ok("exec", second, "echo", "second") == "second\n"
    for container in (first, second):
        assert "sleep" in runsc.ok("ps", container)
        assert runsc.json("events", "-stats", container)["id"] in (container, "")

    runsc.ok("kill", first, "KILL")
    assert pods.wait_exited(first).exit_code == 137
    # CRI deletes the task of what has ended.
    until(lambda: runsc("state", first).code != 0, 5, "the first is forgotten")
    assert runsc.status(second) == "running"
    # CRI deletes it at the same time, as soon as it has ended: either may find the other's work.
    runsc("delete", "--force", second)
    assert pods.wait_exited(second).exit_code == 137
    assert runsc.status(pod.id) == "running"
    pods.delete(second)
    assert pods.status(first).state == cri.EXITED
    pod.remove()
    assert runsc.json("list", "-format", "json") is None
