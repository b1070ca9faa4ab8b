"""gvctl's way to a shim, with a server of the task API at the other end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protos import task_pb2 as pb
from runtime.base.errors import Failed, Unsupported
from runtime.state.shim_record import ContainerRecord
from shim.base import convert, status
from shim.gvctl import ask_for_update
from shim.ttrpc.call import Call
from shim.ttrpc.errors import StatusError
from shim.ttrpc.server import Server


class Task:
    def __init__(self, path: Path) -> None:
        self.record = ContainerRecord(
            id="c1",
            sandbox_id="c1",
            is_root=True,
            bundle="/b",
            namespace="k8s.io",
            shim_address=f"unix://{path}",
        )
        self.asked: list[Any] = []
        self.error: StatusError | None = None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.server = Server(listener, self._handle)
        self.server.start()

    def _handle(self, call: Call) -> bytes:
        assert (call.service, call.method) == ("containerd.task.v2.Task", "Update")
        assert call.metadata["containerd-namespace-ttrpc"] == ("k8s.io",)
        if self.error is not None:
            raise self.error
        request = pb.UpdateTaskRequest.FromString(call.payload)
        self.asked.append((request.id, convert.resources(request.resources)))
        return b""


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    found = Task(tmp_path / "s")
    yield found
    found.server.stop(1)


def test_the_shim_gets_what_is_asked(task: Task) -> None:
    ask_for_update(task.record, {"memory": {"limit": -1}})
    assert task.asked == [("c1", {"memory": {"limit": -1}})]


@pytest.mark.parametrize(
    ("code", "kind"), [(status.UNIMPLEMENTED, Unsupported), (status.INVALID_ARGUMENT, Failed)]
)
def test_its_words_are_the_errors(task: Task, code: int, kind: type[Exception]) -> None:
    task.error = StatusError(code, "cpu.period: no")
    with pytest.raises(kind) as caught:
        ask_for_update(task.record, {})
    assert str(caught.value) == "cpu.period: no"


def test_a_shim_that_is_gone(task: Task, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for address in (f"unix://{tmp_path}/nowhere", "", "\0abstract"):
        with pytest.raises(Failed, match="'c1' does not answer"):
            ask_for_update(task.record.replace(shim_address=address), {})
    assert set(os.listdir("/proc/self/fd")) == before
