"""The protocol without I/O: rules of streams, golden frames, any chunking, any garbage."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import frames
from shim.ttrpc.connection import (
    ClientConnection,
    DataReceived,
    FrameRejected,
    RequestReceived,
    ResponseReceived,
    ServerConnection,
)
from shim.ttrpc.envelope import decode_response
from shim.ttrpc.errors import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    LocalProtocolError,
    RemoteProtocolError,
)

# containerd.task.v2.Task/State of container "c", time-out 2 s, as containerd's client encodes it.
STATE_BODY = bytes.fromhex(
    "0a17 636f6e7461696e6572642e7461736b2e76322e5461736b1205 53746174651a03 0a016320 80a8d6b907"
)
STATE_FRAME = len(STATE_BODY).to_bytes(4, "big") + bytes.fromhex("00000001 01 00") + STATE_BODY


def request(stream_id: int, flags: int = 0, body: bytes = b"\x0a\x01s\x12\x01m") -> bytes:
    return frames.encode(stream_id, frames.REQUEST, flags, body)


def plain(event: object) -> tuple[object, ...]:
    """An event as a value."""
    name = type(event).__name__
    if isinstance(event, RequestReceived):
        r = event.request
        body = (r.service, r.method, r.payload, r.timeout_nano, tuple(r.metadata.items()))
        return (name, event.stream_id, event.streaming, event.remote_closed, *body)
    if isinstance(event, DataReceived):
        return (name, event.stream_id, event.payload, event.closed)
    if isinstance(event, FrameRejected):
        return (name, event.stream_id, event.code, event.message, event.reply, event.ended)
    assert isinstance(event, ResponseReceived)
    status = event.status
    flat = (status.code, status.message, status.details) if status else None
    return (name, event.stream_id, flat, event.payload)


def rejected(events: list[RequestReceived | DataReceived | FrameRejected]) -> FrameRejected:
    assert len(events) == 1
    event = events[0]
    assert isinstance(event, FrameRejected)
    reply = event.reply
    assert int.from_bytes(reply[4:8], "big") == event.stream_id
    assert reply[8:10] == bytes([frames.RESPONSE, 0])
    status, _ = decode_response(reply[10:])
    assert status is not None
    assert (status.code, status.message) == (event.code, event.message)
    return event


class TestServer:
    def test_unary_call(self) -> None:
        server = ServerConnection()
        (event,) = server.receive_data(STATE_FRAME)
        assert plain(event) == (
            "RequestReceived",
            1,
            False,
            True,
            "containerd.task.v2.Task",
            "State",
            b"\n\x01c",
            2_000_000_000,
            (),
        )
        assert server.open_streams == 1
        assert server.send_response(1, b"\x18\x07") == bytes.fromhex(
            "00000004 00000001 02 00 1202 1807"
        )
        assert server.open_streams == 0

    def test_error(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1))
        assert server.send_status(1, 5, "no") == bytes.fromhex(
            "00000008 00000001 02 00 0a06 0805 1202 6e6f"
        )

    def test_answers_in_any_order_and_once(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1) + request(3))
        server.send_response(3, b"")
        server.send_response(1, b"")
        with pytest.raises(LocalProtocolError):
            server.send_response(1, b"")
        with pytest.raises(LocalProtocolError):
            server.send_status(3, 2, "x")
        with pytest.raises(LocalProtocolError):
            server.send_data(1, b"")
        with pytest.raises(LocalProtocolError):
            server.send_end(5)

    def test_unary_calls_take_no_data_from_us(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1))
        with pytest.raises(LocalProtocolError):
            server.send_data(1, b"x")
        with pytest.raises(LocalProtocolError):
            server.send_end(1)
        server.send_response(1, b"")

    @pytest.mark.parametrize("stream_id", [0, 2, 4])
    def test_even_id(self, stream_id: int) -> None:
        server = ServerConnection()
        event = rejected(server.receive_data(request(stream_id)))
        assert (event.stream_id, event.code) == (stream_id, INVALID_ARGUMENT)
        assert not event.ended

    def test_reused_and_decreasing_id(self) -> None:
        server = ServerConnection()
        server.receive_data(request(5))
        assert rejected(server.receive_data(request(3))).code == INVALID_ARGUMENT
        server.send_response(5, b"")
        event = rejected(server.receive_data(request(5)))
        assert (event.code, event.ended) == (INVALID_ARGUMENT, False)
        assert isinstance(server.receive_data(request(7))[0], RequestReceived)

    def test_reused_id_ends_the_open_call(self) -> None:
        server = ServerConnection()
        server.receive_data(request(5))
        assert rejected(server.receive_data(request(5))).ended
        assert server.open_streams == 0

    def test_oversized_request_is_answered_and_the_connection_goes_on(self) -> None:
        server = ServerConnection()
        length = 5 << 20
        header = length.to_bytes(4, "big") + bytes.fromhex("00000003 01 00")
        event = rejected(server.receive_data(header + bytes(length)))
        assert (event.stream_id, event.code) == (3, RESOURCE_EXHAUSTED)
        assert rejected(server.receive_data(request(3))).code == INVALID_ARGUMENT  # it is used
        assert isinstance(server.receive_data(request(5))[0], RequestReceived)

    def test_oversized_reply_becomes_a_status(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1))
        reply = server.send_response(1, bytes(frames.MAX_BODY - 3))  # too long with its tag
        status, _ = decode_response(reply[10:])
        assert status is not None
        assert status.code == RESOURCE_EXHAUSTED
        assert server.open_streams == 0

    def test_oversized_status_is_cut(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1))
        reply = server.send_status(1, 2, "é" * (8 << 20), (bytes(8 << 20),))
        status, _ = decode_response(reply[10:])
        assert status is not None
        assert status.code == 2
        assert status.message.startswith("éé")
        assert len(reply) < 1 << 20

    @pytest.mark.parametrize("type", [0, 2, 4, 0x7F, 0xFF])
    def test_other_types_are_passed_over(self, type: int) -> None:
        server = ServerConnection()
        assert server.receive_data(frames.encode(1, type, 0xFF, b"whatever")) == []
        huge = (5 << 20).to_bytes(4, "big") + bytes([0, 0, 0, 1, type, 0]) + bytes(5 << 20)
        assert server.receive_data(huge) == []
        assert isinstance(server.receive_data(request(1))[0], RequestReceived)

    def test_malformed_request_body(self) -> None:
        server = ServerConnection()
        event = rejected(server.receive_data(request(1, body=b"\x0a\xff")))
        assert event.code == INVALID_ARGUMENT
        assert isinstance(server.receive_data(request(3))[0], RequestReceived)

    def test_too_many_in_flight(self) -> None:
        server = ServerConnection(max_streams=2)
        server.receive_data(request(1) + request(3))
        assert rejected(server.receive_data(request(5))).code == RESOURCE_EXHAUSTED
        server.send_response(1, b"")
        assert isinstance(server.receive_data(request(7))[0], RequestReceived)

    def test_streaming_both_ways(self) -> None:
        server = ServerConnection()
        (event,) = server.receive_data(request(1, frames.REMOTE_OPEN))
        assert isinstance(event, RequestReceived)
        assert (event.streaming, event.remote_closed) == (True, False)
        data = frames.encode(1, frames.DATA, 0, b"a") + frames.encode(1, frames.DATA, 0, b"")
        assert [plain(e)[1:] for e in server.receive_data(data)] == [
            (1, b"a", False),
            (1, b"", False),
        ]
        assert server.send_data(1, b"z") == bytes.fromhex("00000001 00000001 03 00 7a")
        (event,) = server.receive_data(bytes.fromhex("00000000 00000001 03 05"))
        assert plain(event)[1:] == (1, None, True)
        assert server.send_data(1, b"y")  # our direction is still open
        assert server.send_end(1) == bytes.fromhex("00000000 00000001 03 05")
        assert server.open_streams == 0

    def test_last_data_may_carry_a_message(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1, frames.REMOTE_OPEN))
        (event,) = server.receive_data(frames.encode(1, frames.DATA, frames.REMOTE_CLOSED, b"end"))
        assert plain(event)[1:] == (1, b"end", True)

    @pytest.mark.parametrize("flags", [0, frames.REMOTE_CLOSED])
    def test_data_on_a_stream_that_takes_none(self, flags: int) -> None:
        server = ServerConnection()
        server.receive_data(request(1, flags))
        event = rejected(server.receive_data(frames.encode(1, frames.DATA, 0, b"a")))
        assert (event.code, event.ended) == (INVALID_ARGUMENT, True)

    def test_data_after_the_end(self) -> None:
        server = ServerConnection()
        server.receive_data(request(1, frames.REMOTE_OPEN))
        end = frames.encode(1, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"")
        server.receive_data(end)
        assert rejected(server.receive_data(end)).ended

    def test_data_on_no_stream(self) -> None:
        event = rejected(ServerConnection().receive_data(frames.encode(9, frames.DATA, 0, b"a")))
        assert (event.code, event.ended) == (INVALID_ARGUMENT, False)

    def test_end_within_a_frame(self) -> None:
        server = ServerConnection()
        server.receive_data(STATE_FRAME)
        server.receive_eof()
        server.receive_data(STATE_FRAME[:-1])
        with pytest.raises(RemoteProtocolError):
            server.receive_eof()


class TestClient:
    def test_request_bytes(self) -> None:
        client = ClientConnection()
        stream_id, data = client.send_request(
            "containerd.task.v2.Task", "State", b"\n\x01c", 2_000_000_000
        )
        assert (stream_id, data) == (1, STATE_FRAME)
        assert client.send_request("s", "m", b"")[0] == 3

    def test_answers(self) -> None:
        client = ClientConnection()
        for _ in range(3):
            client.send_request("s", "m", b"")
        events = client.receive_data(
            bytes.fromhex("00000008 00000005 02 00 0a06 0805 1202 6e6f")
            + bytes.fromhex("00000004 00000001 02 00 1202 1807")
            + bytes.fromhex("00000000 00000003 02 00")
        )
        assert [plain(e)[1:] for e in events] == [
            (5, (5, "no", ()), b""),
            (1, None, b"\x18\x07"),
            (3, None, b""),
        ]
        assert client.open_streams == 0

    def test_late_and_foreign_answers_are_passed_over(self) -> None:
        client = ClientConnection()
        client.send_request("s", "m", b"")
        client.forget(1)
        assert not list(client.receive_data(frames.encode(1, frames.RESPONSE, 0, b"\xff")))
        assert not list(client.receive_data(frames.encode(99, frames.RESPONSE, 0, b"\xff")))
        assert not list(client.receive_data(request(1)))

    def test_oversized_answer_is_a_status(self) -> None:
        client = ClientConnection()
        client.send_request("s", "m", b"")
        length = 5 << 20
        header = length.to_bytes(4, "big") + bytes.fromhex("00000001 02 00")
        (event,) = client.receive_data(header + bytes(length))
        assert isinstance(event, ResponseReceived)
        assert event.status is not None
        assert event.status.code == RESOURCE_EXHAUSTED

    def test_malformed_answer(self) -> None:
        client = ClientConnection()
        client.send_request("s", "m", b"")
        with pytest.raises(RemoteProtocolError):
            list(client.receive_data(frames.encode(1, frames.RESPONSE, 0, b"\xff")))

    def test_data_on_a_unary_call(self) -> None:
        client = ClientConnection()
        client.send_request("s", "m", b"")
        with pytest.raises(RemoteProtocolError):
            list(client.receive_data(frames.encode(1, frames.DATA, 0, b"x")))

    def test_requests_that_no_frame_takes(self) -> None:
        client = ClientConnection()
        with pytest.raises(LocalProtocolError):
            client.send_request("s", "m", bytes(frames.MAX_BODY))
        with pytest.raises(LocalProtocolError):
            client.send_request("s", "m", b"", metadata={"k": ("v",) * 1025})
        assert client.open_streams == 0
        assert client.send_request("s", "m", b"")[0] == 1  # no id was spent

    def test_streaming(self) -> None:
        client, server = ClientConnection(), ServerConnection()
        stream_id, opening = client.send_request("s", "m", b"p", streaming=True, remote_open=True)
        server.receive_data(opening)
        server.receive_data(client.send_data(stream_id, b"1") + client.send_end(stream_id))
        with pytest.raises(LocalProtocolError):
            client.send_data(stream_id, b"2")
        events = client.receive_data(server.send_data(1, b"x") + server.send_end(1))
        assert [plain(e)[1:] for e in events] == [(1, b"x", False), (1, None, True)]
        assert not client.is_open(stream_id)

    def test_stream_without_data_of_ours(self) -> None:
        client, server = ClientConnection(), ServerConnection()
        stream_id, opening = client.send_request("s", "m", b"p", streaming=True)
        (event,) = server.receive_data(opening)
        assert isinstance(event, RequestReceived)
        assert (event.streaming, event.remote_closed) == (True, True)
        with pytest.raises(LocalProtocolError):
            client.send_end(stream_id)


# Streams of frames that are mostly right, so that the rules beyond the header are reached.
FRAMES = st.builds(
    frames.encode,
    st.integers(0, 9),
    st.sampled_from([1, 1, 2, 3, 3, 9]),
    st.integers(0, 7),
    st.one_of(st.binary(max_size=12), st.just(STATE_BODY), st.just(b"")),
)
BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(FRAMES, max_size=12).map(b"".join),
    st.tuples(st.lists(FRAMES, max_size=6).map(b"".join), st.binary(max_size=40)).map(b"".join),
)


def feed(connection: ServerConnection | ClientConnection, chunks: list[bytes]) -> list[object]:
    """Events as values, with the error that ended them as the last."""
    events: list[object] = []
    try:
        for chunk in chunks:
            for event in connection.receive_data(chunk):
                events.append(plain(event))
        connection.receive_eof()
    except RemoteProtocolError as exc:
        events.append(str(exc))
    return events


def client_with_open_calls() -> ClientConnection:
    client = ClientConnection()
    for streaming in (False, True, True, False):
        client.send_request("s", "m", b"", streaming=streaming, remote_open=streaming)
    return client


@given(BYTES, st.lists(st.integers(0, 300), max_size=8))
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    single = [data[i : i + 1] for i in range(len(data))]
    whole = feed(ServerConnection(), [data])
    assert feed(ServerConnection(), chunks) == whole
    assert feed(ServerConnection(), single) == whole


@given(BYTES)
def test_chunking_for_the_client(data: bytes) -> None:
    whole = feed(client_with_open_calls(), [data])
    single = feed(client_with_open_calls(), [data[i : i + 1] for i in range(len(data))])
    assert single == whole


@given(BYTES)
def test_every_open_stream_of_the_server_can_be_answered(data: bytes) -> None:
    server = ServerConnection(max_streams=3)
    for event in server.receive_data(data):
        assert server.open_streams <= 3
        if isinstance(event, FrameRejected):
            assert event.reply
    for stream_id in range(1, 10, 2):
        before = server.open_streams
        try:
            server.send_response(stream_id, b"")
        except LocalProtocolError:
            assert server.open_streams == before
        else:
            assert server.open_streams == before - 1
    assert server.open_streams == 0
