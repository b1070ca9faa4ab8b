"""Stdio without a terminal: FIFOs, files, URIs, what is refused, and that nothing leaks."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import (
    InvalidRequest,
    InvalidState,
    ResourceExhausted,
    RuntimeFault,
    Unsupported,
)
from runtime.host.reactor import Reactor
from runtime.task.process import IORequest, OpenStdio
from shim.stdio import process_io
from shim.stdio.process_io import ProcessIO
from tests.fakes.scarcity import ERRORS, Scarcity

WAIT = 20.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.start()
    yield reactor
    reactor.stop()


@pytest.fixture(autouse=True)
def no_leaks(reactor: Reactor) -> Iterator[None]:
    before = open_fds()
    yield
    until_same(before)


def open_fds() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def fifo(directory: Path, name: str) -> str:
    path = str(directory / name)
    os.mkfifo(path, 0o700)
    return path


def open_io(reactor: Reactor, **given: object) -> ProcessIO:
    where = {name: given.pop(name) for name in IORequest._fields if name in given}
    values: dict[str, object] = {
        "container_id": "c1",
        "owner": (os.geteuid(), os.getegid()),
        "deadline": time.monotonic() + WAIT,
        **given,
    }
    return ProcessIO.open(
        OpenStdio(where=IORequest(**where), **values),  # type: ignore[arg-type]
        "ns",
        reactor,
    )


def readable(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def read_some(fd: int, timeout: float = WAIT, size: int = 65536) -> bytes:
    assert readable(fd, timeout)
    return os.read(fd, size)


def hand_over(io: ProcessIO) -> tuple[int, int, int]:
    """What sending the descriptors to the sentry amounts to."""
    fds = io.sentry_fds
    copies = {fd: os.dup(fd) for fd in set(fds)}
    io.release_sentry_fds()
    return copies[fds[0]], copies[fds[1]], copies[fds[2]]


def close(*fds: int) -> None:
    for fd in set(fds):
        os.close(fd)


# -- null ------------------------------------------------------------------------------------


def test_null(reactor: Reactor) -> None:
    io = open_io(reactor)
    null = os.stat("/dev/null")
    for fd in io.sentry_fds:
        assert os.path.samestat(os.fstat(fd), null)
    assert os.read(io.sentry_fds[0], 1) == b""
    assert os.write(io.sentry_fds[2], b"x") == 1
    io.close_stdin()
    io.resize(80, 25)
    assert io.drain(0)
    io.close()
    io.close()


def test_null_device_keeps_its_owner(reactor: Reactor) -> None:
    before = os.stat("/dev/null")
    io = open_io(reactor, stdout="/dev/null", owner=(65534, 65534))
    io.close()
    after = os.stat("/dev/null")
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


# -- FIFOs -----------------------------------------------------------------------------------


def test_opening_needs_nobody_at_the_other_end(reactor: Reactor, tmp_path: Path) -> None:
    io = open_io(
        reactor,
        stdin=fifo(tmp_path, "in"),
        stdout=fifo(tmp_path, "out"),
        stderr=fifo(tmp_path, "err"),
    )
    reader, out, err = io.sentry_fds
    modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in (reader, out, err)]
    assert modes == [os.O_RDONLY, os.O_WRONLY, os.O_WRONLY]
    # The sentry passes O_NONBLOCK on to the application, so it must not be set yet.
    assert all(os.get_blocking(fd) for fd in (reader, out, err))
    io.close()


def test_the_sentry_has_descriptions_of_its_own(reactor: Reactor, tmp_path: Path) -> None:
    io = open_io(reactor, stdin=fifo(tmp_path, "in"), stdout=fifo(tmp_path, "out"))
    reader, out, _ = io.sentry_fds
    for fd in (reader, out):
        os.set_blocking(fd, False)
    others = [int(fd) for fd in open_fds() if int(fd) not in io.sentry_fds]
    fifos = [fd for fd in others if "/in" in os.readlink(f"/proc/self/fd/{fd}")]
    assert fifos
    os.set_blocking(fifos[0], True)
    assert not os.get_blocking(reader)
    io.close()


def test_output_waits_for_a_reader_after_the_end(reactor: Reactor, tmp_path: Path) -> None:
    """The process wrote and ended while containerd was away: what it wrote is still there."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    os.write(fds[1], b"last words")
    close(*fds)
    with open(path, "rb") as client:  # blocks for as long as there is no writer
        assert client.read() == b"last words"
    io.close()


