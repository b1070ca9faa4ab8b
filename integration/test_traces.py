"""Traces of real shims: a caller's span above, the stages of a creation and a start below."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import combinations
from integration.harness.base.waiting import until
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.nodes.node import Node
from integration.upgrades import address, upgrade
from protos import task_pb2
from shim.observe.debug_client import ask
from shim.ttrpc.client import Client
from tests.fakes.otlp import OtlpReceiver

pytestmark = pytest.mark.gvisor
PATIENCE = 30
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def traced_machine(
    request: pytest.FixtureRequest, short_folder: Path, receiver: OtlpReceiver
) -> Iterator[Node]:
    """A containerd whose environment asks for traces, as an operator's drop-in of systemd would."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    generation = combinations.generations(request.config)[-1]
    daemon = Containerd("2.1", generation, short_folder / "traced", f"tr{os.getpid()}")
    node = Node(daemon, combinations.runtime(request.config), "tr")
    daemon.variables = environment
    daemon.start()
    daemon.import_image()
    try:
        yield node
        node.clean()
        node.assert_clean()
    finally:
        node.close()
        daemon.remove()
        footprint.remove_cgroups(daemon)


@pytest.fixture
def traced(traced_machine: Node) -> Iterator[Node]:
    yield traced_machine
    traced_machine.clean()
    traced_machine.assert_clean()


def spans_of(receiver: OtlpReceiver, container: str) -> list[Any]:
    """The spans that this container's shim sent."""
    found = []
    with receiver.came:
        for body in receiver.bodies:
            for each in body.resource_spans:
                told = {a.key: a.value.string_value for a in each.resource.attributes}
                if told.get("service.name") == f"containerd-shim-{container}":
                    found += [span for scope in each.scope_spans for span in scope.spans]
    return found


def test_the_tree_of_a_containers_life(traced: Node, receiver: OtlpReceiver) -> None:
    name = traced.run_detached("sleep", "1000")
    # A caller with a trace of its own, as containerd is where its client has one.
    path = str(footprint.socket_of(traced.daemon, name))
    with Client(path) as client:
        request = task_pb2.StateRequest(id=name).SerializeToString()
        told = {"traceparent": (f"00-{TRACE}-{PARENT}-01",)}
        client.call("containerd.task.v2.Task", "State", request, timeout=PATIENCE, metadata=told)
    traced.clean()

    def complete() -> dict[str, Any] | None:
        named = {span.name.rpartition("/")[2]: span for span in spans_of(receiver, name)}
        # The last call of a shim is among them: they are sent before it ends.
        return named if {"Create", "Start", "Delete", "Shutdown"} <= named.keys() else None

    named = until(complete, PATIENCE, "all spans have come")
    create, start = named["Create"], named["Start"]
    below = {"rootfs": create, "cgroup": create, "boot": create, "network": start, "start": start}
    for stage, call in below.items():
        span = named[stage]
        assert (span.parent_span_id, span.trace_id) == (call.span_id, call.trace_id), stage
        assert call.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= call.end_time_unix_nano
    assert named["gofer"].parent_span_id == named["boot"].span_id
    assert named["boot"].end_time_unix_nano - named["boot"].start_time_unix_nano > 1_000_000
    state = [s for s in spans_of(receiver, name) if s.trace_id.hex() == TRACE]
    assert [s.parent_span_id.hex() for s in state] == [PARENT] and state[0].kind == 2


def test_a_failure_is_told(traced: Node, receiver: OtlpReceiver) -> None:
    name = traced.new_id()
    assert traced.run("/no/such/program", container=name).code != 0

    def failed() -> list[Any]:
        found = [s for s in spans_of(receiver, name) if s.status.code == 2]
        return [s for s in found if s.name.endswith("/Create")]

    [create] = until(failed, PATIENCE, "the call that failed has come")
    assert "no/such/program" in create.status.message


def test_a_receiver_that_hangs_is_in_nobodys_way(traced: Node, receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    try:
        name = traced.run_detached("sh", "-c", "cat; sleep 1000")
        sent = len(receiver.requests)
        until(lambda: len(receiver.requests) >= sent, PATIENCE, "it is asked")
        shim = traced.shim_pid(name)
        assert traced.ctr("task", "exec", "--exec-id", "x", name, "echo", "hi").out == "hi\n"
        traced.clean()
        until(lambda: not footprint.alive(shim), PATIENCE, "the shim ends nevertheless")
    finally:
        receiver.gate.set()


def test_they_go_on_in_another_version(traced: Node, receiver: OtlpReceiver) -> None:
    """What was queued, what the receiver holds, and a call that is under way."""
    name = traced.run_detached("sleep", "1000")
    shim = address(traced.daemon, name)
    wait = traced.api.task_later("Wait", container_id=name)
    receiver.gate.clear()
    try:
        assert traced.exec(name, "echo", "one").out == "one\n"
        assert upgrade(shim) == ""
        assert traced.exec(name, "echo", "two").out == "two\n"
    finally:
        receiver.gate.set()
    assert upgrade(shim) == ""
    assert traced.kill(name, "SIGKILL").code == 0
    assert wait().exit_status == 137
    traced.clean()

    def names() -> list[str]:
        # What wasn't confirmed may come twice.
        found = {span.span_id: span.name for span in spans_of(receiver, name)}
        return [each.rpartition("/")[2] for each in found.values()]

    until(lambda: "Shutdown" in names(), PATIENCE, "the last span has come")
    count = {each: names().count(each) for each in ("Create", "Exec", "Delete")}
    assert count == {"Create": 1, "Exec": 2, "Delete": 3}
    assert "Wait" in names()


def test_without_the_environment_nothing_is_loaded(node: Node) -> None:
    """The other daemons of these tests have no such environment."""
    name = node.run_detached("sleep", "1000")
    shim = node.shim_pid(name)
    assert b"OTEL_" not in Path(f"/proc/{shim}/environ").read_bytes()
    address = f"unix://{footprint.socket_of(node.daemon, name)}"
    threads = {each["name"] for each in ask(address, "Stacks", {}, 20.0)["threads"]}
    assert "reactor" in threads and "otlp" not in threads
