"""The event queue: order, retry, bounds, and the message for each event."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import events_pb2 as pb
from protos.wkt_pb2 import Any
from runtime.task import events
from shim.events import ForwardTransport, Item, Publisher, Undelivered, encode, transport_for
from shim.ttrpc.errors import StatusError
from shim.ttrpc.server import Call, Server

EVERY = [
    (events.TaskCreated(container_id="c", bundle="/b", pid=1), "/tasks/create", "TaskCreate"),
    (events.TaskStarted(container_id="c", pid=1), "/tasks/start", "TaskStart"),
    (events.TaskExecAdded(container_id="c", exec_id="e"), "/tasks/exec-added", "TaskExecAdded"),
    (
        events.TaskExecStarted(container_id="c", exec_id="e", pid=2),
        "/tasks/exec-started",
        "TaskExecStarted",
    ),
    (
        events.TaskExited(container_id="c", id="e", pid=2, exit_status=3, exited_at=1.5),
        "/tasks/exit",
        "TaskExit",
    ),
    (events.TaskOOM(container_id="c"), "/tasks/oom", "TaskOOM"),
    (events.TaskPaused(container_id="c"), "/tasks/paused", "TaskPaused"),
    (events.TaskResumed(container_id="c"), "/tasks/resumed", "TaskResumed"),
    (
        events.TaskCheckpointed(container_id="c", path="/p"),
        "/tasks/checkpointed",
        "TaskCheckpointed",
    ),
    (
        events.TaskDeleted(container_id="c", id="c", pid=1, exit_status=0, exited_at=2.0),
        "/tasks/delete",
        "TaskDelete",
    ),
]


@pytest.mark.parametrize(("event", "topic", "message"), EVERY)
def test_each_event_has_containerds_topic_and_type(
    event: events.Event, topic: str, message: str
) -> None:
    item = encode(event)
    assert item.topic == topic
    assert item.type_url == f"containerd.events.{message}"
    assert getattr(pb, message).FromString(item.body).container_id == "c"


def test_no_event_type_is_forgotten() -> None:
    assert {type(event) for event, _, _ in EVERY} == set(events.Event.__subclasses__())


def test_an_exit_carries_all_its_fields() -> None:
    exit = pb.TaskExit.FromString(encode(EVERY[4][0]).body)
    assert (exit.id, exit.pid, exit.exit_status) == ("e", 2, 3)
    assert (exit.exited_at.seconds, exit.exited_at.nanos) == (1, 500_000_000)


class Peer:
    """Takes events, or refuses them for as long as a test says."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.refuse: list[Undelivered] = []
        self.tries = 0
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, item: Item) -> None:
        self.tries += 1
        self.entered.set()
        assert self.gate.wait(5)
        if self.refuse:
            raise self.refuse.pop(0)
        self.taken.append(item.topic)

    def close(self) -> None: ...


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def publisher(peer: Peer) -> Iterator[Publisher]:
    publisher = Publisher(peer, limit=4, sleep=lambda changed, seconds: None)
    yield publisher
    publisher.close()


def start(n: int) -> events.Event:
    return events.TaskStarted(container_id=f"c{n}", pid=n)


def exit(n: int) -> events.Event:
    return events.TaskExited(container_id="c", id="c", pid=n, exit_status=0, exited_at=0.0)


def test_an_undelivered_head_is_retried_and_nothing_overtakes_it(
    publisher: Publisher, peer: Peer
) -> None:
    peer.refuse = [Undelivered("down") for _ in range(20)]
    publisher.publish(start(1))
    publisher.publish(exit(1))
    assert publisher.flush(5)
    assert peer.taken == ["/tasks/start", "/tasks/exit"]
    assert peer.tries == 22


def test_an_event_that_the_peer_refuses_for_good_does_not_block_the_rest(
    publisher: Publisher, peer: Peer
) -> None:
    peer.refuse = [Undelivered("invalid", refused=True) for _ in range(5)]
    publisher.publish(start(1))
    publisher.publish(exit(1))
    assert publisher.flush(5)
    assert peer.taken == ["/tasks/exit"]


def test_a_full_queue_drops_the_oldest_event_that_is_no_exit(
    publisher: Publisher, peer: Peer
) -> None:
    peer.gate.clear()
    publisher.publish(start(0))
    assert peer.entered.wait(5)
    publisher.publish(exit(1))
    publisher.publish(start(2))
    publisher.publish(exit(3))
    publisher.publish(exit(4))
    assert publisher.dropped == 1
    peer.gate.set()
    assert publisher.flush(5)
    assert peer.taken == ["/tasks/start", "/tasks/exit", "/tasks/exit", "/tasks/exit"]