def test_a_delete_waits_for_a_reader_that_is_late(reactor: Reactor, tmp_path: Path) -> None:
    """The client's open is under way in a thread of its own when the process is over already."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    os.write(fds[1], b"last words")
    close(*fds)
    drained: list[bool] = []
    delete = threading.Thread(target=lambda: drained.append(io.drain(WAIT)))
    delete.start()
    with open(path, "rb") as client:  # blocks for as long as there is no writer
        assert client.read() == b"last words"
    delete.join(WAIT)
    assert drained == [True]
    io.close()


def test_output_is_awaited_while_it_is_read(reactor: Reactor, tmp_path: Path) -> None:
    """A client that learns of the end closes its pipe, whatever that still holds."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    io.await_reading(WAIT, WAIT)  # there is nothing
    os.write(fds[1], b"last words")
    close(*fds)
    began = time.monotonic()
    io.await_reading(0.05, WAIT)
    io.await_reading(WAIT, 0.05)
    assert 0.1 <= time.monotonic() - began < WAIT / 2, "nobody reads"
    awaited = threading.Event()
    waiting = threading.Thread(target=lambda: (io.await_reading(WAIT, WAIT), awaited.set()))
    waiting.start()
    with open(path, "rb", buffering=0) as client:
        assert client.read(4) == b"last"
        assert not awaited.wait(0.05), "it is being read"
        assert client.read(6) == b" words"
        assert awaited.wait(WAIT / 2)
    waiting.join(WAIT)
    io.close()


def test_a_slow_reader_has_patience_for_each_piece(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    os.write(fds[1], b"x" * 40)
    close(*fds)
    began = time.monotonic()
    waiting = threading.Thread(target=lambda: io.await_reading(0.25, WAIT))
    with open(path, "rb", buffering=0) as client:
        waiting.start()
        while client.read(4):
            time.sleep(0.05)
        waiting.join(WAIT)
    assert 0.4 <= time.monotonic() - began < WAIT
    io.close()


def test_a_delete_waits_for_nobody_if_there_is_nothing_to_read(
    reactor: Reactor, tmp_path: Path
) -> None:
    io = open_io(reactor, stdout=fifo(tmp_path, "out"))
    close(*hand_over(io))
    assert io.drain(0.0)
    io.close()


def test_a_delete_waits_until_the_reader_has_read_all(reactor: Reactor, tmp_path: Path) -> None:
    """Once it is answered the client closes its end, with whatever is in it."""
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fds = hand_over(io)
    os.write(fds[1], b"unread")
    close(*fds)
    drained: list[bool] = []
    delete = threading.Thread(target=lambda: drained.append(io.drain(WAIT)))
    delete.start()
    assert os.read(client, 3) == b"unr"
    assert drained == []
    assert os.read(client, 100) == b"ead"
    delete.join(WAIT)
    assert drained == [True]
    io.close()
    os.close(client)


def test_a_reader_that_does_not_read_holds_a_delete_up_no_longer_than_it_may(
    reactor: Reactor, tmp_path: Path
) -> None:
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=path)
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fds = hand_over(io)
    os.write(fds[1], b"unread")
    close(*fds)
    assert not io.drain(0.02)
    io.close()
    assert os.read(client, 100) == b"unread"
    os.close(client)


def test_a_reader_that_never_comes_holds_nothing_up_for_long(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_io, "_READER_TIMEOUT", 0.02)
    io = open_io(reactor, stdout=fifo(tmp_path, "out"))
    fds = hand_over(io)
    os.write(fds[1], b"lost")
    close(*fds)
    assert not io.drain(WAIT)
    io.close()


