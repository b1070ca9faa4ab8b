"""What ``top`` draws."""

from __future__ import annotations

import re
from typing import Any

import pytest

from runtime.cli.insight import screen
from runtime.cli.insight.screen import fit, render, totals, width_of


def line(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "k8s.io",
        "status": "running",
        "cpuPercent": 1.0,
        "memory": 20 << 20,
        "memoryLimit": None,
        "pids": 2,
        "containers": 2,
        "gofers": 2,
        "goferRestarts": 0,
        "oomScoreAdj": -998,
        "cgroup": f"/kubepods/burstable/pod{'0' * 32}/{name}",
        **changes,
    }


PODS = [
    line("shop/web", cpuPercent=95.0),
    line("shop/db", memory=90 << 20, memoryLimit=100 << 20),
    line("shop/new", cpuPercent=None, memory=None, pids=None, status="stopped"),
]


def plain(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in lines]


@pytest.mark.parametrize("width", [20, 40, 62, 80, 100, 130, 250])
@pytest.mark.parametrize("height", [3, 5, 7, 8, 24])
def test_it_fits(width: int, height: int) -> None:
    text = plain(
        render(PODS * 4, "cpu", width, height, colour=True, title="top", notes=["n" * 300])
    )
    assert len(text) <= height
    if width >= 40:
        assert all(width_of(each) <= width for each in text), text


def test_the_columns_that_matter_most_stay() -> None:
    wide = plain(render(PODS, "cpu", 250, 24, colour=False))[1].split()
    assert wide[0] == "POD" and wide[-1] == "CGROUP" and "CPU%▾" in wide
    narrow = plain(render(PODS, "memory", 50, 24, colour=False))[1].split()
    assert narrow[0] == "POD" and {"CPU%", "MEMORY▾"} <= set(narrow) and "CGROUP" not in narrow


def test_pods_that_have_no_room_are_counted() -> None:
    text = plain(render([line(f"p{n}") for n in range(20)], "pod", 100, 10, colour=False))
    assert len(text) == 10 and "… and 15 more" in text[-3]
    assert text[-1].split()[:2] == ["20", "pods"]


def test_totals() -> None:
    found = totals(PODS)
    assert (found["name"], found["status"]) == ("3 pods", "2 running")
    assert (found["cpuPercent"], found["memory"], found["pids"]) == (96.0, 110 << 20, 4)
    assert totals([])["cpuPercent"] is None


@pytest.mark.parametrize(
    ("order", "first"), [("cpu", "shop/web"), ("memory", "shop/db"), ("pod", "shop/db")]
)
def test_orders(order: str, first: str) -> None:
    text = plain(render(PODS, order, 130, 24, colour=False))
    assert text[2].split()[0] == first


def test_colours_say_what_is_near_its_limit() -> None:
    text = render(PODS, "cpu", 200, 24, colour=True)
    (web,) = [each for each in text if "shop/web" in each]
    (db,) = [each for each in text if "shop/db" in each]
    assert re.search(r"\x1b\[31m *95\.0\x1b\[0m", web)
    assert re.search(r"\x1b\[31m *90\.0 MiB\x1b\[0m", db)
    assert not any("\x1b" in each for each in render(PODS, "cpu", 200, 24, colour=False))


def test_a_name_does_not_drive_the_terminal() -> None:
    text = "".join(render([line("evil\x1b[2J\n")], "cpu", 200, 24, colour=False))
    assert "\x1b" not in text and "\n" not in text


def test_wide_letters() -> None:
    assert width_of("日本") == 4 and width_of("é") == 1
    assert fit("日本語", 4) == "日… " and fit("ab", 4, right=True) == "  ab"


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert screen.has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not screen.has_colours()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not screen.has_colours()
