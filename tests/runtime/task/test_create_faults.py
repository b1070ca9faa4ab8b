"""A creation that fails, at whatever step: nothing is left of it, and its id is free again."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import AlreadyExists, Failed, InvalidRequest, NotFound, RuntimeFault
from runtime.cgroups.v1 import CgroupV1
from runtime.host import children
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.runsc.config import RunscConfig
from runtime.runsc.control_address import control_address
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.sandbox import BootParams, Sandbox
from runtime.state import shim_record
from runtime.task import create as creation
from runtime.task.container import Container
from runtime.task.context import Context, CreateRequest
from runtime.task.events import Event
from runtime.task.pod import Pod
from runtime.task.process import IORequest, OpenStdio
from tests.fakes import runsc
from tests.fakes.cgroupfs import FakeHost
from tests.fakes.driver import Unprivileged
from tests.fakes.generations import GENERATIONS
from tests.fakes.sandbox import TRUE, FakeIO

#: Seconds until a test gives up; a loaded machine needs some of them.
TIMEOUT = 60.0
#: In the bundle, which is containerd's to remove.
LOCATOR = "gvisor-shim.json"


class Injected(Exception):
    """A failure of a kind that nobody expects."""


class NullIO(FakeIO):
    """Stdio with a descriptor of its own, that a clean-up can forget."""

    def __init__(self) -> None:
        super().__init__()
        self._fd = os.open(os.devnull, os.O_RDWR)

    @property
    def sentry_fds(self) -> tuple[int, int, int]:
        return (self._fd,) * 3

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class Unjoined(Sandbox):
    """Its processes stay in our cgroups: directories take no processes."""

    @classmethod
    def boot(cls, params: BootParams, **others: Any) -> Sandbox:
        return super().boot(params.replace(cgroup_procs=()), **others)

    def create_subcontainer(self, params: BootParams) -> None:
        super().create_subcontainer(params.replace(cgroup_procs=()))


class Plant:
    """A pod whose processes are real, but not runsc's, and whose cgroups are directories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.binary = runsc.install(str(folder))
        self.host = FakeHost(str(folder / "host"), "v1")
        self.state = folder / "state"
        self.state.mkdir()
        self.reactor = Reactor()
        self.reactor.start()
        self.workers = Workers(call_later=self.reactor.call_later)
        self.events: list[Event] = []
        self.steps: list[str] = []
        self.at_step: Callable[[str, str], None] = lambda container, step: None
        self.open_io: Callable[[OpenStdio], FakeIO] = lambda wanted: NullIO()
        self.pod = Pod(
            Context(
                namespace="ns",
                reactor=self.reactor,
                workers=self.workers,
                emit=self.events.append,
                open_io=lambda wanted: self.open_io(wanted),
                cache_dir=str(folder / "cache"),
                observe=self._observe,
                find_driver=self._find_driver,
                boot=Unjoined.boot,
                cgroup_root=self.host,
            )
        )

    def _observe(self, container: str, step: str) -> None:
        self.steps.append(step)
        self.at_step(container, step)

    def _find_driver(self, config: RunscConfig, cache_dir: str) -> DirectDriver:
        return Unprivileged(
            GENERATIONS[2024].replace(binary=config.binary, boot_binary=config.binary)
        )

    def bundle(self, name: str, *args: str, member: bool = False, **fields: Any) -> CreateRequest:
        """A request to create a container; `member`: in the sandbox of the container "root"."""
        folder = self.folder / name
        folder.joinpath("rootfs", "bin").mkdir(parents=True, exist_ok=True)
        program = folder / "rootfs" / "bin" / args[0]
        program.write_text("")
        program.chmod(0o755)
        spec: dict[str, Any] = {
            "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"]},
            "root": {"path": "rootfs"},
            "linux": {"cgroupsPath": f"/kubepods/podx/{name}"},
            "annotations": {
                "io.kubernetes.cri.container-type": "container" if member else "sandbox",
                "io.kubernetes.cri.sandbox-id": "root",
            },
            **fields,
        }
        folder.joinpath("config.json").write_text(json.dumps(spec))
        config = RunscConfig(binary=self.binary, root=str(self.state), flags={"network": "none"})
        return CreateRequest(id=name, bundle=str(folder), io=IORequest(), config=config)

    def seen(self) -> dict[str, object]:
        """All that a creation can leave: descriptors, processes, files, cgroups, containers."""
        files = {
            str(path)
            for path in self.folder.rglob("*")
            if path.name not in (LOCATOR, "config.json") and "cache" not in path.parts
        }
        return {
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "processes": sorted(children._children),
            "files": files,
            "containers": [each.id for each in self.pod.all()],
            "threads": sorted(t.name for t in threading.enumerate() if "worker" not in t.name),
        }

    def close(self) -> None:
        for container in self.pod.all():
            if container.init.alive:
                with suppress(NotFound):  # it ends with the one before
                    container.kill("", 9, True)
        # Members first, as containerd does.
        for container in sorted(self.pod.all(), key=lambda each: each.is_root):
            ended = threading.Event()
            container.init.wait(lambda _, e=ended: e.set())  # type: ignore[misc]
            assert ended.wait(TIMEOUT)
            self.pod.delete(container.id)
        self.workers.stop()
        self.reactor.stop()


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    plant.close()


