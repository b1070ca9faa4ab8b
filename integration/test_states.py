"""Every method of the task service in every state of a task and of an exec.

Each step names the codes that the shim may answer with.  None of them may hang, take the shim
down, or be a vague UNKNOWN.
"""

from __future__ import annotations

from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.api import Code, process_spec
from integration.harness.clients.ttrpc import Client
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import Bundle, outcome

OK, NOT_FOUND, EXISTS = Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS
WRONG_STATE, UNIMPLEMENTED, INVALID = (
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.INVALID_ARGUMENT,
)

# For each state of the init: method -> codes.  Methods that would leave the state come last and
# are expected to be refused; those that would succeed in leaving it are not called here.
_CONTAINER: dict[str, dict[str, set[int]]] = {
    "unknown": {
        **{
            method: {NOT_FOUND}
            for method in ("State", "Pids", "Kill", "Delete", "Start", "Exec", "ResizePty")
        },
        **{method: {NOT_FOUND} for method in ("CloseIO", "Pause", "Resume", "Wait", "Stats")},
        "Checkpoint": {NOT_FOUND},
        "Update": {NOT_FOUND, INVALID},
        "Connect": {OK},
    },
    "created": {
        **{method: {OK} for method in ("State", "Pids", "Connect", "ResizePty", "CloseIO")},
        "Stats": {OK, NOT_FOUND},
        "Create": {EXISTS},
        "Pause": {WRONG_STATE},
        "Resume": {WRONG_STATE},
        "Checkpoint": {WRONG_STATE},
        "Update": {OK},
    },
    "running": {
        **{method: {OK} for method in ("State", "Pids", "Connect", "ResizePty", "CloseIO")},
        **{method: {OK} for method in ("Stats", "Update")},
        "Create": {EXISTS},
        "Start": {WRONG_STATE},
        "Resume": {WRONG_STATE},
        "Delete": {WRONG_STATE},
        "Checkpoint": {INVALID},
    },
    "paused": {
        **{method: {OK} for method in ("State", "Connect", "ResizePty", "CloseIO")},
        "Stats": {OK},
        "Create": {EXISTS},
        "Start": {WRONG_STATE},
        "Exec": {WRONG_STATE},
        "Pause": {WRONG_STATE},
        "Delete": {WRONG_STATE},
        "Checkpoint": {INVALID},
    },
    "stopped": {
        **{method: {OK} for method in ("State", "Pids", "Connect", "Wait")},
        "ResizePty": {OK, WRONG_STATE},
        "CloseIO": {OK, WRONG_STATE, NOT_FOUND},
        "Stats": {OK},
        "Kill": {NOT_FOUND},
        "Create": {EXISTS},
        "Start": {WRONG_STATE},
        "Exec": {WRONG_STATE},
        "Pause": {WRONG_STATE},
        "Resume": {WRONG_STATE},
        "Update": {NOT_FOUND, WRONG_STATE},
        "Checkpoint": {WRONG_STATE},
    },
}
_CONTAINER["deleted"] = _CONTAINER["unknown"]
_STATES = {"created": 1, "running": 2, "stopped": 3, "paused": 4}

_PROCESS: dict[str, dict[str, set[int]]] = {
    "unknown": {
        method: {NOT_FOUND}
        for method in ("State", "Kill", "Delete", "Start", "ResizePty", "CloseIO", "Wait")
    },
    "created": {
        **{method: {OK} for method in ("State", "ResizePty", "CloseIO")},
        "Exec": {EXISTS},
    },
    "running": {
        **{method: {OK} for method in ("State", "ResizePty", "CloseIO")},
        "Exec": {EXISTS},
        "Start": {WRONG_STATE},
        "Delete": {WRONG_STATE},
    },
    "stopped": {
        **{method: {OK} for method in ("State", "Wait")},
        "ResizePty": {OK, WRONG_STATE},
        "CloseIO": {OK, WRONG_STATE, NOT_FOUND},
        "Exec": {EXISTS},
        "Start": {WRONG_STATE},
        "Kill": {NOT_FOUND},
    },
}
_PROCESS["deleted"] = _PROCESS["unknown"]


def _enter(bundle: Bundle, client: Client, state: str) -> None:
    """Bring the init into a state."""
    name = bundle.id
    if state == "unknown":
        return
    bundle.create()
    if state == "created":
        return
    client.call("Start", id=name)
    if state == "paused":
        client.call("Pause", id=name)
    if state in ("stopped", "deleted"):
        client.call("Kill", id=name, signal=9)
        assert client.call("Wait", id=name).exit_status == 137
    if state == "deleted":
        client.call("Delete", id=name)


