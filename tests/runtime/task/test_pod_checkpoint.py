"""Checkpoints of tasks: their states meanwhile, the order of events, and who is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidState, RuntimeFault, SandboxGone, Unsupported
from runtime.bundle.spec import parse_spec
from runtime.runsc.config import RunscConfig
from runtime.runsc.control import Control
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.boot_params import BootParams
from runtime.task.events import TaskCheckpointed, TaskExited, TaskResumed
from runtime.task.lifecycle import State
from runtime.task.pod import Pod
from runtime.task.process import Exit
from tests.fakes.generations import GENERATIONS
from tests.fakes.sandbox import Bench
from tests.fakes.sentry import FakeSentry, SentryError

CALL = "containerManager.Checkpoint"


class Scene:
    """A pod of one running container, and its sentry."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "image"
        self.sentry = FakeSentry.at(str(folder / "s"))
        self.sentry.handlers[CALL] = lambda _: {}
        for method in ("ContainerRuntimeState", "Pause", "Resume"):
            self.sentry.handlers[f"containerManager.{method}"] = lambda _: 0
        self.sentry.written[CALL] = b"gVisorSF"
        self.bench = Bench()
        self.container = self.bench.container
        self.container.settled.set()
        self.sandbox = self.bench.sandbox
        driver = DirectDriver(GENERATIONS[2024])
        self.sandbox.control = Control(str(folder / "s"), driver, lambda: SandboxGone(1))
        value = b'{"process":{"args":["x"]},"root":{"path":"/x"}}'
        self.sandbox.params = [
            BootParams(
                id="c",
                bundle="/b",
                spec=parse_spec(value, "/b"),
                config=RunscConfig(root="/r"),
                driver=driver,
                stdio=(0, 1, 2),
            )
        ]
        self.pod = Pod(self.bench.context)
        self.adopt(self.bench)

    def adopt(self, bench: Bench) -> None:
        holdings: Any = bench.holdings
        holdings.sandbox = self.sandbox
        self.pod._containers[bench.container.id] = bench.container

    def save(self, exit: bool = False) -> None:
        self.pod.checkpoint("c", str(self.path), exit=exit, timeout=5)

    def save_later(self, exit: bool = False) -> tuple[threading.Thread, list[RuntimeFault]]:
        """A checkpoint that is under way in the sentry when this returns."""
        self.sentry.gates[CALL] = threading.Event()
        faults: list[RuntimeFault] = []

        def act() -> None:
            try:
                self.save(exit)
            except RuntimeFault as fault:
                faults.append(fault)

        thread = threading.Thread(target=act)
        thread.start()
        while CALL not in self.sentry.methods():
            assert thread.is_alive()
            thread.join(0.01)
        return thread, faults


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.sentry.stop()
    assert scene.bench.workers.drain(5)
    scene.bench.workers.stop()


@pytest.mark.parametrize("paused", [False, True])
def test_it_is_as_it_was(scene: Scene, paused: bool) -> None:
    scene.bench.run()
    if paused:
        scene.pod.pause("c")
    before = scene.container.init.state
    thread, faults = scene.save_later()
    within = State.CHECKPOINTING_PAUSED if paused else State.CHECKPOINTING
    assert scene.container.init.snapshot().state is within
    for action in (scene.pod.pause, scene.pod.resume, scene.pod.delete):
        with pytest.raises(InvalidState):
            action("c")
    scene.sentry.gates[CALL].set()
    thread.join(5)
    assert not faults
    assert scene.container.init.state is before
    last = scene.bench.events[-1]
    assert last == TaskCheckpointed(container_id="c", path=str(scene.path))
    assert scene.bench.holdings.statuses[-1] == ("paused" if paused else "running")
    assert (scene.path / "checkpoint.img").read_bytes() == b"gVisorSF"


def test_a_failure_is_told_and_changes_nothing(scene: Scene) -> None:
    scene.bench.run()

    def fail(_: object) -> None:
        raise SentryError("disk is full")

    scene.sentry.handlers[CALL] = fail
    with pytest.raises(Failed, match="disk is full"):
        scene.save()
    assert scene.container.init.state is State.RUNNING
    assert "TaskCheckpointed" not in scene.bench.names()
    assert not scene.path.exists()


def test_an_exit_that_it_causes_comes_after_it(scene: Scene) -> None:
    scene.bench.run()
    thread, faults = scene.save_later(exit=True)
    ended: list[Exit] = []
    scene.container.init.wait(ended.append)
    assert not scene.sandbox.killed.is_set()
    scene.sentry.gates[CALL].set()
    thread.join(5)
    assert not faults
    assert scene.sandbox.killed.is_set()
    assert [type(e) for e in scene.bench.events[-2:]] == [TaskCheckpointed, TaskExited]
    assert [each.status for each in ended] == [0]


