"""Streams over a real connection, by the windows that containerd gives; the task is a FIFO."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.streaming_pb2 import StreamInit
from protos.transfer_pb2 import Data, WindowUpdate
from protos.wkt_pb2 import Any as Packed
from runtime.base.errors import InvalidRequest, RuntimeFault
from runtime.host.workers import Workers
from runtime.task.process import IORequest
from shim.base import status
from shim.sandbox import streams
from shim.sandbox.streams import Outward, Streams, stream_id
from shim.ttrpc.call import Call
from shim.ttrpc.client import Client
from shim.ttrpc.errors import StatusError, TtrpcError
from shim.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.reactor import Companion

WAIT = 20.0
_URI = "ttrpc+unix:///run/s/1?streaming_id="


class _Timers:
    """Timers that a test lets go off."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.companions: list[Companion] = []

    def accompany(self, part: Companion) -> None:
        self.companions.append(part)

    def leave(self, part: Companion) -> None:
        self.companions.remove(part)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waiting.append((seconds, callback))

    def go_off(self, seconds: float) -> None:
        due = [each for each in self.waiting if each[0] == seconds]
        self.waiting = [each for each in self.waiting if each[0] != seconds]
        for _, callback in due:
            callback()


class _Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.timers = _Timers()
        self.streams = Streams(self.timers)
        listener = socket.socket(socket.AF_UNIX)
        self.address = str(folder / "s")
        listener.bind(self.address)
        listener.listen()
        self.workers = Workers()
        self.server = Server(listener, self.handle, submit=self.workers.submit_now)
        self.server.start()
        self.clients: list[Client] = []

    def handle(self, call: Call) -> None:
        try:
            self.streams.serve(call)
        except RuntimeFault as fault:
            code, message, _ = status.of(fault)
            raise StatusError(code, message) from None

    def open(self, ident: str, *, first: bytes | None = None) -> Any:
        """A stream, acknowledged, on a connection of its own."""
        client = Client(self.address)
        self.clients.append(client)
        stream = client.stream("containerd.services.streaming.v1.Streaming", "Stream")
        init = StreamInit(id=ident).SerializeToString()
        packed = Packed(type_url="containerd.services.streaming.v1.StreamInit", value=init)
        stream.send(first if first is not None else packed.SerializeToString())
        stream.recv(WAIT)
        return stream

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop(1)
        self.workers.stop()

    def task(self, *names: str) -> IORequest:
        uris = {name: _URI + f"c-{name}" for name in names}
        io = IORequest(**{"stdin": "", "stdout": "", "stderr": "", "terminal": False, **uris})  # type: ignore[arg-type]
        return self.streams.fifos(io, str(self.folder / "io"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[_Scene]:
    made = _Scene(tmp_path / "scene")
    yield made
    made.close()


def allow(stream: Any, size: int) -> None:
    update = WindowUpdate(update=size).SerializeToString()
    name = "containerd.types.transfer.WindowUpdate"
    stream.send(Packed(type_url=name, value=update).SerializeToString())


def taken(stream: Any) -> bytes | None:
    message = stream.recv(WAIT)
    if message is None:
        return None
    return Data.FromString(Packed.FromString(message).value).data


def give(stream: Any, data: bytes) -> None:
    packed = Packed(
        type_url="containerd.types.transfer.Data", value=Data(data=data).SerializeToString()
    )
    stream.send(packed.SerializeToString())


@pytest.mark.parametrize(
    ("uri", "ident"),
    [
        (_URI + "a-stdout", "a-stdout"),
        ("grpc+unix:///x?b=1&streaming_id=q", "q"),
        ("/run/fifo", ""),
        ("fifo:///run/fifo?streaming_id=x", ""),
        ("ttrpc+unix:///x", ""),
    ],
)
def test_ids(uri: str, ident: str) -> None:
    assert stream_id(uri) == ident


@pytest.mark.parametrize("early", [True, False])
def test_output(scene: _Scene, early: bool) -> None:
    """Nothing beyond the window, all of it in order, then the end; whoever comes first."""
    stream = scene.open("c-stdout") if early else None
    io = scene.task("stdout")
    assert scene.streams.named(io).stdout == _URI + "c-stdout"
    with open(io.stdout, "wb", 0) as task:
        task.write(b"hello, world")
        stream = stream or scene.open("c-stdout")
        allow(stream, 5)
        assert taken(stream) == b"hello"
        with pytest.raises(TimeoutError):
            stream.recv(0.1)
        allow(stream, 100)
        assert taken(stream) == b", world"
    assert taken(stream) is None


def test_a_client_that_comes_back_gets_the_rest(scene: _Scene) -> None:
    io = scene.task("stdout")
    first = scene.open("c-stdout")
    with open(io.stdout, "wb", 0) as task:
        task.write(b"one two")
        allow(first, 4)
        assert taken(first) == b"one "
        scene.clients[0].close()
        task.write(b" three")
    second = scene.open("c-stdout")
    allow(second, 100)
    found = b""
    while (data := taken(second)) is not None:
        found += data
    assert found == b"two three"


def test_input(scene: _Scene) -> None:
    """As much as the FIFO has taken is allowed anew; the stream's end is the FIFO's."""
    io = scene.task("stdin")
    with open(io.stdin, "rb", 0) as task:
        stream = scene.open("c-stdin")
        assert WindowUpdate.FromString(Packed.FromString(stream.recv(WAIT)).value).update == 65536
        give(stream, b"question")
        assert task.read(100) == b"question"
        assert WindowUpdate.FromString(Packed.FromString(stream.recv(WAIT)).value).update == 8
        stream.send(None)
        assert task.read(100) == b""


def test_held_still_and_let_go(scene: _Scene) -> None:
    """Again and again, with something under way in both directions, and with nobody there."""

    def interrupted() -> None:
        assert [part.freeze() for part in scene.timers.companions] == ["", ""]
        assert not any(each.name == "stream" for each in threading.enumerate())
        for part in scene.timers.companions:
            part.thaw()
            part.thaw()

    io = scene.task("stdin", "stdout")
    interrupted()
    inward, outward = scene.open("c-stdin"), scene.open("c-stdout")
    interrupted()
    inward.recv(WAIT)  # the window, which isn't told again
    received = threading.Event()

    def read() -> None:
        with open(io.stdin, "rb", 0) as task:
            found = b""
            while len(found) < 400_000:
                found += task.read(1000)
            assert found == b"0123456789" * 40_000
            received.set()

    def fill() -> None:
        for _ in range(40):
            give(inward, b"0123456789" * 1000)
            if not early.wait(0.01):
                continue
            update = WindowUpdate.FromString(Packed.FromString(inward.recv(WAIT)).value).update
            assert update == 10_000

    early = threading.Event()
    with open(io.stdout, "wb", 0) as task:
        filling = threading.Thread(target=fill)
        filling.start()
        interrupted()
        early.set()
        reading = threading.Thread(target=read)
        reading.start()
        output = b""
        for number in range(100):
            task.write(b"%-100d" % number)
            allow(outward, 100)
            interrupted()
            while len(output) < 100 * (number + 1):
                output += taken(outward) or b""
        with pytest.raises(TimeoutError):
            outward.recv(0.1)
        assert output == b"".join(b"%-100d" % number for number in range(100))
    filling.join(WAIT)
    assert received.wait(WAIT)
    allow(outward, 1)
    assert taken(outward) is None
    scene.streams.release(io.stdin, io.stdout)


def test_one_without_a_thread_is_not_held_still(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            scene.task("stdout")
    assert scene.timers.companions == []


def test_a_client_that_comes_as_all_is_being_held_still(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't keep the thread from ending, which is being waited for."""
    io = scene.task("stdout")
    [part] = scene.timers.companions
    assert isinstance(part, Outward)
    thread = part._thread
    assert thread is not None
    attach = part.attach

    def attach_late(call: Call) -> None:
        with part._changed:
            part._frozen = True  # as freeze does, which sees no client yet
        attach(call)

    monkeypatch.setattr(part, "attach", attach_late)
    stream = scene.open("c-stdout")
    thread.join(WAIT)
    assert not thread.is_alive()
    assert part.freeze() == ""
    part.thaw()
    with open(io.stdout, "wb", 0) as task:
        task.write(b"hello")
        allow(stream, 100)
        assert taken(stream) == b"hello"
    scene.streams.release(io.stdout)


def test_what_ends_while_all_is_held_still(scene: _Scene) -> None:
    io = scene.task("stdout")
    [part] = scene.timers.companions
    with open(io.stdout, "wb", 0) as task:
        task.write(b"last words")
        assert part.freeze() == ""
        stream = scene.open("c-stdout")
        scene.streams.release(io.stdout)
    part.thaw()
    allow(stream, 100)
    assert taken(stream) == b"last words"
    assert taken(stream) is None


def test_a_deleted_task(scene: _Scene) -> None:
    """What was written is still sent; who doesn't take it is given up, and no id stays taken."""
    io = scene.task("stdin", "stdout")
    inward, outward = scene.open("c-stdin"), scene.open("c-stdout")
    delivered = threading.Event()
    with open(io.stdout, "wb", 0) as task:
        task.write(b"last words")
    scene.streams.when_delivered(io, delivered.set)
    scene.streams.release(io.stdin, io.stdout)
    allow(outward, 4)
    assert taken(outward) == b"last"
    assert not delivered.is_set()
    scene.timers.go_off(streams.LAST)
    assert delivered.wait(WAIT)
    for stream in (inward, outward):
        with pytest.raises(StatusError, match="task is gone"):
            while stream.recv(WAIT) is not None:
                pass  # a window
    scene.task("stdin", "stdout")


def test_a_task_that_is_deleted_while_a_client_comes_back(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was acknowledged for is still sent; who comes after that is told."""
    io = scene.task("stdout")
    acknowledged, go_on = threading.Event(), threading.Event()
    attach = streams.Bridge.attach

    def late(bridge: streams.Bridge, call: Any) -> None:
        acknowledged.set()
        assert go_on.wait(WAIT)
        attach(bridge, call)

    monkeypatch.setattr(streams.Bridge, "attach", late)
    with open(io.stdout, "wb", 0) as task:
        task.write(b"last words")
        stream = scene.open("c-stdout")
        assert acknowledged.wait(WAIT)
    bridge = scene.streams._bridges["c-stdout"]
    scene.streams.release(io.stdout)
    assert not bridge.expect()
    ended = threading.Event()
    bridge.on_end(ended.set)
    assert not ended.wait(0.2)
    go_on.set()
    allow(stream, 100)
    assert taken(stream) == b"last words"
    assert taken(stream) is None


def test_unclaimed(scene: _Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no task names ends, as does the earlier of two; there may not be too many."""
    monkeypatch.setattr(streams, "MAX_UNCLAIMED", 2)
    earlier, later = scene.open("a"), scene.open("a")
    with pytest.raises(StatusError, match="opened again"):
        earlier.recv(WAIT)
    scene.open("b")
    with pytest.raises(StatusError, match="2 streams wait"):
        scene.open("c")
    scene.timers.go_off(streams.PATIENCE)
    with pytest.raises(StatusError, match="no task has named"):
        later.recv(WAIT)
    scene.open("c")


def test_what_makes_no_sense(scene: _Scene) -> None:
    for first in (b"\xff\xff", Packed(type_url="a.b.C").SerializeToString(), b""):
        with pytest.raises(StatusError):
            scene.open("x", first=first)
    with pytest.raises(StatusError, match="empty or too long"):
        scene.open("x" * 2000)
    io = scene.task("stdout")
    with pytest.raises(InvalidRequest, match="another process"):
        scene.task("stdout")
    stream = scene.open("c-stdout")
    give(stream, b"not a window")
    with pytest.raises(TtrpcError):
        while stream.recv(WAIT) is not None:
            pass
    again = scene.open("c-stdout")  # the task's stream is good still
    allow(again, 10)
    with open(io.stdout, "wb", 0) as task:
        task.write(b"good")
    assert taken(again) == b"good"


@settings(max_examples=20, deadline=None)
@given(
    windows=st.lists(st.integers(1, 40000), min_size=1, max_size=8),
    data=st.binary(max_size=50000),
    leaves=st.integers(0, 7),
)
def test_whatever_the_windows(
    tmp_path_factory: pytest.TempPathFactory, windows: list[int], data: bytes, leaves: int
) -> None:
    """All bytes arrive once and in order, however small the windows, and with a new client."""
    scene = _Scene(tmp_path_factory.mktemp("s"))
    try:
        io = scene.task("stdout")
        task = os.open(io.stdout, os.O_WRONLY)
        writer = threading.Thread(target=_write, args=(task, data))
        writer.start()
        stream, found, number, over = scene.open("c-stdout"), b"", 0, False
        while not over:
            size = windows[number % len(windows)]
            allow(stream, size)
            got = 0
            while got < size and not over:
                part = taken(stream)
                over = part is None
                got += len(part or b"")
                found += part or b""
            assert got <= size
            number += 1
            if number == leaves and not over:
                scene.clients[-1].close()
                stream = scene.open("c-stdout")
        writer.join(WAIT)
        assert found == data
    finally:
        scene.close()


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb") as task:
        task.write(data)
