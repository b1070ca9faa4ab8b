"""Copying between real sockets and pipes: every byte, both ends, and no thread left."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from integration.harness.base.waiting import until
from runtime.host import pump as under_test
from runtime.host.pump import Pump


class _Line:
    """A TCP client, the pump, and a server at the other ends of two pipes."""

    def __init__(self, pump: Pump) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.client.settimeout(20)
        accepted.setblocking(False)
        self.reads, into = os.pipe()
        out, self.writes = os.pipe()
        for fd in (into, out):
            os.set_blocking(fd, False)
        self.over = threading.Event()
        pump.add(accepted, into, out, self.over.set)  # type: ignore[arg-type]
        self._accepted = accepted

    def answer(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.writes, view) :]

    def hang_up(self) -> None:
        for name in ("reads", "writes"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def close(self) -> None:
        self.client.close()
        self.hang_up()


@pytest.fixture
def pump() -> Iterator[Pump]:
    made = Pump()
    yield made
    made.close()
    until(lambda: not _threads(), 10, "the thread has ended")


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pump"]


def _all(source: socket.socket) -> bytes:
    data = bytearray()
    while chunk := source.recv(1 << 20):
        data += chunk
    return bytes(data)


def test_both_ways_and_no_thread_afterwards(pump: Pump) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):  # it comes back for a second one
        line = _Line(pump)
        line.client.sendall(b"question")
        assert os.read(line.reads, 100) == b"question"
        line.answer(b"answer")
        line.hang_up()
        assert _all(line.client) == b"answer"
        line.close()
        assert line.over.wait(10)
        until(lambda: not _threads(), 10, "the thread has ended")
    until(lambda: len(os.listdir("/proc/self/fd")) == before, 10, "all is closed")


def test_much_at_once_waits_for_whoever_is_slow(pump: Pump) -> None:
    """Both ways at a time, more than all buffers hold, and nobody is kept waiting by it."""
    slow, other = _Line(pump), _Line(pump)
    block = bytes(range(256)) * (1 << 14)  # 4 MiB
    writers = [
        threading.Thread(target=slow.client.sendall, args=(block,)),
        threading.Thread(target=slow.answer, args=(block,)),
    ]
    for writer in writers:
        writer.start()
    other.client.sendall(b"x")
    assert os.read(other.reads, 1) == b"x"
    for read in (lambda: os.read(slow.reads, 1 << 20), lambda: slow.client.recv(1 << 20)):
        seen = bytearray()
        while len(seen) < len(block):
            seen += read()
        assert seen == block
    for writer in writers:
        writer.join(10)
    slow.close()
    other.close()


def test_each_end_is_handed_on(pump: Pump) -> None:
    """A client that has asked may still read, and one that is answered may still write."""
    line = _Line(pump)
    line.client.sendall(b"question")
    line.client.shutdown(socket.SHUT_WR)
    assert os.read(line.reads, 100) == b"question"
    assert os.read(line.reads, 100) == b""
    line.answer(b"answer")
    line.hang_up()
    assert _all(line.client) == b"answer"
    assert line.over.wait(10)
    line.close()


def test_an_answer_arrives_though_more_was_sent(pump: Pump) -> None:
    """A server that ends with something unread: its answer isn't lost to a reset."""
    line = _Line(pump)
    line.client.sendall(b"q" * 200_000)
    assert os.read(line.reads, 1) == b"q"
    line.answer(b"answer" * 1000)
    line.hang_up()
    assert _all(line.client) == b"answer" * 1000
    line.client.close()
    assert line.over.wait(10)


def test_a_client_that_stays_is_left_in_the_end(
    pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "SILENCE", 0.0)
    monkeypatch.setattr(under_test, "_LOOK", 0.05)
    line = _Line(pump)
    line.answer(b"answer")
    line.hang_up()
    assert _all(line.client) == b"answer"
    assert line.over.wait(10)
    line.close()


def test_a_reset_ends_both_ways(pump: Pump) -> None:
    line = _Line(pump)
    line.answer(b"greeting")
    assert line.client.recv(100) == b"greeting"
    line.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.client.close()
    assert os.read(line.reads, 1) == b""
    assert line.over.wait(10)
    with pytest.raises(BrokenPipeError):
        os.write(line.writes, b"x")
    line.close()


def test_close_cuts_all_off(pump: Pump) -> None:
    lines = [_Line(pump) for _ in range(20)]
    lines[3].client.sendall(b"x")
    assert os.read(lines[3].reads, 1) == b"x"
    pump.close()
    for line in lines:
        assert line.over.wait(10)
        assert line.client.recv(1) == b""
        line.close()
    late = _Line(pump)
    assert late.over.is_set()
    late.close()
