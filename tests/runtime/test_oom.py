"""oom_score_adj: the policy, and single accesses to a made-up procfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import oom
from runtime.errors import Failed, InvalidRequest


@pytest.mark.parametrize(
    ("scores", "result"),
    [
        ([], 7),
        ([("", None)], 7),
        ([("", 100)], 100),
        ([("sandbox", -998), ("container", 900), ("container", 300)], 300),
        ([("sandbox", -998), ("container", None), ("container", 300)], 300),
        ([("sandbox", -998), ("container", None)], 7),
        ([("sandbox", -998)], -998),
        ([("container", 0), ("container", 5)], 0),
    ],
)
def test_sandbox_score(scores: list[tuple[str, int | None]], result: int) -> None:
    assert oom.sandbox_score(iter(scores), 7) == result


def fake_proc(base: Path, pid: str, score: str) -> str:
    (base / pid).mkdir(exist_ok=True)
    (base / pid / "oom_score_adj").write_text(score)
    return str(base)


def test_set_and_get(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "42", "0")
    oom.set_score(42, 7, proc=proc)
    assert oom.get_score(42, proc=proc) == 7


def test_a_real_process_can_be_raised() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.read(os.pipe()[0], 1)
        finally:
            os._exit(0)
    try:
        score = oom.get_score(pid)
        oom.set_score(pid, min(1000, score + 5))
        assert oom.get_score(pid) == min(1000, score + 5)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    oom.set_score(pid, 0)  # gone: no error
    with pytest.raises(Failed):
        oom.get_score(pid)


@pytest.mark.parametrize("value", [-1001, 1001])
def test_out_of_range(value: int) -> None:
    with pytest.raises(InvalidRequest):
        oom.set_score(1, value)


@pytest.mark.parametrize(("parent", "own"), [("-999", -998), ("0", 1), ("1000", 1000)])
def test_own_score(tmp_path: Path, parent: str, own: int) -> None:
    assert oom.own_score_from_parent(proc=fake_proc(tmp_path, str(os.getppid()), parent)) == own


@pytest.mark.parametrize(
    ("capabilities", "uid_map", "raises"),
    [
        ("000001ffffffffff", "0 0 4294967295", True),
        ("000001fffeffffff", "0 0 4294967295", False),
        ("000001ffffffffff", "0 1000 65536", False),
    ],
)
def test_a_refusal_is_fatal_only_to_those_who_may(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: str,
    uid_map: str,
    raises: bool,
) -> None:
    proc = fake_proc(tmp_path, "42", "0")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    (tmp_path / "self" / "uid_map").write_text(f"         {uid_map}\n")

    def refuse(descriptor: int, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "write", refuse)
    if raises:
        with pytest.raises(Failed):
            oom.set_score(42, -500, proc=proc)
    else:
        oom.set_score(42, -500, proc=proc)
