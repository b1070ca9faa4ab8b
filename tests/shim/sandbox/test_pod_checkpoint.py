"""The Checkpoint service over a real connection; the sentry is a fake, and so is the image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protos import sandbox_checkpoint_pb2 as pb
from protos import sandbox_pb2
from runtime.base.errors import Failed
from runtime.sandbox import checkpoint
from runtime.sandbox.checkpoint_image import About, Image, SavedContainer
from runtime.sandbox.exits import ExitInfo
from runtime.task.process import Process
from shim.sandbox.service import SandboxService
from shim.service import POD_CHECKPOINT
from shim.ttrpc.errors import StatusError
from tests.fakes.sandbox import Bench
from tests.shim.sandbox.test_service import WAIT, _Shim

_UNIMPLEMENTED, _FAILED = 12, 2


class _Scene:
    """A sandbox that runs and has no members, an image that fits, and somebody who waits."""

    def __init__(self, shim: _Shim, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shim = shim
        monkeypatch.setattr(
            shim, "options", lambda *_: SimpleNamespace(pod_annotations=(), pod_checkpoint=True)
        )
        shim.adopt()
        shim.call("StartSandbox", sandbox_pb2.StartSandboxRequest(sandbox_id="c"))
        old = shim.bench.container
        old.made_with = (SimpleNamespace(generation=None), {})  # type: ignore[assignment]
        old.spec = SimpleNamespace(  # type: ignore[assignment]
            container_name="", container_type="sandbox", process=SimpleNamespace(args=["/p"]),
            mounts=(),
        )  # fmt: skip
        saved = tuple(
            SavedContainer(name=name, args=(), mounts=(), terminal=False) for name in ("", "app")
        )
        about = About(runsc="r", compression="none", containers=saved, sandbox_id="x", network=None)
        self.image = Image("/i", (), {}, about)
        self.heir = Bench()
        self.heir.container.settled.set()
        self.error: Exception | None = None
        monkeypatch.setattr(checkpoint, "load", lambda *_: self.image)
        monkeypatch.setattr(shim.pod, "delete", shim.pod._forget)
        monkeypatch.setattr(shim.pod, "create", self._create)
        monkeypatch.setattr(
            SandboxService, "_kill", lambda *_: old.init_exited(ExitInfo(status=137))
        )
        self.ends: list[int] = []
        self.waiting = threading.Event()
        ask = Process.wait

        def wait(process: Process, callback: Any) -> None:
            ask(process, callback)
            self.waiting.set()

        monkeypatch.setattr(Process, "wait", wait)
        self._waiter = threading.Thread(target=self._wait)
        self._waiter.start()
        assert self.waiting.wait(WAIT)

    def _wait(self) -> None:
        reply = self.shim.call("WaitSandbox", sandbox_pb2.WaitSandboxRequest(sandbox_id="c"))
        self.ends.append(sandbox_pb2.WaitSandboxResponse.FromString(reply).exit_status)

    def _create(self, request: Any) -> int:
        assert (request.id, request.checkpoint, request.image) == ("c", "/i", self.image)
        if self.error is not None:
            raise self.error
        self.shim.pod._containers["c"] = self.heir.container
        return 1

    def restore(self) -> bytes:
        request = pb.RestoreRequest(
            sandbox_id="c",
            checkpoint_path="/i",
            containers=[pb.RestoreContainer(id="n", name="app")],
        )
        return self.shim.client.call(
            POD_CHECKPOINT, "Restore", request.SerializeToString(), timeout=WAIT
        )

    def end(self) -> list[int]:
        self._waiter.join(WAIT)
        return self.ends

    def close(self) -> None:
        self.heir.workers.stop()


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Shim]:
    made = _Shim(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def scene(shim: _Shim, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Scene]:
    made = _Scene(shim, monkeypatch)
    yield made
    made.close()


def test_who_waits_for_the_end_waits_on(scene: _Scene) -> None:
    reply = pb.RestoreResponse.FromString(scene.restore())
    assert [(each.name, each.task_checkpoint_image) for each in reply.containers] == [("app", "")]
    assert scene.shim.state() == "SANDBOX_READY"
    assert not scene.ends
    scene.heir.container.init_exited(ExitInfo(status=7))
    assert scene.end() == [7]


def test_a_restore_that_fails_is_an_end(scene: _Scene) -> None:
    scene.error = Failed("no room")
    with pytest.raises(StatusError, match="no room") as caught:
        scene.restore()
    assert caught.value.code == _FAILED
    assert scene.end() == [137]


@pytest.mark.parametrize("method", ["Checkpoint", "Restore"])
def test_it_is_off_unless_the_operator_wants_it(shim: _Shim, method: str) -> None:
    def refusal() -> StatusError:
        message = pb.RestoreRequest(sandbox_id="c").SerializeToString()
        with pytest.raises(StatusError) as caught:
            shim.client.call(POD_CHECKPOINT, method, message, timeout=WAIT)
        assert caught.value.code == _UNIMPLEMENTED
        return caught.value

    assert POD_CHECKPOINT in str(refusal())  # nobody has made a sandbox here
    shim.adopt()
    shim.state()
    shim.options = lambda *_: SimpleNamespace(pod_checkpoint=False)  # type: ignore[method-assign]
    assert "pod_checkpoint" in str(refusal())
