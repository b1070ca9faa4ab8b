"""Looks at sandboxes whose sentries and shims answer, lie, and don't."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import NotFound
from runtime.cli import arguments, find, top
from runtime.cli.exporter import asking, collect
from runtime.cli.exporter.collect import Collector, SandboxLook
from runtime.cli.exporter.figures import Renderer
from tests.fakes.sentry import FakeSentry
from tests.fakes.state_files import Helpers, runsc_state, write

PROCESSES = "containerManager.Processes"
EVENT, EXPORT = "containerManager.Event", "Metrics.Export"
POD = {
    "io.kubernetes.cri.sandbox-name": "shop",
    "io.kubernetes.cri.sandbox-namespace": "web",
}


class Node:
    """A root directory with sandboxes of real processes and sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.helpers = Helpers()
        self.sentries: dict[str, FakeSentry] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.collectors: list[Collector] = []

    def sandbox(self, name: str) -> FakeSentry:
        sentry = self.sentries[name] = FakeSentry.at(str(self.folder / name))
        self.processes[name] = self.helpers.spawn("runsc-sandbox", name)
        sentry.handlers[EVENT] = lambda cid: usage(1_000_000)
        sentry.handlers[EXPORT] = lambda _: {"snapshot": {"data": [opens(4)]}}
        self.container(name, name, "sandbox")
        return sentry

    def container(self, name: str, sandbox: str, kind: str = "container", **more: Any) -> None:
        bundle = self.folder / f"bundle-{name}"
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        state = runsc_state(
            bundle,
            name,
            sandbox,
            pid=self.processes[sandbox].pid,
            socket=str(self.folder / sandbox),
            **more,
        )
        state["spec"]["annotations"] = {
            **POD,
            "io.kubernetes.cri.container-type": kind,
            **({"io.kubernetes.cri.container-name": f"the-{name}"} if kind == "container" else {}),
        }
        write(self.root, state)

    def collector(self, post: Any = None, **options: Any) -> Collector:
        args = arguments.build().parse_args(["--root", str(self.root), "metrics"])
        self.collectors.append(Collector(args, post, **options))
        return self.collectors[-1]

    def close(self) -> None:
        for collector in self.collectors:
            collector.close()
        self.helpers.close()
        for sentry in self.sentries.values():
            sentry.stop()


def usage(cpu: int, pids: int = 1) -> dict[str, Any]:
    data = {
        "cpu": {"usage": {"total": cpu}},
        "memory": {"usage": {"usage": 4096}},
        "pids": {"current": pids},
        "network_interfaces": [{"Name": "eth0", "RxBytes": 7}],
    }
    return {"event": {"data": data}, "containerUsage": None}


def opens(count: int) -> dict[str, Any]:
    return {"metric": {"name": "fs_opens", "type": 2, "help": "h"}, "val": {"int": count}}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def only(collector: Collector, timeout: float = 10.0) -> SandboxLook:
    [found] = collector.look(timeout).sandboxes
    return found


def test_a_pod_is_asked_on_one_connection(node: Node) -> None:
    sentry = node.sandbox("s1")
    node.container("c1", "s1")
    node.container("c2", "s1", status="stopped")
    found = only(node.collector())
    assert (found.namespace, found.pod, found.id) == ("web", "shop", "s1")
    assert [(each.id, each.name) for each in found.containers] == [("c1", "the-c1"), ("s1", "")]
    assert all(each.metrics is not None and each.metrics.pids == 1 for each in found.containers)
    assert found.states == {"running": 2, "stopped": 1}
    assert found.networks[0].rx_bytes == 7 and found.exported == [opens(4)]
    assert sentry.methods() == [EVENT, EVENT, EXPORT]
    assert sentry.closed_by_peer.acquire(timeout=10)
    assert not sentry.closed_by_peer.acquire(blocking=False), "a second connection"
    assert found.resident["sentry"] > 0 and found.host is not None


