"""What a container is shown of its own limits, and by which call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, SandboxGone
from runtime.bundle.spec import parse_spec
from runtime.runsc.config import RunscConfig
from runtime.runsc.control import Control
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.boot_params import BootParams
from runtime.sandbox.inner_limits import files, show
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry

METHOD = "Cgroups.WriteControlFiles"
MOUNT = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
SANDBOX = {"io.kubernetes.cri.container-type": "sandbox"}


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fake = FakeSentry.at(str(tmp_path / "s"))
    yield fake
    fake.stop()


def params(year: int = 2024, **more: Any) -> BootParams:
    value = {"process": {"args": ["a"], "cwd": "/"}, "root": {"path": "r"}, "mounts": [MOUNT]}
    return BootParams(
        id="c1",
        bundle="/b",
        spec=parse_spec(json.dumps({**value, **more}).encode(), "/b"),
        config=RunscConfig(root="/run/x"),
        driver=DirectDriver(GENERATIONS[year]),
        stdio=(0, 1, 2),
    )


def test_files() -> None:
    cpu = {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0"}
    assert files({"memory": {"limit": 7}, "cpu": cpu, "pids": {"limit": 3}}) == {
        "memory.limit_in_bytes": "7",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
        "cpu.shares": "512",
    }
    assert files({"memory": {"limit": -1}, "cpu": {"quota": -1}}) == {
        "memory.limit_in_bytes": str((1 << 63) - 1),
        "cpu.cfs_quota_us": "-1",
    }
    assert files({"memory": {"limit": 0}, "cpu": {}}) == files({}) == {}


def test_what_the_sentry_is_asked(tmp_path: Path, sentry: FakeSentry) -> None:
    control = Control(str(tmp_path / "s"), params().driver, lambda: SandboxGone(1))
    written = {"value": "", "is_error": False}
    sentry.handlers[METHOD] = lambda _: {"results": [written]}
    limits = {"cpu": {"shares": 30}}
    for silent in (params(mounts=[]), params(2022), params(annotations=SANDBOX)):
        show(control, silent, limits)
    show(control, params(), {"cpu": {"cpus": "0"}})
    assert sentry.requests == []
    show(control, params(), limits)
    asked = {"controller": "cpu", "path": "/c1", "name": "cpu.shares"}
    assert [r.argument for r in sentry.requests] == [{"args": [{"file": asked, "value": "30"}]}]
    sentry.handlers[METHOD] = lambda _: {"results": [{"value": "no such file", "is_error": True}]}
    with pytest.raises(Failed, match="cgroup of 'c1' in the sandbox: no such file"):
        show(control, params(), limits)
