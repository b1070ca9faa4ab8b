"""A host without descriptors, memory or threads, at each single call that wants any.

No exit is lost, nobody waits for ever, nothing is left over, and limits bind again afterwards.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import RuntimeFault
from runtime.bundle.spec import load_spec
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.host import workers
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.runsc.driver import Credentials
from runtime.runsc.pin_ring import PinRing
from runtime.sandbox.gofer_mounts import MountPlan
from runtime.sandbox.sandbox import BootParams, Sandbox
from runtime.task.container import Container
from runtime.task.context import Context
from runtime.task.events import Event, TaskExited, TaskOOM
from runtime.task.lifecycle import Op, State
from runtime.task.pod_memory import PodMemory
from runtime.task.process import IORequest
from tests.fakes.driver import Unprivileged
from tests.fakes.generations import GENERATIONS
from tests.fakes.sandbox import TRUE, FakeCgroup, FakeHoldings, FakeIO
from tests.fakes.scarcity import ERRORS, Scarcity
from tests.fakes.sentry import FakeSentry, SentryError
from tests.runtime.leaks import open_fds, our_children
from tests.runtime.sandbox.test_sandbox import Lab

#: Seconds, far beyond what anything here takes.
TIMEOUT = 10.0
MIB = 1 << 20
_MANAGER = "containerManager."


class FakeChild:
    """A sentry's process, whose end a test decides.  Its pidfd is a pipe."""

    pid, start_time = 4711, 1

    def __init__(self) -> None:
        self.pidfd, self._end = os.pipe()
        self._raw: int | None = None

    def end(self, raw: int) -> None:
        if self._raw is None:
            self._raw = raw
            os.close(self._end)

    def poll(self) -> int | None:
        return self._raw

    def wait(self, timeout: float | None = None) -> int:
        assert self._raw is not None
        return self._raw

    def kill(self, signo: int) -> None:
        self.end(signo)

    def close(self) -> None:
        os.close(self.pidfd)


class FakeProcess:
    """The part of a sentry or a gofer that isn't its calls."""

    def __init__(self, address: str) -> None:
        self.child = FakeChild()
        self.address, self.credentials, self.log = address, Credentials(), self
        self.plan, self.ring = MountPlan(confs=()), PinRing()

    def kill(self) -> None:
        self.child.kill(9)

    def on_loss(self, reactor: Reactor, callback: Callable[[int], None]) -> None:
        """It stays."""

    def panic(self) -> str:
        return ""

    def message(self) -> str:
        return ""


