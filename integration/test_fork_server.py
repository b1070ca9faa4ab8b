"""The fork server below a real containerd: what its shims cost, and that it may die any time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.harness.base.waiting import until
from integration.harness.figures import measure
from integration.harness.host import footprint
from integration.harness.nodes.node import Node

pytestmark = pytest.mark.gvisor

_MIB = 1 << 20


@pytest.fixture
def containerd(node: Node) -> Iterator[int]:
    """The pid of a daemon that has a fork server."""
    assert node.daemon.process is not None
    pid = node.daemon.process.pid
    if "GVISOR_SHIM_FORK_SERVER" in os.environ:
        pytest.skip("GVISOR_SHIM_FORK_SERVER is set, and holds for all tests")
    assert node.run("true").code == 0
    until(lambda: footprint.fork_servers(pid), 30, "a fork server")
    yield pid


def test_a_forked_shim_has_little_memory_of_its_own(node: Node, containerd: int) -> None:
    (server,) = footprint.fork_servers(containerd)
    # It may have been only about to listen.
    container = ""

    def forked() -> bool:
        nonlocal container
        if container:
            node.kill(container, "KILL")
            node.wait_stopped(container)
            node.delete(container)
        container = node.run_detached("sleep", "1000")
        return footprint.is_forked_by(server, node.shim_pid(container))

    until(forked, 60, "a shim that the server has forked")
    assert node.exec(container, "true").code == 0
    assert node.metrics(container)
    shim = node.shim_pid(container)
    until(lambda: measure.private(shim) < 3.2 * _MIB, 30, "a shim that has given memory back")
    assert node.exec(container, "true").code == 0
    assert node.metrics(container)


def test_a_server_may_be_killed_at_any_moment(node: Node, containerd: int) -> None:
    done = threading.Event()
    killed = []

    def kill_servers() -> None:
        looks = 0
        while not done.wait(0.002):
            for server in footprint.fork_servers(containerd):
                looks += 1
                # Each lives a little longer than the last: until it listens, forks, serves.
                if looks > len(killed) ** 2:
                    looks = 0
                    try:
                        os.kill(server, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    killed.append(server)

    with ThreadPoolExecutor(4) as threads:
        killer = threads.submit(kill_servers)
        try:
            codes = [each.code for each in threads.map(lambda _: node.run("true"), range(15))]
        finally:
            done.set()
        killer.result()
    assert codes == [0] * 15
    assert len(killed) > 2
    assert node.run("true").code == 0
