"""oom_score_adj: the policy, and single accesses to a made-up procfs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cgroups import oom_score


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
    assert oom_score.sandbox_score(iter(scores), 7) == result


def fake_proc(base: Path, pid: str, score: str) -> str:
    (base / pid).mkdir(exist_ok=True)
    (base / pid / "oom_score_adj").write_text(score)
    return str(base)


def test_set_and_get(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "42", "0")
    oom_score.set_score(42, 7, proc=proc)
    assert oom_score.get_score(42, proc=proc) == 7


def test_a_real_process_can_be_raised() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.read(os.pipe()[0], 1)
        finally:
            os._exit(0)
    try:
        score = oom_score.get_score(pid)
        oom_score.set_score(pid, min(1000, score + 5))
        assert oom_score.get_score(pid) == min(1000, score + 5)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    oom_score.set_score(pid, 0)  # gone: no error
    assert oom_score.get_score(pid) is None  # nor is that


@pytest.mark.parametrize("value", [-1001, 1001])
def test_out_of_range(value: int) -> None:
    with pytest.raises(InvalidRequest):
        oom_score.set_score(1, value)


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
            oom_score.set_score(42, -500, proc=proc)
    else:
        oom_score.set_score(42, -500, proc=proc)


class Sentry:
    def __init__(self, base: Path, start: int) -> None:
        self.base, self.alive = base, True
        self.proc = fake_proc(base, "42", str(start))
        self.score = oom_score.SentryScore(42, start, lambda: self.alive, proc=self.proc)

    @property
    def value(self) -> int:
        return oom_score.get_score(42, proc=self.proc)


def test_a_sentrys_score_follows_its_containers(tmp_path: Path) -> None:
    sentry = Sentry(tmp_path, 7)
    score = sentry.score
    score.add("pause", "sandbox", None)
    assert sentry.value == 7
    score.add("a", "container", 900)
    assert sentry.value == 900
    score.add("b", "container", 300)
    assert sentry.value == 300
    score.remove("b")
    assert sentry.value == 900
    score.remove("a")
    assert sentry.value == 7  # the original
    score.remove("a")
    score.remove("pause")
    assert sentry.value == 7


def test_what_the_pause_container_asks_for_holds_while_it_is_alone(tmp_path: Path) -> None:
    sentry = Sentry(tmp_path, 7)
    sentry.score.add("pause", "sandbox", -998)
    sentry.score.add("a", "container", 500)
    assert sentry.value == 500
    sentry.score.remove("a")
    assert sentry.value == -998


def test_a_number_that_may_be_anothers_is_left_alone(tmp_path: Path) -> None:
    sentry = Sentry(tmp_path, 7)
    sentry.score.add("a", "container", 900)
    sentry.alive = False
    sentry.score.add("b", "container", 300)
    assert sentry.value == 900


def test_containers_that_come_and_go_at_once_leave_the_lowest(tmp_path: Path) -> None:
    sentry = Sentry(tmp_path, 7)
    sentry.score.add("pause", "sandbox", None)
    sentry.score.add("stays", "container", 555)
    gate = threading.Barrier(8)

    def churn(number: int) -> None:
        gate.wait(5)
        for _ in range(50):
            sentry.score.add(f"c{number}", "container", 100 + number)
            sentry.score.remove(f"c{number}")

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sentry.value == 555