def test_eof_comes_when_the_sentry_closes_although_the_keeper_is_open(
    reactor: Reactor, tmp_path: Path
) -> None:
    path = fifo(tmp_path, "out")
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    os.write(fds[1], b"x")
    assert read_some(client) == b"x"
    assert not readable(client, 0)
    close(*fds)
    assert readable(client, WAIT)
    assert os.read(client, 1) == b""
    io.close()
    os.close(client)


def test_no_eof_while_our_copies_are_not_released(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "out")
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    io = open_io(reactor, stdout=path)
    assert not readable(client, 0.02)
    io.release_sentry_fds()
    io.release_sentry_fds()
    assert readable(client, WAIT)
    with pytest.raises(InvalidState):
        _ = io.sentry_fds
    io.close()
    os.close(client)


def test_reader_goes_away_and_comes_back(reactor: Reactor, tmp_path: Path) -> None:
    """containerd restarts while a process writes: no EPIPE, and not a byte is lost or repeated."""
    path = fifo(tmp_path, "out")
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    io = open_io(reactor, stdout=path)
    fds = hand_over(io)
    payload = os.urandom(1 << 20)
    failures: list[OSError] = []

    def write() -> None:
        view = memoryview(payload)
        try:
            while view:
                view = view[os.write(fds[1], view[:7919]) :]
        except OSError as error:
            failures.append(error)
        finally:
            close(*fds)

    thread = threading.Thread(target=write)
    thread.start()
    received = b""
    for _ in range(20):
        for _ in range(3):
            received += read_some(client, size=4096)
        os.close(client)
        # Nobody but the keeper has the read side now; the writer runs into a full pipe.
        client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    while chunk := read_some(client):
        received += chunk
    thread.join(WAIT)
    assert not failures
    assert received == payload
    io.close()
    os.close(client)


def test_stdin_data_and_eof(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "in")
    io = open_io(reactor, stdin=path)
    fds = hand_over(io)
    # No writer of the client's yet: no EOF.
    assert not readable(fds[0], 0.02)
    client = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"hello")
    assert read_some(fds[0]) == b"hello"
    # The client restarts: still no EOF.
    os.close(client)
    assert not readable(fds[0], 0.02)
    client = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"again")
    # CloseIO while the client's side is still open: what it wrote comes first, EOF last.
    io.close_stdin()
    io.close_stdin()
    assert read_some(fds[0]) == b"again"
    assert not readable(fds[0], 0.02)
    os.write(client, b"end")
    os.close(client)
    assert read_some(fds[0]) == b"end"
    assert read_some(fds[0]) == b""
    close(*fds)
    io.close()


def test_stdin_written_before_the_handover_is_kept(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "in")
    opened: list[int] = []
    thread = threading.Thread(target=lambda: opened.append(os.open(path, os.O_WRONLY)))
    thread.start()
    io = open_io(reactor, stdin=path)
    thread.join(WAIT)
    os.write(opened[0], b"early")
    os.close(opened[0])
    io.close_stdin()
    fds = hand_over(io)
    assert os.read(fds[0], 100) == b"early"
    assert os.read(fds[0], 100) == b""
    close(*fds)
    io.close()


def test_client_gets_epipe_once_all_is_closed(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "in")
    io = open_io(reactor, stdin=path)
    client = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    io.close()
    with pytest.raises(BrokenPipeError):
        os.write(client, b"x")
    os.close(client)


def test_same_fifo_for_both_streams_is_opened_once(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "out")
    os.symlink(path, tmp_path / "alias")
    io = open_io(reactor, stdout=path, stderr=str(tmp_path / "alias"))
    assert io.sentry_fds[1] == io.sentry_fds[2]
    io.close()


def test_fifo_uri(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "a%20b?c")
    io = open_io(reactor, stdin=f"fifo://{path}", stdout=f"fifo://{path}", stderr=path)
    assert os.readlink(f"/proc/self/fd/{io.sentry_fds[1]}") == path
    io.close()