def test_publish_never_blocks_on_a_peer_that_hangs(publisher: Publisher, peer: Peer) -> None:
    peer.gate.clear()
    for n in range(100):
        publisher.publish(start(n))
    assert publisher.dropped == 96
    assert not publisher.flush(0.01)
    peer.gate.set()


def test_a_bug_in_the_transport_costs_one_event() -> None:
    calls: list[str] = []

    class Broken(Peer):
        def __call__(self, item: Item) -> None:
            calls.append(item.topic)
            if len(calls) == 1:
                raise ZeroDivisionError

    publisher = Publisher(Broken())
    publisher.publish(start(1))
    publisher.publish(exit(1))
    assert publisher.flush(5)
    publisher.close()
    assert calls == ["/tasks/start", "/tasks/exit"]


def test_without_any_address_events_are_discarded_quietly() -> None:
    publisher = Publisher(transport_for("", "", "", "ns"))
    publisher.publish(start(1))
    assert publisher.flush(0)
    publisher.close()


PUBLISH = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
cat > {body}
exit {status}
"""


def publish_binary(directory: Path, status: int) -> Path:
    path = directory / "containerd"
    path.write_text(PUBLISH.format(log=directory / "log", body=directory / "body", status=status))
    path.chmod(0o755)
    return path


def test_without_a_ttrpc_address_containerds_publish_command_is_used(tmp_path: Path) -> None:
    binary = publish_binary(tmp_path, 0)
    transport = transport_for("", "/run/c.sock", str(binary), "k8s.io")
    assert transport is not None
    transport(encode(exit(7)))
    assert (tmp_path / "log").read_text() == (
        "--address /run/c.sock publish --namespace k8s.io --topic /tasks/exit\n"
    )
    event = Any.FromString((tmp_path / "body").read_bytes())
    assert event.type_url == "containerd.events.TaskExit"
    assert pb.TaskExit.FromString(event.value).pid == 7


def test_a_publish_command_that_fails_or_is_missing_leaves_the_event_undelivered(
    tmp_path: Path,
) -> None:
    for binary in (publish_binary(tmp_path, 3), tmp_path / "none"):
        transport = transport_for("", "/run/c.sock", str(binary), "ns")
        assert transport is not None
        with pytest.raises(Undelivered):
            transport(encode(start(1)))


class Containerd:
    """The event service on a real socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.envelopes: list[pb.Envelope] = []
        self.metadata: list[object] = []
        self.fail: list[StatusError] = []
        self.server: Server | None = None

    def up(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.server = Server(listener, self._handle)
        self.server.start()

    def down(self) -> None:
        assert self.server is not None
        self.server.stop(1)
        os.unlink(self.path)

    def _handle(self, call: Call) -> bytes:
        assert (call.service, call.method) == (
            "containerd.services.events.ttrpc.v1.Events",
            "Forward",
        )
        if self.fail:
            raise self.fail.pop(0)
        self.metadata.append(call.metadata.get("containerd-namespace-ttrpc"))
        self.envelopes.append(pb.ForwardRequest.FromString(call.payload).envelope)
        return b""


def test_events_reach_the_service_in_order_across_its_restart(tmp_path: Path) -> None:
    peer = Containerd(str(tmp_path / "s"))
    waiting = threading.Event()

    def nap(changed: threading.Condition, seconds: float) -> None:
        waiting.set()
        changed.wait(0.01)

    publisher = Publisher(ForwardTransport(peer.path, "k8s.io"), sleep=nap)
    peer.up()
    publisher.publish(start(1))
    assert publisher.flush(5)
    peer.down()
    publisher.publish(start(2))
    publisher.publish(exit(2))
    assert waiting.wait(5)
    peer.up()
    assert publisher.flush(5)
    publisher.close()
    peer.down()
    assert [e.topic for e in peer.envelopes] == ["/tasks/start", "/tasks/start", "/tasks/exit"]
    assert {e.namespace for e in peer.envelopes} == {"k8s.io"}
    assert set(peer.metadata) == {("k8s.io",)}
    assert peer.envelopes[-1].event.type_url == "containerd.events.TaskExit"


def test_an_unavailable_service_counts_as_a_restart_not_as_a_refusal(tmp_path: Path) -> None:
    peer = Containerd(str(tmp_path / "s"))
    peer.fail = [StatusError(14, "shutting down") for _ in range(9)]
    peer.up()
    publisher = Publisher(
        ForwardTransport(peer.path, "ns"), sleep=lambda changed, seconds: changed.wait(0.001)
    )
    publisher.publish(exit(1))
    assert publisher.flush(5)
    publisher.close()
    peer.down()
    assert len(peer.envelopes) == 1
