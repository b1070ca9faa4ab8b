"""Logging programs: what they are given, readiness, how they end, and what failures leave behind.

The programs are real: small scripts that note what they see in a directory.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.host.reactor import Reactor
from shim.stdio import binary_logger
from tests.shim.stdio.test_process_io import WAIT, close, hand_over, no_leaks, open_io

__all__ = ["no_leaks"]

# Copies both streams to files until EOF; notes its surroundings first.
COPY = """\
import os, select, sys
here = sys.argv[sys.argv.index("dir") + 1]
with open(here + "/env", "w") as f:
    f.write(repr(sorted(os.environ.items())))
with open(here + "/argv", "w") as f:
    f.write(repr(sys.argv[1:]))
with open(here + "/fds", "w") as f:
    f.write(repr(sorted(int(n) for n in os.listdir("/proc/self/fd"))))
with open(here + "/pid", "w") as f:
    f.write(str(os.getpid()))
os.write(5, b"1") if "byte" in sys.argv else None
os.close(5)
outputs = {3: open(here + "/stdout", "wb", 0), 4: open(here + "/stderr", "wb", 0)}
while outputs:
    for fd in select.select(list(outputs), [], [])[0]:
        data = os.read(fd, 65536)
        outputs[fd].write(data) if data else outputs.pop(fd)
with open(here + "/done", "w"):
    pass
"""


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.start()
    yield reactor
    reactor.stop()


def program(directory: Path, body: str, interpreter: str = "") -> str:
    """A script; its interpreter sees to it that an empty environment is enough."""
    path = directory / "logger"
    path.write_text(f"#!{interpreter or sys.executable + ' -IS'}\n{body}")
    path.chmod(0o755)
    return str(path)


def await_file(path: Path, reactor: Reactor) -> str:
    """Wait for what another process does, with nothing to be woken by."""
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not path.exists():
        assert time.monotonic() < deadline
        pause.wait(0.005)
    return path.read_text()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.005)
    return True


def runs(path: str) -> bool:
    """Does any process run the script?  It may have been ended before its first line."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if path.encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                return True
    return False


def gone(pid: int) -> bool:
    """Has it ended and been reaped?"""
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_output_reaches_the_program(reactor: Reactor, tmp_path: Path, scheme: str) -> None:
    path = program(tmp_path, COPY)
    uri = f"{scheme}://{path}?dir={tmp_path}&byte=&odd%20key=%2B"
    io = open_io(reactor, stdout=uri, stderr=uri)
    fds = hand_over(io)
    os.write(fds[1], b"to stdout")
    os.write(fds[2], b"to stderr")
    close(*fds)
    await_file(tmp_path / "done", reactor)
    assert (tmp_path / "stdout").read_bytes() == b"to stdout"
    assert (tmp_path / "stderr").read_bytes() == b"to stderr"
    expected = [("CONTAINER_ID", "c1"), ("CONTAINER_NAMESPACE", "ns")]
    seen = [e for e in eval((tmp_path / "env").read_text()) if e[0] != "LC_CTYPE"]
    assert seen == expected
    argv = ["dir", str(tmp_path), "byte", "", "odd key", "+"]
    assert eval((tmp_path / "argv").read_text()) == argv
    assert set(range(6)) <= set(eval((tmp_path / "fds").read_text()))
    assert len(eval((tmp_path / "fds").read_text())) <= 8  # its own two files in use
    assert io.drain(0)
    io.close()
    pid = int((tmp_path / "pid").read_text())
    assert eventually(lambda: gone(pid))


def test_stdin_may_be_a_fifo_still(reactor: Reactor, tmp_path: Path) -> None:
    path = program(tmp_path, COPY)
    os.mkfifo(tmp_path / "in")
    io = open_io(reactor, stdin=str(tmp_path / "in"), stdout=f"binary://{path}?dir={tmp_path}")
    client = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"x")
    assert os.read(io.sentry_fds[0], 10) == b"x"
    os.close(client)
    io.close()
    pid = int(await_file(tmp_path / "pid", reactor))
    assert eventually(lambda: gone(pid))


