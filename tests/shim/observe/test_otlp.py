"""The sender, against a real receiver that takes, refuses, hangs, dies."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from integration.harness.base.waiting import until
from shim.handover.pack import pack
from shim.handover.unpack import unpack
from shim.observe import otlp
from shim.observe.otlp import Exporter, Receiver, from_environment, resource
from shim.observe.tracing import INTERNAL, Span
from tests.fakes.otlp import OtlpReceiver

BASE, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


def span(name: str = "boot") -> Span:
    made = Span(name, INTERNAL, b"t" * 16, b"p" * 8, 1)
    made.end = made.start + 1
    made.attributes = {"a": "b\udcff", "n": 3}
    return made


def exporter(receiver: OtlpReceiver, **more: str) -> Exporter:
    given = {BASE: receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "10", **more}
    found = from_environment(given)
    assert found is not None
    return Exporter(found, resource(given, "k8s.io", "pod1"))


def test_a_batch_as_the_receiver_reads_it(receiver: OtlpReceiver) -> None:
    sender = exporter(
        receiver,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20x,bad name=1,other=2\r",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_RESOURCE_ATTRIBUTES="zone=a%20b,service.name=mine",
        OTEL_SERVICE_NAME="containerd",
    )
    sent = [span("one"), span("two")]
    for each in sent:
        sender.put(each)
    sender.close(30)
    path, headers = receiver.requests[0]
    assert path == "/v1/traces" and headers["authorization"] == "Bearer x"
    assert headers["Content-Type"] == "application/x-protobuf" and "bad name" not in headers
    found = {each.name: each for each in receiver.spans()}
    assert set(found) == {"one", "two"}
    one = found["one"]
    assert (one.trace_id, one.span_id, one.parent_span_id) == (b"t" * 16, sent[0].id, b"p" * 8)
    assert (one.start_time_unix_nano, one.end_time_unix_nano) == (sent[0].start, sent[0].end)
    assert (one.kind, one.flags) == (1, 0x101)
    assert {a.key: a.value.string_value or a.value.int_value for a in one.attributes} == {
        **{"a": "b?", "n": 3}
    }
    attributes = receiver.bodies[0].resource_spans[0].resource.attributes
    told = {a.key: a.value.string_value for a in attributes}
    assert told["service.name"] == "containerd-shim-pod1" and told["zone"] == "a b"


def test_many_spans_go_in_batches_and_the_queue_is_bounded(receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    sender = exporter(receiver)
    sender.put(span())
    receiver.wait(1)  # which it holds
    began = time.monotonic()
    for _ in range(otlp.MAX_QUEUE + 100):
        sender.put(span())
    assert sender.dropped == 100
    receiver.gate.set()
    sender.close(60)
    assert len(receiver.spans()) == otlp.MAX_QUEUE + 1
    assert len(receiver.requests) <= 2 + otlp.MAX_QUEUE // otlp.MAX_BATCH
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("statuses", "requests"), [([503, 429], 3), ([400], 1), ([503] * 4, 4)])
def test_a_receiver_that_refuses(
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    statuses: list[int],
    requests: int,
) -> None:
    monkeypatch.setattr(otlp, "PAUSES", (0.01, 0.01, 0.01))
    receiver.statuses = list(statuses)
    sender = exporter(receiver)
    sender.put(span())
    receiver.wait(requests)
    sender.put(span("later"))
    receiver.wait(requests + 1)
    sender.close(30)
    assert receiver.spans()[-1].name == "later"
    assert sender.dropped == (0 if requests == 3 else 1)


def test_nobody_waits_for_a_receiver_that_hangs(receiver: OtlpReceiver) -> None:
    receiver.gate.clear()
    sender = exporter(receiver)
    began = time.monotonic()
    for _ in range(5000):
        sender.put(span())
    put = time.monotonic() - began
    receiver.wait(1)
    began = time.monotonic()
    sender.close(0.2)
    closed = time.monotonic() - began
    # By themselves microseconds and 0.2 s; the receiver would hold them for a minute.
    assert put < 20 and closed < 20


def test_a_receiver_that_is_gone_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "PAUSES", (0.05,) * 200)
    tried, connect = threading.Event(), Exporter._connected

    def try_to_connect(self: Exporter, context: Any) -> socket.socket:
        try:
            return connect(self, context)
        finally:
            tried.set()

    monkeypatch.setattr(Exporter, "_connected", try_to_connect)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        sender = Exporter(
            Receiver(scheme="http", host="127.0.0.1", port=port, path="/v1/traces", delay=0.01), {}
        )
        sender.put(span())
        assert tried.wait(30)
        taken.listen()
        connection, _ = taken.accept()
        with connection:
            connection.recv(1)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            sender.close(30)
    assert sender.dropped == 0


@pytest.mark.parametrize(
    "answer", [b"rubbish\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99999]
)
def test_a_receiver_that_talks_rubbish(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sender = Exporter(
            Receiver(scheme="http", host="127.0.0.1", port=port, path="/", delay=0.01), {}
        )
        sender.put(span())
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)
        sender.close(0)  # no further try
        with sender._changed:
            assert sender._changed.wait_for(lambda: not sender._sending, 60)
    assert sender.dropped == 1


def others() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "otlp"]


@pytest.mark.parametrize("at", ["queued", "asked", "connecting", "between two tries"])
def test_held_still_and_handed_over(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Wherever the thread is, it ends soon, and another one sends what is there."""
    monkeypatch.setattr(otlp, "ANSWER", 0.2)
    before, alone = threading.active_count(), others()
    nobody = socket.create_server(("127.0.0.1", 0), backlog=0)
    filler = socket.create_connection(nobody.getsockname())
    sender = exporter(receiver, OTEL_BSP_SCHEDULE_DELAY="60000" if at == "queued" else "10")
    if at == "asked":
        receiver.gate.clear()
    elif at == "connecting":
        # Its backlog is full, and so it doesn't answer.
        port = nobody.getsockname()[1]
        sender._receiver = sender._receiver.replace(port=port, timeout=100.0)
    elif at == "between two tries":
        monkeypatch.setattr(otlp, "PAUSES", (100.0,))
        receiver.statuses = [503]
    sender.put(span("first"))
    if at in ("asked", "between two tries"):
        receiver.wait(1)
    if at == "connecting":
        until(lambda: sender._socket is not None, 20, "it connects")
    assert sender.freeze()
    assert others() == alone
    sender.put(span("second"))
    assert others() == alone
    receiver.gate.set()
    sender._receiver = exporter(receiver)._receiver
    found = unpack(pack(sender, {})).root
    found.thaw()
    found.close(30)
    nobody.close()
    filler.close()
    assert found.dropped == 0
    told = [each.name for each in receiver.spans()]
    # One that was under way may come twice, as its answer isn't known.
    assert sorted(set(told)) == ["first", "second"]
    assert len(told) == 2 or at in ("asked", "between two tries")
    until(lambda: threading.active_count() <= before, 20, "the threads have ended")


