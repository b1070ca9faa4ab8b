import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.host import pids
from runtime.state import shim_record, teardown
from runtime.state.shim_record import ContainerRecord, Pinned

_SLEEPER = "import signal,sys\n{}\nprint('ready', flush=True)\nsignal.pause()"


@pytest.fixture
def sleepers() -> Iterator["Sleepers"]:
    found = Sleepers()
    yield found
    found.close()


class Sleepers:
    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def spawn(self, before: str = "") -> Pinned:
        child = subprocess.Popen(
            [sys.executable, "-IS", "-c", _SLEEPER.format(before)], stdout=subprocess.PIPE
        )
        self.children.append(child)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        return Pinned(pid=child.pid, start_time=pids.start_time(child.pid))

    def status(self, process: Pinned) -> int | None:
        """How it ended; None if it runs."""
        return next(c for c in self.children if c.pid == process.pid).poll()

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def make(tmp_path: Path, name: str, **fields: object) -> ContainerRecord:
    bundle = tmp_path / name
    (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
    record = ContainerRecord(
        **{"id": name, "sandbox_id": "c1", "is_root": name == "c1", "bundle": str(bundle), **fields}  # type: ignore[arg-type]
    )
    shim_record.save(str(tmp_path / "root"), record)
    loaded = shim_record.load(str(tmp_path / "root"), name)
    assert loaded is not None
    return loaded


def test_destroy_frees_everything(tmp_path: Path, sleepers: Sleepers) -> None:
    boot, gofer, other = sleepers.spawn(), sleepers.spawn(), sleepers.spawn()
    control = tmp_path / "control.sock"
    filestore = tmp_path / ".gvisor.filestore.c1"
    cgroup = tmp_path / "cgroup" / "pod"
    (cgroup / "member").mkdir(parents=True)
    foreign = tmp_path / "precious"
    for path in (control, filestore, foreign):
        path.touch()
    records = [
        make(
            tmp_path,
            "c1",
            boot=boot,
            gofers=(gofer,),
            control_socket=str(control),
            filestores=(str(filestore), str(foreign)),
            cgroups=({"own": {"x": [str(cgroup)]}},),
        ),
        make(tmp_path, "a1", gofers=(other,), cgroups=({"own": {"x": [str(cgroup / "member")]}},)),
    ]
    outcome = teardown.destroy(str(tmp_path / "root"), records, 4.0)
    assert outcome == teardown.Outcome()
    for process in (boot, gofer, other):
        assert sleepers.status(process) == -signal.SIGKILL
    assert not control.exists() and not filestore.exists() and not cgroup.exists()
    assert foreign.exists()
    assert os.listdir(tmp_path / "root") == []
    # And once more, as containerd may.
    assert teardown.destroy(str(tmp_path / "root"), records, 4.0) == teardown.Outcome()


def test_reused_pid_is_not_signalled(tmp_path: Path, sleepers: Sleepers) -> None:
    process = sleepers.spawn()
    record = make(tmp_path, "c1", boot=process.replace(start_time=process.start_time - 1))
    assert teardown.destroy(str(tmp_path / "root"), [record], 1.0) == teardown.Outcome()
    assert sleepers.status(process) is None


def test_pids_of_an_earlier_boot_mean_nothing(tmp_path: Path, sleepers: Sleepers) -> None:
    process = sleepers.spawn()
    record = make(tmp_path, "c1", boot=process).replace(boot_id="another")
    teardown.destroy(str(tmp_path / "root"), [record], 1.0)
    assert sleepers.status(process) is None


def test_survivor_keeps_the_record(tmp_path: Path, sleepers: Sleepers) -> None:
    process = sleepers.spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert teardown.kill((process,), 0.05, signal.SIGTERM) == [process]
    record = make(tmp_path, "c1", boot=process)
    # No time at all stands in for a process that SIGKILL doesn't end.
    outcome = teardown.destroy(str(tmp_path / "root"), [record], 0.0)
    if outcome.failures:
        assert outcome.failures == (f"process {process.pid} survived SIGKILL",)
        assert shim_record.load(str(tmp_path / "root"), "c1") is not None


def test_leftovers_are_told_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    (cgroup / "busy").mkdir(parents=True)
    (cgroup / "busy" / "cgroup.procs").write_text("1\n")
    control = tmp_path / "dir.sock"
    control.mkdir()
    bad: dict[str, object] = {"own": {"x": [str(cgroup)]}}
    record = make(tmp_path, "c1", control_socket=str(control), cgroups=(bad, {"own": 3}))
    outcome = teardown.destroy(str(tmp_path / "root"), [record], 0.1)
    assert outcome.failures == ()
    assert len(outcome.leftovers) == 3
    assert os.listdir(tmp_path / "root") == []


def test_a_shim_that_would_hold_on_to_its_containers_is_ended(
    tmp_path: Path, sleepers: Sleepers
) -> None:
    stubborn = sleepers.spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    record = make(tmp_path, "c1", shim_pid=stubborn.pid, shim_start_time=stubborn.start_time)
    teardown.stop_shim(record.replace(boot_id="another"), 0.1)
    assert sleepers.status(stubborn) is None
    teardown.stop_shim(record, 5.0)
    assert sleepers.children[0].wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "bundle", "ended"),
    [
        ("runsc-sandbox", "bundle", True),
        ("runsc-gofer", "bundle", True),
        ("runsc-sandbox", "bundle2", False),
        ("vi", "bundle", False),
    ],
)
def test_a_sentry_that_no_record_names_is_found_by_its_bundle(
    tmp_path: Path, name: str, bundle: str, ended: bool
) -> None:
    (tmp_path / "bundle").mkdir()
    record = make(tmp_path, "c1", bundle=str(tmp_path / "bundle"))
    argv = [name, "-c", "echo ready; read line", "boot", f"--bundle={tmp_path / bundle}"]
    with subprocess.Popen(
        argv, executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as stray:
        try:
            # Its command line can be read only some time after the exec has succeeded.
            assert stray.stdout is not None and stray.stdout.readline() == b"ready\n"
            outcome = teardown.destroy(str(tmp_path / "root"), [record], 5.0)
            assert outcome.failures == ()
            assert stray.poll() == (-signal.SIGKILL if ended else None)
        finally:
            stray.kill()


def test_a_command_line_that_does_not_come_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A local user can have its process's lie in a file system that doesn't answer."""
    answer, asked = threading.Event(), []

    def read(path: str, _: int) -> bytes:
        asked.append(path)
        pid = int(path.split("/")[2])
        if pid % 5 == 0:
            answer.wait(30)
        if pid % 5 == 1:
            raise FileNotFoundError(path)
        return b"runsc-sandbox\0%d" % pid

    monkeypatch.setattr(teardown.files, "read_bounded", read)
    try:
        found = teardown._commands(list(range(1, 51)))
    finally:
        answer.set()
    assert found == {n: b"runsc-sandbox\0%d" % n for n in range(1, 51) if n % 5 > 1}
    assert len(asked) == 50
    assert teardown._commands([]) == {}


def test_is_running(sleepers: Sleepers) -> None:
    process = sleepers.spawn()
    assert teardown.is_running(process)
    assert not teardown.is_running(None)
    assert not teardown.is_running(Pinned(pid=process.pid, start_time=1))
    os.kill(process.pid, signal.SIGKILL)
    assert pids.wait_exit(os.pidfd_open(process.pid), 5)
    assert not teardown.is_running(process)  # not reaped yet