def test_terminal_output_reaches_the_program(reactor: Reactor, tmp_path: Path) -> None:
    path = program(tmp_path, COPY)
    io = open_io(reactor, stdout=f"binary://{path}?dir={tmp_path}", terminal=True)
    tty = os.dup(io.sentry_fds[0])
    io.release_sentry_fds()
    os.write(tty, b"hello\n")
    os.close(tty)
    assert io.drain(WAIT)
    await_file(tmp_path / "done", reactor)
    assert (tmp_path / "stdout").read_bytes() == b"hello\r\n"
    io.close()
    pid = int((tmp_path / "pid").read_text())
    assert eventually(lambda: gone(pid))


def test_close_asks_first_and_does_not_wait(reactor: Reactor, tmp_path: Path) -> None:
    body = f"""\
trap 'echo term > {tmp_path}/term; exit 0' TERM
echo $$ > {tmp_path}/pid
exec 5>&-
while :; do read line <&3; done
"""
    io = open_io(reactor, stdout=f"binary://{program(tmp_path, body, '/bin/sh')}")
    pid = int(await_file(tmp_path / "pid", reactor))
    io.close()
    await_file(tmp_path / "term", reactor)
    assert eventually(lambda: gone(pid))


def test_stubborn_program_is_killed(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_logger, "TERMINATION_GRACE", 0.1)
    body = "import os, signal\n"
    body += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    body += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    body += "os.close(5)\nwhile True: signal.pause()\n"
    io = open_io(reactor, stdout=f"binary://{program(tmp_path, body)}")
    pid = int(await_file(tmp_path / "pid", reactor))
    before = time.monotonic()
    io.close()
    assert time.monotonic() - before < 0.1
    assert eventually(lambda: gone(pid))
    assert time.monotonic() - before >= 0.1


@pytest.mark.parametrize(
    ("scheme", "body"),
    [
        ("binary", "exit 3"),
        ("binary-v2", "exit 0"),
        ("binary-v2", "exec 5>&-; while :; do read line <&3 || exit; done"),
    ],
)
def test_program_that_does_not_get_ready(
    reactor: Reactor, tmp_path: Path, scheme: str, body: str
) -> None:
    path = program(tmp_path, f"echo $$ > {tmp_path}/pid\n{body}\n", "/bin/sh")
    with pytest.raises(Failed, match=path):
        open_io(reactor, stdout=f"{scheme}://{path}")
    assert gone(int((tmp_path / "pid").read_text()))


def test_readiness_has_a_deadline(reactor: Reactor, tmp_path: Path) -> None:
    path = program(tmp_path, "read line <&3\nsleep 100\n", "/bin/sh")
    os.mkfifo(tmp_path / "in")
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        open_io(
            reactor,
            stdin=str(tmp_path / "in"),
            stdout=f"binary://{path}",
            deadline=begin + 0.3,
        )
    assert time.monotonic() - begin < WAIT
    assert not runs(path)


def test_program_that_is_not_there(reactor: Reactor, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="nothing"):
        open_io(reactor, stdout=f"binary://{tmp_path}/nothing")


def test_failure_after_the_program_started(reactor: Reactor, tmp_path: Path) -> None:
    """The program must not survive a create that fails for another reason."""
    path = program(tmp_path, COPY)
    with pytest.raises(Exception, match="missing"):
        open_io(
            reactor,
            stdin=str(tmp_path / "missing"),
            stdout=f"binary://{path}?dir={tmp_path}",
        )
    # Killed and reaped by then, not in the background.
    assert gone(int((tmp_path / "pid").read_text()))


def test_close_when_the_reactor_is_gone(tmp_path: Path) -> None:
    reactor = Reactor()
    reactor.start()
    path = program(tmp_path, COPY)
    io = open_io(reactor, stdout=f"binary://{path}?dir={tmp_path}")
    reactor.stop()
    io.close()
    pid = int((tmp_path / "pid").read_text())
    assert os.waitpid(pid, 0)[0] == pid
