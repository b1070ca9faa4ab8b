"""The Sandbox service over a real connection, in every order of calls; the sentry is a fake."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protos import sandbox_pb2 as pb
from runtime.base.errors import Failed
from runtime.host import forward_program
from runtime.host.workers import Workers
from runtime.sandbox.exits import ExitInfo
from runtime.task.pod import Pod
from shim.bundles import Bundles
from shim.sandbox.service import SandboxService
from shim.service import SANDBOX, TaskService
from shim.ttrpc.client import Client
from shim.ttrpc.errors import StatusError, TtrpcError
from shim.ttrpc.server import Server
from tests.fakes.sandbox import Bench

WAIT = 20.0
_INVALID, _NOT_FOUND, _EXISTS, _PRECONDITION, _UNIMPLEMENTED = 3, 5, 6, 9, 12


class _Shim:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle = tmp_path / "bundle"
        self.bundle.mkdir()
        self.bench = Bench()
        self.bench.container.settled.set()
        self.stopped = threading.Event()
        self.pod = Pod(self.bench.context)
        monkeypatch.setattr("runtime.task.pod.create", lambda *_: 4711)
        monkeypatch.setattr(forward_program, "FOLDERS", (str(tmp_path / "inside"),))
        service = TaskService(
            self.pod,
            options=lambda *given: self.options(*given),
            metrics=lambda figures: ("m", b"x"),
            shutdown=self.stopped.set,
            bundles=Bundles("unix:///run/s/1"),
            sandbox=lambda: SandboxService(
                self.pod,
                options=lambda *given: self.options(*given),
                metrics=lambda figures: ("m", b"x"),
                shutdown=self.stopped.set,
            ),
        )
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        self.workers = Workers()
        self.server = Server(listener, service.handle, submit=self.workers.submit_now)
        self.server.start()
        self.client = Client(str(tmp_path / "s"))

    @staticmethod
    def options(*_: object) -> Any:
        return SimpleNamespace(pod_annotations=(), pod_checkpoint=False)

    def adopt(self) -> None:
        """Put the bench's container, which is created, into the pod as the sandbox."""
        self.pod._containers["c"] = self.bench.container

    def call(self, method: str, message: Any) -> bytes:
        return self.client.call(SANDBOX, method, message.SerializeToString(), timeout=WAIT)

    def refusal(self, method: str, message: Any) -> tuple[int, str]:
        with pytest.raises(StatusError) as caught:
            self.call(method, message)
        return caught.value.code, str(caught.value)

    def state(self) -> str:
        reply = self.call("SandboxStatus", pb.SandboxStatusRequest(sandbox_id="c"))
        return pb.SandboxStatusResponse.FromString(reply).state

    def close(self) -> None:
        self.client.close()
        self.server.stop(1)
        self.workers.stop()
        self.bench.workers.stop()


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Shim]:
    made = _Shim(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("StartSandbox", pb.StartSandboxRequest(sandbox_id="c")),
        ("Platform", pb.PlatformRequest(sandbox_id="c")),
        ("StopSandbox", pb.StopSandboxRequest(sandbox_id="c")),
        ("WaitSandbox", pb.WaitSandboxRequest(sandbox_id="c")),
        ("SandboxStatus", pb.SandboxStatusRequest(sandbox_id="c")),
        ("PingSandbox", pb.PingRequest(sandbox_id="c")),
        ("SandboxMetrics", pb.SandboxMetricsRequest(sandbox_id="c")),
    ],
)
def test_a_sandbox_that_is_not_there(shim: _Shim, method: str, message: Any) -> None:
    code, text = shim.refusal(method, message)
    assert code == _NOT_FOUND and "'c'" in text
    assert not shim.stopped.is_set()


def test_shutdown_ends_a_shim_that_has_none(shim: _Shim) -> None:
    """As after a CreateSandbox that failed."""
    shim.call("ShutdownSandbox", pb.ShutdownSandboxRequest(sandbox_id="c"))
    assert shim.stopped.wait(WAIT)


