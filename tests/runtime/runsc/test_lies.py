"""A sentry that lies, floods, dribbles or breaks off: an error of that call, and no more."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import RuntimeFault, Unreachable
from runtime.bundle.process_spec import ProcessSpec
from runtime.cgroups.metrics import SentryStats
from runtime.host.reactor import Reactor
from runtime.runsc.control import Control, SignalMode
from runtime.runsc.driver import DirectDriver
from runtime.sandbox import exits, inner_limits
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry
from tests.runtime.leaks import open_fds

#: Seconds that a call is given, and within which the test must be over in any case.
CALL, TIMEOUT = 0.5, 10.0
_M = "containerManager."
_START: dict[str, Any] = {"CID": "c", "Spec": {"process": {"args": ["x"]}}}
_EXEC = ProcessSpec(args=("x",))

METHODS: dict[str, Callable[[Control], object]] = {
    _M + "StartRoot": lambda c: c.start_root("c", CALL),
    _M + "StartSubcontainer": lambda c: c.start_subcontainer(_START, (), CALL),
    _M + "DestroySubcontainer": lambda c: c.destroy_subcontainer("c", CALL),
    _M + "ContainerRuntimeState": lambda c: c.state("c", CALL),
    _M + "Signal": lambda c: c.signal("c", 9, 0, SignalMode.ALL, CALL),
    _M + "ExecuteAsync": lambda c: c.execute("c", _EXEC, (), False, CALL),
    _M + "Processes": lambda c: c.processes("c", CALL),
    _M + "Event": lambda c: c.event("c", CALL),
    _M + "Pause": lambda c: c.pause(CALL),
    _M + "Checkpoint": lambda c: c.checkpoint(
        "c", (), compression="", paged=False, leave_running=True, timeout=CALL
    ),
    "Cgroups.WriteControlFiles": lambda c: inner_limits.write(c, "c", {"cpu.shares": "1"}, CALL),
    "Usage.Collect": lambda c: c.file_memory(CALL),
    "Usage.UsageFD": lambda c: c.call_for_files("Usage.UsageFD", {}, 2, CALL),
    "debug.Stacks": lambda c: c.call("debug.Stacks", None, (), CALL),
}
#: What any value may be for a method that says nothing.
_SILENT = ("StartRoot", "StartSubcontainer", "DestroySubcontainer", "Signal", "Pause", "Checkpoint")


def reply(result: str) -> bytes:
    return f'{{"success":true,"err":"","result":{result}}}'.encode()


NOISE = {
    "empty object": b"{}",
    "no object": b"[1,2]",
    "flood": b'{"success":true,"result":"' + b"x" * (20 << 20),
    "brackets": b'{"success":true,"result":[' + b"{}," * (1 << 20),
    "nested": b'{"success":true,"result":' + b"[" * (1 << 20),
    "success is a text": b'{"success":"true","err":"","result":3}',
    "error is a number": b'{"success":false,"err":7}',
    "not UTF-8": b'{"success":false,"err":"\xff\xfe"}',
    "cut": b'{"success":true,"err":"","resu',
}
LIES = ('"x"', "-1", "1.5", "true", '{"a":[1]}', "[[]]", "[1]", "99999999999999999999", "[null]")


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fds = open_fds()
    fake = FakeSentry.at(str(tmp_path / "s"))
    fake.chunk = 1 << 20
    yield fake
    fake.stop()
    assert open_fds() == fds


@pytest.fixture
def control(tmp_path: Path) -> Control:
    lives = Unreachable("it lives")
    return Control(str(tmp_path / "s"), DirectDriver(GENERATIONS[2024]), lambda: lives)


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_an_error_of_the_call(sentry: FakeSentry, control: Control, method: str) -> None:
    for kind, data in NOISE.items():
        sentry.raw[method] = data
        sentry.cut = {method: len(data)} if kind == "cut" else {}
        began = time.monotonic()
        with pytest.raises(RuntimeFault):
            METHODS[method](control)
        assert time.monotonic() - began < TIMEOUT, kind
    del sentry.raw[method]
    sentry.silent.add(method)
    with pytest.raises(RuntimeFault):
        METHODS[method](control)


@pytest.mark.parametrize("method", METHODS)
def test_lies_are_errors_or_of_the_type_that_is_asked_for(
    sentry: FakeSentry, control: Control, method: str
) -> None:
    for lie in LIES:
        sentry.raw[method] = reply(lie)
        try:
            found = METHODS[method](control)
        except RuntimeFault:
            continue
        if not method.endswith(_SILENT) and not method.startswith(("Usage.UsageFD", "debug.")):
            # An object without the members that count: there is nothing of what they count.
            assert lie.startswith("{") and (found == 0 or isinstance(found, SentryStats)), found


def test_what_dribbles_is_late(sentry: FakeSentry, control: Control) -> None:
    """However often something comes: the whole has one deadline."""
    method = _M + "ContainerRuntimeState"
    sentry.raw[method] = reply('"' + "x" * 100_000 + '"')
    sentry.chunk, sentry.pause = 1, 0.05
    began = time.monotonic()
    with pytest.raises(RuntimeFault, match="no answer within"):
        METHODS[method](control)
    assert time.monotonic() - began < TIMEOUT


class _Sentry:
    """What ``Exits`` needs of one that lives."""

    class child:
        pid = 1

        @staticmethod
        def poll() -> None:
            return None


@pytest.mark.parametrize("kind", [*NOISE, "dribble", "silence"])
def test_a_wait_that_is_lied_to_holds_up_nobody_else(
    sentry: FakeSentry, control: Control, kind: str
) -> None:
    """The reactor is all pods' and all containers': a lie is thrown away and asked about again."""
    method = _M + "Wait"
    sentry.raw[method] = NOISE.get(kind, reply("7"))
    if kind == "cut":
        sentry.cut[method] = len(NOISE[kind])
    if kind == "dribble":
        sentry.chunk, sentry.pause = 1, 0.02
    if kind == "silence":
        sentry.silent.add(method)
    sentry.handlers[_M + "ContainerRuntimeState"] = lambda _: 2
    reactor = Reactor()
    reactor.start()
    one: Any = _Sentry()
    watched = exits.Exits("c", one, control, reactor)
    told: list[object] = []
    try:
        watched.ask("c", 0, told.append)
        slowest = 0.0
        for _ in range(30):
            turn, began = threading.Event(), time.thread_time()
            asked = time.monotonic()
            reactor.call_later(0.01, turn.set)
            assert turn.wait(TIMEOUT)
            slowest = max(slowest, time.monotonic() - asked)
            assert time.thread_time() - began < 1
        assert slowest < 2, "the reactor stood still"
        assert told == [] or kind == "dribble"
    finally:
        watched.abandon()
        reactor.stop()


def test_descriptors_that_nobody_asked_for_are_not_kept(tmp_path: Path) -> None:
    """A sentry's descriptors could fill our table."""
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(4)
    lives = Unreachable("it lives")
    control = Control(str(tmp_path / "s"), DirectDriver(GENERATIONS[2024]), lambda: lives)
    fds = open_fds()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection, open(os.devnull, "rb") as null:
                connection.recv(1 << 16)
                answer = json.dumps({"success": True, "err": "", "result": 2}).encode()
                socket.send_fds(connection, [answer], [null.fileno()] * 50)
                connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    assert control.state("c", TIMEOUT).value == 2
    _, files = control.call_for_files("Usage.UsageFD", {}, 2, TIMEOUT)
    for fd in files:
        os.close(fd)
    assert len(files) <= 2
    thread.join()
    assert open_fds() == fds
    listener.close()
