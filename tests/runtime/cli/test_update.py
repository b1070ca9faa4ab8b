from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.cli import arguments, update


def resources(*words: str) -> dict[str, Any]:
    return update.resources_of(arguments.build().parse_args(["update", *words, "ID"]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1", -1),
        ("0", 0),
        ("77", 77),
        ("77b", 77),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert update.size(text, "--memory") == value


@pytest.mark.parametrize("text", ["", "x", "-2", "m", ".5m", "1.2.3", "5x", "1e5", "9" * 30, "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no size"):
        update.size(text, "--memory")


def test_options() -> None:
    found = resources(
        *("--memory", "64M", "--memory-swap", "-1", "--cpu-quota", "-1", "--cpu-period", "5000"),
        *("--cpu-share", "7", "--pids-limit", "9", "--cpuset-cpus", "0-1"),
    )
    assert found == {
        "memory": {"limit": 64 << 20, "swap": -1},
        "cpu": {"quota": -1, "period": 5000, "shares": 7, "cpus": "0-1"},
        "pids": {"limit": 9},
    }


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text('{"pids": {"limit": 5}}')
    assert resources("-r", str(path)) == {"pids": {"limit": 5}}
    with pytest.raises(InvalidRequest, match="no other option"):
        resources("-r", str(path), "--memory", "5")
    for text, why in (("{", "not JSON"), ("[]", "not an object"), ("[" * 99999, "not JSON")):
        path.write_text(text)
        with pytest.raises(InvalidRequest, match=why):
            resources("-r", str(path))
    with pytest.raises(InvalidRequest, match="no such file"):
        resources("-r", str(tmp_path / "nosuch"))


def test_nothing_to_change() -> None:
    with pytest.raises(InvalidRequest, match="a limit is wanted"):
        resources()
