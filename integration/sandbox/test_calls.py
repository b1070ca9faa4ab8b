"""Execs, signals, figures and terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import termios
import threading
import time
from typing import Any

import pytest

from integration.sandbox.lab import TIMEOUT, Exit, Lab, Run, until
from runtime.base.errors import (
    InvalidRequest,
    InvalidState,
    NotFound,
    SandboxGone,
)
from runtime.bundle.capabilities import Capabilities
from runtime.bundle.process_spec import ProcessSpec
from runtime.runsc.control import ContainerState
from runtime.sandbox.sandbox import ExitInfo, Sandbox, SignalMode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")

# -- exec, signals, figures --------------------------------------------------------------------


def test_exec(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    assert run.execute("echo", "hi") == ("hi\n", ExitInfo(status=0, raw=0))
    assert run.execute("sh", "-c", "exit 3")[1] == ExitInfo(status=3, raw=0x300)
    assert run.execute("sh", "-c", "kill -TERM $$")[1] == ExitInfo(status=143, raw=15)
    assert run.execute("id", uid=12, gid=34, additional_gids=(56,))[0].startswith("uid=12 gid=34")
    assert run.execute("pwd", cwd="/tmp")[0] == "/tmp\n"
    assert "FOO=bar" in run.execute("env", env=("PATH=/bin", "FOO=bar"))[0]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"args": ("nosuch",)}, 'exec: "nosuch": executable file not found in \\$PATH'),
        ({"args": ("/no/such",)}, 'exec: "/no/such": .*no such file'),
        ({"args": ("/proc/version",)}, "permission denied"),
        ({"args": ("true",), "cwd": "/no/such"}, "process.cwd: .*no such file"),
    ],
)
def test_exec_that_can_not_be_run(lab: Lab, fields: dict[str, Any], why: str) -> None:
    run = lab.run(["sleep", "100"])
    args = fields["args"]
    others = {name: value for name, value in fields.items() if name != "args"}
    with pytest.raises(InvalidRequest, match=why):
        run.execute(*args, **others)
    assert run.execute("true")[1].status == 0


def test_exec_capabilities(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])

    def effective(capabilities: Capabilities | None) -> int:
        text, _ = run.execute("cat", "/proc/self/status", capabilities=capabilities)
        return int(text.partition("CapEff:")[2].split()[0], 16)

    raw, kill = 1 << 13, 1 << 5
    assert effective(None) == raw | kill
    asked = Capabilities(bounding=raw | kill, effective=raw | kill, permitted=raw | kill)
    assert effective(asked) == kill
    assert effective(Capabilities()) == 0


def test_exec_before_the_start(lab: Lab) -> None:
    run = lab.boot(["sleep", "100"])
    with pytest.raises(InvalidState, match="in state created"):
        run.execute("true")


def test_signals(lab: Lab) -> None:
    run = lab.run(
        ["sh", "-c", "trap 'echo got it; exit 5' TERM; echo up; while :; do sleep 0.1; done"]
    )
    assert run.line() == "up"
    run.sandbox.signal("one", signal.SIGTERM)
    assert run.line() == "got it"
    assert run.exit.get() == ExitInfo(status=5, raw=0x500)
    with pytest.raises((NotFound, SandboxGone)):
        run.sandbox.signal("one", signal.SIGTERM)


def test_signal_to_an_exec(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    null = os.open(os.devnull, os.O_RDWR)
    spec = ProcessSpec(args=("sleep", "100"), env=("PATH=/bin",))
    pid = run.sandbox.execute("one", spec, (null,) * 3, False, time.monotonic() + TIMEOUT)
    os.close(null)
    ended = Exit()
    run.sandbox.wait_pid("one", pid, ended)
    run.sandbox.signal("one", signal.SIGTERM, pid=pid)
    assert ended.get() == ExitInfo(status=143, raw=15)
    with pytest.raises(NotFound):
        run.sandbox.signal("one", signal.SIGTERM, pid=pid)
    with pytest.raises(NotFound):
        run.sandbox.signal("two", signal.SIGTERM)


def test_signal_to_all(lab: Lab) -> None:
    run = lab.run(["sh", "-c", "sleep 100 & echo up; wait"])
    assert run.line() == "up"
    run.sandbox.signal("one", signal.SIGKILL, mode=SignalMode.ALL)
    assert run.exit.get().status == 137


def test_figures(lab: Lab) -> None:
    run = lab.boot(["sleep", "100"])
    assert run.sandbox.state("one") is ContainerState.CREATING
    run.start()
    assert run.sandbox.state("one") is ContainerState.RUNNING
    (process,) = run.sandbox.processes("one")
    assert (process.pid, process.ppid, process.command) == (1, 0, "sleep")
    stats = run.sandbox.event("one")
    assert stats.memory_usage > 0
    assert stats.pids == 1
    assert set(stats.cpu_ns) == {"one"}
    if not lab.old:
        assert [each.name for each in stats.networks] == ["lo"]


def test_pause(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    run.sandbox.pause()
    assert run.sandbox.paused
    assert len(run.sandbox.processes("one")) == 1
    run.sandbox.resume()
    assert not run.sandbox.paused
    assert run.execute("true")[1].status == 0
    run.sandbox.pause()
    run.sandbox.kill()
    assert run.exit.get().status == 137


def test_many_execs_at_once(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    results: list[tuple[str, ExitInfo]] = []

    def work(number: int) -> None:
        for _ in range(5):
            results.append(run.execute("sh", "-c", f"echo {number}; exit {number}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=lambda r: r[0]) == [
        (f"{n}\n", ExitInfo(status=n, raw=n << 8)) for n in range(4) for _ in range(5)
    ]


# -- terminals ---------------------------------------------------------------------------------


def test_terminal_of_init(lab: Lab) -> None:
    master, slave = pty.openpty()
    try:
        params = lab.params("one", ["sh", "-c", "stty size; sleep 100"], (slave,) * 3, tty=True)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")
        sandbox = Sandbox.boot(params, reactor=lab.reactor, deadline=time.monotonic() + TIMEOUT)
        os.close(slave)
        slave = -1
        run = Run(sandbox, os.dup(master))
        lab._runs.append(run)
        run.start()
        until(master, b"24 80")
        # The sentry leads the terminal's session on the host, so the kernel signals it.
        os.write(master, b"\x03")
        assert run.exit.get().status == 130
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_terminal_of_an_exec(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    master, slave = pty.openpty()
    try:
        spec = ProcessSpec(args=("sh", "-c", "echo up; sleep 100"), env=("PATH=/bin",))
        pid = run.sandbox.execute("one", spec, (slave,) * 3, True, time.monotonic() + TIMEOUT)
        ended = Exit()
        run.sandbox.wait_pid("one", pid, ended)
        until(master, b"up")
        run.sandbox.signal("one", signal.SIGINT, pid=pid, mode=SignalMode.FOREGROUND)
        assert ended.get().status == 130
    finally:
        os.close(master)
        os.close(slave)
