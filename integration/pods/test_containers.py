"""Containers of one sandbox, each with processes, limits and an end of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.api import Code
from integration.harness.clients.daemon_api import Api, Refused
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode, kill

_OWN_PIDS = {"security_context": {"namespace_options": {"pid": cri.CONTAINER}}}
_RUNNING = 2


@pytest.fixture
def tasks(pods: PodNode) -> Iterator[Api]:
    """containerd's task API, in the namespace of CRI's containers."""
    api = Api(pods.daemon)
    yield api
    api.close()


def _seen(pods: PodNode, container: str) -> set[str]:
    """The arguments of all `sleep` that a container sees."""
    lines = pods.exec(container, "ps", "-o", "args").out.splitlines()
    return {line.split()[1] for line in lines if line.split()[0].endswith("sleep")}


@pytest.mark.core
@pytest.mark.parametrize("own", [True, False], ids=["private", "shared"])
def test_signals_and_pids_are_the_containers_own(pods: PodNode, tasks: Api, own: bool) -> None:
    """In a pid namespace of its own or in the pod's: `kill all` is all of one container."""
    pod = pods.pod()
    script = "sleep {0}1 & echo $! > /tmp/first; sleep {0}2 & echo up; wait; wait"
    linux = _OWN_PIDS if own else {}
    one, two = (pod.start("sh", "-c", script.format(n), linux=linux) for n in (10, 20))
    for container in (one, two):
        pod.wait_log(container, "up")
    assert "102" in _seen(pods, one)
    assert ("202" in _seen(pods, one)) is (not own)
    for container in (one, two):
        until(lambda c=container: len(_pids(tasks, c)) == 3, 5, "three processes")  # type: ignore[misc]
        assert tasks.task("Get", container_id=container).process.status == _RUNNING
        assert tasks.task("Metrics", filters=[f"id=={container}"]).metrics[0].id == container
    wait = tasks.task_later("Wait", container_id=one)
    # A process by itself, and then whatever is left.
    assert pods.exec(one, "sh", "-c", "kill $(cat /tmp/first)").code == 0
    until(lambda: len(_pids(tasks, one)) == 2, 5, "two processes")
    tasks.task("Kill", container_id=one, signal=9, all=True)
    assert wait().exit_status == 137
    assert pods.wait_exited(one).exit_code == 137
    with pytest.raises(Refused) as refused:
        pods.exec(one, "true")
    assert refused.value.code in (Code.NOT_FOUND, 2)
    assert len(_pids(tasks, two)) == 3
    # The end of init is the end of what it left behind, wherever that is.
    tasks.task("Kill", container_id=two, signal=9)
    assert pods.wait_exited(two).exit_code == 137
    other = pod.start("sleep", "301")
    until(lambda: not {"201", "202"} & _seen(pods, other), 5, "orphans are gone")


def _pids(tasks: Api, container: str) -> list[int]:
    return [each.pid for each in tasks.task("ListPids", container_id=container).processes]


@pytest.mark.without_pause
@pytest.mark.core
def test_pid_namespaces(pods: PodNode) -> None:
    """Containers see their own processes, or all of the pod's, as the spec says."""
    pod = pods.pod()
    private, other = (pod.start("sleep", n, linux=_OWN_PIDS) for n in ("1234", "4321"))
    assert _seen(pods, private) == {"1234"}
    assert pods.exec(private, "cat", "/proc/1/cmdline").out == "sleep\0001234\0"
    assert _seen(pods, other) == {"4321"}
    first, second = pod.start("sleep", "1111"), pod.start("sleep", "2222")
    pause, program = {"2147483647"}, "sleep\0002147483647\0"
    if pods.without_pause:
        pause, program = set(), "/forward\0"
    for container in (first, second):
        assert {"1111", "2222", *pause} <= _seen(pods, container)
        assert pods.exec(container, "cat", "/proc/1/cmdline").out.endswith(program)
    if not pods.gvisor:  # under gVisor the pod's namespace is the sentry's root one, which sees all
        assert not {"1234", "4321"} & _seen(pods, first)


@pytest.mark.core
@pytest.mark.gvisor
def test_end_of_the_first_container_ends_all(pods: PodNode, tasks: Api) -> None:
    """Each one's exit is told, once, and the sandbox's own as well."""
    if pods.without_pause:
        pytest.skip("no task of containerd's is the pod's first; see test_sandboxer.py")
    pod = pods.pod()
    containers = [pod.start("sleep", "1000") for _ in range(3)]
    over = pod.start("sh", "-c", "exit 3")
    pods.wait_exited(over)
    with tasks.events() as events:
        tasks.task("Kill", container_id=pod.id, signal=15)  # as the node's shutdown would
        for each in (pod.id, *containers):
            assert events.wait(each, "exit").id == each
        assert [pods.wait_exited(c).exit_code for c in containers] == [137] * 3
        until(lambda: pod.status.state == cri.NOT_READY, 10, "the pod is not ready")
        for each in (pod.id, *containers):
            assert events.topics(each).count("exit") == 1
        assert "exit" not in events.topics(over)
    assert pods.status(over).exit_code == 3
    pod.remove()
    pods.assert_clean()


