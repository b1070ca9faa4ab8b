"""Scopes as cgroups: what systemd makes, what is written besides, and how they end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.cgroups import factory, remove
from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.systemd import CgroupSystemd
from runtime.host.pids import start_time
from tests.fakes.cgroupfs import V2_FILES, FakeHost
from tests.fakes.systemd import FakeSystemd

PATH = "kubepods-podX.slice:cri-containerd:c"
UNIT = "cri-containerd-c.scope"
PLACE = f"kubepods.slice/kubepods-podX.slice/{UNIT}"
LIMITS = {"memory": {"limit": 1 << 20}, "cpu": {"quota": 12345, "period": 100000}}


class Scene:
    """A host with systemd, which makes and removes the directories of scopes."""

    def __init__(self, folder: Path) -> None:
        self.host = FakeHost(str(folder), "v2")
        os.mkdir(self.host.systemd)
        self.systemd = FakeSystemd(path=f"{folder}/bus")
        self.systemd.on_call = self._act
        self.directory = Path(self.host.path, PLACE)
        self.holders: list[int] = []

    def _act(self, member: str, body: tuple[Any, ...]) -> None:
        if member == "StartTransientUnit":
            self.holders += dict(body[2])["PIDs"][1]
            if self.systemd.result == "done" and member not in self.systemd.refuse:
                self.directory.mkdir(parents=True, exist_ok=True)
                for below in ("", "kubepods.slice/", "kubepods.slice/kubepods-podX.slice/"):
                    self.host.set(f"{below}cgroup.subtree_control", " ".join(V2_FILES))
        elif member == "StopUnit" and body[0] in self.systemd.units:
            shutil.rmtree(self.directory)

    def create(self, resources: dict[str, Any] | None = None) -> Cgroup:
        return factory.create(PATH, resources or {}, root=self.host)

    def holding(self) -> list[int]:
        """The processes that hold a scope and still run."""
        return [pid for pid in self.holders if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        start_time(pid)
    except (OSError, InvalidRequest):
        return False
    return True


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    scene = Scene(tmp_path)
    yield scene
    scene.systemd.close()
    assert scene.holding() == []


def test_the_life_of_a_scope(scene: Scene) -> None:
    group = scene.create(LIMITS)
    assert isinstance(group, CgroupSystemd) and group.owned
    unit = scene.systemd.units[UNIT]
    assert unit["Slice"] == ("s", "kubepods-podX.slice")
    assert unit["MemoryMax"] == ("t", 1 << 20)
    assert unit["CPUQuotaPerSecUSec"] == ("t", 130000)
    # Exact, where systemd knows whole percents only.
    assert scene.host.get(f"{PLACE}/cpu.max") == "12345 100000"
    assert scene.host.get(f"{PLACE}/memory.max") == str(1 << 20)
    assert scene.holding() == scene.holders
    group.remove()
    assert scene.systemd.units == {} and not scene.directory.exists()
    assert scene.holding() == []
    group.remove()


def test_an_update_is_told_to_both(scene: Scene) -> None:
    group = scene.create(LIMITS)
    group.update({"memory": {"limit": 2 << 20}})
    assert scene.systemd.units[UNIT]["MemoryMax"] == ("t", 2 << 20)
    assert scene.host.get(f"{PLACE}/memory.max") == str(2 << 20)
    group.remove()


def test_what_the_kernel_refuses_is_never_told_to_systemd(scene: Scene) -> None:
    group = scene.create(LIMITS)
    scene.host.refuse[f"{PLACE}/pids.max"] = 22
    with pytest.raises(Failed):
        group.update({"memory": {"limit": 2 << 20}, "pids": {"limit": 5}})
    assert scene.systemd.units[UNIT]["MemoryMax"] == ("t", 1 << 20)
    assert scene.host.get(f"{PLACE}/memory.max") == str(1 << 20)
    group.remove()


def test_what_systemd_refuses_is_undone_in_the_files(scene: Scene) -> None:
    group = scene.create(LIMITS)
    scene.systemd.refuse["SetUnitProperties"] = "org.freedesktop.DBus.Error.InvalidArgs"
    with pytest.raises(Failed, match=UNIT):
        group.update({"memory": {"limit": 2 << 20}})
    assert scene.host.get(f"{PLACE}/memory.max") == str(1 << 20)
    group.remove()


def test_a_refused_scope_leaves_nothing(scene: Scene) -> None:
    scene.systemd.refuse["StartTransientUnit"] = "org.freedesktop.DBus.Error.AccessDenied"
    with pytest.raises(Failed, match="AccessDenied"):
        scene.create()
    scene.systemd.refuse.clear()
    scene.systemd.result = "failed"
    with pytest.raises(Failed, match="failed"):
        scene.create()
    assert scene.holding() == [] and not scene.directory.exists()


def test_a_refused_limit_leaves_nothing(scene: Scene) -> None:
    scene.host.refuse[f"{PLACE}/memory.max"] = 22
    with pytest.raises(Failed):
        scene.create(LIMITS)
    assert scene.holding() == [] and not scene.directory.exists()
    assert scene.systemd.units == {}


def test_a_scope_of_others_is_joined_and_left(scene: Scene) -> None:
    scene.directory.mkdir(parents=True)
    group = scene.create(LIMITS)
    assert not group.owned and scene.systemd.calls == []
    group.remove()
    assert scene.directory.is_dir()


def test_a_name_that_a_failed_unit_holds_is_freed(scene: Scene) -> None:
    scene.systemd.units[UNIT] = {"failed": True}
    group = scene.create()
    assert scene.systemd.members().count("StartTransientUnit") == 2
    assert group.owned
    group.remove()


def test_a_clean_up_by_the_record_alone(scene: Scene) -> None:
    planned = factory.plan(PATH, root=scene.host)
    group = scene.create()
    data = group.to_json()
    assert {**planned, "own": data["own"]} == data
    assert isinstance(factory.from_json(data, scene.host), CgroupSystemd)
    remove.remove_from_json(planned, 5)
    assert scene.systemd.units == {} and not scene.directory.exists()
    remove.remove_from_json(planned, 5)
    group.remove()


@pytest.mark.parametrize("unit", [None, 5, "a.service", "../a.scope", ""])
def test_a_record_can_stop_nothing_but_a_scope(scene: Scene, unit: object) -> None:
    data = {"own": {"": ["/sys/fs/cgroup/x"]}, "driver": "systemd", "unit": unit}
    with pytest.raises(InvalidRequest):
        remove.remove_from_json(data)
    assert scene.systemd.calls == []


def test_without_systemd_the_directory_is_made_unless_it_is_insisted_on(tmp_path: Path) -> None:
    host = FakeHost(str(tmp_path), "v2")
    with pytest.raises(Unsupported, match="systemd doesn't run"):
        factory.create(PATH, {}, systemd=True, root=host)
    group = factory.create(PATH, {}, root=host)
    assert Path(host.path, PLACE).is_dir()
    group.remove()