def test_nothing_is_sent_and_no_thread_made_without_a_span(receiver: OtlpReceiver) -> None:
    sender = exporter(receiver)
    sender.close(1)
    assert sender._thread is None and receiver.requests == []
    sender.put(span())
    assert sender.dropped == 1


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({BASE: "http://h:1"}, ("http", "h", 1, "/v1/traces")),
        ({BASE: "http://h:1/x/"}, ("http", "h", 1, "/x/v1/traces")),
        ({TRACES: "https://h/own"}, ("https", "h", 443, "/own")),
        ({TRACES: "http://[::1]:4318"}, ("http", "::1", 4318, "/")),
        ({BASE: "http://a:1", TRACES: "http://b:2/t"}, ("http", "b", 2, "/t")),
        ({BASE: "http://h", "OTEL_SDK_DISABLED": "true"}, None),
        ({BASE: "http://h", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        (
            {
                BASE: "http://h",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ("http", "h", 80, "/v1/traces"),
        ),
        ({BASE: "http://h", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({BASE: "http://h", "OTEL_EXPORTER_OTLP_COMPRESSION": "snappy"}, None),
        *(
            ({BASE: url}, None)
            for url in ("h:4317", "unix:///x", "http://", "http://h:x", "http:/")
        ),
        ({TRACES: "http://h/a b"}, None),
    ],
)
def test_what_the_environment_asks_for(
    environment: dict[str, str], found: tuple[object, ...] | None
) -> None:
    told = from_environment(environment) if otlp.wanted(environment) else None
    assert (told and (told.scheme, told.host, told.port, told.path)) == found


def test_headers_are_never_logged(capfd: pytest.CaptureFixture[str]) -> None:
    from runtime.base import log

    log.configure(os.dup(2), log.DEBUG)
    try:
        given = {BASE: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "k=SECRET"}
        told = from_environment(given)
        assert told is not None and told.headers == {"k": "SECRET"}
        sender = Exporter(told, {})
        sender.put(span())
        sender.close(30)
    finally:
        log.configure(-1, log.ERROR)
    said = capfd.readouterr().err
    assert "tracing.unsent" in said and "SECRET" not in said