@pytest.fixture
def host(plant: Plant) -> Plant:
    """With a sandbox that lives."""
    plant.pod.create(plant.bundle("root", "sleep"))
    plant.steps.clear()
    return plant


def test_a_sandbox_is_made_in_these_steps(plant: Plant) -> None:
    plant.pod.create(plant.bundle("root", "sleep"))
    assert tuple(plant.steps) == creation.STEPS_OF_SANDBOX


def test_a_container_in_a_sandbox_is_made_in_these_steps(host: Plant) -> None:
    host.pod.create(host.bundle("one", "sleep", member=True))
    assert tuple(host.steps) == creation.STEPS_OF_MEMBER


def test_cgroups_that_are_to_be_ignored_are_not_made(plant: Plant) -> None:
    for name, member in (("root", False), ("one", True)):
        request = plant.bundle(name, "sleep", member=member)
        flags = {**request.config.flags, "ignore-cgroups": "true"}
        plant.pod.create(request.replace(config=request.config.replace(flags=flags)))
        holdings = plant.pod.container(name).holdings
        assert holdings is not None
        assert (holdings.cgroup, holdings.own_cgroup, holdings.planned) == (None, None, ())
    assert not list(plant.folder.joinpath("host").rglob("podx"))


def _fails(plant: Plant, request: CreateRequest, kind: type[Exception]) -> Exception:
    before = plant.seen()
    with pytest.raises(kind) as caught:
        plant.pod.create(request)
    assert plant.seen() == before
    return caught.value


def _fail_at(plant: Plant, wanted: str, then: Callable[[str], None]) -> None:
    def at_step(container: str, step: str) -> None:
        if step == wanted:
            then(container)

    plant.at_step = at_step


def _inject(container: str) -> None:
    raise Injected


@pytest.mark.parametrize("step", creation.STEPS_OF_SANDBOX)
def test_a_failure_at_any_step_of_a_sandbox_leaves_nothing(plant: Plant, step: str) -> None:
    request = plant.bundle("root", "sleep")
    _fail_at(plant, step, _inject)
    _fails(plant, request, Injected)
    assert plant.events == []
    assert plant.pod.close_if_empty()


@pytest.mark.parametrize("step", creation.STEPS_OF_MEMBER)
def test_a_failure_at_any_step_of_a_member_leaves_nothing_but_its_sandbox(
    host: Plant, step: str
) -> None:
    request = host.bundle("one", "sleep", member=True)
    _fail_at(host, step, _inject)
    _fails(host, request, Injected)
    assert len(host.events) == 1
    assert host.pod.container("root").init.alive


@pytest.mark.parametrize("step", creation.STEPS_OF_SANDBOX[1:])
def test_a_creation_that_nobody_wants_any_more_ends_at_the_next_step(
    plant: Plant, step: str
) -> None:
    request = plant.bundle("root", "sleep")
    _fail_at(plant, step, plant.pod.abandon)
    if step == creation.STEPS_OF_SANDBOX[-1]:
        return  # the last one: it exists, and is deleted like any other
    fault = _fails(plant, request, Failed)
    assert "deleted while it was being created" in str(fault)
    after = creation.STEPS_OF_SANDBOX.index(step) + 1
    assert tuple(plant.steps) == creation.STEPS_OF_SANDBOX[:after]


def test_a_start_that_hangs_ends_as_soon_as_nobody_wants_it(plant: Plant) -> None:
    request = plant.bundle("root", "boot-hangs")
    before = plant.seen()
    outcome: list[BaseException] = []

    def create() -> None:
        try:
            plant.pod.create(request)
        except RuntimeFault as fault:
            outcome.append(fault)

    creator = threading.Thread(target=create)
    creator.start()
    _until(lambda: any(c.name == "runsc" for c in _sentries(plant)))
    with pytest.raises(NotFound):
        plant.pod.delete("root")
    creator.join(TIMEOUT)
    assert not creator.is_alive()
    assert "deleted while it was being created" in str(outcome[0])
    assert plant.seen() == before


