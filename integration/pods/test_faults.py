"""Deaths while pods are at work: after each the pod can be removed, and nothing is left."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

import pytest

from integration.harness import cri, footprint
from integration.harness.daemon_api import Api, Refused
from integration.harness.pods import Pod, PodNode, kill
from integration.harness.waiting import until

#: Seconds in which CRI must be able to take a pod away, whatever happened to it.
REMOVAL = 15
VICTIMS = ("shim", "sentry", "gofer", "root gofer", "containerd")


def _removed(pods: PodNode, pod: Pod, excused: tuple[str, ...] = ()) -> None:
    """The pod goes away through CRI in time, and nothing of it stays."""
    pods.revive()
    began = time.monotonic()
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        until(lambda m=method: _done(pods, m, pod), REMOVAL, f"{method} succeeds")  # type: ignore[misc]
    assert time.monotonic() - began < REMOVAL
    # The reference's shim leaves its socket when it is killed.
    pods.assert_clean(excused=excused if pods.gvisor else ("socket", *excused))


def _bundles(pods: PodNode) -> tuple[str, ...]:
    tops = (pods.daemon.state, pods.daemon.root)
    return tuple(f"state {top}/io.containerd.runtime.v2.task/" for top in tops)


def _done(pods: PodNode, method: str, pod: Pod) -> bool:
    try:
        pods.call(method, REMOVAL, pod_sandbox_id=pod.id)
    except Refused:
        return False
    return True


def _killer(pods: PodNode, pod: Pod, container: str, victim: str) -> Callable[[], None]:
    """What kills the victim; looked up beforehand, so that it takes no time."""
    if victim == "containerd":
        return pods.daemon.kill
    pid = {
        "shim": lambda: pod.shim,
        "sentry": pod.sentry,
        "gofer": lambda: pod.gofer(container),
        "root gofer": lambda: pod.gofer(pod.id),
    }[victim]()
    return lambda: kill(pid)


@pytest.mark.gvisor
@pytest.mark.parametrize("victim", VICTIMS)
def test_death_while_running(pods: PodNode, victim: str) -> None:
    pod = pods.pod()
    one, two = pod.start("sleep", "1000"), pod.start("sleep", "1000")
    _killer(pods, pod, one, victim)()
    if victim in ("shim", "sentry"):
        # Nobody is asked for the exits of a dead shim's containers: 255 is containerd's own word.
        assert {pods.wait_exited(c).exit_code for c in (one, two)} <= {137, 255}
        until(lambda: pod.status.state == cri.NOT_READY, 10, "the pod is not ready")
    elif victim == "gofer":
        assert pods.wait_exited(one).exit_code == 137
        assert pods.exec(two, "echo", "still here").out == "still here\n"
    _removed(pods, pod)


_MOMENTS: dict[str, Callable[[PodNode, Pod, str], object]] = {
    "create": lambda pods, pod, container: pod.start("sleep", "1000"),
    "exec": lambda pods, pod, container: pods.exec(container, "sleep", "2"),
    "stop": lambda pods, pod, container: pods.stop(container, grace=1),
    "delete": lambda pods, pod, container: pods.delete(container),
}


@pytest.mark.gvisor
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("moment", _MOMENTS)
def test_death_at_work(pods: PodNode, moment: str, victim: str) -> None:
    """In the middle of a call, which may fail or not, but ends."""
    pod = pods.pod()
    container = pod.start("sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.1; done")
    pod.wait_log(container, "up")
    strike = _killer(pods, pod, container, victim)

    def work() -> None:
        try:
            _MOMENTS[moment](pods, pod, container)
        except (Refused, ValueError):  # a closed channel is a ValueError
            return

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.05)  # not synchronisation: the moment is the test's parameter
    strike()
    # containerd 2 keeps the bundle of a container whose Create fails because the pod's shim is
    # gone until it is started anew: it asks that shim once more and then gives up (TaskManager).
    lost = (moment, victim) == ("create", "shim")
    _removed(pods, pod, _bundles(pods) if lost else ())
    worker.join(REMOVAL)
    assert not worker.is_alive()


@pytest.mark.gvisor
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("victim", ["shim", "containerd"])
def test_death_while_a_pod_is_run(pods: PodNode, victim: str, delay: float) -> None:
    """RunPodSandbox fails, or is found half done by the next containerd."""
    pod = pods.prepare()
    finish = pod.run_later(20)
    until(pods.shims, 15, "a shim is there")
    time.sleep(delay)  # not synchronisation: the moment is the test's parameter
    if victim == "shim":
        kill(*pods.shims())
    else:
        pods.daemon.kill()
        pods.close()
    try:
        finish()
    except Refused:
        pod.id = ""
    pods.revive()
    began = time.monotonic()
    pods.clean()
    pods.assert_clean()
    assert time.monotonic() - began < REMOVAL


@pytest.mark.core
def test_containerd_restarts_while_a_pod_runs(pods: PodNode) -> None:
    """It finds all again: exec, stats, logs to the last line, and exits that it missed."""
    pod = pods.pod()
    script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; sleep 0.05; done; exit 9"
    counting = pod.start("sh", "-c", script)
    ending = pod.start(
        "sh", "-c", "while [ ! -e /mnt/go ]; do sleep 0.1; done; exit 5", mounts=[_volume(pods)]
    )
    shim = pod.shim
    pod.wait_log(counting, "3\n")
    pods.close()
    pods.daemon.kill()
    (pods.daemon.folder / "volume" / "go").touch()
    time.sleep(0.5)  # not synchronisation: containerd is away for a while
    pods.revive()
    missed = pods.wait_exited(ending).exit_code
    assert missed == 5 or not pods.gvisor  # the reference makes containerd take it for a leak
    assert pod.status.state == cri.READY
    assert pod.shim == shim
    assert pods.exec(counting, "touch", "/tmp/stop").code == 0
    assert pods.wait_exited(counting).exit_code == 9
    lines = [int(line) for line in pod.log(counting).split()]
    assert lines == list(range(1, len(lines) + 1))
    assert pod.start("true")
    _removed(pods, pod)


def _volume(pods: PodNode) -> dict[str, object]:
    folder = pods.daemon.folder / "volume"
    folder.mkdir(exist_ok=True)
    folder.joinpath("go").unlink(missing_ok=True)
    return {"container_path": "/mnt", "host_path": str(folder)}


def test_output_of_a_container_killed_before_its_start_ends(pods: PodNode) -> None:
    """Nobody deletes a task before its output is over; a daemon that starts waits for that."""
    pod = pods.pod()
    api = Api(pods.daemon)
    name = "never-started"
    spec = api.spec("true", container=name)
    spec["annotations"] = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": pod.id,
    }
    spec["linux"]["cgroupsPath"] = f"{pod.cgroup}/{name}"
    output = pods.daemon.fifos / name
    os.mkfifo(output)
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mounts = api.make(name, pods.runtime, spec)
        io = {"stdout": str(output), "stderr": str(output)}
        api.task("Create", container_id=name, rootfs=mounts, **io)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        api.task("Kill", container_id=name, signal=9)
        assert api.task("Wait", container_id=name).exit_status == 137
        assert select.select([reader], [], [], 5)[0], "output goes on"
        assert os.read(reader, 1) == b""
        api.task("Delete", container_id=name)
        api.unmake(name)
    finally:
        os.close(reader)
        output.unlink()
        api.close()
    _removed(pods, pod)


def test_stopped_pod_is_found_again(pods: PodNode) -> None:
    pod = pods.pod()
    container = pod.start("sh", "-c", "exit 4")
    pods.wait_exited(container)
    pod.stop()
    pods.restart()
    assert pod.status.state == cri.NOT_READY
    assert pods.status(container).exit_code == 4
    _removed(pods, pod)


def test_gone_processes_stay_gone(pods: PodNode) -> None:
    """No process outlives its pod, however deep in the container it was."""
    pod = pods.pod()
    container = pod.start("sh", "-c", "sleep 1000 & setsid sleep 1001 & echo up; wait")
    pod.wait_log(container, "up")
    below = [pod.shim, *footprint.descendants(pod.shim)]
    _removed(pods, pod)
    assert not [pid for pid in below if footprint.alive(pid)]
