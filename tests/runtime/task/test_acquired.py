"""Giving back: every step is done whatever fails, what failed is told, and can be tried again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.state import shim_record
from runtime.task.acquired import RELEASE_TIMEOUT, Holdings


class Part:
    """Anything that is held: it can't be given back until ``broken`` is unset."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls
        self.broken: Exception | None = Failed(f"{name} is stuck")
        self.patience: list[float] = []

    def _end(self, *arguments: Any) -> None:
        self.calls.append(self.name)
        self.patience += [each for each in arguments if isinstance(each, float)]
        if self.broken is not None:
            raise self.broken

    close = cancel = remove = destroy = destroy_subcontainer = _end


NAMES = ("memory", "image", "scrape", "sandbox", "own_cgroup", "cgroup")


class Held:
    def __init__(self, folder: Path, *, owns_sandbox: bool = True) -> None:
        self.root = str(folder / "root")
        bundle = folder / "bundle"
        bundle.mkdir()
        self.calls: list[str] = []
        self.holdings = Holdings("c", str(bundle), "ns", "")
        self.holdings.root = self.root
        self.holdings.owns_sandbox = owns_sandbox
        self.parts = {name: Part(name, self.calls) for name in NAMES}
        if not owns_sandbox:
            self.parts["score"] = Part("score", self.calls)
        self.holdings.record()
        for name, part in self.parts.items():
            setattr(self.holdings, name, part)

    @property
    def recorded(self) -> bool:
        return shim_record.load(self.root, "c") is not None


@pytest.fixture(params=[True, False], ids=["sandbox", "member"])
def held(tmp_path: Path, request: pytest.FixtureRequest) -> Held:
    return Held(tmp_path, owns_sandbox=request.param)


def test_every_failure_is_told_and_stops_nothing(held: Held) -> None:
    with pytest.raises(Failed) as caught:
        held.holdings.release()
    for name in held.parts:
        assert f"{name} is stuck" in str(caught.value)
    assert sorted(held.calls) == sorted(held.parts)
    assert held.recorded, "what is left must be found by a later clean-up"


def test_a_second_try_gives_back_what_the_first_could_not(held: Held) -> None:
    with pytest.raises(Failed):
        held.holdings.release()
    held.calls.clear()
    for part in held.parts.values():
        part.broken = None
    held.holdings.release()
    assert sorted(held.calls) == sorted(held.parts)
    assert not held.recorded
    held.calls.clear()
    held.holdings.release()
    assert not {"image", "scrape", "own_cgroup", "cgroup"} & set(held.calls)


@pytest.mark.parametrize("name", NAMES)
def test_one_failure_leaves_only_that(tmp_path: Path, name: str) -> None:
    held = Held(tmp_path)
    for other, part in held.parts.items():
        part.broken = DeadlineExceeded(name, 1) if other == name else None
    with pytest.raises(Failed, match=f"{name}: no answer within 1 s"):
        held.holdings.release()
    assert held.recorded
    held.parts[name].broken = None
    held.holdings.release()
    assert not held.recorded


def test_all_together_keep_within_the_time(held: Held) -> None:
    for part in held.parts.values():
        part.broken = None
    held.holdings.release()
    assert all(
        p <= RELEASE_TIMEOUT for each in ("own_cgroup", "cgroup") for p in held.parts[each].patience
    )


def test_a_record_that_cannot_be_removed_is_tried_again(tmp_path: Path) -> None:
    held = Held(tmp_path)
    for part in held.parts.values():
        part.broken = None
    (name,) = [each for each in os.listdir(held.root) if each.endswith(".shim.json")]
    path = Path(held.root, name)
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(Failed, match="record"):
        held.holdings.release()
    (path / "in the way").rmdir()
    path.rmdir()
    path.touch()
    held.holdings.release()
    assert not path.exists()


def test_guests_go_after_the_sandbox_and_before_its_cgroup(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    host, guest = Held(tmp_path), Held(tmp_path / "g", owns_sandbox=False)
    guest.calls = host.calls
    for held in (host, guest):
        for name, part in held.parts.items():
            part.broken, part.calls = None, host.calls
            part.name = name if held is host else f"guest's {name}"
    guest.parts["own_cgroup"].broken = Failed("stuck")
    host.holdings.release([guest.holdings])
    order = [host.calls.index(each) for each in ("sandbox", "guest's own_cgroup", "cgroup")]
    assert order == sorted(order)
    assert not host.recorded, "the guest's failure is not its host's"
    assert guest.recorded
    guest.parts["own_cgroup"].broken = None
    guest.holdings.release()
    assert not guest.recorded