def _sentries(plant: Plant) -> list[children.Child]:
    """Those of our processes that were started as a sentry."""
    found = []
    for child in list(children._children.values()):
        if b"boot" in Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0"):
            found.append(child)
    return found


def _until(look: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(int(TIMEOUT / 0.01)):
        if look():
            return
        ended.wait(0.01)
    raise AssertionError("not in time")


# -- peers and places that fail of themselves ------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("gofer-fails",), "error setting up FS"),
        (("boot-fails",), "unknown platform"),
    ],
)
def test_what_a_process_says_that_fails_is_told(
    plant: Plant, args: tuple[str, ...], words: str
) -> None:
    assert words in str(_fails(plant, plant.bundle("root", *args), Failed))


def test_too_little_memory_is_told(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel ends whichever process it likes, and the others say what they miss."""
    limit = {"resources": {"memory": {"limit": 6 << 20}}, "cgroupsPath": "/kubepods/small"}
    request = plant.bundle("root", "boot-fails", linux=limit, annotations={})
    monkeypatch.setattr(CgroupV1, "oom_kills", lambda _: 1)
    words = "start sandbox: out of memory in cgroup '/kubepods/small', whose limit is 6291456 bytes"
    assert str(_fails(plant, request, Failed)) == words


def test_a_binary_that_cannot_be_run(plant: Plant) -> None:
    request = plant.bundle("root", "sleep")
    os.chmod(plant.binary, 0o644)
    assert "runsc" in str(_fails(plant, request, Failed))


def test_a_cgroup_that_cannot_be_limited(plant: Plant) -> None:
    request = plant.bundle(
        "root",
        "sleep",
        linux={"cgroupsPath": "/kubepods/one", "resources": {"pids": {"limit": 5}}},
        annotations={},
    )
    plant.host.refuse["pids/kubepods/one/pids.max"] = 5
    assert "pids.max" in str(_fails(plant, request, Failed))


def test_a_directory_for_state_that_is_none(plant: Plant) -> None:
    request = plant.bundle("root", "sleep")
    plant.state.rmdir()
    plant.state.write_text("")
    _fails(plant, request, Failed)


def test_a_program_that_is_missing(plant: Plant) -> None:
    request = plant.bundle("root", "sleep")
    (plant.folder / "root" / "rootfs" / "bin" / "sleep").unlink()
    _fails(plant, request, InvalidRequest)


def test_stdio_that_cannot_be_opened(plant: Plant) -> None:
    def refuse(wanted: OpenStdio) -> FakeIO:
        raise Failed("open /nowhere: no such file")

    plant.open_io = refuse
    _fails(plant, plant.bundle("root", "sleep"), Failed)


def test_whose_a_containers_stdio_is(host: Plant) -> None:
    asked: list[OpenStdio] = []

    def open_io(wanted: OpenStdio) -> FakeIO:
        asked.append(wanted)
        return NullIO()

    host.open_io = open_io
    deadline = time.monotonic() + TIMEOUT
    for number, config in enumerate(({}, {"io_uid": 1000}, {"io_gid": 7})):
        request = host.bundle(f"c{number}", "true", member=True)
        host.pod.create(request.replace(config=request.config.replace(**config)))
        host.pod.container(f"c{number}").add_exec("e", TRUE, IORequest(), deadline)
    sentry = asked[0].owner
    assert [each.owner for each in asked] == [sentry, sentry, (1000, 0), (1000, 0), (0, 7), (0, 7)]
    # A terminal's signals are ours to pass on, but for the process that the host sees.
    assert all(each.emulate_signals for each in asked)
    assert [each.outlived for each in asked] == [False, True] * 3


def test_a_control_socket_that_somebody_serves(plant: Plant) -> None:
    address = control_address(str(plant.state), "root")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address)
        other.listen(1)
        _fails(plant, plant.bundle("root", "sleep"), AlreadyExists)
        # Not ours to remove.
        assert os.path.exists(address)
    os.unlink(address)


def test_a_sandbox_that_has_ended_takes_no_member(host: Plant) -> None:
    root = host.pod.container("root")
    ended = threading.Event()
    root.init.wait(lambda _: ended.set())
    root.sandbox.kill()
    assert ended.wait(TIMEOUT)
    _await_record_of_exit(host, root)
    _fails(host, host.bundle("one", "sleep", member=True), RuntimeFault)


def _await_record_of_exit(host: Plant, container: Container) -> None:
    """Until the worker that writes down how it ended is done with its files."""
    limit = time.monotonic() + TIMEOUT
    while (
        found := shim_record.load(str(host.state), container.id)
    ) is None or found.exit_status is None:
        assert time.monotonic() < limit
        time.sleep(0.002)
    assert container.holdings is not None
    with container.holdings._lock:
        return
