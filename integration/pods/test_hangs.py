"""A sentry or a gofer that hangs: every call is answered in time, and the pod can be removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.api import TASK_SERVICES, Code, process_spec
from integration.harness.clients.daemon_api import Api
from integration.harness.clients.ttrpc import Client, Refused
from integration.harness.host import footprint
from integration.harness.host.fuse import FILE, HangingFuse
from integration.harness.nodes import gates
from integration.harness.nodes.pods import Pod, PodNode
from integration.harness.nodes.scenes import STOPPED
from integration.harness.nodes.shim import outcome

pytestmark = pytest.mark.gvisor

#: Seconds that each call may take, with something for a busy machine: containerd gives State 2
#: and Connect and Pids 5, it retries a Delete after 10, and its users wait for a Kill.
_BOUNDS = {"State": 2, "Connect": 2, "Pids": 5, "Stats": 5, "Kill": 2, "Shutdown": 2, "Delete": 10}
_LOOKS = ("State", "Connect", "Pids", "Stats")
#: What an exec's caller allows in the test; the exec is given up then.
_EXEC = 3
#: Seconds in which CRI must be able to take a pod away, whatever happened to it.
_REMOVAL = 15


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    gates.freeze(pid)
    try:
        yield
    finally:
        gates.thaw(pid)


def _client(pod: Pod) -> Client:
    return Client(footprint.socket_of(pod.node.daemon, pod.id), TASK_SERVICES[0])


def _later(client: Client, method: str, **values: object) -> Callable[[], tuple[int, float]]:
    """Make a call; the function returned waits for its status and how many seconds it took."""
    began = time.monotonic()
    finish = client.call_later(method, 30, **values)

    def wait() -> tuple[int, float]:
        code = Code.OK
        try:
            finish()
        except Refused as refused:
            code = refused.code
        return code, time.monotonic() - began

    return wait


def _pod(pods: PodNode, who: str) -> Pod:
    pod = pods.prepare()
    if who == "root gofer" and pod.goferless:
        pytest.skip("there is no such gofer")
    pod.run()
    return pod


def _hanging(pod: Pod, container: str, who: str) -> int:
    return {
        "sentry": pod.sentry,
        "gofer": lambda: pod.gofer(container),
        "root gofer": lambda: pod.gofer(pod.id),
    }[who]()


@pytest.mark.parametrize("who", ["sentry", "gofer", "root gofer"])
def test_every_call_is_answered(pods: PodNode, who: str) -> None:
    pod = _pod(pods, who)
    container = pod.start("sleep", "1000")
    api = Api(pods.daemon)
    spec = process_spec(api.spec("sleep", "1000")["process"])
    api.close()
    with _client(pod) as client, _frozen(_hanging(pod, container, who)):
        # Nobody answers this one, and its caller goes away.
        with _client(pod) as leaving:
            leaving.call_later("Wait", id=container)
        client.call("Exec", id=container, exec_id="x", spec=spec)
        client.call_later("Start", _EXEC, id=container, exec_id="x")
        calls = {name: _later(client, name, id=container) for name in _LOOKS}
        calls["Kill"] = _later(client, "Kill", id=container, signal=28)
        calls["Shutdown"] = _later(client, "Shutdown", id=container)
        ended = _later(client, "Wait", id=container, exec_id="x")
        with ThreadPoolExecutor() as pool:
            waits = {name: pool.submit(wait) for name, wait in calls.items()}
            took = {name: wait.result() for name, wait in waits.items()}
        assert {name: code for name, (code, _) in took.items()} == dict.fromkeys(calls, Code.OK)
        assert not {n: s for n, (_, s) in took.items() if s > _BOUNDS[n]}
        if who == "sentry":
            # Whoever started the exec hears nothing after his deadline, but others do.
            assert ended()[1] < _EXEC + 1
            assert client.call("State", id=container, exec_id="x").exit_status == 128
    assert footprint.alive(pod.shim)


@pytest.mark.parametrize("who", ["sentry", "gofer", "root gofer"])
def test_a_container_can_be_stopped_and_the_pod_removed(pods: PodNode, who: str) -> None:
    """Although the container reads from the gofer all the time, and ignores a SIGTERM."""
    pod = _pod(pods, who)
    script = "trap '' TERM; echo up; while true; do cat /bin/busybox > /dev/null; done"
    container = pod.start("sh", "-c", script)
    pod.wait_log(container, "up")
    with _frozen(_hanging(pod, container, who)):
        began = time.monotonic()
        pods.stop(container, grace=1)
        assert pods.wait_exited(container).exit_code == 137
        pods.clean()
        assert time.monotonic() - began < _REMOVAL
        pods.assert_clean()


def test_a_delete_is_answered(pods: PodNode) -> None:
    """The sentry stops after the container's end and never hears that it is to forget it."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    daemon = pods.daemon.process
    assert daemon is not None
    with _client(pod) as client, _frozen(daemon.pid):  # which would delete it by itself
        client.call("Kill", id=container, signal=9)
        until(lambda: client.call("State", id=container).status == STOPPED, 10, "it has ended")
        with _frozen(pod.sentry()):
            code, seconds = _later(client, "Delete", id=container)()
        assert (code, seconds < _BOUNDS["Delete"]) == (Code.OK, True)
        assert outcome(client, "Delete", id=container) == Code.NOT_FOUND
    assert pods.wait_exited(container).exit_code == 137
    assert pods.exec(pod.start("sleep", "1000"), "echo", "here").out == "here\n"


def test_a_volume_that_hangs_costs_its_container_alone(pods: PodNode) -> None:
    """A CSI driver answers no more: what waits for it can't be killed, until it is cut off."""
    pod = pods.prepare()
    uid = pod.config["metadata"]["uid"]
    volumes = pods.daemon.folder / "kubelet" / "pods" / uid / "volumes" / "kubernetes.io~csi"
    with HangingFuse(volumes / "v" / "mount") as volume:
        pod.run()
        mount = {"container_path": "/mnt", "host_path": str(volume.target)}
        waiting = pod.start("cat", f"/mnt/{FILE}", mounts=[mount])
        other = pod.start("sleep", "1000")
        assert volume.asked.wait(10)
        pods.stop(waiting)
        assert pods.status(waiting).state == cri.EXITED
        assert pods.exec(other, "echo", "here").out == "here\n"
        pod.remove()
