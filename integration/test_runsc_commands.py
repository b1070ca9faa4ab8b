"""runsc's own commands on containers that the shim made through containerd.

An operator's habits and tools go on working: what is on disk is what the runsc of the same
generation writes and reads.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.runsc import Runsc
from integration.harness.clients.wire import Schema
from integration.harness.nodes.node import Node
from runtime.state.loaded import StoredContainer

_numbers = itertools.count(1)


def new_id(node: Node) -> str:
    """Old releases have control sockets whose names are the whole machine's."""
    return node.known(f"r{os.getpid()}-{next(_numbers)}")


_Options = Schema("type_url:1 config_path:2")


@pytest.fixture
def options(node: Node, tmp_path: Path) -> tuple[str, ...]:
    """What has a sandbox of an old release listen where its runsc looks."""
    file = tmp_path / "options.toml"
    file.write_text("abstract_control_socket = true\n")
    return ("--runtime-config-path", str(file))


def runsc_of(node: Node) -> Runsc:
    return Runsc(node.daemon.generation, Path("/run/containerd/runsc", node.daemon.namespace))


@pytest.mark.core
@pytest.mark.gvisor
def test_commands_that_look_and_act(node: Node, options: tuple[str, ...]) -> None:
    runsc = runsc_of(node)
    name = new_id(node)
    value = _Options.encode(type_url="io.containerd.gvisor.v2.options", config_path=options[1])
    asked = {"type_url": "runtimeoptions.v1.Options", "value": value}
    spec = node.api.spec("sleep", "1000", container=name)
    mounts = node.api.make(name, node.runtime, spec, options=asked)
    pid = node.api.task("Create", container_id=name, rootfs=mounts).pid
    assert runsc.status(name) == "created"
    node.api.task("Start", container_id=name)

    state = runsc.json("state", name)
    assert (state["status"], state["pid"]) == ("running", pid)
    assert state["bundle"] == str(node.daemon.bundle(name))
    line = next(row for row in runsc.ok("list").splitlines() if row.startswith(f"{name} "))
    assert line.split()[1:3] == [str(pid), "running"]
    assert "sleep" in runsc.ok("ps", name)
    assert runsc.ok("exec", name, "echo", "inside") == "inside\n"
    assert runsc("exec", name, "sh", "-c", "exit 7").code == 7
    assert runsc.json("events", "-stats", name)["data"]["pids"]["current"] >= 1
    stacks = runsc("debug", "--stacks", name)
    assert stacks.code == 0 and "goroutine" in stacks.out + stacks.err

    runsc.ok("pause", name)
    assert runsc.status(name) == "paused"
    runsc.ok("resume", name)
    assert runsc.status(name) == "running"
    node.api.task("Pause", container_id=name)
    assert runsc.status(name) == "paused"
    node.api.task("Resume", container_id=name)
    assert runsc.status(name) == "running"

    assert runsc("delete", name).code != 0, "it runs"
    runsc.ok("kill", name, "KILL")
    node.wait_stopped(name)
    assert runsc.status(name) == "stopped"
    assert node.api.task("Delete", container_id=name).exit_status == 137
    assert runsc("state", name).code != 0
    node.api.unmake(name)


@pytest.mark.core
@pytest.mark.gvisor
def test_delete_by_runsc_leaves_the_shim_a_task_to_delete(
    node: Node, options: tuple[str, ...]
) -> None:
    runsc = runsc_of(node)
    name = node.run_detached("sleep", "1000", options=options, container=new_id(node))
    runsc.ok("delete", "--force", name)
    until(lambda: node.status(name) == "STOPPED", 5, "the shim saw the end")
    assert node.api.task("Delete", container_id=name).exit_status == 137
    node.api.unmake(name)


@pytest.mark.gvisor
def test_an_id_that_runsc_has_is_taken(node: Node, tmp_path: Path) -> None:
    """The lock and the file are runsc's: neither makes what the other has."""
    runsc = runsc_of(node)
    name = node.run_detached("sleep", "1000", container=new_id(node))
    again = runsc("create", "--bundle", str(node.daemon.bundle(name)), name)
    assert again.code != 0 and "already exists" in again.err + again.out
    assert node.status(name) == "RUNNING"
    node.delete(name)


@pytest.mark.gvisor
def test_the_library_knows_the_shims_containers(node: Node) -> None:
    """What they are and how they ended follows from the files alone."""
    root = str(runsc_of(node).root)
    name = node.run_detached("sh", "-c", "exit 7", container=new_id(node))
    node.wait_stopped(name)
    ended = StoredContainer.load(root, name)
    assert ended.status() == "stopped"
    until(lambda: ended.reload().wait() == 7, 5, "the exit is written down")
    node.delete(name)

    name = node.run_detached("sleep", "1000", container=new_id(node))
    live = StoredContainer.load(root, name)
    assert live.status() == "running" and live.sandbox_pid == node.pid(name)
    live.destroy(force=True)
    assert live.status() == "stopped"
    node.wait_stopped(name)
    assert node.api.task("Delete", container_id=name).exit_status == 137
    node.api.unmake(name)