def test_owner(reactor: Reactor, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a FIFO away")
    path = fifo(tmp_path, "out")
    open_io(reactor, stdout=path, owner=(65534, 65533)).close()
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (65534, 65533)
    log = tmp_path / "log"
    log.touch()
    open_io(reactor, stdout=str(log), owner=(65534, 65534)).close()
    assert log.stat().st_uid == 0


# -- files -----------------------------------------------------------------------------------


def test_plain_file_is_appended_to_through_one_description(
    reactor: Reactor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\n")
    io = open_io(reactor, stdout=str(log), stderr=str(log))
    _, out, err = io.sentry_fds
    assert out == err
    os.write(out, b"new\n")
    io.close()
    assert log.read_bytes() == b"old\nnew\n"


def test_file_uri_makes_directories(reactor: Reactor, tmp_path: Path) -> None:
    log = tmp_path / "a b" / "c" / "log"
    uri = f"file://{tmp_path}/a%20b/c/log"
    previous = os.umask(0)
    try:
        io = open_io(reactor, stdout=uri, stderr=uri)
    finally:
        os.umask(previous)
    _, out, err = io.sentry_fds
    os.write(err, b"err")
    os.write(out, b"out")
    io.close()
    assert log.read_bytes() == b"errout"
    assert log.stat().st_mode & 0o777 == 0o644
    assert log.parent.stat().st_mode & 0o777 == 0o755


def test_file_uri_of_a_fifo_does_not_hang(reactor: Reactor, tmp_path: Path) -> None:
    path = fifo(tmp_path, "out")
    io = open_io(reactor, stdout=f"file://{path}")
    os.write(io.sentry_fds[1], b"x")
    io.close()


def test_stdin_from_a_file(reactor: Reactor, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    io = open_io(reactor, stdin=str(source))
    assert os.read(io.sentry_fds[0], 100) == b"data"
    io.close_stdin()
    io.close()


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize(
    "make",
    ["missing", "directory", "socket", "loop", "dangling", "relative", "nul", "long", "device"],
)
def test_hostile_paths(reactor: Reactor, tmp_path: Path, field: str, make: str) -> None:
    path = str(tmp_path / make)
    listener = socket.socket(socket.AF_UNIX)
    if make == "directory":
        os.mkdir(path)
    elif make == "socket":
        listener.bind(path)
    elif make == "loop":
        os.symlink(path, path)
    elif make == "dangling":
        os.symlink(tmp_path / "nothing", path)
    elif make == "relative":
        path = "relative/path"
    elif make == "nul":
        path += "\0"
    elif make == "long":
        path += "x" * 5000
    elif make == "device":
        path = "/dev/full"
    given = {"stdin": fifo(tmp_path, "in"), "stdout": fifo(tmp_path, "out")}
    try:
        with pytest.raises(InvalidRequest) as raised:
            open_io(reactor, **{**given, field: path})
    finally:
        listener.close()
    assert raised.value.field == field
    assert make in raised.value.why or make in ("relative", "nul", "device")


@pytest.mark.parametrize("terminal", [False, True])
def test_missing_stdin_leaves_nothing_open(
    reactor: Reactor, tmp_path: Path, terminal: bool
) -> None:
    with pytest.raises(InvalidRequest):
        open_io(reactor, stdin=str(tmp_path / "no"), stdout=fifo(tmp_path, "o"), terminal=terminal)
    with pytest.raises(InvalidRequest):
        open_io(reactor, stdin=fifo(tmp_path, "i"), stdout=str(tmp_path / "no"), terminal=terminal)


@pytest.mark.parametrize(
    "uri", ["ttrpc+unix:///run/s.sock?streaming_id=a-stdout", "npipe:////x", "http://h/p", "x:"]
)
def test_unsupported_schemes(reactor: Reactor, uri: str) -> None:
    with pytest.raises(Unsupported):
        open_io(reactor, stdout=uri)
    with pytest.raises(Unsupported):
        open_io(reactor, stdin=uri)


@pytest.mark.parametrize(
    "uri",
    ["file://host/path", "file://", "file:///a%zz", "file:///a%4", "binary://", "binary:///a%00b"],
)
def test_malformed_uris(reactor: Reactor, uri: str) -> None:
    with pytest.raises(InvalidRequest):
        open_io(reactor, stdout=uri)


def test_absurdly_long_uri(reactor: Reactor) -> None:
    with pytest.raises(InvalidRequest):
        open_io(reactor, stdout="binary:///x?" + "a=b&" * 100_000)


def test_out_of_descriptors(reactor: Reactor, tmp_path: Path) -> None:
    import resource

    stdin, stdout = fifo(tmp_path, "in"), fifo(tmp_path, "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    outcomes = set()
    try:
        for room in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + room, hard))
            try:
                io = open_io(reactor, stdin=stdin, stdout=stdout)
            except ResourceExhausted as error:
                outcomes.add(type(error))
            else:
                io.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ResourceExhausted in outcomes


# -- URIs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", ("", "")),
        ("/run/fifo/x-stdout", ("", "/run/fifo/x-stdout")),
        ("/odd:name", ("", "/odd:name")),
        ("./odd:name", ("", "./odd:name")),
        ("1x:y", ("", "1x:y")),
        ("fifo:///run/a", ("fifo", "/run/a")),
        ("BINARY:///bin/x?a=b", ("binary", "///bin/x?a=b")),
        ("binary-v2:///bin/x", ("binary-v2", "///bin/x")),
        ("ttrpc+unix://s", ("ttrpc+unix", "//s")),
    ],
)
def test_split_uri(uri: str, expected: tuple[str, str]) -> None:
    assert process_io.split_uri(uri) == expected