class Shop:
    """A container in a sandbox, all of it real but for the sentry's inside."""

    def __init__(self, folder: Path, scarcity: Scarcity) -> None:
        self.init_ends, self.exec_ends = threading.Event(), threading.Event()
        self.events: list[Event] = []
        self.told: dict[str, list[int]] = {"": [], "e": []}
        self.told_all = {name: threading.Event() for name in self.told}
        self.used = 0
        address = str(folder / "s")
        self.sentry = FakeSentry.at(address)
        self.sentry.handlers = {
            _MANAGER + "StartRoot": lambda _: {},
            _MANAGER + "Wait": lambda _: self.init_ends.wait(TIMEOUT) and 7 << 8,
            _MANAGER + "WaitPID": lambda _: self.exec_ends.wait(TIMEOUT) and 3 << 8,
            _MANAGER + "ExecuteAsync": lambda _: 5,
            _MANAGER + "Signal": self._signal,
            _MANAGER + "ContainerRuntimeState": lambda _: 3 if self.init_ends.is_set() else 2,
            _MANAGER + "Event": self._event,
            "Usage.Collect": lambda _: {},
            "Network.CreateLinksAndRoutes": lambda _: {},
        }
        (folder / "config.json").write_text('{"process":{"args":["x"]},"root":{"path":"root"}}')
        driver = Unprivileged(GENERATIONS[2024])
        from runtime.runsc.config import RunscConfig

        params = BootParams(
            id="c",
            bundle=str(folder),
            spec=load_spec(str(folder)),
            config=RunscConfig(root=str(folder), flags={"network": "none"}),
            driver=driver,
            stdio=(0, 0, 0),
        )
        self.reactor = Reactor()
        self.workers = Workers(call_later=self.reactor.call_later)
        self.reactor.start()
        settings = driver.settings(params.config, params.spec)
        process: Any = FakeProcess(address)
        self.child = process.child
        self.sandbox = Sandbox(params, settings, process, process, self.reactor)
        self.sandbox._exits.watch()
        scarcity.watch(self.reactor)
        context: Any = Context(
            namespace="ns",
            reactor=self.reactor,
            workers=self.workers,
            emit=self.events.append,
            open_io=lambda *_: FakeIO(),
            cache_dir="/nonexistent",
            cgroup_root=CgroupRoot(),
        )
        self.container = Container(context, "c", str(folder), IORequest())
        holdings: Any = FakeHoldings()
        holdings.sandbox, holdings.cgroup = self.sandbox, FakeCgroup()
        self.container.holdings = holdings
        self.container.limits.set({"memory": {"limit": 64 * MIB}})
        self.container.init.commit(Op.CREATED, None, 4711)
        self.sandbox.on_init_exit(self.container.init_exited)
        self.container.init.wait(lambda exit: self._note("", exit.status))
        holdings.memory = self.memory = PodMemory(
            "c",
            holdings.cgroup,
            self.sandbox,
            self.reactor,
            self.workers,
        )
        self.memory.add(self.container)

    def _note(self, name: str, status: int) -> None:
        self.told[name].append(status)
        self.told_all[name].set()

    def _signal(self, argument: dict[str, int]) -> object:
        ended = self.exec_ends if argument["PID"] else self.init_ends
        if ended.is_set():
            raise SentryError("no such process")
        if argument["Signo"]:
            self.end_init()
        return {}

    def _event(self, _: object) -> object:
        usage = {"data": {"memory": {"usage": {"usage": self.used}}}}
        return {"event": usage, "containerUsage": {"c": 1}}

    def end_init(self) -> None:
        self.init_ends.set()
        # A sentry lets its answers go out first.
        threading.Timer(0.02, self.child.end, (7 << 8,)).start()

    def life(self) -> None:
        """Start, exec, a look at the memory, the end of both."""
        try:
            self.container.start(time.monotonic() + TIMEOUT)
        except (RuntimeFault, OSError):
            assert self.container.init.state is State.STOPPED, "told, and good for a delete"
            return
        try:
            self.container.add_exec("e", TRUE, IORequest(), time.monotonic() + TIMEOUT)
            self.container.process("e").wait(lambda exit: self._note("e", exit.status))
            self.container.start_exec("e", time.monotonic() + TIMEOUT)
        except (RuntimeFault, OSError):
            assert self.told["e"] == [128], "its Wait is answered"
        self.memory.refresh()
        self.exec_ends.set()
        try:
            self.container.kill("", 15, False)
        except (RuntimeFault, OSError):
            return  # the caller is told, and may try again

    def close(self) -> None:
        self.memory.close()
        self.exec_ends.set()
        self.init_ends.set()
        self.child.end(9)
        self.sandbox.leave()
        assert self.workers.drain(TIMEOUT)
        self.workers.stop()
        self.reactor.stop()
        self.sentry.stop()
        self.child.close()


