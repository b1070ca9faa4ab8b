import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.host import linux
from runtime.host.reactor import Reactor
from shim.stdio.keeper import Keeper
from tests.shim.stdio.test_process_io import no_leaks, reactor

__all__ = ["no_leaks", "reactor"]

WAIT = 10.0


class Output:
    """A FIFO with a keeper, and the writer of a process."""

    def __init__(
        self,
        path: Path,
        reactor: Reactor,
        watch_openings: Callable[[str], int] = linux.watch_openings,
    ) -> None:
        self.path = str(path)
        os.mkfifo(path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.writer = os.open(path, os.O_WRONLY)
        self.keeper = Keeper(fd, reactor, watch_openings)
        self._reactor = reactor

    def end(self, text: bytes) -> None:
        """Write something and be over; returns once the reactor has seen to that."""
        os.write(self.writer, text)
        os.close(self.writer)
        self.settle()

    def settle(self) -> None:
        # Two rounds: what is ready in the first is dispatched before the second begins.
        for _ in range(2):
            seen = threading.Event()
            self._reactor.call_soon(seen.set)
            assert seen.wait(WAIT)

    def reader(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def can_be_opened(self) -> bool:
        """Whether a blocking open for reading returns, which it does if there is a writer."""
        done = threading.Event()

        def attempt() -> None:
            os.close(os.open(self.path, os.O_RDONLY))
            done.set()

        threading.Thread(target=attempt, daemon=True).start()
        if done.wait(0.1):
            return True
        os.close(os.open(self.path, os.O_WRONLY))  # lets the thread go on
        assert done.wait(WAIT)
        return False


@pytest.fixture
def output(tmp_path: Path, reactor: Reactor) -> Iterator[Output]:
    output = Output(tmp_path / "out", reactor)
    yield output
    output.keeper.close()


def read_to_end(fd: int) -> bytes:
    """All until EOF; the descriptor is closed."""
    data = b""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        try:
            chunk = os.read(fd, 4096)
        except BlockingIOError:
            time.sleep(0.001)  # poll(2) knows no hang-up of writers from before the opening
            continue
        if not chunk:
            os.close(fd)
            return data
        data += chunk
    raise AssertionError(f"no end after {data!r}")


def test_unread_output_waits_for_a_reader_that_comes_later(output: Output) -> None:
    output.end(b"last words")
    fd = os.open(output.path, os.O_RDONLY)  # blocks if nobody writes
    os.set_blocking(fd, False)
    assert read_to_end(fd) == b"last words"


def test_it_tells_how_much_nobody_has_read(output: Output) -> None:
    assert output.keeper.unread() == 0
    os.write(output.writer, b"x")
    assert output.keeper.unread() == 1
    output.end(b"last words")
    assert output.keeper.unread() == 11
    fd = output.reader()
    assert output.keeper.unread() == 11
    assert read_to_end(fd) == b"xlast words"
    output.settle()
    assert output.keeper.unread() == 0


def test_a_reader_that_was_there_sees_the_end_at_once(output: Output) -> None:
    fd = output.reader()
    output.end(b"words")
    began = time.monotonic()
    assert read_to_end(fd) == b"words"
    assert time.monotonic() - began < 0.04, "no timer was waited for"


def test_a_reader_that_comes_late_sees_the_end_of_nothing(output: Output) -> None:
    output.end(b"")
    fd = os.open(output.path, os.O_RDONLY)  # blocks if nobody writes
    os.set_blocking(fd, False)
    assert read_to_end(fd) == b""
    assert output.keeper.take() == -1


def test_a_reader_that_has_left_delays_nothing(tmp_path: Path, reactor: Reactor) -> None:
    watched: list[str] = []

    def watch(path: str) -> int:
        watched.append(path)
        return linux.watch_openings(path)

    output = Output(tmp_path / "out", reactor, watch)
    fd = output.reader()
    os.close(fd)
    output.end(b"")
    output.keeper.close()
    assert not watched, "closing an inotify descriptor takes the kernel long"


def test_a_reader_that_is_there_has_the_end_shown(output: Output) -> None:
    fd = output.reader()
    os.write(output.writer, b"x")
    assert os.read(fd, 10) == b"x"
    output.end(b"")
    assert os.read(fd, 10) == b""
    assert not output.can_be_opened(), "all is let go of"
    os.close(fd)


def test_readers_are_seen_without_inotify_as_well(tmp_path: Path, reactor: Reactor) -> None:
    def none_left(path: str) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    output = Output(tmp_path / "out", reactor, none_left)
    output.end(b"")
    fd = os.open(output.path, os.O_RDONLY)
    os.set_blocking(fd, False)
    assert read_to_end(fd) == b""
    output.keeper.close()


def test_a_reader_that_goes_away_without_reading_is_not_the_last(output: Output) -> None:
    fd = output.reader()
    output.end(b"last words")
    assert os.read(fd, 4) == b"last"
    os.close(fd)  # containerd is killed
    deadline = time.monotonic() + WAIT
    while not (came := output.can_be_opened()) and time.monotonic() < deadline:
        continue
    assert came, "the rest is kept until the next reader"
    assert read_to_end(output.reader()) == b" words"


def test_closing_lets_go(output: Output) -> None:
    output.end(b"last words")
    output.keeper.close()
    output.keeper.close()
    assert output.keeper.take() == -1
    fd = output.reader()
    assert os.read(fd, 10) == b""
    os.close(fd)


def test_it_can_be_taken_in_every_state(tmp_path: Path, reactor: Reactor) -> None:
    for number, text in enumerate((b"", b"kept")):
        output = Output(tmp_path / str(number), reactor)
        output.end(text)
        fd = output.keeper.take()
        assert fd >= 0
        os.close(fd)


def test_nothing_is_polled_while_nobody_reads(output: Output, reactor: Reactor) -> None:
    output.end(b"last words")
    with reactor._lock:
        assert not [timer for timer in reactor._timers if timer._fn is not None]
