"""Deaths at the wrong moment: of the shim, of the sandbox, of containerd itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from integration.harness.base.lines import next_line
from integration.harness.base.waiting import until
from integration.harness.clients import daemon_api
from integration.harness.clients.api import process_spec
from integration.harness.clients.event_sink import EventSink
from integration.harness.clients.ttrpc import Lost, Refused
from integration.harness.host import footprint
from integration.harness.nodes.node import Node


@pytest.mark.core
def test_shim_is_killed(node: Node) -> None:
    """containerd runs `delete`: nothing of the container stays, and its exit is told."""
    with node.api.events() as events:
        name = node.run_detached("sleep", "1000")
        wait = node.api.task_later("Wait", container_id=name, timeout=30)
        below = node.descendants(node.shim_pid(name))
        assert below
        os.kill(node.shim_pid(name), signal.SIGKILL)
        exit_event = events.wait(name, "exit")
        assert (exit_event.id, exit_event.exit_status) == (name, 137)
        events.wait(name, "delete")
    with contextlib.suppress(daemon_api.Refused):  # 1.6 and 1.7 fail the call, or answer it
        wait()
    until(lambda: not any(map(footprint.alive, below)), 5, f"{below} are gone")
    until(lambda: not node.status(name), 5, "the task is gone")
    node.api.unmake(name)
    node.excuse_reference("socket")
    node.assert_clean()


def test_shim_is_killed_before_start(node: Node) -> None:
    name = node.new_id()
    mounts = node.api.make(name, node.runtime, node.api.spec("sleep", "1000", container=name))
    node.api.task("Create", container_id=name, rootfs=mounts)
    os.kill(node.shim_pid(name), signal.SIGKILL)
    until(lambda: not node.status(name), 10, "the task is gone")
    node.api.unmake(name)
    node.excuse_reference("socket")
    node.assert_clean()


def test_shim_is_killed_while_execs_run(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    spec = process_spec(node.api.spec("sleep", "1000")["process"])
    for number in range(3):
        node.api.task("Exec", container_id=name, exec_id=f"x{number}", spec=spec)
        node.api.task("Start", container_id=name, exec_id=f"x{number}")
    os.kill(node.shim_pid(name), signal.SIGKILL)
    until(lambda: not node.status(name), 10, "the task is gone")
    node.api.unmake(name)
    node.excuse_reference("socket")
    node.assert_clean()


def test_shim_is_killed_while_containerd_is_down(node: Node) -> None:
    """The next containerd finds a bundle that nobody serves, and has it cleaned up."""
    name = node.run_detached("sleep", "1000")
    shim = node.shim_pid(name)
    node.daemon.stop()
    try:
        os.kill(shim, signal.SIGKILL)
    finally:
        node.daemon.start()
    until(lambda: not node.status(name), 10, "the task is gone")
    node.api.unmake(name)
    node.excuse_reference("socket")
    node.assert_clean()


@pytest.mark.core
@pytest.mark.gvisor
def test_sentry_is_killed(node: Node) -> None:
    """Every process of the container ends with 137, within two seconds."""
    with node.api.events() as events:
        name = node.run_detached("sleep", "1000")
        spec = process_spec(node.api.spec("sleep", "1000")["process"])
        node.api.task("Exec", container_id=name, exec_id="x", spec=spec)
        node.api.task("Start", container_id=name, exec_id="x")
        waits = [
            node.api.task_later("Wait", container_id=name, exec_id=exec_id) for exec_id in ("x", "")
        ]
        began = time.monotonic()
        os.kill(_sentry(node, name), signal.SIGKILL)
        assert [wait().exit_status for wait in waits] == [137, 137]
        assert time.monotonic() - began < 2
        assert events.wait(name, "exit", count=2).id == name
    assert node.status(name) == "STOPPED"
    assert node.api.task("Delete", container_id=name).exit_status == 137


@pytest.mark.gvisor
def test_sentry_is_killed_before_start(node: Node) -> None:
    name = node.new_id()
    mounts = node.api.make(name, node.runtime, node.api.spec("sleep", "1000", container=name))
    node.api.task("Create", container_id=name, rootfs=mounts)
    wait = node.api.task_later("Wait", container_id=name)
    os.kill(_sentry(node, name), signal.SIGKILL)
    assert wait().exit_status != 0
    node.api.task("Delete", container_id=name)


@pytest.mark.gvisor
def test_gofer_is_killed(node: Node) -> None:
    """Without its files the container cannot go on; it can still be killed and deleted."""
    name = node.run_detached("sleep", "1000")
    gofers = [
        pid
        for pid in node.descendants(node.shim_pid(name))
        if "gofer" in footprint.command_line(pid)
    ]
    assert gofers
    os.kill(gofers[0], signal.SIGKILL)
    node.ctr("tasks", "kill", "-s", "SIGKILL", name)
    node.wait_stopped(name)
    node.api.task("Delete", container_id=name)


@pytest.mark.core
def test_containerd_restarts_while_a_task_runs(node: Node) -> None:
    """The task stays what it was: exec, state, output and exit code."""
    script = "trap 'exit 12' TERM; while true; do sleep 0.1; done"
    name = node.run_detached("sh", "-c", script)
    pid = node.pid(name)
    _restart(node)
    assert node.status(name) == "RUNNING"
    assert node.pid(name) == pid
    assert node.exec(name, "echo", "still here").out == "still here\n"
    assert node.metrics(name)
    wait = node.api.task_later("Wait", container_id=name)
    assert node.kill(name, "SIGTERM").code == 0
    assert wait().exit_status == 12
    assert node.api.task("Delete", container_id=name).exit_status == 12


@pytest.mark.core
def test_task_exits_while_containerd_is_down(node: Node) -> None:
    """Its exit is told, in order, and its exit code is known to the next containerd."""
    script = "while [ ! -e /stop ]; do sleep 0.1; done; exit 23"
    name = node.run_detached("sh", "-c", script)
    with node.shim(name) as shim:
        spec = process_spec(node.api.spec("touch", "/stop")["process"])
        shim.call("Exec", id=name, exec_id="stop", spec=spec)
        node.daemon.stop()
        node.close()
        try:
            shim.call("Start", id=name, exec_id="stop")
            assert shim.call("Wait", id=name).exit_status == 23
            if node.gvisor:  # the reference runtime gives up after a few tries
                _assert_told(node, name)
        finally:
            node.daemon.start()
    if not node.gvisor and not node.status(name):
        return  # the reference runtime makes 1.7 and later take the task for a leak
    assert node.status(name) == "STOPPED"
    assert node.api.task("Wait", container_id=name).exit_status == 23
    assert node.api.task("Delete", container_id=name).exit_status == 23


def test_containerd_is_killed_during_a_start(node: Node) -> None:
    """Whatever moment it dies at, a later containerd can clean up."""
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        name = node.new_id()
        mounts = node.api.make(name, node.runtime, node.api.spec("sleep", "1000", container=name))
        create = node.api.task_later("Create", container_id=name, rootfs=mounts)
        time.sleep(delay)  # not synchronisation: the moment is the test's parameter
        node.daemon.kill()
        node.close()
        with contextlib.suppress(daemon_api.Refused):  # the reply may have made it
            create()
        node.daemon.start()
        node.clean()
        node.excuse_reference("socket", "cgroup", "state")
        node.assert_clean()


def test_client_goes_away_during_a_start(node: Node) -> None:
    """containerd cancels the request, then has the task deleted and the shim shut down.

    When it is still at `start`, containerd kills that process, runs no `delete` and forgets about
    the shim: a socket file may stay, but a daemon that nobody ever calls must end by itself.
    """
    for delay in (0.1, 0.2, 0.3, 0.4, 0.6):
        name = node.new_id()
        process = node.ctr_process(*node.run_command(name, ["sleep", "1000"], ["--rm"]))
        time.sleep(delay)  # not synchronisation: the moment is the test's parameter
        process.kill()
        node.clean()
        node.excuse("socket")
        node.excuse_reference("cgroup", "state")
        node.assert_clean(timeout=30)


def test_reader_of_the_output_goes_away(node: Node) -> None:
    """A task whose ctr was killed goes on, and its output is there for the next one."""
    script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"
    name, process = node.run_in_background("sh", "-c", script)
    assert next_line(process) == "line 1"
    process.kill()
    process.communicate()
    attached = node.ctr_process("tasks", "attach", name)
    assert (next_line(attached) or "").startswith("line ")
    node.kill(name, "SIGKILL")
    attached.communicate(timeout=15)


def test_shim_ignores_a_terminate(node: Node) -> None:
    """SIGTERM to the shim must not take a running container down unnoticed."""
    name = node.run_detached("sleep", "1000")
    os.kill(node.shim_pid(name), signal.SIGTERM)
    time.sleep(0.2)
    if node.status(name) != "RUNNING":
        until(lambda: not node.status(name), 10, "the task is gone altogether")
        assert not node.gvisor, "the shim ended while its container ran"
        node.api.unmake(name)


def test_shutdown_with_a_live_container(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    with node.shim(name) as shim:
        try:
            shim.call("Shutdown", id=name)
        except (Refused, Lost):
            pytest.fail("the shim left its container alone")
        assert shim.call("State", id=name).status == 2
    assert node.status(name) == "RUNNING"


def _assert_told(node: Node, name: str) -> None:
    """What waits in the shim comes, in order, to whoever next listens at containerd's place."""
    with EventSink(Path(f"{node.daemon.address}.ttrpc")) as sink:
        topic, event = sink.next()
        while topic != "exec-started":  # what was still queued when containerd went
            assert topic in ("create", "start", "exec-added")
            topic, event = sink.next()
        assert event.exec_id == "stop"
        exits = [sink.next(), sink.next()]
        assert [topic for topic, _ in exits] == ["exit", "exit"]
        assert [event.id for _, event in exits] == ["stop", name]
        assert [event.exit_status for _, event in exits] == [0, 23]


def _sentry(node: Node, container: str) -> int:
    found = [
        pid
        for pid in node.descendants(node.shim_pid(container))
        if "boot" in footprint.command_line(pid)
    ]
    assert found, "no sandbox process"
    return found[0]


def _restart(node: Node) -> None:
    node.close()
    node.daemon.restart()
