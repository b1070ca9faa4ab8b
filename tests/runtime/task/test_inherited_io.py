import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.task.inherited_io import GivenIO, check_terminal


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "console"))
        sock.listen(1)
        sock.settimeout(5)
        yield sock


def taken(listener: socket.socket) -> tuple[bytes, int]:
    connection, _ = listener.accept()
    with connection:
        name, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
    fds = array.array("i")
    fds.frombytes(ancillary[0][2])
    return name, fds[0]


def test_the_master_goes_to_the_socket_and_the_slave_stays(listener: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    io = GivenIO.with_console(listener.getsockname(), (40, 132))
    name, master = taken(listener)
    try:
        assert name == b"/dev/ptmx"
        slave = io.sentry_fds[0]
        assert io.terminal and io.sentry_fds == (slave,) * 3
        size = fcntl.ioctl(slave, termios.TIOCGWINSZ, b"\0" * 8)
        assert struct.unpack("HHHH", size)[:2] == (40, 132)
        os.write(slave, b"hello\n")
        assert os.read(master, 100) == b"hello\r\n"
        io.release_sentry_fds()
        io.close()
    finally:
        os.close(master)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["missing", "a file", "nobody listens"])
def test_a_socket_that_takes_nothing_is_named_and_nothing_stays_open(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "console"
    if kind == "a file":
        path.touch()
    elif kind == "nobody listens":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Failed, match=f"console socket {path}: "):
        GivenIO.with_console(str(path), None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_given_stays_the_callers() -> None:
    reader, writer = os.pipe()
    io = GivenIO((reader, writer, writer), False)
    io.release_sentry_fds()
    io.close()
    assert io.drain(0.0)
    os.close(reader)
    os.close(writer)


def test_a_terminal_and_who_holds_it() -> None:
    master, slave = os.openpty()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        check_terminal(True, "", (slave, slave, slave))
        check_terminal(True, "/socket", (null, null, null))
        check_terminal(False, "", (null, null, null))
        with pytest.raises(InvalidRequest, match="neither a console socket nor a terminal"):
            check_terminal(True, "", (null, null, null))
        with pytest.raises(InvalidRequest, match=r"process\.terminal is not set"):
            check_terminal(False, "/socket", (null, null, null))
    finally:
        for fd in (master, slave, null):
            os.close(fd)