@pytest.fixture
def scarcity(monkeypatch: pytest.MonkeyPatch) -> Scarcity:
    # So that each call to a worker takes a thread.
    monkeypatch.setattr(workers, "MAX_IDLE", 0)
    return Scarcity(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    fds, threads = open_fds(), threading.active_count()
    yield
    deadline = time.monotonic() + TIMEOUT
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert open_fds() == fds


def _live(folder: Path, scarcity: Scarcity, at: int, times: int, code: int) -> list[str]:
    """A whole life with such a lack; what was called."""
    folder.mkdir()
    shop = Shop(folder, scarcity)
    try:
        scarcity.fail(at, times, code)
        shop.life()
        calls = scarcity.calls
        scarcity.relent()
        if shop.container.init.state is not State.STOPPED and not shop.init_ends.is_set():
            # Whoever could not be killed lives, and its limit binds.
            shop.used = 65 * MIB
            shop.memory.refresh()
            assert shop.init_ends.wait(TIMEOUT), "its limit doesn't bind"
            assert any(isinstance(event, TaskOOM) for event in shop.events)
        for name, ended in shop.told_all.items():
            if name in shop.container._execs or not name:
                assert ended.wait(TIMEOUT), f"the exit of {name or 'init'} is lost"
        exits = [event.id for event in shop.events if isinstance(event, TaskExited)]
        assert len(exits) == len(set(exits)), "an exit was told twice"
        assert all(len(told) <= 1 for told in shop.told.values())
    finally:
        scarcity.relent()
        shop.close()
    return calls


def test_a_life_on_a_host_that_lacks_something(tmp_path: Path, scarcity: Scarcity) -> None:
    whole = _live(tmp_path / "whole", scarcity, 0, 0, 0)
    assert {"socket", "register", "thread"} <= set(whole), "it counts nothing"
    for at in range(len(whole)):
        # One call, and so many that what is tried again fails again.
        for times, code in ((1, ERRORS[at % len(ERRORS)]), (4, errno.EMFILE)):
            _live(tmp_path / f"{at}-{times}", scarcity, at, times, code)


def test_a_gofer_on_a_host_that_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's gofer is either registered or gone, wherever its start fails."""
    lab = Lab(tmp_path)
    try:
        sandbox, _ = lab.start("wait")
        with open(os.devnull, "rb") as null:
            stdio = (null.fileno(),) * 3
            params = sandbox.members()[0].replace(id="two", stdio=stdio)
            scarcity = Scarcity(monkeypatch)
            fds, kids = open_fds(), our_children()
            at = failed = 0
            while failed == at:
                scarcity.fail(at, 1, ERRORS[at % len(ERRORS)])
                try:
                    sandbox.create_subcontainer(params)
                except (RuntimeFault, OSError):
                    failed += 1
                    assert open_fds() == fds and our_children() == kids, scarcity.calls[-1]
                at += 1
            assert failed > 10 and "dup" in scarcity.calls
            scarcity.relent()
            sandbox.destroy_subcontainer("two", time.monotonic() + TIMEOUT)
            assert open_fds() == fds and our_children() == kids
    finally:
        for each in lab.sandboxes:
            each.destroy(TIMEOUT)
        lab.reactor.stop()


def test_a_sandbox_on_a_host_that_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox runs or is gone with all of its processes, wherever its start fails."""
    lab = Lab(tmp_path)
    try:
        lab.start("wait")[0].destroy(TIMEOUT)
        scarcity = Scarcity(monkeypatch)
        fds, kids = open_fds(), our_children()
        at = failed = 0
        while failed == at:
            scarcity.fail(at, 1, ERRORS[at % len(ERRORS)])
            try:
                sandbox, _ = lab.start("wait")
            except (RuntimeFault, OSError):
                failed += 1
                if len(lab.sandboxes) > 1:  # it was booted, and its owner ends it
                    scarcity.relent()
                    lab.sandboxes.pop().destroy(TIMEOUT)
                assert open_fds() == fds and our_children() == kids, scarcity.calls[-1]
                assert not list(lab.state.iterdir()), scarcity.calls[-1]
            at += 1
        assert failed > 10 and {"memfd_create", "socketpair"} <= set(scarcity.calls)
        scarcity.relent()
        sandbox.destroy(TIMEOUT)
        assert open_fds() == fds and our_children() == kids
    finally:
        for each in lab.sandboxes:
            each.destroy(TIMEOUT)
        lab.reactor.stop()
