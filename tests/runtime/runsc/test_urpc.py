from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.base.errors import DeadlineExceeded, ResourceExhausted, Unanswered
from runtime.runsc import urpc
from runtime.runsc.urpc import (
    Disconnected,
    ProtocolError,
    RemoteError,
    Reply,
    ReplyDecoder,
    encode_request,
)
from tests.fakes.sentry import FakeSentry, SentryError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(result=JSON, ascii_only=st.booleans(), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_chunking_gives_the_same_reply(
    result: object, ascii_only: bool, cuts: list[int]
) -> None:
    text = json.dumps({"success": True, "err": "", "result": result}, ensure_ascii=ascii_only)
    data = b" \n" + text.encode("utf-8", "surrogatepass")
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = ReplyDecoder()
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    for piece in pieces[:-1]:
        assert decoder.feed(piece) is None
    try:
        reply = decoder.feed(pieces[-1])
    except ProtocolError:
        assert not ascii_only  # lone surrogates aren't UTF-8
    else:
        assert reply == Reply(success=True, error="", result=result)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_is_incomplete_or_refused(data: bytes, size: int) -> None:
    decoder = ReplyDecoder()
    try:
        for start in range(0, len(data), size):
            if decoder.feed(data[start : start + size]) is not None:
                return
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"[1]",
        b"x",
        b'{"success":1}',
        b'{"success":true,"err":7}',
        b'{"success":tru}',
        b"{}",
        b'{"success":true}{',
        b'{"success":true]',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyDecoder().feed(data)


def test_absent_members() -> None:
    assert ReplyDecoder().feed(b'{"success":false,"err":null}') == Reply(
        success=False, error="", result=None
    )


def test_escapes_at_every_cut() -> None:
    data = rb'{"success":true,"err":"a\"}{\\","result":["\\","\"]}"]}'
    for cut in range(1, len(data)):
        decoder = ReplyDecoder()
        assert decoder.feed(data[:cut]) is None
        reply = decoder.feed(data[cut:])
        assert reply == Reply(success=True, error='a"}{\\', result=["\\", '"]}'])


def test_size_is_bounded() -> None:
    decoder = ReplyDecoder(limit=100)
    assert decoder.feed(b'{"err":"' + b"x" * 80) is None
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        decoder.feed(b"x" * 80)


def test_brackets_are_bounded() -> None:
    """What is parsed of them takes many times their own room."""
    fit = json.dumps({"success": True, "result": [{"command": "x" * 40}] * 10_000}).encode()
    assert ReplyDecoder(1 << 20).feed(fit) is not None
    for many in (b'{"result":[' + b"{}," * 100_000, b'{"result":' + b"[" * 100_000):
        with pytest.raises(ProtocolError, match="brackets"):
            ReplyDecoder(1 << 20).feed(many)


def test_small_pieces_cost_no_more_than_large_ones() -> None:
    body = b'{"success":true,"err":"","result":[' + (b'{"a":"}' + b"x" * 25 + b'"},') * 15_000
    decoder = ReplyDecoder(1 << 20)
    started = time.monotonic()
    for start in range(0, len(body) - 50, 50):
        assert decoder.feed(body[start : start + 50]) is None
    # A parse for each of the 11,000 pieces would take minutes.
    assert time.monotonic() - started < 2


def test_request() -> None:
    assert encode_request("A.B", {"CID": "ü"}) == b'{"method":"A.B","arg":{"CID":"\\u00fc"}}'


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fake = FakeSentry.at(str(tmp_path / "s"))
    fake.handlers["Echo"] = lambda argument: argument
    yield fake
    fake.stop()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def test_call(sentry: FakeSentry, address: str) -> None:
    big = {"x": ["y" * 1000] * 1000}
    assert urpc.call(address, "Echo", big, limit=2 << 20) == big
    with pytest.raises(ProtocolError, match="more than 65536 bytes"):
        urpc.call(address, "Echo", big)
    assert sentry.closed_by_peer.acquire(timeout=5)
    # An idle connection would hold up a sentry that wants to exit.
    assert sentry.closed_by_peer.acquire(timeout=5)
    sentry.chunk = 1
    assert urpc.call(address, "Echo", [1, None]) == [1, None]


def test_descriptors_go_with_the_first_byte(sentry: FakeSentry, address: str) -> None:
    files = [os.open(os.devnull, os.O_RDWR), *os.pipe()]
    wanted = [(info.st_dev, info.st_ino) for info in map(os.fstat, files)]
    # Larger than the socket's buffer, so that it takes several sends.
    large = "x" * 1_000_000
    assert urpc.call(address, "Echo", large, files, limit=2 << 20) == large
    assert sentry.requests[-1].files == wanted
    for fd in files:
        os.close(fd)  # still ours


def test_descriptors_are_bounded_before_anything_is_sent(sentry: FakeSentry, address: str) -> None:
    with pytest.raises(ResourceExhausted, match="129 file descriptors"):
        urpc.call(address, "Echo", None, [0] * 129)
    assert sentry.requests == []
    null = os.open(os.devnull, os.O_RDWR)
    urpc.call(address, "Echo", None, [null] * 128)
    os.close(null)
    assert len(sentry.requests[-1].files) == 128


def test_remote_error(sentry: FakeSentry, address: str) -> None:
    def fail(_: object) -> object:
        raise SentryError("no way")

    sentry.handlers["Fail"] = fail
    with pytest.raises(RemoteError, match=r"^no way$"):
        urpc.call(address, "Fail")


def test_peers_that_break_off(sentry: FakeSentry, address: str) -> None:
    sentry.dropped.add("Echo")
    with pytest.raises(Disconnected):
        urpc.call(address, "Echo")
    sentry.dropped.clear()
    sentry.cut["Echo"] = 10
    with pytest.raises(Disconnected):
        urpc.call(address, "Echo")
    del sentry.cut["Echo"]
    sentry.raw["Echo"] = b"HTTP/1.1 200 OK"
    with pytest.raises(ProtocolError):
        urpc.call(address, "Echo")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Disconnected):
        urpc.call(str(tmp_path / "none"), "Echo")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    with pytest.raises(Disconnected):
        urpc.call(str(tmp_path / "dead"), "Echo")


