"""Stdio with a terminal: integrity under back-pressure, the ends of streams, sizes, signals."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.base.errors import InvalidRequest
from runtime.host.reactor import Reactor
from shim.stdio.process_io import ProcessIO
from tests.shim.stdio.test_process_io import WAIT, fifo, no_leaks, open_io, read_some, readable

__all__ = ["no_leaks"]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.start()
    yield reactor
    reactor.stop()


class Session:
    """A process's side (``tty``) and a client's side (``keyboard``, ``screen``) of a terminal."""

    def __init__(self, reactor: Reactor, directory: Path, **given: object) -> None:
        stdin, stdout = fifo(directory, "in"), fifo(directory, "out")
        self.stdout = stdout
        self.io = open_io(reactor, stdin=stdin, stdout=stdout, terminal=True, **given)
        fds = self.io.sentry_fds
        assert len(set(fds)) == 1
        self.tty = os.dup(fds[0])
        self.io.release_sentry_fds()
        self.keyboard = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
        self.screen = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.keyboard, True)

    def raw(self) -> None:
        settings = termios.tcgetattr(self.tty)
        settings[0] = settings[1] = settings[3] = 0
        termios.tcsetattr(self.tty, termios.TCSANOW, settings)

    def end(self) -> None:
        if self.tty >= 0:
            os.close(self.tty)
            self.tty = -1

    def close(self) -> None:
        self.end()
        self.io.close()
        os.close(self.keyboard)
        os.close(self.screen)


@pytest.fixture
def session(reactor: Reactor, tmp_path: Path) -> Iterator[Session]:
    session = Session(reactor, tmp_path, emulate_signals=True)
    yield session
    session.close()


def read_exactly(fd: int, size: int, chunk: int = 65536) -> bytes:
    data = b""
    while len(data) < size:
        assert readable(fd, WAIT)
        data += os.read(fd, min(chunk, size - len(data)))
    return data


def eventually(condition: Callable[[], bool]) -> bool:
    """For states of the kernel that nothing announces."""
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.002)
    return True


def test_both_directions(session: Session) -> None:
    os.write(session.keyboard, b"ls\r")
    assert read_some(session.tty) == b"ls\n"
    assert read_exactly(session.screen, 4) == b"ls\r\n"
    os.write(session.tty, b"a\nb")
    assert read_exactly(session.screen, 4) == b"a\r\nb"


def test_it_is_a_terminal_in_blocking_mode(session: Session) -> None:
    assert os.isatty(session.tty)
    assert os.get_blocking(session.tty)


def test_output_integrity_with_a_slow_reader(session: Session) -> None:
    session.raw()
    payload = os.urandom(2 << 20)

    def write() -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(session.tty, view[:30_011]) :]
        session.end()

    thread = threading.Thread(target=write)
    thread.start()
    # Not a byte is read until everything on the way is full and the writer stands still.
    ready = select.poll()
    ready.register(session.screen, select.POLLIN)
    assert ready.poll(WAIT * 1000)
    assert eventually(lambda: is_full(session.stdout))
    assert thread.is_alive()
    began = time.monotonic()
    session.io.await_reading(0.05, WAIT)
    assert 0.05 <= time.monotonic() - began < WAIT / 2, "nobody reads"
    assert session.io._console is not None and session.io._console.waiting() > 0
    received = b""
    while len(received) < len(payload):
        received += read_some(session.screen)
    assert received == payload
    thread.join(WAIT)
    assert session.io.drain(WAIT)
    assert read_some(session.screen) == b""


def is_full(path: str) -> bool:
    """Whether a FIFO takes no more: that depends on how what it holds was cut up."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(writer, select.POLLOUT)
        return not poll.poll(0)
    finally:
        os.close(writer)


def pending(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def test_input_integrity_with_a_slow_process(session: Session) -> None:
    session.raw()
    payload = os.urandom(1 << 20)

    def write() -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(session.keyboard, view[:65536]) :]

    thread = threading.Thread(target=write)
    thread.start()
    assert eventually(lambda: pending(session.tty) >= 4000)
    assert read_exactly(session.tty, len(payload)) == payload
    thread.join(WAIT)
    assert not readable(session.tty, 0)