def _enter_exec(bundle: Bundle, client: Client, state: str) -> None:
    _enter(bundle, client, "running")
    pair: dict[str, Any] = {"id": bundle.id, "exec_id": "x"}
    if state == "unknown":
        return
    client.call("Exec", spec=process_spec(bundle.spec("sleep", "1000")["process"]), **pair)
    if state == "created":
        return
    client.call("Start", **pair)
    if state in ("stopped", "deleted"):
        client.call("Kill", signal=9, **pair)
        assert client.call("Wait", **pair).exit_status == 137
    if state == "deleted":
        client.call("Delete", **pair)


def _values(bundle: Bundle, method: str) -> dict[str, Any]:
    if method == "Create":
        return {"bundle": str(bundle.path)}
    if method == "Exec":
        return {"exec_id": "x", "spec": process_spec(bundle.spec("true")["process"])}
    if method == "Kill":
        return {"signal": 15}
    if method == "ResizePty":
        return {"width": 80, "height": 24}
    if method == "CloseIO":
        return {"stdin": True}
    if method == "Update":
        kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
        return {"resources": {"type_url": kind, "value": b'{"cpu": {"shares": 512}}'}}
    return {}


def _walk(
    node: Node, client: Client, table: dict[str, set[int]], bundle: Bundle, **more: str
) -> None:
    wrong = {}
    for method, codes in table.items():
        values = {**_values(bundle, method), "id": bundle.id, **more}
        code = outcome(client, method, **values)
        if code not in codes:
            wrong[method] = f"{code}, not {sorted(codes)}"
    if node.gvisor:  # the reference runtime is less exact with its codes
        assert not wrong


@pytest.mark.parametrize("state", _CONTAINER)
def test_methods_on_a_container(node: Node, state: str) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        _enter(bundle, client, state)
        _walk(node, client, _CONTAINER[state], bundle)
        if state in _STATES:
            assert client.call("State", id=bundle.id).status == _STATES[state]


@pytest.mark.parametrize("state", _PROCESS)
def test_methods_on_an_exec(node: Node, state: str) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        _enter_exec(bundle, client, state)
        _walk(node, client, _PROCESS[state], bundle, exec_id="x")
        if state in _STATES:
            seen = client.call("State", id=bundle.id, exec_id="x")
            assert seen.status == _STATES[state]
        assert client.call("State", id=bundle.id).status == _STATES["running"]


@pytest.mark.gvisor
def test_both_versions_of_the_service(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        for version in ("v2", "v3"):
            client.service = f"containerd.task.{version}.Task"
            assert client.call("State", id=bundle.id).status == _STATES["created"]
        client.service = "containerd.task.v9.Task"
        assert outcome(client, "State", id=bundle.id) == UNIMPLEMENTED


def test_wait_before_start_and_after_exit(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sh", "-c", "exit 4"))
        client = bundle.start()
        bundle.create()
        early = client.call_later("Wait", id=bundle.id)
        client.call("Start", id=bundle.id)
        seen = early()
        again = client.call("Wait", id=bundle.id)
        state = client.call("State", id=bundle.id)
        deleted = client.call("Delete", id=bundle.id)
    assert seen.exit_status == again.exit_status == state.exit_status == deleted.exit_status == 4
    assert seen.exited_at == again.exited_at == state.exited_at == deleted.exited_at


@pytest.mark.gvisor
def test_exit_time_is_the_zero_time_until_then(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        assert client.call("State", id=bundle.id).exited_at.seconds == -62135596800


@pytest.mark.gvisor
@pytest.mark.parametrize("state", ["created", "running", "paused", "stopped"])
def test_there_is_always_a_pid(node: Node, state: str) -> None:
    """A containerd (1.7 to 2.2) that finds no pid when it starts takes the task for a leak."""
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        _enter(bundle, client, state)
        assert client.call("Pids", id=bundle.id).processes


def test_shutdown_ends_an_empty_shim(node: Node) -> None:
    from integration.harness.host import footprint

    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        client = bundle.start()
        pid = client.call("Connect", id=bundle.id).shim_pid
        outcome(client, "Shutdown", id=bundle.id)
        until(lambda: not footprint.alive(pid), 3, "the shim has ended")
        assert not footprint.sockets(node.daemon, [bundle.id])


def test_delete_command_after_a_dead_shim(node: Node) -> None:
    """It kills what is left, tells exit status 137 and says nothing else; twice is fine."""
    import os
    import signal

    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        pid = bundle.create().pid
        client.call("Start", id=bundle.id)
        os.kill(client.call("Connect", id=bundle.id).shim_pid, signal.SIGKILL)
        first = bundle.delete_command()
        assert (first.exit_status, first.pid) == (137, pid)
        assert first.exited_at.seconds > 0
        assert bundle.delete_command().exit_status == 137
        if node.gvisor:
            done = bundle.command("delete", options=("-bundle", str(bundle.path)))
            assert done.stderr == b""
    node.excuse_reference("socket")
