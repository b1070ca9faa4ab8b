"""Who is forgotten by containerd goes, and nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.task.pod import Pod
from runtime.task.process import IORequest
from shim import forsaken
from shim.forsaken import PATIENCE, QUIET, Forsaken
from tests.fakes.sandbox import Bench, FakeHoldings

WAIT = 20.0


class Shim:
    """A pod whose first container and one guest have ended with their sandbox."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(forsaken.time, "monotonic", lambda: self.now)
        self.bench = Bench("root")
        self.bench.container.settled.set()
        self.pod = Pod(self.bench.context)
        self.clients, self.told, self.ended = 0, True, threading.Event()
        self.ended_as_told = threading.Event()
        monkeypatch.setattr("runtime.task.pod.create", self._create)
        self.bundle = folder / "guest"
        self.bundle.mkdir()
        self.pod._containers["root"] = self.bench.container
        self.bench.container.guests = self.pod._guests
        self.guest_holdings = FakeHoldings()
        self.guest_holdings.sandbox = self.bench.sandbox
        request: Any = type("R", (), {"id": "guest", "bundle": str(self.bundle), "io": IORequest()})
        self.pod.create(request)
        self.forsaken = Forsaken(
            self.pod,
            self.bench.reactor,  # type: ignore[arg-type]  # timers are all it needs
            self.bench.workers,
            clients=lambda: self.clients,
            told=lambda: self.told,
            end_if_wanted=self.ended_as_told.set,
            end=self.ended.set,
        )
        self.pod.on_orphans = self.forsaken.look_later
        self.guest = self.pod.container("guest")
        self.bench.run()

    def _create(self, container: Any, *_: Any) -> int:
        from runtime.task.events import TaskCreated
        from runtime.task.lifecycle import Op

        container.is_root = False
        container.holdings = self.guest_holdings
        container.init.commit(Op.CREATED, TaskCreated(container_id="guest", bundle="", pid=1), 1)
        return 1

    def delete_root(self) -> None:
        from runtime.sandbox.exits import ExitInfo

        self.guest.init_exited(ExitInfo(status=137, sentry_died=True))
        self.bench.sandbox.end(137)
        self.pod.delete("root")

    def pass_time(self, seconds: float) -> None:
        """Let timers come, and the workers end what these began."""
        self.now += seconds
        self.bench.reactor.pass_time(seconds)
        assert self.bench.workers.drain(WAIT)


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    shim = Shim(tmp_path, monkeypatch)
    yield shim
    shim.bench.workers.stop()


def test_a_guests_things_go_with_its_sandbox(shim: Shim) -> None:
    shim.delete_root()
    assert shim.guest_holdings.releases == 1
    assert shim.pod.orphans() == ["guest"]
    assert shim.pod.delete("guest")[1].status == 137, "its own delete finds its exit"
    assert shim.pod.orphans() == []


def test_an_orphan_that_nobody_can_ask_for_is_buried(shim: Shim) -> None:
    shim.delete_root()
    shim.pass_time(PATIENCE)
    assert shim.pod.all() == []
    assert not shim.bundle.exists()
    assert shim.ended.is_set()


def test_containerd_hears_of_everything_first(shim: Shim) -> None:
    shim.told = False
    shim.delete_root()
    shim.pass_time(PATIENCE)
    assert shim.pod.orphans() == ["guest"]
    shim.told = True
    shim.pass_time(PATIENCE)
    assert shim.pod.all() == []
    assert shim.ended.is_set()


def test_who_is_connected_has_longer(shim: Shim) -> None:
    shim.clients = 1
    shim.delete_root()
    shim.pass_time(PATIENCE)
    shim.pass_time(QUIET - 1)
    assert shim.pod.orphans() == ["guest"]
    shim.pass_time(PATIENCE)
    assert shim.pod.all() == []
    assert shim.ended_as_told.is_set()
    assert not shim.ended.is_set(), "somebody is there, who may make another"


def test_a_living_sandbox_is_nobodys_orphanage(shim: Shim) -> None:
    shim.forsaken.look_later()
    shim.pass_time(PATIENCE)
    assert len(shim.pod.all()) == 2
    assert not shim.ended.is_set()
    assert shim.bench.reactor.timers == [], "nothing wakes it again"


def test_an_empty_shim_ends_without_clients_only(shim: Shim) -> None:
    shim.delete_root()
    shim.pod.delete("guest")
    shim.clients = 1
    shim.pass_time(PATIENCE)
    assert not shim.ended.is_set()
    shim.clients = 0
    shim.forsaken.look_later()
    shim.pass_time(PATIENCE)
    assert shim.ended.is_set()