def test_both_directions_at_once(session: Session) -> None:
    """An echoing process: neither direction's back-pressure may stop the other for good."""
    session.raw()
    payload = os.urandom(512 << 10)

    def echo() -> None:
        left = len(payload)
        while left:
            data = os.read(session.tty, 3000)
            left -= len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(session.tty, view) :]

    def type_in() -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(session.keyboard, view[:9000]) :]

    threads = [threading.Thread(target=each) for each in (echo, type_in)]
    for thread in threads:
        thread.start()
    assert read_exactly(session.screen, len(payload)) == payload
    for thread in threads:
        thread.join(WAIT)


def test_drain_is_bounded_and_tells(session: Session) -> None:
    assert not session.io.drain(0)
    os.write(session.tty, b"bye")
    session.end()
    assert session.io.drain(WAIT)
    assert read_some(session.screen) == b"bye"
    # EOF is there before close().
    assert read_some(session.screen) == b""


def fill(path: str) -> int:
    """Write to a FIFO until it takes no more; how much it took."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    size = 0
    try:
        while True:
            size += os.write(writer, b"f" * 4096)
    except BlockingIOError:
        return size
    finally:
        os.close(writer)


def test_drain_waits_for_a_full_reader(session: Session) -> None:
    session.raw()
    earlier = fill(session.stdout)
    payload = os.urandom(2000)
    os.write(session.tty, payload)
    session.end()
    assert not session.io.drain(0.02)
    assert read_exactly(session.screen, earlier + len(payload)).endswith(payload)
    assert session.io.drain(WAIT)


def test_hung_up_terminal_with_a_full_reader_does_not_spin(session: Session) -> None:
    session.raw()
    earlier = fill(session.stdout)
    os.write(session.tty, b"x" * 2000)
    session.end()
    before = time.process_time()
    assert not session.io.drain(0.2)
    assert time.process_time() - before < 0.1
    assert read_exactly(session.screen, earlier + 2000).endswith(b"x" * 2000)
    assert session.io.drain(WAIT)


def test_reader_goes_away_and_comes_back(session: Session) -> None:
    session.raw()
    os.close(session.screen)
    os.write(session.tty, b"meanwhile")
    session.screen = os.open(session.stdout, os.O_RDONLY | os.O_NONBLOCK)
    assert read_exactly(session.screen, 9) == b"meanwhile"
    os.write(session.tty, b"after")
    assert read_exactly(session.screen, 5) == b"after"


def test_eof_of_stdin_leaves_the_terminal_open(session: Session) -> None:
    os.write(session.keyboard, b"one\r")
    assert read_some(session.tty) == b"one\n"
    session.io.close_stdin()
    os.write(session.keyboard, b"two\r")
    assert read_some(session.tty) == b"two\n"
    os.close(session.keyboard)
    session.keyboard = os.dup(session.screen)
    assert not readable(session.tty, 0.05)
    os.write(session.tty, b"still here")
    assert read_exactly(session.screen, 20)[-10:] == b"still here"


def test_closing_hangs_up(session: Session) -> None:
    session.io.close()
    assert readable(session.tty, WAIT)
    with pytest.raises(OSError) as raised:
        os.write(session.tty, b"x")
    assert raised.value.errno == errno.EIO
    assert session.io.drain(0) in (True, False)
    session.io.resize(10, 10)
    session.io.close_stdin()


def test_a_session_ends_with_its_leader(session: Session) -> None:
    """Jobs keep the terminal open; what was written before the leader's end is passed on."""
    job = os.dup(session.tty)
    try:
        os.write(session.tty, b"last words")
        session.end()
        session.io.finish()
        session.io.finish()
        assert read_exactly(session.screen, 10) == b"last words"
        assert session.io.drain(WAIT)
        assert read_some(session.screen) == b"", "the reader sees the end"
        # As the kernel has it for a session whose leader ended.
        with pytest.raises(OSError) as caught:
            os.write(job, b"later")
        assert caught.value.errno == errno.EIO
        assert os.read(job, 10) == b""
    finally:
        os.close(job)


