"""A program is the file that it was when it was looked at, whatever its path leads to later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from runtime.base.errors import Failed
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec
from runtime.runsc import program as module
from runtime.runsc.program import Program, is_program_of, probe_program, program_of


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "true"
    shutil.copy(shutil.which("true") or "/bin/true", path)
    return path


def status(program: Program, named: Path) -> int:
    path, keep = program.to_execute(str(named))
    with spawn(SpawnSpec(path=path, argv=("x",), keep=keep)) as child:
        return os.waitstatus_to_exitcode(child.wait(20))


def replace(path: Path, source: str) -> None:
    shutil.copy(shutil.which(source) or f"/bin/{source}", path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_what_is_there_is_executed_by_its_name(binary: Path) -> None:
    program = Program(str(binary))
    assert program.to_execute(str(binary)) == (str(binary), ())
    assert status(program, binary) == 0


def test_a_file_that_was_replaced_or_removed_is_executed_still(binary: Path) -> None:
    program = Program(str(binary))
    replace(binary, "false")
    assert status(Program(str(binary)), binary) == 1
    assert status(program, binary) == 0
    binary.unlink()
    assert not program.is_at(str(binary))
    assert status(program, binary) == 0


def test_its_descriptor_goes_with_it(binary: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    program = Program(str(binary))
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    del program
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_process_tells_its_program_also_when_it_was_replaced(tmp_path: Path) -> None:
    binary = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", binary)
    with spawn(SpawnSpec(path=str(binary), argv=("sleep", "60"))) as child:
        assert is_program_of(child.pid, str(binary))
        old = binary.stat().st_ino
        replace(binary, "true")
        assert not is_program_of(child.pid, str(binary))
        assert os.stat(program_of(child.pid)).st_ino == old
        child.kill(9)
        child.wait(20)
    assert is_program_of(child.pid, str(binary)), "nothing else is known of one that has gone"


def test_a_binary_that_is_replaced_while_it_is_asked_is_asked_anew(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    times = 1

    def ask(path: str, cache: str) -> str:
        asked.append(os.stat(path).st_ino)
        if len(asked) <= times:
            replace(binary, "false")
        return "generation"

    monkeypatch.setattr(module, "probe", ask)
    _, program = probe_program(str(binary), "/nowhere")
    assert len(asked) == 2
    assert status(program, binary) == 1
    times = 100
    with pytest.raises(Failed, match="again and again"):
        probe_program(str(binary), "/nowhere")
    with pytest.raises(Failed, match="no such file"):
        probe_program("/nowhere/runsc", "/nowhere")