@pytest.mark.gvisor
def test_more_mounts_than_a_sentry_takes(pods: PodNode) -> None:
    """A clear refusal before the sentry sees it, which the pod survives."""
    folder = pods.daemon.folder / "many"
    mounts = []
    for number in range(130):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        mounts.append({"container_path": f"/m{number}", "host_path": f"{folder}/{number}"})
    pod = pods.pod()
    steady = pod.start("sleep", "1000")
    crowded = pod.create("true", mounts=mounts)
    with pytest.raises(Refused, match=r"1[34]\d file descriptors.*128"):
        pods.call("StartContainer", container_id=crowded)
    assert pods.status(crowded).state == cri.EXITED
    pods.delete(crowded)
    fits = pod.start("sh", "-c", "ls -d /m* | wc -l", mounts=mounts[:100])
    assert pods.wait_exited(fits).exit_code == 0
    assert pod.log(fits) == "101\n"  # with /mnt
    assert pods.exec(steady, "echo", "well").out == "well\n"


def _create_task(pods: PodNode, pod: Pod, tasks: Api, name: str, *command: str) -> None:
    """A task in a pod that is created and not started, which CRI never leaves."""
    spec = tasks.spec(*command, container=name)
    spec["annotations"] = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": pod.id,
    }
    spec["linux"]["cgroupsPath"] = f"{pod.cgroup}/{name}"
    tasks.task("Create", container_id=name, rootfs=tasks.make(name, pods.runtime, spec))


@pytest.mark.gvisor
def test_gofer_works_from_create_on(pods: PodNode, tasks: Api) -> None:
    """It has served the mounts by the time of Start; if it dies before, that one fails alone."""
    pod = pods.pod()
    steady = pod.start("sleep", "1000")
    for name in ("ready", "doomed"):
        _create_task(pods, pod, tasks, name, "sleep", "1000")
        assert pod.gofer(name)
    tasks.task("Start", container_id="ready")
    kill(pod.gofer("doomed"))
    with pytest.raises(Refused, match="gofer"):
        tasks.task("Start", container_id="doomed")
    assert tasks.task("Wait", container_id="doomed").exit_status == 128
    assert tasks.task("Get", container_id="ready").process.status == _RUNNING
    assert pods.exec(steady, "echo", "well").out == "well\n"
    tasks.task("Kill", container_id="ready", signal=9)
    assert tasks.task("Wait", container_id="ready").exit_status == 137
    for name in ("ready", "doomed"):
        tasks.task("Delete", container_id=name)
        tasks.unmake(name)
    assert set(pod.gofers()) == {*pod.own_gofers(), pod.gofer(steady)}


@pytest.mark.gvisor
def test_gofer_that_dies_takes_its_container_alone(pods: PodNode) -> None:
    pod = pods.pod()
    one, two = pod.start("sleep", "1000"), pod.start("sleep", "1000")
    kill(pod.gofer(one))
    assert pods.wait_exited(one).exit_code == 137
    assert pods.exec(two, "cat", "/etc/notice").out == "made for the tests\n"
    again = pod.start("cat", "/etc/notice", attempt=1)
    assert pods.wait_exited(again).exit_code == 0


@pytest.mark.gvisor
def test_container_made_and_deleted_many_times(pods: PodNode) -> None:
    """Shim and sentry keep nothing of a container that is gone."""
    pod = pods.pod()
    steady = pod.start("sleep", "1000")
    shim, sentry = pod.shim, pod.sentry()

    def round_trip(number: int) -> None:
        container = pod.start("true", name=f"r{number}")
        pods.wait_exited(container)
        pods.delete(container)

    def sizes() -> dict[str, int]:
        descriptors, threads = footprint.size(shim)
        return {
            "descriptors": descriptors,
            "threads": threads,
            "children": len(footprint.descendants(shim)),
            "descriptors of the sentry": footprint.size(sentry)[0],
            "mounts": len(pods.mounts()),
            "cgroups": len(pods.cgroups()),
            "records": len(list((pods.daemon.folder / "runsc").rglob("*"))),
        }

    # The first ones fill the interpreter's pools of small objects, and touch what a fork shares.
    for number in range(30):
        round_trip(number)
    until(lambda: footprint.idle_size(shim), 5, "idle")
    before, memory = sizes(), (footprint.memory(shim), footprint.memory(sentry))
    for number in range(30, 100):
        round_trip(number)

    def grown() -> dict[str, int]:
        return {name: n for name, n in sizes().items() if n > before[name]}

    until(lambda: footprint.idle_size(shim) and not grown(), 10, f"no growth of {before}")
    assert footprint.memory(shim) - memory[0] < 1 << 20
    assert footprint.memory(sentry) - memory[1] < 16 << 20
    assert pods.exec(steady, "echo", "well").out == "well\n"


def test_probes_cost_nothing_that_stays(pods: PodNode) -> None:
    """A probe each second for a minute, in quick succession: no process grows."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    watched = [pod.shim, *footprint.descendants(pod.shim)] if pods.gvisor else [pod.shim]

    def probe(count: int) -> None:
        for _ in range(count):
            assert pods.exec(container, "true").code == 0

    def rest() -> list[tuple[int, int]]:
        return [until(lambda p=pid: footprint.idle_size(p), 5, "idle") for pid in watched]  # type: ignore[misc]

    probe(20)
    before, memory = rest(), [footprint.memory(pid) for pid in watched]
    probe(60)
    deadline = time.monotonic() + 10
    while (after := rest()) != before and time.monotonic() < deadline:
        continue
    # The Go programs start a thread now and then; descriptors must not become more.
    assert [fds for fds, _ in after] == [fds for fds, _ in before]
    assert after[0][1] <= before[0][1], "threads of the shim"
    assert all(later[1] <= first[1] + 3 for first, later in zip(before, after, strict=True))
    grown = [footprint.memory(pid) - then for pid, then in zip(watched, memory, strict=True)]
    assert grown[0] < 1 << 20, "memory of the shim"
    assert all(growth < 8 << 20 for growth in grown), grown
