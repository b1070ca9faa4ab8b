"""Pods as the kubelet makes them: several containers in one sandbox, from run to removal."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.nodes.pods import PodNode, in_parallel


@pytest.mark.without_pause
@pytest.mark.core
def test_containers_talk_over_localhost(pods: PodNode) -> None:
    """Two containers of a pod share its network; one shim serves them all."""
    pod = pods.pod()
    server = pod.start("httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc")
    fetch = "until wget -q -O - http://127.0.0.1:8080/notice; do sleep 0.1; done"
    client = pod.start("sh", "-c", fetch)
    ended = pods.wait_exited(client)
    assert (ended.exit_code, ended.reason) == (0, "Completed")
    assert pod.log(client, "stdout") == "made for the tests\n"
    assert pods.status(server).state == cri.RUNNING
    assert len(pods.shims()) == 1
    pod.remove()
    pods.assert_clean()


@pytest.mark.core
def test_exec(pods: PodNode) -> None:
    """Output and exit code are the command's own, in whichever container it runs."""
    pod = pods.pod()
    first = pod.start("sh", "-c", "echo one > /tmp/mark; exec sleep 1000")
    second = pod.start("sh", "-c", "echo two > /tmp/mark; exec sleep 1000")
    for container, mark in ((first, "one\n"), (second, "two\n")):
        until(lambda c=container: pods.exec(c, "cat", "/tmp/mark").out, 5, "mark")  # type: ignore[misc]
        assert pods.exec(container, "cat", "/tmp/mark") == (0, mark, "")
    assert pods.exec(first, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    assert pods.exec(second, "sh", "-c", "kill -9 $$").code == 137
    big = pods.exec(second, "sh", "-c", "seq 1 20000")
    assert big.out == "".join(f"{n}\n" for n in range(1, 20001))
    calls = [
        pods.cri.call_later("ExecSync", 20, container_id=c, cmd=["echo", str(n)], timeout=10)
        for n, c in enumerate((first, second) * 5)
    ]
    assert [done.stdout for done in in_parallel(calls)] == [b"%d\n" % n for n in range(10)]
    with pytest.raises(Refused):
        pods.exec(first, "no-such-program")


def test_exec_has_a_timeout(pods: PodNode) -> None:
    """The process is killed when its time is over, and the container goes on."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    began = time.monotonic()
    with pytest.raises(Refused) as refused:
        pods.exec(container, "sleep", "987", timeout=1)
    assert refused.value.code == 4
    assert time.monotonic() - began < 3
    assert "987" not in pods.exec(container, "ps").out
    assert pods.status(container).state == cri.RUNNING


@pytest.mark.without_pause
@pytest.mark.core
def test_exit_codes_and_logs(pods: PodNode) -> None:
    """Exit codes are the processes' own, and logs are whole, however short the life."""
    pod = pods.pod()
    quick = pod.start("sh", "-c", "exit 42")
    signalled = pod.start("sh", "-c", "kill -15 $$; sleep 10")
    talker = pod.start("sh", "-c", "seq 1 30000; echo oops >&2; printf end")
    assert pods.wait_exited(quick).exit_code == 42
    # To its own pid namespace's init no signal without a handler is delivered under Linux.
    assert pods.wait_exited(signalled, 15).exit_code in (143, 0)
    assert pods.wait_exited(talker).exit_code == 0
    whole = "".join(f"{n}\n" for n in range(1, 30001)) + "end"
    assert until(lambda: pod.log(talker, "stdout") == whole, 5, "log is whole")
    assert pod.log(talker, "stderr") == "oops\n"
    failing = pod.create("no-such-program")
    with pytest.raises(Refused, match="no-such-program"):
        pods.call("StartContainer", container_id=failing)
    assert pods.status(failing).state == cri.EXITED
    pods.delete(failing)


def test_stop_gives_a_grace_period(pods: PodNode) -> None:
    """First the stop signal; SIGKILL only once the time is over."""
    pod = pods.pod()
    script = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.1; done"
    polite = pod.start("sh", "-c", script)
    stubborn = pod.start("sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.1; done")
    pod.wait_log(polite, "up")
    pod.wait_log(stubborn, "up")
    began = time.monotonic()
    pods.stop(polite, grace=10)
    assert time.monotonic() - began < 3
    assert pods.status(polite).exit_code == 3
    assert pod.log(polite) == "up\nbye\n"
    began = time.monotonic()
    pods.stop(stubborn, grace=1)
    assert 1 <= time.monotonic() - began < 4
    assert pods.status(stubborn).exit_code == 137
    pods.stop(stubborn)  # once more is no error


@pytest.mark.without_pause
@pytest.mark.core
def test_container_restarts_in_a_live_pod(pods: PodNode) -> None:
    """A container is made anew beside one that goes on, as the kubelet does after a crash."""
    pod = pods.pod()
    steady = pod.start("sleep", "1000")
    shim = pod.shim
    previous = ""
    for attempt in range(3):
        container = pod.start("sh", "-c", f"exit {attempt}", name="main", attempt=attempt)
        assert pods.wait_exited(container).exit_code == attempt
        if previous:
            pods.delete(previous)  # the kubelet keeps the last one
        previous = container
    assert pods.exec(steady, "echo", "well").out == "well\n"
    assert pod.shim == shim
    assert len(pods.call("ListContainers", filter={"pod_sandbox_id": pod.id}).containers) == 2


def test_siblings_survive_a_container(pods: PodNode) -> None:
    """Stop and removal of one container are nobody else's business."""
    pod = pods.pod()
    one, two = pod.start("sleep", "1000"), pod.start("sleep", "1000")
    never_started = pod.create("sleep", "1000")
    pods.stop(one)
    pods.delete(one)
    pods.delete(never_started)
    assert pods.exec(two, "echo", "here").out == "here\n"
    assert pod.status.state == cri.READY
    pods.call("RemoveContainer", container_id=two)  # a running one is killed
    assert pod.status.state == cri.READY
    assert len(pods.shims()) == 1


def test_container_in_a_stopped_pod_is_refused(pods: PodNode) -> None:
    pod = pods.pod()
    pod.stop()
    with pytest.raises(Refused):
        pod.start("true")
    pod.remove()
    pods.assert_clean()


@pytest.mark.without_pause
def test_hostname_dns_and_environment(pods: PodNode) -> None:
    """What CRI writes for a pod is what its containers see."""
    dns = {"servers": ["10.0.0.53"], "searches": ["svc.test"], "options": ["ndots:5"]}
    pod = pods.pod(dns_config=dns)
    container = pod.start(
        "sleep", "1000", envs=[{"key": "COLOUR", "value": "blue"}], working_dir="/tmp"
    )
    assert pods.exec(container, "hostname").out == f"{pod.name}\n"
    assert pods.exec(container, "cat", "/etc/hostname").out == f"{pod.name}\n"
    assert pods.exec(container, "cat", "/etc/resolv.conf").out.splitlines() == [
        "search svc.test",
        "nameserver 10.0.0.53",
        "options ndots:5",
    ]
    assert pods.exec(container, "sh", "-c", "echo $COLOUR $HOSTNAME; pwd").out == (
        f"blue {pod.name}\n/tmp\n"
    )


@pytest.mark.without_pause
def test_users_and_read_only_root(pods: PodNode) -> None:
    pod = pods.pod()
    user = {"security_context": {"run_as_user": {"value": 1000}}}
    container = pod.start("sleep", "1000", linux=user)
    assert pods.exec(container, "id", "-u").out == "1000\n"
    assert pods.exec(container, "touch", "/etc/x").code == 1
    container = pod.start("sleep", "1000", linux={"security_context": {"readonly_rootfs": True}})
    assert pods.exec(container, "touch", "/etc/x").code == 1


@pytest.mark.gvisor
def test_the_container_of_the_job_that_verifies_a_cluster(pods: PodNode) -> None:
    """With what a kubelet makes of its security context: nobody's user, no capability."""
    text = (peers.CHECKOUT / "deploy/cluster/verify/job.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    pod = pods.pod()
    context = {
        "run_as_user": {"value": spec["securityContext"]["runAsUser"]},
        "seccomp": {"profile_type": 0},
        "no_new_privs": True,
        "readonly_rootfs": True,
        "capabilities": {"drop_capabilities": ["ALL"]},
    }
    started = pod.start(*container["command"], linux={"security_context": context})
    assert pods.wait_exited(started).exit_code == 0, pod.log(started)
    assert pod.log(started).startswith("Linux version 4.")


def test_volumes_are_shared(pods: PodNode) -> None:
    """A host folder in two containers, writable in one and read-only in the other."""
    folder = pods.daemon.folder / "volume"
    folder.mkdir(exist_ok=True)
    pod = pods.pod()
    mount = {"container_path": "/mnt", "host_path": str(folder)}
    writer = pod.start("sleep", "1000", mounts=[mount])
    reader = pod.start("sleep", "1000", mounts=[{**mount, "readonly": True}])
    assert pods.exec(writer, "sh", "-c", "echo from writer > /mnt/note").code == 0
    assert folder.joinpath("note").read_text() == "from writer\n"
    assert pods.exec(reader, "cat", "/mnt/note").out == "from writer\n"
    assert pods.exec(reader, "touch", "/mnt/other").code == 1


@pytest.mark.gvisor
def test_runsc_is_replaced_below_a_running_pod(pods: PodNode) -> None:
    """What runs goes on with the release that it was made with; new pods take the new one."""
    runsc = pods.daemon.folder / "bin" / "runsc"
    before = runsc.readlink()
    others = [peers.runsc(each) for each in peers.RUNSCS if peers.runsc(each) != before]
    other = others[0] if others else before
    # One that has its sentry beside it may be a stand-in, which executes the real one.
    sidecars = before.parent / "gvisor-bin"
    link = runsc.with_name(sidecars.name)

    def put(source: Path) -> None:
        new = runsc.with_suffix(".new")
        shutil.copy(source, new)
        new.rename(runsc)

    try:
        if sidecars.is_dir():
            link.symlink_to(sidecars)
        put(before)
        pod = pods.pod()
        put(other)
        container = pod.start("sleep", "1000")
        assert pods.exec(container, "echo", "here").out == "here\n"
        if not sidecars.is_dir():
            assert os.readlink(f"/proc/{pod.gofer(container)}/exe").endswith(" (deleted)")
        late = pods.pod()
        container = late.start("sleep", "1000")
        assert pods.exec(container, "echo", "new").out == "new\n"
        if not sidecars.is_dir():
            assert os.readlink(f"/proc/{late.gofer(container)}/exe") == str(runsc)
        runsc.unlink()
        assert pods.exec(pod.start("sleep", "1000"), "echo", "here").out == "here\n"
        pod.remove()
        late.remove()
    finally:
        link.unlink(missing_ok=True)
        runsc.unlink(missing_ok=True)
        runsc.symlink_to(before)