def test_an_exit_of_its_own_is_told_after_it_as_well(scene: Scene) -> None:
    scene.bench.run()
    thread, faults = scene.save_later()
    scene.sandbox.end(3)
    assert scene.container.init.exit is None
    scene.sentry.gates[CALL].set()
    thread.join(5)
    assert not faults
    assert [type(e) for e in scene.bench.events[-2:]] == [TaskCheckpointed, TaskExited]
    assert scene.container.init.exit == scene.container.init.snapshot().exit is not None


def test_a_failure_with_exit_ends_nothing(scene: Scene) -> None:
    scene.bench.run()

    def fail(_: object) -> None:
        raise SentryError("endpoint cannot be saved in connected state")

    scene.sentry.handlers[CALL] = fail
    with pytest.raises(Failed, match="connected state"):
        scene.save(exit=True)
    assert not scene.sandbox.killed.is_set()
    scene.container.kill("", 9, False)
    scene.sandbox.end(137, sentry_died=True)
    assert scene.container.init.exit is not None
    assert scene.container.init.exit.status == 137


def test_a_kill_gets_through(scene: Scene) -> None:
    scene.bench.run()
    thread, faults = scene.save_later()
    scene.container.kill("", 9, True)
    assert scene.sandbox.killed.is_set()
    scene.sentry.dropped.add(CALL)
    scene.sentry.gates[CALL].set()
    thread.join(5)
    assert [type(each) for each in faults] == [SandboxGone]
    assert scene.container.init.state is State.STOPPED
    assert scene.bench.names()[-1] == "TaskExited"
    assert not scene.path.exists()


def test_a_pod_is_saved_as_a_whole(scene: Scene) -> None:
    other, ended = Bench("d"), Bench("e")
    for each in (other, ended):
        scene.adopt(each)
        each.container.is_root = False
    scene.bench.run()
    with pytest.raises(InvalidState, match="'d' in state created"):
        scene.save()
    other.run()
    ended.run()
    ended.sandbox.end(0)
    thread, faults = scene.save_later()
    assert other.container.init.state is State.CHECKPOINTING
    scene.sentry.gates[CALL].set()
    thread.join(5)
    assert not faults
    assert other.container.init.state is State.RUNNING
    # The named one's event only; and the sentry doesn't save one that has ended.
    assert "TaskCheckpointed" not in other.names()
    assert scene.sandbox.forgotten == ["e"]
    for each in (other, ended):
        each.workers.stop()


def test_what_cannot_be_saved(scene: Scene) -> None:
    with pytest.raises(InvalidState, match="in state created"):
        scene.save()
    scene.bench.run()
    scene.sandbox.network = "host"
    with pytest.raises(Unsupported, match="host's network"):
        scene.save()
    scene.sandbox.network = "sandbox"
    scene.sandbox.restoring = True
    with pytest.raises(InvalidState, match="being restored"):
        scene.save()
    with pytest.raises(InvalidState, match="being restored"):
        scene.pod.pause("c")
    scene.sandbox.restoring = False
    scene.sandbox.end(0)
    with pytest.raises(InvalidState, match="in state stopped"):
        scene.save()
    assert CALL not in scene.sentry.methods()


@pytest.mark.parametrize("signo", [15, 9])
def test_a_signal_ends_what_is_half_restored(scene: Scene, signo: int) -> None:
    scene.bench.run()
    scene.sandbox.restoring = True
    scene.container.kill("", 0, False)
    assert not scene.sandbox.killed.is_set()
    scene.container.kill("", signo, False)
    assert scene.sandbox.killed.is_set()
    assert scene.container.init.exit is not None
    assert scene.container.init.exit.status == 128 + signo


def test_sigkill_of_a_paused_member_resumes_its_siblings(scene: Scene) -> None:
    scene.bench.run()
    sibling = Bench("d")
    sibling.run()
    scene.adopt(sibling)
    scene.container.is_root = False
    scene.container.killing.thaw = lambda: scene.pod.resume("c")
    scene.pod.pause("c")
    assert sibling.container.init.state is State.PAUSED
    scene.container.kill("", 9, False)
    assert scene.bench.workers.drain(5)
    assert sibling.container.init.state is State.RUNNING
    assert sibling.holdings.statuses[-1] == "running"
    assert sibling.events[-1] == TaskResumed(container_id="d")
    assert sibling.workers.drain(5)
    sibling.workers.stop()
