"""The server on real sockets: what one client does must not hurt it nor the others."""

from __future__ import annotations

import errno
import os
import queue
import resource
import socket
import threading
import time

import pytest

from shim.ttrpc import frames
from shim.ttrpc.call import Call
from shim.ttrpc.envelope import Request, encode_request
from shim.ttrpc.errors import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNKNOWN,
    ConnectionLost,
    LocalProtocolError,
    StatusError,
)
from shim.ttrpc.server import Server

from .conftest import WAIT, Harness, Raw, echo


def is_alive(harness: Harness) -> bool:
    return harness.client().call("s", "echo", b"alive", timeout=WAIT) == b"alive"


def test_call_fields(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()

    def handler(call: Call) -> bytes:
        calls.put(call)
        return b"reply"

    harness.start(handler)
    client = harness.client()
    before = time.monotonic()
    metadata = {"k": ("a", "b"), "l": ("c",)}
    assert client.call("svc", "Do", b"in", timeout=30, metadata=metadata) == b"reply"
    call = calls.get(timeout=WAIT)
    assert (call.service, call.method, call.payload) == ("svc", "Do", b"in")
    assert dict(call.metadata) == metadata
    assert call.deadline is not None
    assert before + 29 < call.deadline < time.monotonic() + 30
    assert client.call("svc", "Do", b"", timeout=None) == b"reply"
    assert calls.get(timeout=WAIT).deadline is None


def test_answers_out_of_order(harness: Harness) -> None:
    gates = {b"slow": threading.Event(), b"fast": threading.Event()}

    def handler(call: Call) -> bytes:
        gates[call.payload].wait(WAIT)
        return call.payload

    harness.start(handler)
    raw = harness.raw()
    raw.request(1, payload=b"slow")
    raw.request(3, payload=b"fast")
    gates[b"fast"].set()
    assert raw.answer() == (3, None, b"fast")
    gates[b"slow"].set()
    assert raw.answer() == (1, None, b"slow")


def test_deferred_reply_parks_no_thread(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    harness.start(calls.put)
    raw = harness.raw()
    for stream_id in range(1, 401, 2):
        raw.request(stream_id)
    held = [calls.get(timeout=WAIT) for _ in range(200)]
    deferred = [t for t in threading.enumerate() if t.name == "ttrpc-call"]
    for thread in deferred:
        thread.join(WAIT)
        assert not thread.is_alive()
    for call in held:
        call.reply(b"now")
    assert sorted(raw.answer()[0] for _ in held) == list(range(1, 401, 2))


def test_status_error_from_handler(harness: Harness) -> None:
    def handler(call: Call) -> bytes:
        raise StatusError(NOT_FOUND, "no such thing", (b"\n\x01t",))

    harness.start(handler)
    with pytest.raises(StatusError) as caught:
        harness.client().call("s", "m", b"", timeout=WAIT)
    error = caught.value
    assert (error.code, error.message, error.details) == (NOT_FOUND, "no such thing", (b"\n\x01t",))
    assert harness.failed.empty()


def test_other_errors_are_reported_and_become_unknown(harness: Harness) -> None:
    def handler(call: Call) -> bytes:
        raise ValueError("odd value")

    harness.start(handler)
    with pytest.raises(StatusError) as caught:
        harness.client().call("s", "m", b"", timeout=WAIT)
    assert (caught.value.code, caught.value.message) == (UNKNOWN, "odd value")
    call, exc = harness.failed.get(timeout=WAIT)
    assert (call.method, type(exc)) == ("m", ValueError)


def test_a_reply_that_is_no_bytes(harness: Harness) -> None:
    harness.start(lambda call: "text")  # type: ignore[arg-type, return-value]
    with pytest.raises(StatusError, match="not bytes"):
        harness.client().call("s", "m", b"", timeout=WAIT)


def test_an_answer_is_given_once(harness: Harness) -> None:
    errors: queue.Queue[Exception] = queue.Queue()

    def handler(call: Call) -> bytes:
        call.reply(b"first")
        try:
            call.reply(b"x")
        except LocalProtocolError as exc:
            errors.put(exc)
        try:
            call.fail(NOT_FOUND, "x")
        except LocalProtocolError as exc:
            errors.put(exc)
        return b"second"

    harness.start(handler)
    client = harness.client()
    assert client.call("s", "m", b"", timeout=WAIT) == b"first"
    assert client.call("s", "m", b"", timeout=WAIT) == b"first"  # and the stream is not spoilt
    errors.get(timeout=WAIT)
    errors.get(timeout=WAIT)
    assert isinstance(harness.failed.get(timeout=WAIT)[1], LocalProtocolError)


def test_one_answer_wins_a_race(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    harness.start(calls.put)
    raw = harness.raw()
    for stream_id in range(1, 101, 2):
        raw.request(stream_id)
        call = calls.get(timeout=WAIT)
        start = threading.Barrier(4)
        refused: queue.Queue[int] = queue.Queue()

        def answer(
            call: Call = call, start: threading.Barrier = start, refused: queue.Queue[int] = refused
        ) -> None:
            start.wait(WAIT)
            try:
                call.reply(b"r")
            except LocalProtocolError:
                refused.put(1)

        threads = [threading.Thread(target=answer) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert refused.qsize() == 3
        assert raw.answer() == (stream_id, None, b"r")


def test_close_cancels_open_calls(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    gone = threading.Semaphore(0)
    release = threading.Event()

    def handler(call: Call) -> bytes | None:
        if call.payload == b"alive":
            return call.payload
        call.on_cancel(gone.release)
        calls.put(call)
        if call.payload == b"deferred":
            return None
        release.wait(WAIT)
        return b"too late"

    harness.start(handler)
    raw = harness.raw()
    raw.request(1, payload=b"deferred")
    raw.request(3, payload=b"running")
    first, second = calls.get(timeout=WAIT), calls.get(timeout=WAIT)
    assert not first.cancelled
    raw.socket.close()
    assert gone.acquire(timeout=WAIT)
    assert gone.acquire(timeout=WAIT)
    assert first.cancelled
    assert second.cancelled
    late = threading.Event()
    first.on_cancel(late.set)
    assert late.is_set()
    release.set()
    assert not (first if first.payload == b"deferred" else second).reply(b"dropped")
    assert is_alive(harness)
    assert not gone.acquire(blocking=False)


def test_who_finds_nobody_connected_finds_the_calls_cancelled(harness: Harness) -> None:
    """Between the two a creation whose client is gone would be kept, and by nobody."""
    calls: queue.Queue[Call] = queue.Queue()
    counts: list[int] = []

    def handler(call: Call) -> None:
        call.on_cancel(lambda: counts.append(harness.server.connections))
        calls.put(call)

    idle = threading.Event()
    harness.start(handler, on_idle=idle.set)
    raw = harness.raw()
    raw.request(1)
    call = calls.get(timeout=WAIT)
    raw.socket.close()
    assert idle.wait(WAIT) and call.cancelled and counts == [1]


def test_an_answer_to_a_connection_that_broke_is_told(harness: Harness) -> None:
    """Its end isn't noticed yet: the I/O thread is held in another call's hook."""
    calls: queue.Queue[Call] = queue.Queue()
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert go_on.wait(WAIT)

    def handler(call: Call) -> None:
        if call.payload == b"holds":
            call.on_cancel(hold)
        calls.put(call)

    harness.start(handler)
    holder, raw = harness.raw(), harness.raw()
    holder.request(1, payload=b"holds")
    raw.request(1)
    found = {call.payload: call for call in (calls.get(timeout=WAIT), calls.get(timeout=WAIT))}
    holder.socket.close()
    assert held.wait(WAIT)
    raw.socket.close()
    try:
        assert not found[b""].cancelled and not found[b""].reply(b"nobody reads it")
    finally:
        go_on.set()


def test_no_hook_after_the_answer(harness: Harness) -> None:
    called: list[Call] = []

    def handler(call: Call) -> None:
        call.on_cancel(lambda: called.append(call))
        call.reply(b"")
        call.on_cancel(lambda: called.append(call))

    idle = threading.Event()
    harness.start(handler, on_idle=idle.set)
    raw = harness.raw()
    raw.request(1)
    raw.answer()
    raw.socket.close()
    assert idle.wait(WAIT)
    assert called == []


def test_a_failing_hook_hurts_nobody(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    gone = threading.Event()

    def handler(call: Call) -> bytes | None:
        if call.method == "echo":
            return call.payload

        def fail() -> None:
            raise RuntimeError("hook")

        call.on_cancel(fail)
        call.on_cancel(gone.set)
        calls.put(call)
        return None

    harness.start(handler)
    raw = harness.raw()
    raw.request(1, "wait")
    calls.get(timeout=WAIT)
    raw.socket.close()
    assert gone.wait(WAIT)
    assert is_alive(harness)


def test_a_passed_deadline_drops_the_answer(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()

    def handler(call: Call) -> bytes | None:
        if call.method == "echo":
            return call.payload
        calls.put(call)
        return None

    harness.start(handler, max_in_flight=1)
    client = harness.client()
    with pytest.raises(TimeoutError):
        client.call("s", "wait", b"", timeout=0.01)
    call = calls.get(timeout=WAIT)
    while not call.cancelled:  # by the clock, within 10 ms
        pass
    with pytest.raises(StatusError):  # it is still in flight
        client.call("s", "echo", b"", timeout=WAIT)
    call.reply(b"late")
    assert client.call("s", "echo", b"next", timeout=WAIT) == b"next"


def test_a_late_answer_is_not_written(harness: Harness) -> None:
    def handler(call: Call) -> bytes:
        while call.deadline is not None and not call.cancelled:  # by the clock, within 1 ms
            pass
        return call.payload

    harness.start(handler, submit=lambda job: job())  # in order, in the I/O thread
    raw = harness.raw()
    body = encode_request(Request("s", "m", b"late", timeout_nano=1_000_000))
    raw.send(frames.encode(1, frames.REQUEST, 0, body))
    raw.request(3, payload=b"in time")
    assert raw.answer() == (3, None, b"in time")


def test_oversized_request_is_answered_and_the_connection_kept(harness: Harness) -> None:
    harness.start(echo)
    raw = harness.raw()
    length = 5 << 20
    raw.send(length.to_bytes(4, "big") + bytes.fromhex("00000001 01 00"))
    raw.send(bytes(length))
    stream_id, status, _ = raw.answer()
    assert stream_id == 1
    assert status is not None
    assert status.code == RESOURCE_EXHAUSTED
    raw.request(3, payload=b"on")
    assert raw.answer() == (3, None, b"on")


def test_oversized_reply(harness: Harness) -> None:
    harness.start(lambda call: bytes(int(call.payload)))
    client = harness.client()
    with pytest.raises(StatusError) as caught:
        client.call("s", "m", b"%d" % (5 << 20), timeout=WAIT)
    assert caught.value.code == RESOURCE_EXHAUSTED
    size = frames.MAX_BODY - 5
    assert len(client.call("s", "m", b"%d" % size, timeout=WAIT)) == size


@pytest.mark.parametrize(
    ("stream_ids", "code"), [((2,), INVALID_ARGUMENT), ((1, 1), INVALID_ARGUMENT)]
)
def test_bad_stream_ids(harness: Harness, stream_ids: tuple[int, ...], code: int) -> None:
    harness.start(echo)
    raw = harness.raw()
    for stream_id in stream_ids[:-1]:
        raw.request(stream_id)
        raw.answer()
    raw.request(stream_ids[-1])
    stream_id, status, _ = raw.answer()
    assert stream_id == stream_ids[-1]
    assert status is not None
    assert status.code == code
    raw.request(7, payload=b"on")
    assert raw.answer() == (7, None, b"on")


def test_garbage_hurts_nobody_else(harness: Harness) -> None:
    harness.start(echo)
    good = harness.client()
    for garbage in (b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"\xff" * 99):
        raw = harness.raw()
        raw.send(garbage)
        assert good.call("s", "echo", b"x", timeout=WAIT) == b"x"
        raw.socket.shutdown(socket.SHUT_WR)
        while not raw.at_end():
            pass
    assert good.call("s", "echo", b"y", timeout=WAIT) == b"y"


def test_half_a_frame_blocks_nobody(harness: Harness) -> None:
    harness.start(echo)
    silent = [harness.raw() for _ in range(20)]
    whole = frames.encode(1, frames.REQUEST, 0, b"\x0a\x01s\x12\x04echo\x1a\x01p")
    for index, raw in enumerate(silent):
        raw.send(whole[:index])
    assert is_alive(harness)
    for index, raw in enumerate(silent):
        raw.send(whole[index:])
        assert raw.answer() == (1, None, b"p")


def test_an_end_within_a_frame_is_logged(harness: Harness) -> None:
    harness.start(echo)
    raw = harness.raw()
    raw.send(b"\0\0\0")
    raw.socket.close()
    assert harness.logged.get(timeout=WAIT) == (
        "connection.dropped",
        {"reason": "connection ended within a frame"},
    )


def switches(thread_id: int) -> int:
    with open(f"/proc/self/task/{thread_id}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["voluntary_ctxt_switches"]) + int(lines["nonvoluntary_ctxt_switches"])


def settle() -> tuple[int, int]:
    """Wait until the I/O thread sleeps; its id and its context switches so far.

    That nothing happens can only be seen by waiting.
    """
    (io_thread,) = [t for t in threading.enumerate() if t.name == "ttrpc"]
    assert io_thread.native_id is not None
    pause = threading.Event()
    last = -1
    for _ in range(100):
        before = switches(io_thread.native_id)
        if before == last:
            break
        last = before
        pause.wait(0.02)
    return io_thread.native_id, last


def test_idle_connections_cost_no_threads_and_no_wake_ups(harness: Harness) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    harness.start(echo)
    busy = harness.client()
    threads = threading.active_count()
    idle = [harness.raw() for _ in range(300)]
    idle[-1].request(1)
    idle[-1].answer()  # all are accepted
    assert threading.active_count() <= threads + 1  # the call's thread may be about to end
    for raw in idle:
        raw.request(3)
        assert raw.answer()[0] == 3
    thread_id, before = settle()
    threading.Event().wait(0.2)
    assert switches(thread_id) == before
    assert busy.call("s", "echo", b"x", timeout=WAIT) == b"x"


@pytest.mark.parametrize("wrong", ["uid", "gid"])
def test_foreign_peers_are_dropped(harness: Harness, wrong: str) -> None:
    mine = os.geteuid() if wrong == "uid" else os.getegid()
    harness.start(echo, **{wrong: mine + 1})
    raw = harness.raw()
    assert raw.at_end()
    event, fields = harness.logged.get(timeout=WAIT)
    assert event == "peer.refused"
    assert fields[wrong] == mine


def test_stop_waits_for_the_answer_in_flight(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    server = harness.start(calls.put)
    raw, other = harness.raw(), harness.raw()
    other.request(1)
    calls.get(timeout=WAIT).reply(b"")
    other.answer()
    raw.request(1)
    call = calls.get(timeout=WAIT)
    stopping = threading.Thread(target=server.stop, args=(100 * WAIT,))
    stopping.start()
    while not server.closing:
        pass
    other.request(3)  # a new call on a connection there was
    try:
        stream_id, status, _ = other.answer()
    except (EOFError, ConnectionResetError):
        pytest.fail("closed while a call was in flight elsewhere")
    assert status is not None
    assert (stream_id, status.code) == (3, UNAVAILABLE)
    assert stopping.is_alive()
    settle()  # so that it is the answer that wakes the server
    call.reply(b"done")
    assert raw.answer() == (1, None, b"done")
    stopping.join(WAIT)
    assert raw.at_end()
    assert other.at_end()
    server.stop(0)


def test_stop_gives_up_on_time(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    cancelled = threading.Event()
    server = harness.start(calls.put)
    raw = harness.raw()
    raw.request(1)
    call = calls.get(timeout=WAIT)
    call.on_cancel(cancelled.set)
    server.stop(0.02)
    assert cancelled.is_set()
    assert raw.at_end()
    call.reply(b"dropped")


def test_refuse_before_stop(harness: Harness) -> None:
    server = harness.start(echo)
    client = harness.client()
    assert client.call("s", "echo", b"1", timeout=WAIT) == b"1"
    assert not server.closing
    server.refuse()
    assert server.closing
    with pytest.raises(ConnectionRefusedError):
        harness.raw()
    assert client.call("s", "echo", b"2", timeout=WAIT) == b"2"
    server.refuse()


def test_stop_without_start() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server = Server(listener, echo)
    server.stop(0)
    assert listener.fileno() == -1
    with pytest.raises(RuntimeError):
        server.start()


def test_stop_from_a_hook_does_not_hang(harness: Harness) -> None:
    stopped = threading.Event()

    def on_idle() -> None:
        harness.server.stop(1)
        stopped.set()

    harness.start(echo, on_idle=on_idle)
    harness.raw().socket.close()
    assert stopped.wait(WAIT)


def test_on_idle_comes_with_the_last_connection(harness: Harness) -> None:
    idle: queue.Queue[int] = queue.Queue()
    harness.start(echo, on_idle=lambda: idle.put(1))
    first, second = harness.raw(), harness.raw()
    for raw in (first, second):
        raw.request(1)
        raw.answer()
    first.socket.close()
    second.request(3)
    second.answer()
    assert idle.empty()
    second.socket.close()
    idle.get(timeout=WAIT)


def fill(raw: Raw) -> None:
    """Ask for more than the socket and the server's low mark hold, and read nothing."""
    for stream_id in range(1, 9, 2):
        raw.request(stream_id, "big")


def big(call: Call) -> bytes:
    return bytes(1 << 20) if call.method == "big" else call.payload


def test_a_slow_reader_gets_everything(harness: Harness) -> None:
    harness.start(big)
    raw = harness.raw()
    fill(raw)
    assert is_alive(harness)
    assert sorted(len(raw.answer()[2]) for _ in range(4)) == [1 << 20] * 4
    raw.request(9, payload=b"and on")
    assert raw.answer() == (9, None, b"and on")


def test_a_stuck_reader_is_dropped_and_delays_nobody(harness: Harness) -> None:
    answered = threading.Semaphore(0)

    def handler(call: Call) -> None:
        call.reply(big(call))
        answered.release()

    gone = threading.Event()
    harness.start(handler, send_timeout=0.2, on_idle=gone.set)
    raw = harness.raw()
    fill(raw)
    assert answered.acquire(timeout=WAIT)  # whoever answers does not wait for the reader
    assert gone.wait(WAIT)
    event, fields = harness.logged.get(timeout=WAIT)
    assert event == "connection.dropped"
    assert "nothing was read" in str(fields["reason"])
    assert is_alive(harness)


def test_a_client_that_leaves_without_reading(harness: Harness) -> None:
    gone = threading.Event()
    harness.start(big, on_idle=gone.set)
    raw = harness.raw()
    fill(raw)
    raw.exactly(1)
    raw.socket.close()
    assert gone.wait(WAIT)
    assert is_alive(harness)


def test_too_many_in_flight(harness: Harness) -> None:
    calls: queue.Queue[Call] = queue.Queue()
    harness.start(calls.put, max_in_flight=2)
    raw = harness.raw()
    for stream_id in (1, 3, 5):
        raw.request(stream_id)
    stream_id, status, _ = raw.answer()
    assert status is not None
    assert (stream_id, status.code) == (5, RESOURCE_EXHAUSTED)
    calls.get(timeout=WAIT).reply(b"")
    assert raw.answer()[0] in (1, 3)


def test_submit_that_fails(harness: Harness) -> None:
    def submit(job: object) -> None:
        raise RuntimeError("can't start new thread")

    harness.start(echo, submit=submit)
    with pytest.raises(StatusError) as caught:
        harness.client().call("s", "m", b"", timeout=WAIT)
    assert caught.value.code == RESOURCE_EXHAUSTED


class Exhausted(socket.socket):
    """A listener in a process without free descriptors, for as long as ``full`` is set."""

    full = True
    attempts = 0

    def _accept(self) -> tuple[int, object]:
        self.attempts += 1
        if self.full:
            raise OSError(errno.EMFILE, "too many open files")
        return super()._accept()


def test_running_out_of_descriptors_does_not_spin(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.ttrpc.server._ACCEPT_PAUSE", 0.05)
    listener = Exhausted(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(harness.path)
    listener.listen()
    harness.server = Server(listener, echo, log=harness._log)
    harness.server.start()
    client = harness.client()
    for attempt in range(1, 4):
        event, _ = harness.logged.get(timeout=WAIT)
        assert event == "accept.paused"
        assert listener.attempts == attempt
    listener.full = False
    assert client.call("s", "echo", b"x", timeout=WAIT) == b"x"


def test_many_clients_at_once(harness: Harness) -> None:
    harness.start(echo)
    wrong: queue.Queue[object] = queue.Queue()

    def work(number: int) -> None:
        client = harness.client()
        for i in range(20):
            payload = b"%d/%d" % (number, i)
            if client.call("s", "echo", payload, timeout=WAIT) != payload:
                wrong.put((number, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert wrong.empty()


class TestStreams:
    def test_echo(self, harness: Harness) -> None:
        def handler(call: Call) -> None:
            assert call.stream is not None
            while (message := call.stream.recv(WAIT)) is not None:
                call.stream.send(message.upper())
            call.stream.close_send()

        harness.start(handler)
        with harness.client().stream("s", "m", timeout=WAIT) as stream:
            stream.send(b"a")
            assert stream.recv() == b"A"
            stream.send(b"")
            assert stream.recv() == b""
            stream.send(b"b")
            stream.close_send()
            assert stream.recv() == b"B"
            assert stream.recv() is None
            assert stream.recv() is None

    def test_server_streams_without_data_of_the_client(self, harness: Harness) -> None:
        def handler(call: Call) -> None:
            assert call.stream is not None
            assert call.stream.recv(WAIT) is None
            for i in range(5):
                call.stream.send(call.payload + b"%d" % i)
            call.stream.close_send()

        harness.start(handler)
        with harness.client().stream("s", "m", b"p", timeout=WAIT, remote_open=False) as stream:
            assert [stream.recv() for _ in range(6)] == [b"p0", b"p1", b"p2", b"p3", b"p4", None]

    def test_client_streams_and_gets_one_answer(self, harness: Harness) -> None:
        def handler(call: Call) -> bytes:
            assert call.stream is not None
            total = b""
            while (message := call.stream.recv(WAIT)) is not None:
                total += message
            return total

        harness.start(handler)
        with harness.client().stream("s", "m", timeout=WAIT) as stream:
            for part in (b"x", b"y", b"z"):
                stream.send(part)
            stream.close_send()
            assert stream.recv() == b"xyz"
            assert stream.recv() is None

    def test_failure_in_mid_stream(self, harness: Harness) -> None:
        def handler(call: Call) -> None:
            assert call.stream is not None
            call.stream.send(b"one")
            raise StatusError(NOT_FOUND, "no more")

        harness.start(handler)
        with harness.client().stream("s", "m", timeout=WAIT) as stream:
            assert stream.recv() == b"one"
            with pytest.raises(StatusError, match="no more"):
                stream.recv()

    def test_nothing_after_the_end(self, harness: Harness) -> None:
        errors: queue.Queue[Exception] = queue.Queue()

        def handler(call: Call) -> None:
            assert call.stream is not None
            call.stream.close_send()
            try:
                call.stream.send(b"x")
            except LocalProtocolError as exc:
                errors.put(exc)
            try:
                call.stream.close_send()
            except LocalProtocolError as exc:
                errors.put(exc)

        harness.start(handler)
        with harness.client().stream("s", "m", timeout=WAIT) as stream:
            assert stream.recv() is None
        errors.get(timeout=WAIT)
        errors.get(timeout=WAIT)

    def test_recv_ends_when_the_client_goes(self, harness: Harness) -> None:
        begun = threading.Event()
        raised: queue.Queue[Exception] = queue.Queue()

        def handler(call: Call) -> None:
            assert call.stream is not None
            begun.set()
            try:
                call.stream.recv(WAIT)
            except ConnectionLost as exc:
                raised.put(exc)
                raise

        harness.start(handler)
        client = harness.client()
        client.stream("s", "m", timeout=WAIT)
        assert begun.wait(WAIT)
        client.close()
        raised.get(timeout=WAIT)
        assert harness.failed.empty()  # a client's leaving is not the handler's failure

    def test_recv_times_out(self, harness: Harness) -> None:
        def handler(call: Call) -> bytes:
            assert call.stream is not None
            try:
                call.stream.recv(0)
            except TimeoutError:
                return b"timed out"
            return b"?"

        harness.start(handler)
        with harness.client().stream("s", "m", timeout=WAIT) as stream:
            assert stream.recv() == b"timed out"

    def test_what_nobody_takes_is_bounded(self, harness: Harness) -> None:
        calls: queue.Queue[Call] = queue.Queue()
        harness.start(calls.put)
        client = harness.client()
        stream = client.stream("s", "m", timeout=WAIT)
        for _ in range(3):
            stream.send(bytes(2 << 20))
        with pytest.raises(StatusError) as caught:
            stream.recv()
        assert caught.value.code == RESOURCE_EXHAUSTED
        call = calls.get(timeout=WAIT)
        assert call.stream is not None
        assert len(call.stream.recv(WAIT) or b"") == 2 << 20
        stream.send(b"on a stream that has ended")

    def test_send_waits_for_a_slow_client(self, harness: Harness) -> None:
        sent = threading.Semaphore(0)

        def handler(call: Call) -> None:
            assert call.stream is not None
            for _ in range(64):
                call.stream.send(bytes(64 << 10))
                sent.release()
            call.stream.close_send()

        harness.start(handler)
        raw = harness.raw()
        body = b"\x0a\x01s\x12\x01m"
        raw.send(frames.encode(1, frames.REQUEST, frames.REMOTE_CLOSED, body))
        assert sent.acquire(timeout=WAIT)
        assert is_alive_elsewhere(harness)
        for _ in range(64):
            assert raw.frame() == (1, frames.DATA, 0, bytes(64 << 10))
        assert raw.frame() == (1, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"")


def is_alive_elsewhere(harness: Harness) -> bool:
    """Another connection gets its (streaming handler's) answer."""
    with harness.client().stream("s", "m", timeout=WAIT, remote_open=False) as stream:
        return stream.recv() is not None
