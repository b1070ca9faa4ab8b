"""Handles on child processes: ends, signals, reaping."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time

import pytest

from runtime.base.errors import DeadlineExceeded
from runtime.host.pids import start_time
from runtime.host.spawn import owns, reap_orphans, spawn
from runtime.host.spawn_spec import SpawnSpec
from tests.runtime.leaks import WAIT, nothing_is_left, run

__all__ = ("nothing_is_left",)


def test_exit_statuses() -> None:
    assert run(spawn(SpawnSpec(path="/bin/true", argv=("true",)))) == 0
    for script, code in (("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15)):
        assert run(spawn(SpawnSpec(path="/bin/sh", argv=("sh", "-c", script)))) == code


def test_a_status_is_remembered() -> None:
    child = spawn(SpawnSpec(path="/bin/sh", argv=("sh", "-c", "exit 3")))
    assert child.wait(WAIT) == 3 << 8
    assert child.poll() == child.wait(0) == 3 << 8
    assert not owns(child.pid)
    child.kill(signal.SIGKILL)
    child.close()
    child.close()
    assert child.poll() == 3 << 8


def test_a_running_child() -> None:
    with spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60"))) as child:
        assert owns(child.pid)
        assert child.poll() is None
        assert child.start_time == start_time(child.pid)
        assert os.readlink(f"/proc/{child.pid}/exe").endswith(("sleep", "busybox", "coreutils"))
        assert not select.select([child.pidfd], [], [], 0)[0]
        with pytest.raises(DeadlineExceeded, match=f"process {child.pid}"):
            child.wait(0.01)
        child.kill(signal.SIGTERM)
        assert child.wait(WAIT) == signal.SIGTERM
        child.kill(signal.SIGTERM)


def test_a_child_can_be_killed_and_reaped_after_close() -> None:
    child = spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60")))
    child.close()
    with pytest.raises(ValueError):
        child.wait(0)
    assert owns(child.pid)
    child.kill(signal.SIGKILL)
    pidfd = os.pidfd_open(child.pid)
    select.select([pidfd], [], [])
    os.close(pidfd)
    assert child.poll() == signal.SIGKILL


def test_waiters_in_many_threads_all_get_the_status() -> None:
    child = spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60")))
    results: list[int] = []
    barrier = threading.Barrier(9)

    def work() -> None:
        barrier.wait()
        results.append(child.wait(WAIT))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait()
    child.kill(signal.SIGKILL)
    for thread in threads:
        thread.join()
    child.close()
    assert results == [signal.SIGKILL] * 8


def test_a_handle_that_is_waited_on_is_closed_after_the_wait() -> None:
    child = spawn(SpawnSpec(path="/bin/sleep", argv=("sleep", "60")))
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(child.wait(WAIT)))
    thread.start()
    deadline = time.monotonic() + WAIT
    while not child._waiters and time.monotonic() < deadline:
        time.sleep(0.001)
    child.close()
    assert child.pidfd >= 0
    child.kill(signal.SIGKILL)
    thread.join()
    assert child.pidfd == -1
    assert results == [signal.SIGKILL]


def test_a_started_child_sends_sigchld_and_is_seen_by_a_plain_wait() -> None:
    """Its exit signal is none until it executes; the orphans' reaper relies on it afterwards."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer)
    try:
        child = spawn(SpawnSpec(path="/bin/true", argv=("true",)))
        assert select.select([reader], [], [], WAIT)[0]
        assert os.read(reader, 64) == bytes([signal.SIGCHLD])
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None and found.si_pid == child.pid
        assert run(child) == 0
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, handler)
        os.close(reader)
        os.close(writer)


def test_orphans_are_reaped_and_children_keep_their_status() -> None:
    child = spawn(SpawnSpec(path="/bin/sh", argv=("sh", "-c", "exit 5")))
    select.select([child.pidfd], [], [])
    reap_orphans()  # what other tests of this process have left
    stray = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, stray.pid, os.WEXITED | os.WNOWAIT)
    assert reap_orphans() == 1
    assert not owns(child.pid)
    assert run(child) == 5
    assert reap_orphans() == 0
    stray.wait()