def test_deadline(sentry: FakeSentry, address: str) -> None:
    sentry.silent.add("Echo")
    started = time.monotonic()
    with pytest.raises(Unanswered, match=r"Echo: no answer within 0\.1 s"):
        urpc.call(address, "Echo", timeout=0.1)
    assert time.monotonic() - started < 5


def test_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(path)
    with pytest.raises(DeadlineExceeded):
        urpc.connect(path, time.monotonic() + 0.1)
    with pytest.raises(DeadlineExceeded) as caught:
        urpc.call(path, "Echo", timeout=0.1)
    assert not isinstance(caught.value, Unanswered)
    result: list[urpc.Connection] = []
    thread = threading.Thread(
        target=lambda: result.append(urpc.connect(path, time.monotonic() + 10))
    )
    thread.start()
    accepted, _ = listener.accept()
    thread.join(10)
    assert result
    for each in (*result, first, listener, accepted):
        each.close()


def test_long_paths(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = str(folder / "socket")
    listener = socket.socket(socket.AF_UNIX)
    with urpc.SocketPath(path) as short:
        listener.bind(short)
    assert os.path.exists(path)
    fake = FakeSentry(listener)
    fake.start()
    fake.handlers["Echo"] = lambda argument: argument
    before = len(os.listdir("/proc/self/fd"))
    assert urpc.call(path, "Echo", 1) == 1
    assert fake.closed_by_peer.acquire(timeout=5)
    fake.stop()
    assert len(os.listdir("/proc/self/fd")) < before
    with pytest.raises(Disconnected):
        urpc.call(str(tmp_path / ("x" * 120) / "none"), "Echo")


def test_abstract_names() -> None:
    listener = socket.socket(socket.AF_UNIX)
    name = f"\0test-urpc.{os.getpid()}\0"
    listener.bind(name)
    fake = FakeSentry(listener)
    fake.start()
    fake.handlers["Echo"] = lambda argument: argument
    assert urpc.call(name, "Echo", 5) == 5
    assert urpc.call(name, "Echo", 5, pid=os.getpid()) == 5
    fake.stop()


def test_a_stranger_under_an_abstract_name(tmp_path: Path) -> None:
    """Whoever takes the name of a sentry that died is told nothing."""
    listener = socket.socket(socket.AF_UNIX)
    name = f"\0test-stranger.{os.getpid()}\0"
    listener.bind(name)
    fake = FakeSentry(listener)
    fake.start()
    asked: list[object] = []
    fake.handlers["Execute"] = asked.append
    fake.handlers["Files"] = asked.append
    for call in (
        lambda: urpc.call(name, "Execute", {"envv": ["SECRET=1"]}, pid=os.getppid()),
        lambda: urpc.call_for_files(name, "Files", None, 1, pid=os.getppid()),
        lambda: urpc.connect(name, pid=os.getppid()),
    ):
        with pytest.raises(Disconnected, match="another process"):
            call()
    assert asked == []
    fake.stop()


def test_pending_call(sentry: FakeSentry, address: str) -> None:
    gate = sentry.gates["Echo"] = threading.Event()
    started = time.monotonic()
    with urpc.connect(address) as connection:
        connection.send("Echo", 7)
        assert connection.feed() is None
        assert time.monotonic() - started < 5
        gate.set()
        assert connection.receive().value() == 7


def test_pending_call_that_is_broken_off(sentry: FakeSentry, address: str) -> None:
    sentry.dropped.add("Echo")
    with urpc.connect(address) as connection:
        connection.send("Echo")
        with pytest.raises(Disconnected):
            connection.receive()


def answering(path: str, data: bytes, fds: list[int]) -> threading.Thread:
    """A server that answers one request with ``data`` and descriptors beside its first byte."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            connection.recv(1000)
            socket.send_fds(connection, [data[:5]], fds)
            connection.sendall(data[5:])

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("success", [True, False])
def test_descriptors_come_with_a_reply(tmp_path: Path, success: bool) -> None:
    path = str(tmp_path / "s")
    before = len(os.listdir("/proc/self/fd"))
    reply = {"success": success, "err": "" if success else "no", "result": 7}
    null = os.open(os.devnull, os.O_RDONLY)
    server = answering(path, json.dumps(reply).encode(), [null, null])
    if success:
        result, fds = urpc.call_for_files(path, "A.B", None, 2)
        assert result == 7 and len(fds) == 2
        assert all(os.readlink(f"/proc/self/fd/{fd}") == os.devnull for fd in fds)
        assert not any(os.get_inheritable(fd) for fd in fds)
        for fd in fds:
            os.close(fd)
    else:
        with pytest.raises(RemoteError, match="no"):
            urpc.call_for_files(path, "A.B", None, 2)
    server.join(5)
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_of_a_reply_that_breaks_off_are_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    before = len(os.listdir("/proc/self/fd"))
    null = os.open(os.devnull, os.O_RDONLY)
    server = answering(path, b'{"success":', [null])
    with pytest.raises(Disconnected):
        urpc.call_for_files(path, "A.B", None, 1)
    server.join(5)
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) == before
