"""A running shim's debug socket: who may ask, what it tells, and what it costs an idle one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.figures.measure import switch_count
from integration.harness.host import footprint
from integration.harness.nodes.node import Node
from runtime.base.errors import NotFound, Unsupported
from shim.observe.debug_client import ask

pytestmark = pytest.mark.gvisor
PATIENCE = 20.0


def address(node: Node, container: str) -> str:
    return f"unix://{footprint.socket_of(node.daemon, container)}"


@pytest.mark.core
def test_a_shim_tells_of_itself(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    shim = address(node, name)
    path = Path(shim.removeprefix("unix://") + ".debug")
    mode = path.stat()
    assert stat.S_ISSOCK(mode.st_mode) and stat.S_IMODE(mode.st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o066 == 0
    info = ask(shim, "Info", {}, PATIENCE)
    assert (info["pid"], info["id"]) == (node.shim_pid(name), name)
    [container] = info["containers"]
    assert (container["state"], container["pid"]) == ("running", node.pid(name))
    counters = ask(shim, "Counters", {}, PATIENCE)
    assert counters["rpcs"]["Create"]["codes"] == {"0": 1}
    assert counters["rpcs"]["Start"]["codes"] == {"0": 1}
    assert sum(counters["rpcs"]["Start"]["buckets"]) == 1
    until(lambda: ask(shim, "Info", {}, PATIENCE)["events"]["queued"] == 0, 10, "events are sent")
    assert ask(shim, "Info", {}, PATIENCE)["events"]["sent"] >= 2
    threads = {each["name"] for each in ask(shim, "Stacks", {}, PATIENCE)["threads"]}
    assert {"MainThread", "reactor", "ttrpc", "publisher"} <= threads
    with pytest.raises(Unsupported):
        ask(shim, "Dance", {}, PATIENCE)
    # It is no client: a shim without one has other duties.
    assert ask(shim, "Info", {}, PATIENCE)["clients"] == info["clients"]
    node.clean()
    assert not path.exists()
    with pytest.raises(NotFound):
        ask(shim, "Info", {}, PATIENCE)


def test_others_may_not_ask(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    path = f"{footprint.socket_of(node.daemon, name)}.debug"
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", program],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "PermissionError" in done.stderr, done


def test_the_log_level_is_changed_while_it_runs(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    shim = address(node, name)
    log = node.daemon.log
    before = ask(shim, "LogLevel", {"level": "debug"}, PATIENCE)["before"]
    try:
        at = log.stat().st_size
        assert node.status(name)
        until(lambda: b"rpc.handled" in log.read_bytes()[at:], 10, "the call is in the log")
    finally:
        assert ask(shim, "LogLevel", {"level": before}, PATIENCE)["before"] == "debug"


def test_it_costs_an_idle_shim_no_wake_up(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    shim = node.shim_pid(name)
    ask(address(node, name), "Info", {}, PATIENCE)

    def wakes() -> int:
        before = switch_count(shim)
        # The connection's own time must be over, and something else than time must pass.
        subprocess.run(["sleep", "1"], check=True)
        return switch_count(shim) - before

    until(lambda: wakes() == 0, 30, "nothing wakes it")


def test_a_killed_shims_socket_is_cleaned_up(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    path = Path(f"{footprint.socket_of(node.daemon, name)}.debug")
    os.kill(node.shim_pid(name), signal.SIGKILL)
    until(lambda: not node.status(name), 10, "the task is gone")
    node.api.unmake(name)
    until(lambda: not path.exists(), 5, "the socket is gone")
    node.assert_clean()
