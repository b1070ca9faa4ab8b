"""Checkpoints of a sandbox that is known from its files and its sentry alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidState
from runtime.host.pids import start_time
from runtime.runsc.control import SandboxProcess
from runtime.state import loaded_checkpoint, shim_record
from runtime.state.loaded import StoredContainer
from runtime.state.shim_record import ContainerRecord, Pinned
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry, SentryError
from tests.fakes.state_files import Helpers, runsc_state, write

STATES = {"created": 1, "running": 2, "stopped": 3}
NETWORK = {"FDBasedLinks": [{"Name": "eth0"}]}
PREFIX = "containerManager."


class Pod:
    """A sandbox of containers in the states given, the first being the root."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.bundle = tmp_path / "root", tmp_path / "bundle"
        (self.bundle / "rootfs").mkdir(parents=True)
        self.image = tmp_path / "image"
        self.socket = str(tmp_path / "s")
        self.sentry = FakeSentry.at(self.socket)
        self.helpers = Helpers()
        self.process = self.helpers.spawn("runsc-sandbox", "c1")
        self.states: dict[str, str] = {}
        self.parents = [0, 1]
        self.sentry.handlers.update(
            {
                PREFIX + "ContainerRuntimeState": lambda cid: STATES[
                    self.states.get(cid, "running")
                ],
                PREFIX + "Processes": self._processes,
                PREFIX + "Checkpoint": lambda _: {},
                PREFIX + "DestroySubcontainer": lambda _: None,
                PREFIX + "Wait": lambda _: 7 << 8,
            }
        )
        self.sentry.written[PREFIX + "Checkpoint"] = b"gVisorSF" + (2).to_bytes(8, "big") + b"{}"

    def _processes(self, _: str) -> list[dict[str, Any]]:
        return [
            {"uid": 0, "pid": pid, "ppid": parent, "c": 0, "stime": "", "time": "", "cmd": "x"}
            for pid, parent in enumerate(self.parents, 1)
        ]

    def fill(self, *states: str, **fields: Any) -> StoredContainer:
        for number, each in enumerate(states, 1):
            name = f"c{number}"
            self.states[name] = each
            body = runsc_state(
                self.bundle, name, status="running", pid=self.process.pid, socket=self.socket
            )
            write(self.root, body)
            if number > 1:
                record = ContainerRecord(
                    id=name, sandbox_id="c1", is_root=False, bundle=str(self.bundle)
                )
                shim_record.save(str(self.root), record, locator=False)
        record = ContainerRecord(
            id="c1",
            sandbox_id="c1",
            is_root=True,
            bundle=str(self.bundle),
            boot=Pinned(pid=self.process.pid, start_time=start_time(self.process.pid)),
            control_socket=self.socket,
            **fields,
        )
        shim_record.save(str(self.root), record, locator=False)
        return StoredContainer.load(str(self.root), "c1")

    def save(self, container: StoredContainer, year: int = 2024) -> dict[str, Any]:
        """What the image says of itself."""
        loaded_checkpoint.save(
            container, str(self.image), generation=GENERATIONS[year], leave_running=True
        )
        about: dict[str, Any] = json.loads((self.image / "gvisor-shim.json").read_text())
        return about

    def asked(self, method: str) -> list[Any]:
        return [e.argument for e in self.sentry.requests if e.method == PREFIX + method]

    def close(self) -> None:
        self.helpers.close()
        self.sentry.stop()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    found = Pod(tmp_path)
    yield found
    found.close()


def process(pid: int, ppid: int) -> SandboxProcess:
    return SandboxProcess(
        pid=pid,
        ppid=ppid,
        uid=0,
        threads=1,
        cpu_percent=0,
        tty="",
        start_time="",
        cpu_time="",
        command="x",
    )


@pytest.mark.parametrize(
    ("pairs", "count"),
    [
        ([], 0),
        ([(1, 0)], 0),
        ([(1, 0), (2, 1), (3, 2)], 0),
        ([(1, 0), (2, 0), (3, 2)], 1),
        ([(4, 0), (6, 0), (9, 0)], 2),
    ],
)
def test_execs_are_told_by_having_no_parent(pairs: list[tuple[int, int]], count: int) -> None:
    assert loaded_checkpoint.count_execs([process(*pair) for pair in pairs]) == count


def test_the_network_that_was_taken_over_is_saved(pod: Pod) -> None:
    assert pod.save(pod.fill("running", network=NETWORK))["network"] == NETWORK


def test_without_a_record_of_it_there_is_none(pod: Pod) -> None:
    assert pod.save(pod.fill("running"))["network"] is None


def test_a_running_exec_is_refused_before_anything_is_done(pod: Pod) -> None:
    pod.parents = [0, 0]
    with pytest.raises(InvalidState, match="state running execs"):
        pod.save(pod.fill("running"))
    assert not pod.image.exists() and pod.asked("Checkpoint") == []


def test_a_release_that_restores_execs_is_not_refused(pod: Pod) -> None:
    pod.parents = [0, 0]
    pod.save(pod.fill("running"), 2026)
    assert pod.asked("Checkpoint")


def test_where_nobody_can_tell_nothing_is_saved(pod: Pod) -> None:
    def refuse(_: Any) -> Any:
        raise SentryError("out of order")

    pod.sentry.handlers[PREFIX + "Processes"] = refuse
    with pytest.raises(Failed, match="out of order"):
        pod.save(pod.fill("running", "stopped"))
    assert not pod.image.exists()
    assert pod.asked("Checkpoint") == [] == pod.asked("DestroySubcontainer")


def test_stopped_members_are_forgotten_but_not_how_they_ended(pod: Pod) -> None:
    about = pod.save(pod.fill("running", "stopped", "running"))
    assert len(about["containers"]) == 2
    assert pod.asked("DestroySubcontainer") == ["c2"]
    record = shim_record.load_exact(str(pod.root), "c2", "c1")
    assert record is not None and record.exit_status == 7


def test_one_that_the_sentry_has_forgotten_is_no_obstacle(pod: Pod) -> None:
    def forgotten(_: Any) -> Any:
        raise SentryError('container "c2" not found')

    for method in ("DestroySubcontainer", "Wait"):
        pod.sentry.handlers[PREFIX + method] = forgotten
    assert len(pod.save(pod.fill("running", "stopped"))["containers"]) == 1


@pytest.mark.parametrize("states", [("running", "created"), ("stopped", "running"), ("created",)])
def test_what_would_be_waited_for_is_refused(pod: Pod, states: tuple[str, ...]) -> None:
    with pytest.raises(InvalidState, match="cannot checkpoint container"):
        pod.save(pod.fill(*states))
    assert pod.asked("Checkpoint") == []