def test_files_are_read_again_when_they_change(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.sandbox("s1")
    collector = node.collector()
    only(collector)
    read: list[str] = []
    real = collect.StoredContainer._read.__func__  # type: ignore[attr-defined]

    def look(cls: Any, root: str, container: str, sandbox: str) -> Any:
        read.append(container)
        return real(cls, root, container, sandbox)

    monkeypatch.setattr(collect.StoredContainer, "_read", classmethod(look))
    only(collector)
    assert read == []
    node.container("c1", "s1")
    assert len(only(collector).containers) == 2 and read == ["c1"]


def test_a_sandbox_that_is_gone_leaves_nothing_open(node: Node) -> None:
    node.sandbox("s1")
    collector = node.collector()
    only(collector)
    before = _kept()
    node.sandbox("s2")
    assert len(collector.look(10.0).sandboxes) == 2
    assert len(_kept()) > len(before) > 0
    node.processes["s2"].kill()
    node.processes["s2"].wait()
    assert only(collector).id == "s1"
    assert _kept() == before


def _kept() -> list[str]:
    """The files of cgroups that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # that of the listing itself
    return sorted(path for path in found if path.startswith("/sys/fs/cgroup/"))


def test_another_process_with_the_sentrys_number_is_none(node: Node) -> None:
    node.sandbox("s1")
    collector = node.collector()
    only(collector)
    [known] = collector._known.values()
    assert known.sentry is not None
    known.sentry = known.sentry[0], known.sentry[1] + 1
    assert collector.look(10.0).sandboxes == ()


def test_a_sandbox_that_was_made_anew_under_its_name_is_found(node: Node) -> None:
    node.sandbox("s1")
    collector = node.collector()
    first = only(collector).resident
    node.processes["s1"].kill()
    node.processes["s1"].wait()
    assert collector.look(10.0).sandboxes == ()
    node.processes["s1"] = node.helpers.spawn("runsc-sandbox", "s1")
    node.container("s1", "s1", "sandbox")
    assert only(collector).resident.keys() == first.keys()


def test_a_stopped_sentry_is_not_even_asked(node: Node) -> None:
    node.sandbox("s1")
    other = node.sandbox("s2")
    pid = node.processes["s1"].pid
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    found = {each.id: each for each in node.collector().look(10.0).sandboxes}
    assert found["s1"].sentry == "stopped" and found["s2"].sentry == ""
    assert node.sentries["s1"].methods() == [] and other.methods() == [EVENT, EXPORT]
    # What the host knows is told all the same.
    assert found["s1"].host is not None and found["s1"].resident["sentry"] > 0


def test_silent_sentries_are_waited_for_together_and_then_left_alone(node: Node) -> None:
    for number in range(5):
        node.sandbox(f"s{number}").silent.add(EVENT)
    good = node.sandbox("good")
    collector = node.collector()
    began = time.monotonic()
    looks = {each.id: each for each in collector.look(0.3).sandboxes}
    assert time.monotonic() - began < 5 * 0.3, "one after the other"
    assert looks["good"].sentry == ""
    assert {looks[f"s{n}"].sentry for n in range(5)} == {"DeadlineExceeded"}
    for _ in range(20):
        looks = {each.id: each for each in collector.look(10.0).sandboxes}
    assert looks["s0"].sentry == "no answer before"
    # Its queue has room for sixteen connections, which its shim needs.
    assert node.sentries["s0"].methods() == [EVENT]
    assert good.methods().count(EVENT) == 21


def test_one_that_answers_again_is_asked_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_REST", 0.0)
    sentry = node.sandbox("s1")
    sentry.silent.add(EVENT)
    collector = node.collector()
    assert only(collector, 0.2).sentry == "DeadlineExceeded"
    sentry.silent.clear()
    assert only(collector).sentry == "" and not collector._rests._rests


def test_top_leaves_a_silent_sentry_alone_as_well(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "ANSWER", 0.2)
    node.sandbox("s1").silent.add(PROCESSES)
    good = node.sandbox("s2")
    good.handlers[PROCESSES] = lambda _: []
    rests = asking.Rests()
    containers, _ = find.every(arguments.build().parse_args(["--root", str(node.root), "top"]))
    for _ in range(20):
        silent, answering = top.look(containers, rests)
        assert silent.pids is None and answering.pids == 0
    assert node.sentries["s1"].methods().count(PROCESSES) == 1
    assert good.methods().count(PROCESSES) == 20


@pytest.mark.parametrize(
    "raw",
    [b"nonsense", b"{}", b'{"success":true,"result":[]}', b'{"success":true,"result":{"event":3}}'],
)
def test_a_sentry_that_lies_is_left_out(node: Node, raw: bytes) -> None:
    node.sandbox("s1").raw[EVENT] = raw
    node.sandbox("s2")
    looks = {each.id: each for each in node.collector().look(10.0).sandboxes}
    assert looks["s1"].sentry and looks["s2"].sentry == ""
    Renderer().render(node.collector().look(10.0))


def test_one_that_closes_or_dies_meanwhile(node: Node) -> None:
    node.sandbox("s1").dropped.add(EXPORT)
    found = only(node.collector())
    assert found.sentry == "Disconnected" and found.containers[0].metrics is not None
    node.processes["s1"].kill()
    node.processes["s1"].wait()
    assert node.collector().look(10.0).sandboxes == ()


def test_an_old_release_without_metrics_of_its_own(node: Node) -> None:
    sentry = node.sandbox("s1")
    del sentry.handlers[EXPORT]
    found = only(node.collector())
    assert found.sentry == "" and found.exported == ()


def test_none_of_the_sentrys_own_if_so_wanted(node: Node) -> None:
    sentry = node.sandbox("s1")
    only(node.collector(sentry_metrics="-"))
    only(node.collector(sentry_metrics="^fs_"))
    assert sentry.methods() == [EVENT, EVENT, EXPORT]
    assert sentry.requests[-1].argument == {"only_metrics": "^fs_"}


def test_cpu_time_never_goes_back(node: Node) -> None:
    sentry = node.sandbox("s1")
    shares = iter([5_000_000, 1_000, 6_000_000])
    sentry.handlers[EVENT] = lambda cid: {
        **usage(0),
        "containerUsage": {"s1": next(shares), "gone": 1_000_000},
    }
    collector = node.collector()
    seen = []
    for _ in range(3):
        metrics = only(collector).containers[0].metrics
        assert metrics is not None
        seen.append(metrics.cpu_usage_ns)
    assert seen == sorted(seen)


def test_a_broken_file_hides_no_sandbox(node: Node) -> None:
    node.sandbox("s1")
    (node.root / "bad_sandbox:bad.state").write_text("{")
    look = node.collector().look(10.0)
    assert len(look.sandboxes) == 1 and "bad_sandbox" in look.problems[0]


class Shim:
    """A shim's answer that is there at once, or never."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer
        self._ends = os.pipe()
        os.write(self._ends[1], b".")
        self.closed = False

    def fileno(self) -> int:
        return self._ends[0]

    def feed(self) -> Any:
        return self._answer()

    def close(self) -> None:
        self.closed = True
        for end in self._ends:
            os.close(end)


def test_shims_are_asked_with_the_sentries(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.sandbox("s1")
    monkeypatch.setattr(collect._Found, "shim_address", "unix:///run/s/1")
    shim = Shim(lambda: {"pid": os.getpid(), "threads": 5})

    def post(address: str, method: str) -> Shim:
        assert (address, method) == ("unix:///run/s/1", "Counters")
        return shim

    found = only(node.collector(post))
    assert found.counters["threads"] == 5 and found.resident["shim"] > 0 and shim.closed

    def gone(address: str, method: str) -> Shim:
        raise NotFound("debug socket", address)

    assert only(node.collector(gone)).shim == "NotFound"
