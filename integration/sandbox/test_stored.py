"""Containers that runsc itself made, known from their state files and driven without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.runsc import Runsc
from integration.sandbox.lab import Lab
from runtime.base.errors import Failed, InvalidState, Unsupported
from runtime.bundle.process_spec import ProcessSpec
from runtime.state.loaded import StoredContainer


def tagged(name: str) -> str:
    """An id for ``name``: old releases have control sockets that are the whole machine's."""
    return f"{name}-{os.getpid()}"


class Place:
    """runsc's commands, and what they made as the library sees it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.root = lab.folder / "root"
        self.runsc = Runsc(lab.generation, self.root)

    def make(self, name: str, *command: str, start: bool = True) -> StoredContainer:
        readonly = {"path": str(self.lab.rootfs), "readonly": True}
        bundle = self.lab.bundle(name, list(command), root=readonly)
        self.runsc.ok("create", "--bundle", bundle, tagged(name), output=False)
        if start:
            self.runsc.ok("start", tagged(name), output=False)
        return StoredContainer.load(str(self.root), tagged(name))

    def left(self) -> list[str]:
        return os.listdir(self.root)


@pytest.fixture
def place(lab: Lab) -> Iterator[Place]:
    place = Place(lab)
    yield place
    found, problems = StoredContainer.list(str(place.root))
    for container in found:
        container.destroy(force=True)
    assert not problems


def output_of(container: StoredContainer, *command: str) -> tuple[str, int]:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        spec = ProcessSpec(args=command, env=("PATH=/bin",))
        pid = container.execute(spec, (null, writer, writer), False)
        os.close(writer)
        writer = -1
        with open(reader, closefd=False) as file:
            return file.read(), container.wait_pid(pid, 10)
    finally:
        for fd in (reader, writer, null):
            if fd >= 0:
                os.close(fd)


def test_from_creation_to_destruction(place: Place) -> None:
    container = place.make("one", "sleep", "1000", start=False)
    assert container.status() == "created"
    assert container.oci_state()["pid"] == container.sandbox_pid > 0
    assert container.gofer_pid > 0
    with pytest.raises(
        InvalidState, match=r'cannot get processes of container "one-\d+" in state cr'
    ):
        container.processes()
    place.runsc.ok("start", tagged("one"), output=False)
    container = StoredContainer.load(str(place.root), "o")
    assert container.status() == "running"
    assert [process.command for process in container.processes()] == ["sleep"]
    assert output_of(container, "sh", "-c", "echo here; exit 5") == ("here\n", 5)
    with pytest.raises(InvalidState, match=r'cannot delete container "one-\d+" in state running'):
        container.destroy()
    with container.open_wait() as end:
        container.signal(15)
        assert end.result(10) == 143
    assert container.status() == "stopped" and container.sandbox_pid == -1
    container.destroy()
    assert place.left() == []
    container.destroy()
    assert place.left() == []


def test_what_can_be_asked(place: Place) -> None:
    container = place.make("one", "sleep", "1000")
    usage = container.usage(full=True)
    assert usage.anonymous > 0 and usage.total > usage.anonymous
    with container.usage_fd() as files:
        assert files.read().total > 0
    container.reduce(wait=True)
    assert "goroutine" in container.stacks()
    metrics = container.event()
    assert metrics.pids == 1 and metrics.memory.usage > 0
    assert all(path.endswith("/" + tagged("one")) for path in container.cgroup_paths.values())
    # There is no network to forward into; old releases don't know of it at all.
    with pytest.raises((Unsupported, Failed)):
        container.port_forward(80, 0)
    assert container.status() == "running"


def test_a_signal_for_a_process_group(place: Place) -> None:
    """Each of its processes gets it, where the sentry knows of such signals."""
    script = "trap : USR1; sleep 1000; while :; do sleep 0.05; done"
    container = place.make("one", "sh", "-c", script)

    def sleepers() -> list[int]:
        return [each.pid for each in container.processes() if each.command == "sleep"]

    first = until(sleepers, 5, "a sleeper")
    assert container.stored is not None
    if container.stored.release < 20260413:
        with pytest.raises(Unsupported, match="can't signal process groups"):
            container.signal_process_group(1, signal.SIGUSR1)
        assert sleepers() == first
    else:
        container.signal_process_group(1, signal.SIGUSR1)
        until(lambda: first[0] not in sleepers(), 10, "the sleeper has ended")
    assert container.status() == "running"


def test_pause_is_seen_by_runsc_and_the_other_way_round(place: Place) -> None:
    container = place.make("one", "sleep", "1000")
    container.pause()
    assert place.runsc.status(tagged("one")) == container.status() == "paused"
    place.runsc.ok("resume", tagged("one"))
    assert container.reload().status() == "running"
    place.runsc.ok("pause", tagged("one"))
    container = container.reload()
    assert container.status() == "paused"
    container.resume()
    assert place.runsc.status(tagged("one")) == "running"


def test_signals_reach_one_or_all(place: Place) -> None:
    script = "trap 'exit 3' TERM; sleep 1000; while :; do sleep 0.05; done"
    container = place.make("one", "sh", "-c", script)
    sleeper = until(
        lambda: [p.pid for p in container.processes() if p.command == "sleep"], 5, "a sleeper"
    )
    container.signal_process(sleeper[0], 9)
    with container.open_wait() as end:
        container.signal(15)
        assert end.result(10) == 3
    other = place.make("two", "sleep", "1000")
    with other.open_wait() as end:
        other.signal(9, everyone=True)
        assert end.result(10) == 137


def test_a_created_container_can_be_killed(place: Place) -> None:
    container = place.make("one", "sleep", "1000", start=False)
    container.signal(15)
    assert container.status() == "stopped"
    container.destroy()
    assert place.left() == []


def test_two_of_one_bundle_are_apart(place: Place) -> None:
    place.make("one", "sleep", "1000")
    bundle = str(Path(place.lab.folder, "one"))
    place.runsc.ok("create", "--bundle", bundle, tagged("two"), output=False)
    StoredContainer.load(str(place.root), tagged("two")).destroy(force=True)
    container = StoredContainer.load(str(place.root), tagged("one"))
    assert output_of(container, "echo", "alive") == ("alive\n", 0)
