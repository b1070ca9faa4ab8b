"""The client against a server, and against peers that misbehave."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.ttrpc import frames
from shim.ttrpc.call import Call
from shim.ttrpc.client import Client, connect
from shim.ttrpc.connection import RequestReceived, ServerConnection
from shim.ttrpc.errors import (
    RESOURCE_EXHAUSTED,
    ConnectionLost,
    LocalProtocolError,
    StatusError,
)

from .conftest import WAIT, Harness, echo


class Peer:
    """The far end of a client's connection, played by the test."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(WAIT)
        self.client = Client(ours)
        self.protocol = ServerConnection()
        self._events: list[object] = []

    def request(self) -> RequestReceived:
        while not self._events:
            self._events += self.protocol.receive_data(self.socket.recv(65536))
        event = self._events.pop(0)
        assert isinstance(event, RequestReceived)
        return event

    def reply(self, stream_id: int, payload: bytes) -> None:
        self.socket.sendall(self.protocol.send_response(stream_id, payload))

    def in_background(self, payload: bytes = b"", timeout: float | None = WAIT) -> Outcome:
        return Outcome(self.client, payload, timeout)


class Outcome:
    """A call in a thread of its own."""

    def __init__(self, client: Client, payload: bytes, timeout: float | None) -> None:
        self._result: queue.Queue[bytes | Exception] = queue.Queue()

        def run() -> None:
            try:
                self._result.put(client.call("s", "m", payload, timeout=timeout))
            except Exception as exc:
                self._result.put(exc)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def get(self) -> bytes:
        result = self._result.get(timeout=WAIT)
        self._thread.join(WAIT)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.client.close()
    peer.socket.close()


def test_callers_share_the_connection(peer: Peer) -> None:
    calls = {}
    for name in (b"a", b"b", b"c"):
        outcome = peer.in_background(name)
        event = peer.request()
        calls[name] = (outcome, event.stream_id)
    assert [stream_id for _, stream_id in calls.values()] == [1, 3, 5]
    for name in (b"c", b"a", b"b"):  # the one that reads is not answered first
        outcome, stream_id = calls[name]
        peer.reply(stream_id, b"for " + name)
        assert outcome.get() == b"for " + name


def test_no_threads(harness: Harness) -> None:
    before = set(threading.enumerate())
    harness.start(echo)
    client = harness.client()
    assert client.call("s", "m", b"x", timeout=WAIT) == b"x"
    names = {t.name for t in threading.enumerate() if t not in before}
    assert names <= {"ttrpc", "ttrpc-call"}


def test_time_out_and_late_reply(peer: Peer) -> None:
    with pytest.raises(TimeoutError):
        peer.client.call("s", "m", b"", timeout=0.01)
    late = peer.request()
    assert 0 < late.request.timeout_nano <= 10_000_000
    assert peer.client._protocol.open_streams == 0  # nothing is kept of a call given up
    peer.reply(late.stream_id, b"late")
    outcome = peer.in_background(b"next")
    peer.reply(peer.request().stream_id, b"right")
    assert outcome.get() == b"right"


def test_a_reader_that_times_out_hands_over(peer: Peer) -> None:
    short = peer.in_background(b"short", timeout=0.05)
    first = peer.request()
    long = peer.in_background(b"long")
    second = peer.request()
    with pytest.raises(TimeoutError):
        short.get()
    peer.reply(second.stream_id, b"2")
    assert long.get() == b"2"
    assert first.stream_id != second.stream_id


def test_no_time_out_is_sent_as_none(peer: Peer) -> None:
    outcome = peer.in_background(timeout=None)
    event = peer.request()
    assert event.request.timeout_nano == 0
    peer.reply(event.stream_id, b"")
    assert outcome.get() == b""


@pytest.mark.parametrize("timeout", [1e7, 1e12])
def test_very_long_time_outs(peer: Peer, timeout: float) -> None:
    outcome = peer.in_background(timeout=timeout)
    event = peer.request()
    assert event.request.timeout_nano > 0
    peer.reply(event.stream_id, b"ok")
    assert outcome.get() == b"ok"