def test_all_that_was_written_before_the_leaders_end_is_passed_on(session: Session) -> None:
    session.raw()
    payload = os.urandom(1 << 20)  # may well hold beginnings of the mark
    job = os.dup(session.tty)

    def write() -> None:
        rest = memoryview(payload)
        while rest:
            rest = rest[os.write(session.tty, rest) :]
        session.end()
        session.io.finish()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_exactly(session.screen, len(payload), 1000) == payload
        writer.join(WAIT)
        assert session.io.drain(WAIT)
        assert read_some(session.screen) == b""
    finally:
        os.close(job)


def test_a_job_that_writes_on_does_not_keep_the_session(session: Session) -> None:
    session.raw()
    job = os.dup(session.tty)
    stop = threading.Event()

    def chatter() -> None:
        try:
            while not stop.is_set():
                os.write(job, b"noise ")
        except OSError:
            return  # hung up

    noisy = threading.Thread(target=chatter)
    noisy.start()
    try:
        session.end()
        session.io.finish()
        while data := read_some(session.screen):
            assert data.strip(b"noise ") == b"", "nothing of the mark is passed on"
        assert session.io.drain(WAIT)
    finally:
        stop.set()
        noisy.join(WAIT)
        os.close(job)


def test_a_stopped_terminal_is_hung_up_all_the_same(session: Session) -> None:
    job = os.dup(session.tty)
    try:
        os.write(session.tty, b"seen")
        assert read_exactly(session.screen, 4) == b"seen"
        termios.tcflow(session.tty, termios.TCOOFF)  # ^S
        session.end()
        session.io.finish()
        assert session.io.drain(WAIT)
        assert read_some(session.screen) == b""
    finally:
        os.close(job)


def test_the_end_of_a_session_that_is_over(session: Session) -> None:
    os.write(session.tty, b"bye")
    session.end()
    assert read_some(session.screen) == b"bye"
    assert session.io.drain(WAIT)
    session.io.finish()
    session.io.close()
    session.io.finish()
    assert read_some(session.screen) == b""


def test_resize(session: Session) -> None:
    signals: list[int] = []
    session.io.on_signal = signals.append
    session.io.resize(120, 40)
    size = struct.unpack("HHHH", fcntl.ioctl(session.tty, termios.TIOCGWINSZ, bytes(8)))
    assert size[:2] == (40, 120)
    session.io.resize(120, 40)
    session.io.resize(0, 0)
    session.io.resize(65535, 65535)
    assert signals == [28, 28, 28]
    for width, height in ((65536, 1), (1, 65536), (-1, 1)):
        with pytest.raises(InvalidRequest):
            session.io.resize(width, height)
    session.io.on_signal = None


def collect(io: ProcessIO, count: int) -> tuple[list[int], threading.Event]:
    signals: list[int] = []
    enough = threading.Event()

    def note(signo: int) -> None:
        signals.append(signo)
        if len(signals) == count:
            enough.set()

    io.on_signal = note
    return signals, enough


def test_keys_become_signals(session: Session) -> None:
    signals, enough = collect(session.io, 3)
    os.write(session.keyboard, b"a\x03b\x1cc\x1ad")
    assert enough.wait(WAIT)
    assert signals == [2, 3, 20]
    session.io.on_signal = None


def test_quoted_disabled_and_changed_keys(session: Session) -> None:
    signals, enough = collect(session.io, 1)
    settings = termios.tcgetattr(session.tty)
    settings[6][termios.VQUIT] = b"\0"
    settings[6][termios.VINTR] = b"\x07"
    termios.tcsetattr(session.tty, termios.TCSANOW, settings)
    # ^V quotes what follows, even when that comes in the next piece of input.
    os.write(session.keyboard, b"\x16")
    assert read_exactly(session.screen, 1)
    os.write(session.keyboard, b"\x07\x00\x1c\x03\x16\x1a\x07")
    assert enough.wait(WAIT)
    assert signals == [2]
    session.io.on_signal = None


