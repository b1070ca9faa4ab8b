"""A container that is served and one that is known from its files: the same rules for both."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.bundle.capabilities import NET_RAW, Capabilities
from runtime.host.reactor import Reactor
from runtime.runsc.config import RunscConfig
from runtime.runsc.control import ContainerState
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.boot_params import BootParams
from runtime.sandbox.prepare_spec import exec_capabilities
from runtime.sandbox.sandbox import Sandbox
from runtime.sandbox.signals import Effect, effect
from runtime.state.runsc_state import RunscState
from runtime.task.attach import AdoptedSandbox
from tests.fakes.generations import GENERATIONS
from tests.fakes.sandbox import TRUE, Bench
from tests.runtime.runsc.test_driver import make_spec
from tests.runtime.state.test_loaded import Scene

STATES = ("created", "running", "paused")
SIGNALS = (0, signal.SIGTERM, signal.SIGKILL, signal.SIGCHLD)
NULL = (-1, -1, -1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def live(state: str, signo: int, is_root: bool) -> Effect:
    """What a container that is served does, as seen at its sandbox."""
    bench = Bench()
    bench.container.is_root = is_root
    ended: list[str] = []
    bench.sandbox.abandon = ended.append  # type: ignore[attr-defined]
    if not is_root:
        bench.sandbox.start_subcontainer = lambda *_: None  # type: ignore[attr-defined]
        bench.sandbox.wait_container = lambda *_: None  # type: ignore[attr-defined]
    resumed: list[bool] = []
    bench.container.killing.thaw = lambda: resumed.append(True)
    if state != "created":
        bench.run()
    bench.sandbox.paused = state == "paused"
    bench.container.kill("", signo, False)
    assert bench.workers.drain(5)
    if bench.sandbox.killed.is_set():
        return Effect.END_SANDBOX
    if ended:
        return Effect.END_CONTAINER
    if not bench.sandbox.signals:
        return Effect.NOTHING
    return Effect.DELIVER_AND_RESUME if resumed else Effect.DELIVER


def stored(scene: Scene, state: str, signo: int, is_root: bool) -> Effect:
    """The same of one that is known from its files."""
    asked = scene.answer("containerManager.Signal")
    ended = scene.answer("containerManager.DestroySubcontainer")
    resumed = scene.answer("Lifecycle.Resume")
    scene.verdict = {"created": 1, "running": 2, "paused": 2}[state]
    name = "c1" if is_root else "c2"
    scene.load(name, status=state).signal(signo)
    if scene.process.poll() is not None:
        return Effect.END_SANDBOX
    if ended:
        return Effect.END_CONTAINER
    if not asked:
        return Effect.NOTHING
    return Effect.DELIVER_AND_RESUME if resumed else Effect.DELIVER


RAW = Capabilities(bounding=NET_RAW | 1, effective=NET_RAW | 1, permitted=NET_RAW | 1)
CHILD = TRUE.replace(capabilities=RAW)


@pytest.mark.parametrize(
    ("given", "own", "flags", "raw"),
    [
        (RAW, RAW.without(NET_RAW), {}, False),
        (RAW, RAW, {}, True),
        (RAW, RAW.without(NET_RAW), {"net-raw": "true"}, True),
        (RAW, RAW, {"net-raw": "false"}, False),
        (None, RAW, {"net-raw": "false"}, True),
        (None, None, {}, False),
    ],
)
def test_an_exec_has_raw_sockets_where_its_container_has(
    given: Capabilities | None,
    own: Capabilities | None,
    flags: dict[str, str],
    raw: bool,
) -> None:
    spec = make_spec()
    spec = spec.replace(process=spec.process.replace(capabilities=own))
    found = exec_capabilities(given, spec, flags)
    assert bool(found and found.bounding & NET_RAW) is raw


@pytest.fixture
def served(scene: Scene) -> Iterator[Sandbox]:
    """The scene's sandbox, as the process has it that serves its containers."""
    found = scene.load()
    params = BootParams(
        id="c1",
        bundle=str(scene.bundle),
        spec=found.spec,
        config=RunscConfig(root=str(scene.root)),
        driver=DirectDriver(GENERATIONS[2022]),
        stdio=NULL,
    )
    context: Any = SimpleNamespace(reactor=Reactor())
    sandbox = AdoptedSandbox.adopt(found, params, context)
    yield sandbox
    sandbox.close()
    context.reactor.stop()


def test_no_side_gives_raw_sockets_that_the_container_lacks(scene: Scene, served: Sandbox) -> None:
    asked = scene.answer("containerManager.ExecuteAsync", 7)
    null = os.open(os.devnull, os.O_RDWR)
    assert served.execute("c1", CHILD, (null,) * 3, False, time.monotonic() + 10) == 7
    assert scene.load().execute(CHILD, (null,) * 3, False) == 7
    os.close(null)
    given = [each["Capabilities"]["BoundingCaps"] for each in asked]
    assert given == [RAW.bounding & ~NET_RAW] * 2


@pytest.mark.parametrize("verdict", [1, 2, 3])
def test_what_was_created_and_not_started_is_created(
    scene: Scene, served: Sandbox, verdict: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old sentry says that an init has ended which is yet to come."""
    monkeypatch.setattr(RunscState, "is_old", True)
    scene.verdict = verdict
    live = {ContainerState.CREATING: "created", ContainerState.RUNNING: "running"}
    assert live[served.state("c1")] == scene.load(status="created").status()


@pytest.mark.parametrize("is_root", [True, False])
@pytest.mark.parametrize("signo", SIGNALS)
@pytest.mark.parametrize("state", STATES)
def test_a_signal_does_the_same(scene: Scene, state: str, signo: int, is_root: bool) -> None:
    wanted = effect(signo, created=state == "created", paused=state == "paused", is_root=is_root)
    assert live(state, signo, is_root) is wanted
    assert stored(scene, state, signo, is_root) is wanted