def test_create_writes_a_bundle(shim: _Shim) -> None:
    request = pb.CreateSandboxRequest(sandbox_id="s1", bundle_path=str(shim.bundle))
    shim.call("CreateSandbox", request)
    assert {each.name for each in shim.bundle.iterdir()} == {
        "config.json", "hostname", "hosts", "resolv.conf", "shm",
    }  # fmt: skip
    before = (shim.bundle / "config.json").stat().st_ino
    assert shim.refusal("CreateSandbox", request)[0] == _EXISTS
    assert (shim.bundle / "config.json").stat().st_ino == before


@pytest.mark.parametrize("fails", [True, False])
def test_a_creation_whose_client_is_gone(
    shim: _Shim, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Nobody will shut it down: what was made is deleted, and the shim ends by itself."""
    begun, go_on = threading.Event(), threading.Event()

    def create(*_: object) -> int:
        begun.set()
        assert go_on.wait(WAIT)
        if fails:
            raise Failed("abandoned")
        return 4711

    monkeypatch.setattr("runtime.task.pod.create", create)
    monkeypatch.setattr(shim.pod, "delete", lambda ident: shim.pod._forget(ident))
    request = pb.CreateSandboxRequest(sandbox_id="s1", bundle_path=str(shim.bundle))

    def ask() -> None:
        with suppress(TtrpcError):
            shim.call("CreateSandbox", request)

    waiter = threading.Thread(target=ask)
    waiter.start()
    assert begun.wait(WAIT)
    shim.client.close()
    waiter.join(WAIT)
    deadline = time.monotonic() + WAIT
    while shim.server.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not shim.stopped.is_set()
    go_on.set()
    assert shim.stopped.wait(WAIT) and not shim.pod.all()


def test_what_create_refuses(shim: _Shim) -> None:
    for request, words in (
        (pb.CreateSandboxRequest(sandbox_id="../x", bundle_path="/b"), "sandbox id"),
        (pb.CreateSandboxRequest(sandbox_id="s1", bundle_path="b"), "absolute"),
        (
            pb.CreateSandboxRequest(
                sandbox_id="s1", bundle_path="/b", options={"type_url": "a.b.C", "value": b"x"}
            ),
            "a.b.C",
        ),
    ):
        code, text = shim.refusal("CreateSandbox", request)
        assert code == _INVALID and words in text
    assert not shim.pod.all()


def test_from_start_to_end(shim: _Shim) -> None:
    shim.adopt()
    assert shim.state() == "SANDBOX_NOTREADY"
    reply = shim.call("StartSandbox", pb.StartSandboxRequest(sandbox_id="c"))
    assert pb.StartSandboxResponse.FromString(reply).pid == shim.bench.sandbox.pid
    assert shim.state() == "SANDBOX_READY"
    assert shim.refusal("StartSandbox", pb.StartSandboxRequest(sandbox_id="c"))[0] == (
        _PRECONDITION
    )
    platform = pb.PlatformResponse.FromString(
        shim.call("Platform", pb.PlatformRequest(sandbox_id="c"))
    ).platform
    assert (platform.os, platform.architecture in ("amd64", "arm64")) == ("linux", True)
    shim.call("PingSandbox", pb.PingRequest(sandbox_id="c"))


def test_a_sandbox_that_ends_by_itself(shim: _Shim) -> None:
    """Whoever waits is told, and so is who asks later; to stop it is no error."""
    shim.adopt()
    shim.call("StartSandbox", pb.StartSandboxRequest(sandbox_id="c"))
    replies: list[bytes] = []
    request = pb.WaitSandboxRequest(sandbox_id="c")
    waiter = threading.Thread(target=lambda: replies.append(shim.call("WaitSandbox", request)))
    waiter.start()
    shim.bench.container.init_exited(ExitInfo(status=137))
    waiter.join(WAIT)
    replies.append(shim.call("WaitSandbox", request))
    assert [pb.WaitSandboxResponse.FromString(each).exit_status for each in replies] == [137, 137]
    assert shim.state() == "SANDBOX_NOTREADY"
    shim.call("StopSandbox", pb.StopSandboxRequest(sandbox_id="c"))
    shim.call("PingSandbox", pb.PingRequest(sandbox_id="c"))
    assert shim.refusal("StartSandbox", pb.StartSandboxRequest(sandbox_id="c"))[0] == (
        _PRECONDITION
    )


def test_an_unknown_method(shim: _Shim) -> None:
    assert shim.refusal("UpdateSandbox", pb.PingRequest())[0] == _UNIMPLEMENTED
