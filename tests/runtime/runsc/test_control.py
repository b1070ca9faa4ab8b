from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unsupported,
)
from runtime.bundle.process_spec import ProcessSpec
from runtime.cgroups.metrics import NetworkStats, SentryStats
from runtime.runsc.control import (
    ContainerState,
    Control,
    SandboxProcess,
    SignalMode,
    shell_status,
    translate,
    wait_status,
)
from runtime.runsc.driver import DirectDriver, MountConf
from runtime.runsc.urpc import Reply
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry, SentryError


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fake = FakeSentry.at(str(tmp_path / "s"))
    yield fake
    fake.stop()


def make(tmp_path: Path, year: int = 2024) -> Control:
    driver = DirectDriver(GENERATIONS[year])
    return Control(str(tmp_path / "s"), driver, lambda: SandboxGone(77))


@pytest.fixture
def control(tmp_path: Path, sentry: FakeSentry) -> Control:
    return make(tmp_path)


def failing(text: str) -> Any:
    def handler(_: object) -> object:
        raise SentryError(text)

    return handler


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("unknown method", Unsupported, "signal: unknown method"),
        (
            'signaling process in container "c" PID 0: no such process',
            NotFound,
            'signaling process in container "c" PID 0: no such process',
        ),
        ("no such process with PID 5", NotFound, "no such process with PID 5"),
        ("waiting for PID 5: no such process", NotFound, "waiting for PID 5: no such process"),
        (
            'process 5 belongs to a different container: "d"',
            NotFound,
            'process 5 belongs to a different container: "d"',
        ),
        ('container "d" not found', NotFound, 'container "d" not found'),
        (
            'container "c" not started',
            InvalidState,
            "cannot signal container 'c' in state created",
        ),
        ('container "c" has stopped', InvalidState, "cannot signal container 'c' in state stopped"),
        (
            'trying to start a deleted container "c"',
            InvalidState,
            "cannot signal container 'c' in state stopped",
        ),
        (
            'can\'t wait for container "c": not started',
            InvalidState,
            "cannot signal container 'c' in state created",
        ),
        ('container "d" already exists', AlreadyExists, "container 'd' already exists"),
        (
            'failed to find initial working directory "/x": no such file or directory',
            InvalidRequest,
            'process.cwd: failed to find initial working directory "/x": no such file or directory',
        ),
        (
            "starting sandbox: creating process: failed to load /x: no such file or directory",
            InvalidRequest,
            'process.args: exec: "/x": starting sandbox: creating process: failed to load /x: '
            "no such file or directory",
        ),
        ("no TTY attached", InvalidState, "cannot signal container 'c' in state running without"),
        ("something else", Failed, "signal container 'c': something else"),
    ],
)
def test_error_texts(text: str, kind: type[RuntimeFault], message: str) -> None:
    fault = translate(text, "signal", "c", 5, ["/x"])
    assert type(fault) is kind
    assert str(fault).startswith(message)


def test_programs_are_missed_in_the_words_of_other_runtimes() -> None:
    text = 'error finding executable "x" in PATH [/bin]: no such file or directory'
    fault = translate(text, "exec in", "c", args=["x", "y"])
    assert 'exec: "x": executable file not found in $PATH' in str(fault)


def test_statuses() -> None:
    assert [shell_status(raw) for raw in (0, 0x700, 9, 15 | 0x80, 0xFF00)] == [0, 7, 137, 143, 255]
    assert wait_status(Reply(success=True, error="", result=0x700)) == 0x700
    for result in (None, True, -1, "9", 1.0, 1 << 17):
        with pytest.raises(Failed):
            wait_status(Reply(success=True, error="", result=result))
    with pytest.raises(NotFound):
        wait_status(Reply(success=False, error="no such process", result=None))


def test_names_that_differ_between_releases(tmp_path: Path, sentry: FakeSentry) -> None:
    sentry.handlers["Lifecycle.Pause"] = lambda _: {}
    for year, tried in ((2022, 1), (2024, 2)):
        sentry.requests.clear()
        make(tmp_path, year).pause(5)
        assert len(sentry.requests) == tried
        assert sentry.methods()[-1] == "Lifecycle.Pause"
    with pytest.raises(Unsupported):
        make(tmp_path).resume(5)
    sentry.handlers["Network.CreateLinksAndRoutes"] = lambda _: {}
    make(tmp_path, 2026).set_network({"PCAP": False}, (), 5)
    assert sentry.methods()[-2:] == [
        "containerManager.SetNetworkArgs",
        "Network.CreateLinksAndRoutes",
    ]
    sentry.handlers["Network.CreateLinksAndRoutes"] = failing("bad link")
    with pytest.raises(Failed, match="bad link"):
        make(tmp_path, 2022).set_network({}, (), 5)
    assert sentry.methods()[-1] == "Network.CreateLinksAndRoutes", "not tried under another name"