@pytest.mark.parametrize(
    ("rest", "argv"),
    [
        ("///bin/log", ("/bin/log",)),
        ("/bin/log", ("/bin/log",)),
        ("///bin/log?b=1&a=2&b=3", ("/bin/log", "b", "1", "a", "2")),
        ("///bin/log?flag&e=", ("/bin/log", "flag", "", "e", "")),
        ("///bin/log?a=b%20c+d%2B&&x%3D=y=z#f", ("/bin/log", "a", "b c d+", "x=", "y=z")),
        ("///b%C3%A9/l%FFog", ("/bé/l\udcffog",)),
        ("///bin/log?a=;rm -rf /", ("/bin/log", "a", ";rm -rf /")),
    ],
)
def test_logger_argv(rest: str, argv: tuple[str, ...]) -> None:
    assert process_io.logger_argv(rest) == argv


@pytest.mark.parametrize("kind", ["fifos", "terminal", "file", "logger"])
def test_stdio_on_a_host_that_lacks_something(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever call fails: a fault of the domain's, and nothing is left open."""
    given: dict[str, object] = {
        "fifos": {"stdin": fifo(tmp_path, "in"), "stderr": fifo(tmp_path, "err")},
        "terminal": {"stdin": fifo(tmp_path, "tin"), "terminal": True},
        "file": {"stdout": f"file://{tmp_path}/log"},
        "logger": {"stdout": "binary:///bin/true"},
    }[kind]
    given.setdefault("stdout", fifo(tmp_path, "out"))
    scarcity = Scarcity(monkeypatch)
    scarcity.watch(reactor)
    before = open_fds()
    at = failed = 0
    while failed == at:
        scarcity.fail(at, 1, ERRORS[at % len(ERRORS)])
        try:
            io = open_io(reactor, **given)
        except RuntimeFault:
            failed += 1
            scarcity.relent()
            until_same(before)
        at += 1
    assert failed > 1
    scarcity.relent()
    io.close()
    until_same(before)


def until_same(before: dict[str, str]) -> None:
    """The reactor sees to a logger's end, a little later."""
    deadline = time.monotonic() + WAIT
    while open_fds() != before and time.monotonic() < deadline:
        time.sleep(0.002)
    assert open_fds() == before
