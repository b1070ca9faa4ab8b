"""Checkpoint and restore on a real runsc: what was in memory and in files goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from integration.sandbox.lab import TIMEOUT, Lab, Run
from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    InvalidState,
    SandboxGone,
    Unsupported,
)
from runtime.runsc.driver import find_driver
from runtime.sandbox import checkpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")

#: Counts in memory, writes each number to an open file, and prints it.
COUNTER = "exec 3>>/tmp/log; i=0; while true; do i=$((i+1)); echo $i >&3; echo $i; sleep 0.05; done"


def _image(lab: Lab, path: Path) -> checkpoint.Image:
    driver = find_driver(lab.config(), str(lab.cache))
    return checkpoint.load(str(path), driver.generation)


def _count_to(run: Run, least: int) -> int:
    seen = 0
    while seen < least:
        line = run.line()
        assert line, "the output has ended"
        seen = int(line)
    return seen


def _save(run: Run, path: Path, exit: bool) -> None:
    checkpoint.save_sandbox(run.sandbox, str(path), exit=exit, execs=0, timeout=TIMEOUT)


def _ended(lab: Lab, run: Run) -> None:
    """It was saved and is at its end: an old sentry by itself, others are killed."""
    assert run.exit.get().status == (0 if lab.old else 137)


def _restored(lab: Lab, path: Path, name: str, **options: Any) -> Run:
    image = _image(lab, path)
    try:
        return lab.run(["sh", "-c", COUNTER], name=name, boot={"image": image}, **options)
    finally:
        image.close()


def test_a_counter_goes_on(lab: Lab) -> None:
    path = lab.folder / "images" / "one"
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    run = lab.run(["sh", "-c", COUNTER], mounts=mounts)
    seen = _count_to(run, 3)
    _save(run, path, exit=True)
    _ended(lab, run)
    last = [int(line) for line in run.read().split()]
    seen = max([seen, *last])
    lab.finish(run)
    assert sorted(os.listdir(path)) == ["checkpoint.img", "gvisor-shim.json"]
    assert (path / "checkpoint.img").stat().st_mode & 0o777 == 0o600
    again = _restored(lab, path, "two", mounts=mounts)
    first = int(again.line())
    assert first in (seen, seen + 1)
    assert _count_to(again, first + 3)
    logged = again.execute("cat", "/tmp/log")[0].split()
    assert [int(each) for each in logged][:seen] == list(range(1, seen + 1))
    assert len(again.sandbox.processes("two")) >= 1
    again.sandbox.event("two")
    again.sandbox.signal("two", signal.SIGKILL)
    assert again.exit.get().status == 137


def _saved(lab: Lab, path: Path, name: str = "one", **options: Any) -> int:
    """Save a counter and end it; the last number that it wrote."""
    run = lab.run(["sh", "-c", COUNTER], name=name, **options)
    _count_to(run, 2)
    _save(run, path, exit=True)
    _ended(lab, run)
    numbers = run.read().split()
    lab.finish(run)
    return int(numbers[-1]) if numbers else 2


def test_it_goes_on_where_it_is(lab: Lab) -> None:
    path = lab.folder / "image"
    run = lab.run(["sh", "-c", COUNTER])
    seen = _count_to(run, 2)
    if lab.old:
        with pytest.raises(Unsupported, match="must be asked to exit"):
            _save(run, path, exit=False)
        assert not path.exists()
    else:
        _save(run, path, exit=False)
        with pytest.raises(AlreadyExists):
            _save(run, path, exit=False)
        assert run.execute("true")[1].status == 0
    _count_to(run, seen + 3)


def test_paused_sandboxes_are_saved_and_stay_so(lab: Lab) -> None:
    path = lab.folder / "image"
    run = lab.run(["sh", "-c", COUNTER])
    seen = _count_to(run, 2)
    run.sandbox.pause()
    if not lab.old:
        _save(run, path, exit=False)
        assert run.sandbox.paused
        # A frozen sandbox runs no processes: what was written before is all that comes.
        os.set_blocking(run.output, False)
        time.sleep(0.3)
        while True:
            try:
                os.read(run.output, 65536)
            except BlockingIOError:
                break
        time.sleep(0.3)
        with pytest.raises(BlockingIOError):
            os.read(run.output, 65536)
        os.set_blocking(run.output, True)
        shutil.rmtree(path)
    _save(run, path, exit=True)
    _ended(lab, run)
    lab.finish(run)
    again = _restored(lab, path, "two")
    assert _count_to(again, seen + 1) > seen


@pytest.mark.parametrize("harm", ["truncated", "damaged", "empty", "pages"])
def test_harm(lab: Lab, harm: str) -> None:
    path = lab.folder / "image"
    _saved(lab, path)
    state = path / "checkpoint.img"
    data = bytearray(state.read_bytes())
    for about in (True, False):
        if harm == "truncated":
            state.write_bytes(data[: len(data) // 2])
        elif harm == "damaged":
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            state.write_bytes(data)
        elif harm == "empty":
            state.write_bytes(b"")
        elif about:
            (path / "pages.img").write_bytes(b"x")
        if about or harm in ("empty", "pages"):
            with pytest.raises(InvalidRequest, match="truncated or damaged"):
                _image(lab, path)
        else:
            # Nothing is known of it but its header; the sentry has to find out.
            began = time.monotonic()
            with pytest.raises((Failed, SandboxGone)) as caught:
                _restored(lab, path, "two")
            assert time.monotonic() - began < TIMEOUT, caught.value
        if about:
            (path / "gvisor-shim.json").unlink()


def test_an_image_of_another_generation(lab: Lab, tmp_path: Path, probed: Path) -> None:
    path = lab.folder / "image"
    other = next(each for each in ("20221219", "20240729") if each != lab.generation)
    own = find_driver(lab.config(), str(lab.cache)).generation.version
    (tmp_path / "other").mkdir()
    elsewhere = Lab(other, tmp_path / "other", probed)
    try:
        _saved(elsewhere, path)
    finally:
        elsewhere.close()
    with pytest.raises(InvalidRequest, match=rf"made by runsc .*{other}.*{re.escape(own)}"):
        _image(lab, path)
    (path / "gvisor-shim.json").unlink()
    with pytest.raises((Failed, SandboxGone)) as caught:
        _restored(lab, path, "two")
    assert "restore 'two': " in str(caught.value)


def test_images_of_runsc_itself(lab: Lab) -> None:
    path = lab.folder / "image"
    _saved(lab, path)
    (path / "gvisor-shim.json").unlink()
    again = _restored(lab, path, "two")
    assert int(again.line()) >= 2


def test_execs_keep_a_sandbox_from_being_saved(lab: Lab) -> None:
    """These sentries would make an image that none can restore."""
    if find_driver(lab.config(), str(lab.cache)).generation.saves_without_execs:
        pytest.skip("this runsc leaves execs out of an image (20260520 and later)")
    path = lab.folder / "image"
    run = lab.run(["sh", "-c", COUNTER])
    seen = _count_to(run, 2)
    with pytest.raises(InvalidState, match="running execs"):
        checkpoint.save_sandbox(run.sandbox, str(path), exit=True, execs=1, timeout=TIMEOUT)
    assert not path.exists()
    assert _count_to(run, seen + 2)
