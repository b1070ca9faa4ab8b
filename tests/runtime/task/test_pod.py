"""The registry: ids taken once, and a delete that comes too early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import AlreadyExists, InvalidRequest, NotFound, RuntimeFault, SandboxGone
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.host.workers import Workers
from runtime.runsc.config import RunscConfig
from runtime.task.context import Context, CreateRequest
from runtime.task.pod import Pod
from runtime.task.process import IORequest
from tests.fakes.sandbox import FakeReactor


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    workers = Workers()
    reactor: Any = FakeReactor()
    yield Pod(
        Context(
            namespace="ns",
            reactor=reactor,
            workers=workers,
            emit=lambda event: None,
            open_io=lambda *_: pytest.fail("nothing gets as far as its stdio"),
            cache_dir=str(tmp_path),
            cgroup_root=CgroupRoot(),
        )
    )
    workers.stop()


def request(bundle: Path, container_id: str = "c") -> CreateRequest:
    config = RunscConfig(binary="/nonexistent/runsc", root=str(bundle / "root"))
    return CreateRequest(id=container_id, bundle=str(bundle), io=IORequest(), config=config)


def test_a_creation_that_fails_frees_its_id(pod: Pod, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"config\.json"):
            pod.create(request(tmp_path))
    with pytest.raises(NotFound):
        pod.container("c")
    assert pod.close_if_empty()


@pytest.mark.parametrize("container_id", ["", "a/b", "x" * 300, "..", "a b"])
def test_ids_that_could_harm_are_refused(pod: Pod, tmp_path: Path, container_id: str) -> None:
    with pytest.raises(InvalidRequest, match="container id"):
        pod.create(request(tmp_path, container_id))


def test_no_creation_once_the_pod_is_closed(pod: Pod, tmp_path: Path) -> None:
    assert pod.close_if_empty()
    with pytest.raises(SandboxGone):
        pod.create(request(tmp_path))


def test_a_delete_waits_until_a_creation_is_given_up(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(container: Any, *_: object) -> int:
        entered.set()
        assert container.abandoned.wait(5)
        assert go_on.wait(5)
        raise SandboxGone(0)

    monkeypatch.setattr("runtime.task.pod.create", slow)
    outcomes: list[type[RuntimeFault]] = []

    def call(action: Any) -> None:
        try:
            action()
        except RuntimeFault as fault:
            outcomes.append(type(fault))

    creation = threading.Thread(target=call, args=(lambda: pod.create(request(tmp_path)),))
    creation.start()
    assert entered.wait(5)
    with pytest.raises(AlreadyExists):
        pod.create(request(tmp_path))
    delete = threading.Thread(target=call, args=(lambda: pod.delete("c"),))
    delete.start()
    assert not pod.close_if_empty()
    go_on.set()
    creation.join(5)
    delete.join(5)
    assert sorted(kind.__name__ for kind in outcomes) == ["NotFound", "SandboxGone"]
    assert pod.close_if_empty()
