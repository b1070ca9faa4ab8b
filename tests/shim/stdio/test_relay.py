"""An exec's output, which jobs that it leaves behind may hold."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import ResourceExhausted
from runtime.host.reactor import Reactor
from tests.shim.stdio.test_process_io import (
    WAIT,
    close,
    fifo,
    hand_over,
    no_leaks,
    open_io,
    reactor,
    read_some,
)

__all__ = ["no_leaks", "reactor"]


def test_a_job_that_is_left_does_not_hold_the_readers(reactor: Reactor, tmp_path: Path) -> None:
    out, err = fifo(tmp_path, "out"), fifo(tmp_path, "err")
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (out, err)]
    io = open_io(reactor, stdout=out, stderr=err, outlived=True)
    null, job, job_err = hand_over(io)
    os.write(job, b"first\n")
    assert read_some(readers[0]) == b"first\n"
    os.write(job, b"last\n")
    # The process has ended; its job holds the output on.
    assert not io.drain(0.01)
    io.close()
    assert read_some(readers[0]) == b"last\n"
    assert [os.read(reader, 1) for reader in readers] == [b"", b""]
    with pytest.raises(BrokenPipeError):
        os.write(job, b"too late")
    close(null, job, job_err, *readers)


def test_output_that_nobody_outlives_ends_with_the_process(
    reactor: Reactor, tmp_path: Path
) -> None:
    path = fifo(tmp_path, "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    io = open_io(reactor, stdout=path, stderr=path, outlived=True)
    fds = hand_over(io)
    assert fds[1] == fds[2] or os.fstat(fds[1]).st_ino == os.fstat(fds[2]).st_ino
    os.write(fds[1], b"all")
    close(*fds)
    data = b""
    while chunk := read_some(reader):
        data += chunk
    assert data == b"all"
    assert io.drain(WAIT)
    io.close()
    os.close(reader)


def test_relayed_output_waits_for_its_reader(reactor: Reactor, tmp_path: Path) -> None:
    """Much more than a FIFO holds, to a reader that comes late; all of it arrives, in order."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path, outlived=True)
    fds = hand_over(io)
    data = os.urandom(1 << 20)
    writer = threading.Thread(target=lambda: (write_all(fds[1], data), close(*fds)))
    writer.start()
    cpu = time.process_time()
    writer.join(0.3)  # the FIFO is full, and so is the pipe: nothing must spin meanwhile
    assert writer.is_alive()
    assert time.process_time() - cpu < 0.2
    reader = os.open(path, os.O_RDONLY)
    found = b""
    while chunk := read_some(reader):
        found += chunk
    writer.join(WAIT)
    assert found == data
    assert io.drain(WAIT)
    io.close()
    os.close(reader)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def test_a_relay_that_can_not_be_made_leaves_nothing(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many")

    path = fifo(tmp_path, "out")
    monkeypatch.setattr("shim.stdio.relay.os.pipe2", fail)
    with pytest.raises(ResourceExhausted):
        open_io(reactor, stdout=path, outlived=True)


def test_a_host_that_is_short_of_memory_loses_no_output(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel doesn't watch for us just now is looked at again."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path, outlived=True)
    fds = hand_over(io)
    refused = threading.Event()
    watch = reactor.watch

    def scarce(*given: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise OSError(errno.ENOMEM, "no memory")
        return watch(*given)

    monkeypatch.setattr(reactor, "watch", scarce)
    data = os.urandom(1 << 18)
    writer = threading.Thread(target=lambda: (write_all(fds[1], data), close(*fds)))
    writer.start()
    assert refused.wait(WAIT), "the FIFO got full"
    reader = os.open(path, os.O_RDONLY)
    found = b""
    while chunk := read_some(reader):
        found += chunk
    writer.join(WAIT)
    assert found == data
    assert io.drain(WAIT)
    io.close()
    os.close(reader)