def test_server_closes_while_calls_wait(peer: Peer) -> None:
    outcomes = [peer.in_background(), peer.in_background()]
    peer.request()
    peer.socket.close()
    for outcome in outcomes:
        with pytest.raises(ConnectionLost):
            outcome.get()
    assert peer.client.closed
    with pytest.raises(ConnectionLost):
        peer.client.call("s", "m", b"", timeout=WAIT)


def test_server_closes_between_calls(peer: Peer) -> None:
    peer.socket.close()
    with pytest.raises(ConnectionLost):
        peer.client.call("s", "m", b"", timeout=WAIT)


@pytest.mark.parametrize(
    "answer",
    [
        frames.encode(1, frames.RESPONSE, 0, b"\xff"),
        frames.encode(1, frames.DATA, 0, b"data on a unary call"),
    ],
)
def test_malformed_answer(peer: Peer, answer: bytes) -> None:
    outcome = peer.in_background()
    peer.request()
    peer.socket.sendall(answer)
    with pytest.raises(ConnectionLost):
        outcome.get()


def test_end_within_a_frame(peer: Peer) -> None:
    outcome = peer.in_background()
    peer.request()
    peer.socket.sendall(b"\0\0")
    peer.socket.close()
    with pytest.raises(ConnectionLost, match="within a frame"):
        outcome.get()


def test_close_ends_waiting_calls(peer: Peer) -> None:
    outcomes = [peer.in_background(timeout=None) for _ in range(3)]
    for _ in outcomes:
        peer.request()
    peer.client.close()
    peer.client.close()
    for outcome in outcomes:
        with pytest.raises(ConnectionLost):
            outcome.get()


def test_a_server_that_does_not_read(peer: Peer) -> None:
    with pytest.raises(TimeoutError):
        peer.client.call("s", "m", bytes(3 << 20), timeout=0.05)
    with pytest.raises(ConnectionLost):  # half a frame is out, so nothing can follow
        peer.client.call("s", "m", b"", timeout=WAIT)


def test_oversized_request_stays_here(harness: Harness) -> None:
    harness.start(echo)
    client = harness.client()
    with pytest.raises(LocalProtocolError):
        client.call("s", "m", bytes(5 << 20), timeout=WAIT)
    big = bytes(frames.MAX_BODY - 64)
    assert client.call("s", "m", big, timeout=WAIT) == big


def test_unread_stream_is_bounded(harness: Harness) -> None:
    def handler(call: Call) -> bytes | None:
        if call.stream is None:
            return call.payload
        for _ in range(5):
            call.stream.send(bytes(1 << 20))
        call.stream.close_send()
        return None

    harness.start(handler)
    client = harness.client()
    stream = client.stream("s", "m", timeout=WAIT)
    deadline = time.monotonic() + WAIT
    status = None
    while status is None and time.monotonic() < deadline:
        # These calls read the connection; the stream's messages pile up meanwhile.
        assert client.call("s", "echo", b"x", timeout=WAIT) == b"x"
        if stream._answer.stream_id not in client._protocol._open:
            status = "ended"
    for _ in range(4):
        assert len(stream.recv() or b"") == 1 << 20
    with pytest.raises(StatusError) as caught:
        stream.recv()
    assert caught.value.code == RESOURCE_EXHAUSTED


def test_stream_that_was_given_up(harness: Harness) -> None:
    harness.start(lambda call: None)
    client = harness.client()
    stream = client.stream("s", "m", timeout=WAIT)
    stream.close()
    stream.close()
    with pytest.raises(LocalProtocolError):
        stream.recv()


@pytest.mark.parametrize("form", ["unix://{}", "{}"])
def test_address_forms(harness: Harness, form: str) -> None:
    harness.start(echo)
    with Client(form.format(harness.path)) as client:
        assert client.call("s", "m", b"x", timeout=WAIT) == b"x"


def test_abstract_address() -> None:
    name = f"\0ttrpc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(name)
        listener.listen()
        connect(name).close()


def test_connect_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(str(tmp_path / "absent"))
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        with pytest.raises(ConnectionRefusedError):
            connect(path)
        listener.listen(0)
        waiting = [connect(path)]  # a backlog of 0 holds one
        with pytest.raises(TimeoutError):
            connect(path, 0.02)
        for sock in waiting:
            sock.close()