def test_signal(control: Control, sentry: FakeSentry) -> None:
    sentry.handlers["containerManager.Signal"] = lambda _: {}
    control.signal("c", 15, 3, SignalMode.FOREGROUND, 5)
    assert sentry.requests[-1].argument == {"CID": "c", "Signo": 15, "PID": 3, "Mode": 2}
    sentry.handlers["containerManager.Signal"] = failing("no such process")
    with pytest.raises(NotFound) as caught:
        control.signal("c", 15, 3, SignalMode.PROCESS, 5)
    assert (caught.value.kind, caught.value.name) == ("process", "3")


def test_execute(control: Control, sentry: FakeSentry) -> None:
    sentry.handlers["containerManager.ExecuteAsync"] = lambda _: 7
    process = ProcessSpec(args=("a", "b"), env=("X=1",), cwd="/d", uid=1, gid=2)
    assert control.execute("c", process, (0, 1, 2), False, 5) == 7
    argument = sentry.requests[-1].argument
    assert argument["argv"] == ["a", "b"]
    assert (argument["KUID"], argument["KGID"], argument["wd"]) == (1, 2, "/d")
    assert argument["Capabilities"] is None
    assert argument["GuestFDs"] == [0, 1, 2]
    assert len(sentry.requests[-1].files) == 3


def test_state(tmp_path: Path, sentry: FakeSentry) -> None:
    control = make(tmp_path)
    sentry.handlers["containerManager.ContainerRuntimeState"] = lambda cid: {"c": 2}.get(cid, 9)
    assert control.state("c") is ContainerState.RUNNING
    with pytest.raises(Failed, match="malformed"):
        control.state("d")  # no word on whether it has ended
    del sentry.handlers["containerManager.ContainerRuntimeState"]
    for text, state in (
        ("no such process", ContainerState.STOPPED),
        ('container "c" not started', ContainerState.CREATING),
        ('container "c" not found', ContainerState.UNKNOWN),
    ):
        sentry.handlers["containerManager.Signal"] = failing(text)
        assert control.state("c") is state
    sentry.handlers["containerManager.Signal"] = lambda _: {}
    assert control.state("c") is ContainerState.RUNNING


def test_processes(control: Control, sentry: FakeSentry) -> None:
    one = {
        "uid": 5,
        "pid": 2,
        "ppid": 0,
        "threads": [2, 3],
        "c": 6,
        "tty": "?",
        "stime": "12:21",
        "time": "10ms",
        "cmd": "sleep",
    }
    sentry.handlers["containerManager.Processes"] = lambda _: [one]
    assert control.processes("c", 5) == [
        SandboxProcess(
            pid=2,
            ppid=0,
            uid=5,
            threads=2,
            cpu_percent=6,
            tty="?",
            start_time="12:21",
            cpu_time="10ms",
            command="sleep",
        )
    ]
    sentry.handlers["containerManager.Processes"] = lambda _: None
    assert control.processes("c", 5) == []
    for bad in ({}, [1], [{"pid": "x"}], [{"pid": -1}], 7):
        sentry.handlers["containerManager.Processes"] = lambda _, bad=bad: bad
        with pytest.raises(Failed, match="malformed"):
            control.processes("c", 5)


def test_statistics_of_a_sentry_that_hangs_are_not_waited_for_twice(
    control: Control, sentry: FakeSentry
) -> None:
    sentry.gates["containerManager.Event"] = threading.Event()
    with pytest.raises(DeadlineExceeded):
        control.event("c", 0.2)
    began = time.monotonic()
    for _ in range(10):
        with pytest.raises(DeadlineExceeded, match="late before"):
            control.event("other", 5)
    assert time.monotonic() - began < 1


