"""gvctl in runc's place: driven by containerd's shim for runc, which Docker uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients.gvctl import Gvctl
from integration.harness.nodes.node import Node

pytestmark = pytest.mark.gvisor


@pytest.fixture
def options(node: Node) -> list[str]:
    binary = peers.shim_bin() / "gvctl"
    return ["--runtime", peers.RUNC, "--runc-binary", str(binary)]


@pytest.fixture
def ctl(node: Node) -> Gvctl:
    return Gvctl("--root", f"/run/containerd/runc/{node.daemon.namespace}")


@pytest.mark.core
def test_a_container_by_the_shim_for_runc(node: Node, options: list[str], ctl: Gvctl) -> None:
    done = node.run("sh", "-c", "dmesg | head -1; echo to-err >&2; exit 7", options=options)
    assert done.code == 7 and "gVisor" in done.out and "to-err" in done.err, done
    done = node.run("nosuch", options=options)
    assert done.code != 0 and "executable file not found in $PATH" in done.err
    name = node.run_detached("sleep", "1000", options=options)
    assert ctl.json("state", name)["pid"] == node.pid(name)
    done = node.exec(name, "sh", "-c", "cat; exit 5", input=b"typed")
    assert (done.code, done.out) == (5, "typed"), done
    assert node.ctr("tasks", "ps", name).code == 0
    assert node.ctr("tasks", "pause", name).code == 0
    assert node.status(name) == "PAUSED"
    assert node.ctr("tasks", "resume", name).code == 0
    assert node.kill(name, "KILL").code == 0
    node.wait_stopped(name)
    node.delete(name)
    until(lambda: ctl.ok("list", "-q") == "", 5, "nothing is left")


def test_a_terminal_by_the_shim_for_runc(node: Node, options: list[str]) -> None:
    name, terminal = node.run_terminal("sh", options=options)
    with terminal:
        terminal.expect("# ")
        terminal.write("stty size\n")
        terminal.expect("24 80")
        with node.exec_terminal(name, "sh") as other:
            other.expect("# ")
            other.write("echo go; sleep 1000\n")
            other.expect("\ngo\r")
            other.press_until("\x03", "# ")
            other.write("exit 9\n")
            assert other.wait() == 9
        terminal.write("exit 8\n")
        assert terminal.wait() == 8
    assert not Path("/run/containerd/runc", node.daemon.namespace, name).exists()
