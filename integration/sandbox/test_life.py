"""How init runs and ends, and what is told of it.

``SANDBOX_RUNS`` says how often the tests of exit codes are repeated.
"""

from __future__ import annotations

import os
import queue
import signal
import time

import pytest

from integration.sandbox.lab import TIMEOUT, Exit, Lab
from runtime.base.errors import (
    RuntimeFault,
    SandboxGone,
)
from runtime.bundle.process_spec import ProcessSpec
from runtime.sandbox.sandbox import ExitInfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")

RUNS = int(os.environ.get("SANDBOX_RUNS", "3"))


# -- exits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "status"), [(["true"], 0), (["sh", "-c", "exit 7"], 7)])
def test_exit_codes(lab: Lab, args: list[str], status: int) -> None:
    for _ in range(RUNS):
        run = lab.run(args)
        info = run.exit.get()
        lab.finish(run)
        assert info == ExitInfo(status=status, raw=status << 8)


@pytest.mark.parametrize("code", [2, 126, 128, 137, 255])
def test_codes_that_look_like_failures_are_the_containers(lab: Lab, code: int) -> None:
    assert lab.outcome(["sh", "-c", f"exit {code}"])[1] == ExitInfo(status=code, raw=code << 8)


def test_death_by_signal(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    run.sandbox.signal("one", signal.SIGKILL)
    assert run.exit.get() == ExitInfo(status=137, raw=9)


def test_output_and_death_are_told(lab: Lab) -> None:
    deaths: queue.Queue[int] = queue.Queue()
    run = lab.boot(["echo", "hello"])
    run.sandbox.on_death(deaths.put)
    run.start()
    assert run.read() == "hello\n"
    assert run.exit.get().status == 0
    assert deaths.get(timeout=TIMEOUT) == 0
    late = Exit()
    run.sandbox.on_init_exit(late)
    run.sandbox.on_death(deaths.put)
    assert late.get().status == 0
    assert deaths.get(timeout=TIMEOUT) == 0


def test_killed_before_start(lab: Lab) -> None:
    run = lab.boot(["true"])
    run.sandbox.kill()
    assert run.exit.get() == ExitInfo(status=137, sentry_died=True)
    with pytest.raises(SandboxGone):
        run.start()


def test_sentry_killed_from_outside(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    null = os.open(os.devnull, os.O_RDWR)
    spec = ProcessSpec(args=("sleep", "100"), env=("PATH=/bin",))
    pid = run.sandbox.execute("one", spec, (null,) * 3, False, time.monotonic() + TIMEOUT)
    os.close(null)
    ended = Exit()
    run.sandbox.wait_pid("one", pid, ended)
    os.kill(run.sandbox.pid, signal.SIGKILL)
    assert ended.get() == ExitInfo(status=137, sentry_died=True)
    info = run.exit.get()
    assert (info.status, info.sentry_died) == (137, True)
    assert "signal 9" in info.detail
    with pytest.raises(SandboxGone):
        run.sandbox.processes("one")


def test_gofer_killed_from_outside(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    os.kill(run.sandbox.gofer_pid, signal.SIGKILL)
    assert run.exit.get().status == 137


def test_panic_is_told_from_exit_2(lab: Lab) -> None:
    config = lab.config(panic_signal="12")
    run = lab.run(["sleep", "100"], config=config)
    os.kill(run.sandbox.pid, signal.SIGUSR2)
    info = run.exit.get()
    assert (info.status, info.sentry_died) == (137, True)
    assert "panic" in info.detail


# -- the end -----------------------------------------------------------------------------------


def test_destroy_is_idempotent_and_tells_exits_first(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    run.sandbox.destroy(TIMEOUT)
    assert run.exit.calls == 1
    run.sandbox.destroy(TIMEOUT)
    with pytest.raises(RuntimeFault):
        run.sandbox.processes("one")


def test_stubs_die_with_the_sentry(lab: Lab) -> None:
    run = lab.run(["sh", "-c", "sleep 100 & sleep 100 & wait"])
    namespace = os.readlink(f"/proc/{run.sandbox.pid}/ns/ipc")
    lab.finish(run)
    left = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/ipc") == namespace:
                left.append(pid)
        except OSError:
            continue
    assert not left