def test_event(tmp_path: Path, sentry: FakeSentry) -> None:
    data = {
        "cpu": {"usage": {}},
        "memory": {"usage": {"limit": 0, "usage": 4050944, "failcnt": 0}},
        "pids": {"current": 3},
        "network_interfaces": [{"Name": "eth0", "RxBytes": 1, "TxBytes": 2}],
    }
    result: Any = {"event": {"type": "stats", "id": "c", "data": data}, "containerUsage": {"c": 10}}
    sentry.handlers["containerManager.Event"] = lambda _: result
    expected = SentryStats(
        cpu_ns={"c": 10},
        memory_usage=4050944,
        pids=3,
        networks=(NetworkStats(name="eth0", rx_bytes=1, tx_bytes=2),),
    )
    assert make(tmp_path).event("c", 5) == expected
    assert sentry.requests[-1].argument == "c"
    make(tmp_path, 2022).event("c", 5)
    assert sentry.requests[-1].argument is None
    for bad in (
        None,
        [],
        {"containerUsage": []},
        {"containerUsage": {"c": "x"}},
        {"event": {"data": {"memory": 3}}},
        {"event": {"data": {"network_interfaces": [3]}}},
        {"event": {"data": {"network_interfaces": 3}}},
    ):
        sentry.handlers["containerManager.Event"] = lambda _, bad=bad: bad
        with pytest.raises(Failed, match="malformed"):
            make(tmp_path).event("c", 5)


def test_cpu_time_of_all_is_asked_in_two_calls(control: Control, sentry: FakeSentry) -> None:
    """However many containers there are: some daemons ask for each one's figures every second."""
    data = {"cpu": {"usage": {"total": 7}}, "memory": {"usage": {"usage": 5}}}
    sentry.handlers["containerManager.Event"] = lambda _: {"event": {"data": data}}
    results = [{"value": "30", "is_error": False}, {"value": "no cgroup", "is_error": True}]
    results.append({"value": "9223372036854775807", "is_error": False})
    read = "Cgroups.ReadControlFiles"
    sentry.handlers[read] = lambda _: {"results": results}
    found = control.event("c", 5, ["d", "pause", "e"])
    assert found.cpu_ns == {"c": 7, "d": 30, "pause": 0, "e": (1 << 63) - 1}
    assert [each.method for each in sentry.requests] == ["containerManager.Event", read]
    assert sentry.requests[-1].argument["args"] == [
        {"file": {"controller": "cpuacct", "path": f"/{cid}", "name": "cpuacct.usage"}}
        for cid in ("d", "pause", "e")
    ]
    for bad in (
        None,
        {},
        {"results": results[:2]},
        {"results": [*results[:2], 3]},
        {"results": [*results[:2], {"value": 3}]},
        {"results": [*results[:2], {"value": "-3"}]},
        {"results": [*results[:2], {"value": "9" * 5000}]},
        {"results": [*results[:2], {"value": "9223372036854775808"}]},
    ):
        sentry.handlers[read] = lambda _, bad=bad: bad
        with pytest.raises(Failed, match="malformed"):
            control.event("c", 5, ["d", "pause", "e"])


def test_sentry_that_is_gone(control: Control, sentry: FakeSentry, tmp_path: Path) -> None:
    sentry.dropped.add("containerManager.StartRoot")
    with pytest.raises(SandboxGone):
        control.start_root("c", 5)
    sentry.raw["containerManager.Processes"] = b"nonsense"
    with pytest.raises(Failed, match="not a JSON object"):
        control.processes("c", 5)
    (tmp_path / "s").unlink()
    with pytest.raises(SandboxGone):
        control.connect(5)


def test_subcontainer_calls(control: Control, sentry: FakeSentry) -> None:
    for name in ("CreateSubcontainer", "StartSubcontainer", "DestroySubcontainer"):
        sentry.handlers["containerManager." + name] = lambda _: {}
    control.create_subcontainer("d", ())
    settings = DirectDriver(GENERATIONS[2024]).settings
    from runtime.runsc.config import RunscConfig

    argument = DirectDriver(GENERATIONS[2024]).start_subcontainer_argument(
        "d",
        {"process": {"args": ["x"]}},
        settings(RunscConfig(root="/r"), None),
        (MountConf(upper="self"), MountConf(lower="none", upper="memory")),
        1,
    )
    control.start_subcontainer(argument, (), 5)
    control.destroy_subcontainer("d", 5)
    created, started, destroyed = sentry.requests
    assert created.argument == {"CID": "d"}
    assert started.argument["GoferMountConfs"] == [
        {"lower": 1, "upper": 2},
        {"lower": 0, "upper": 1},
    ]
    assert "WatchdogAction" not in started.argument["Conf"]
    assert destroyed.argument == "d"
