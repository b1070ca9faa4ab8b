"""Deaths while pods are at work: after each the pod can be removed, and nothing is left."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

import pytest

from integration.harness.base import linux
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Api, Refused
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode
from integration.harness.nodes.scenes import Scene, scene
from integration.pods.fault_rows import ITSELF, ROWS, Row

#: Seconds in which CRI must be able to take a pod away, whatever happened to it.
REMOVAL = 15
#: gRPC's status of a call whose connection broke.
_UNAVAILABLE = 14


def _removed(pods: PodNode, pod: Pod) -> None:
    """The pod goes away through CRI in time, and nothing of it stays."""
    pods.revive()
    began = time.monotonic()
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        until(lambda m=method: _done(pods, m, pod), REMOVAL, f"{method} succeeds")  # type: ignore[misc]
    assert time.monotonic() - began < REMOVAL
    # The reference's shim leaves its socket when it is killed.
    pods.assert_clean(excused=() if pods.gvisor else ("socket",))


def _done(pods: PodNode, method: str, pod: Pod) -> bool:
    try:
        pods.call(method, REMOVAL, pod_sandbox_id=pod.id)
    except Refused:
        return False
    return True


@pytest.mark.without_pause
@pytest.mark.gvisor
@pytest.mark.parametrize("row", [each for each in ROWS if each.everywhere], ids=lambda r: r.name)
@pytest.mark.core
def test_death_everywhere(pods: PodNode, row: Row) -> None:
    _prove(pods, row)


@pytest.mark.gvisor
@pytest.mark.parametrize(
    "row", [each for each in ROWS if not each.everywhere], ids=lambda r: r.name
)
def test_death(pods: PodNode, row: Row) -> None:
    _prove(pods, row)


def _prove(pods: PodNode, row: Row) -> None:
    if row.victim == "root gofer" and pods.prepare().goferless:
        pytest.skip("there is no such gofer")
    with scene(pods, row.moment) as found:
        if (row.victim, row.moment) == ("gofer", "delete"):
            pid = found.gofers[found.container]
            until(lambda: not footprint.alive(pid), 5, "the gofer ended with its container")
        else:
            found.strike(row.victim)
        found.release()
        if row.victim == "containerd":
            _settle_alone(pods, found, row)
        assert _outcome(found) in row.call.split(" or ")
    told = {"container": row.container, "other": row.other, "pod": row.pod}
    assert _look(found, row) == told
    began = time.monotonic()
    pods.clean()
    if row.bundle_stays and pods.daemon.release >= (2, 0):
        bundles = _bundles(pods, found.container)
        assert sorted(pods.leftovers()) == bundles
        pods.restart()
    pods.assert_clean()
    assert time.monotonic() - began < REMOVAL


def _bundles(pods: PodNode, container: str) -> list[str]:
    """What containerd itself has of a task on disk."""
    tops = (pods.daemon.root, pods.daemon.state)
    return [f"state {top}/io.containerd.runtime.v2.task/k8s.io/{container}" for top in tops]


def _settle_alone(pods: PodNode, found: Scene, row: Row) -> None:
    """Without a containerd: only what the shim does by itself happens."""
    if row.cleaner == ITSELF:
        until(lambda: not footprint.alive(found.shim), 10, "the shim ends by itself")
    else:
        assert footprint.alive(found.shim)
    if row.moment.endswith("start"):
        found.until_running()  # for what isn't yet, the next containerd kills and deletes
    pods.close()
    pods.revive()


def _outcome(found: Scene) -> str:
    if found.call is None:
        return ""
    try:
        reply = found.call()
    except Refused as refused:
        return (
            "is cut off" if refused.code == _UNAVAILABLE and "removed" in str(refused) else "fails"
        )
    code = getattr(reply, "exit_code", None)
    return "succeeds" if code is None else f"ends with {code}"


def _look(found: Scene, row: Row) -> dict[str, str]:
    """What CRI tells of the container, of its neighbour and of the pod; waits until it does."""
    looks = {
        "container": lambda: _container(found, found.container),
        "other": lambda: _container(found, found.other),
        "pod": lambda: _pod(found),
    }
    seen = {}
    for what, look in looks.items():
        wanted = getattr(row, what)
        with suppress(AssertionError):  # it is compared, and shown, with the rest
            until(lambda w=wanted, k=look: k() in w.split(" or "), 10, "as told")  # type: ignore[misc]
        now = look()
        seen[what] = wanted if now in wanted.split(" or ") else now
    if row.other == "runs":
        assert found.pods.exec(found.other, "echo", "here").out == "here\n"
    return seen


def _container(found: Scene, container: str) -> str:
    if not container:
        return ""
    status = found.pods.status(container)
    names = {cri.CREATED: "created", cri.RUNNING: "runs", cri.UNKNOWN: "unknown"}
    return names.get(status.state) or str(status.exit_code)


def _pod(found: Scene) -> str:
    listed = {each.id: each for each in found.pods.call("ListPodSandbox").items}
    each = listed.get(found.pod_id)
    if each is None:
        return "gone"
    return "ready" if each.state == cri.READY else "not ready"


@pytest.mark.gvisor
@pytest.mark.core
def test_containerd_is_back_before_the_pod_runs(pods: PodNode) -> None:
    """It asks for the state, and takes what doesn't run yet for nothing: that pod is not ready."""
    with scene(pods, "pod start") as found:
        found.strike("containerd")
        pods.close()
        pods.daemon.start()
        found.release()
        pods.wait_ready()
        until(lambda: _pod(found) == "not ready", 20, "the pod is not ready")
    pods.clean()
    pods.assert_clean()


@pytest.mark.core
def test_containerd_restarts_while_a_pod_runs(pods: PodNode) -> None:
    """It finds all again: exec, stats, logs to the last line, and exits that it missed.

    Also where it knows the shim by its path alone, as `gvctl config` prints it.
    """
    pod = pods.pod(variant="path" if pods.gvisor else "")
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


@pytest.mark.gvisor
def test_a_container_that_containerd_lost_goes_with_its_pod(pods: PodNode) -> None:
    """Nobody will ever delete it: its bundle is wiped while containerd is away."""
    pod = pods.pod()
    lost = pod.start("sleep", "1000")
    pods.close()
    pods.daemon.stop()
    bundle = pods.daemon.bundle(lost)
    linux.unmount(str(bundle / "rootfs"))
    for path in bundle.iterdir():
        path.rmdir() if path.name == "rootfs" else path.unlink()
    pods.revive()
    assert pods.status(lost).state == cri.EXITED
    pod.remove()
    pods.assert_clean(60)


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


@pytest.mark.gvisor
def test_a_machine_goes_down(pods: PodNode) -> None:
    """SIGTERM to all that is left, without containerd: nobody is waited for until the end."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    shim = pod.shim
    os.kill(shim, signal.SIGTERM)
    assert pods.exec(container, "echo", "on").out == "on\n", "a stray signal costs nothing"
    everybody = pods.processes()
    pods.close()
    pods.daemon.kill()
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until(lambda: not pods.processes(), 60, "all processes ended")


def test_gone_processes_stay_gone(pods: PodNode) -> None:
    """No process outlives its pod, however deep in the container it was."""
    pod = pods.pod()
    container = pod.start("sh", "-c", "sleep 1000 & setsid sleep 1001 & echo up; wait")
    pod.wait_log(container, "up")
    below = [pod.shim, *footprint.descendants(pod.shim)]
    _removed(pods, pod)
    assert not [pid for pid in below if footprint.alive(pid)]