def test_raw_terminals_have_no_signals(session: Session) -> None:
    signals, _ = collect(session.io, 1)
    session.raw()
    os.write(session.keyboard, b"\x03\x1a")
    assert read_exactly(session.tty, 2) == b"\x03\x1a"
    assert signals == []
    session.io.on_signal = None


def test_hangup_signal_only_for_a_living_process(reactor: Reactor, tmp_path: Path) -> None:
    for living in (True, False):
        directory = tmp_path / str(living)
        directory.mkdir()
        session = Session(reactor, directory, emulate_signals=True)
        signals, _ = collect(session.io, 1)
        if not living:
            session.end()
            assert session.io.drain(WAIT)
        session.io.close()
        assert signals == ([1] if living else [])
        session.close()


def test_no_signals_where_the_kernel_sends_them(reactor: Reactor, tmp_path: Path) -> None:
    session = Session(reactor, tmp_path, emulate_signals=False)
    signals, _ = collect(session.io, 1)
    os.write(session.keyboard, b"\x03x\r")
    assert read_some(session.tty) == b"x\n"
    session.io.resize(10, 10)
    session.close()
    assert signals == []


def test_without_stdin_and_stdout(reactor: Reactor) -> None:
    io = open_io(reactor, terminal=True)
    tty = os.dup(io.sentry_fds[0])
    io.release_sentry_fds()
    for _ in range(200):
        os.write(tty, b"x" * 4000)  # discarded, never blocks
    os.close(tty)
    assert io.drain(WAIT)
    io.close()


def test_files_instead_of_fifos(reactor: Reactor, tmp_path: Path) -> None:
    source, log = tmp_path / "source", tmp_path / "log"
    # Lines, because the pump begins before the terminal is raw: a line can't be too long then.
    source.write_bytes((b"x" * 99 + b"\n") * 1000)
    io = open_io(reactor, stdin=str(source), stdout=f"file://{log}", terminal=True)
    tty = os.dup(io.sentry_fds[0])
    io.release_sentry_fds()
    settings = termios.tcgetattr(tty)
    settings[0] = settings[1] = settings[3] = 0
    termios.tcsetattr(tty, termios.TCSANOW, settings)
    assert len(read_exactly(tty, 50_000)) == 50_000
    os.write(tty, b"done")
    read_exactly(tty, 50_000)
    os.close(tty)
    assert io.drain(WAIT)
    assert log.read_bytes().endswith(b"done")
    io.close()


def test_output_that_cannot_be_written_is_given_up(reactor: Reactor) -> None:
    """A full disk must not stop the process."""
    from shim.stdio.console import Console

    full = os.open("/dev/full", os.O_WRONLY)
    console = Console(reactor=reactor, sink=full)
    tty = os.dup(console.slave)
    console.release_slave()
    for _ in range(100):
        os.write(tty, b"x" * 4000)
    os.close(tty)
    assert console.drain(WAIT)
    console.close()


def test_closing_races_with_traffic(reactor: Reactor, tmp_path: Path) -> None:
    for turn in range(30):
        directory = tmp_path / str(turn)
        directory.mkdir()
        session = Session(reactor, directory, emulate_signals=True)
        session.io.on_signal = lambda signo: None
        stop = threading.Event()

        def traffic(session: Session = session, stop: threading.Event = stop) -> None:
            os.set_blocking(session.keyboard, False)
            while not stop.is_set():
                try:
                    os.write(session.keyboard, b"\x03abc")
                    os.read(session.screen, 4096)
                except OSError:
                    continue

        thread = threading.Thread(target=traffic)
        thread.start()
        if turn % 2:
            session.end()
        session.io.close()
        stop.set()
        thread.join(WAIT)
        session.close()
