"""What the kubelet and its users do to pods: streams, logs, many at once, a new containerd."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode, in_parallel

# -- kubectl exec and attach ----------------------------------------------------------------


@pytest.mark.core
def test_exec_with_streams(pods: PodNode) -> None:
    """`kubectl exec -i`: input, both outputs apart, and the exit code."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    script = "read line; echo got $line; echo oops >&2; head -c 300000 /dev/zero; exit 7"
    with pods.exec_stream(container, "sh", "-c", script) as stream:
        stream.write("a word\n")
        stream.expect("got a word\n")
        stream.wait()
        assert (stream.out, stream.err, stream.code) == (bytes(300000), b"oops\n", 7)
    with pods.exec_stream(container, "true") as stream:
        stream.wait()
        assert (stream.out, stream.err, stream.code) == (b"", b"", 0)


@pytest.mark.core
def test_exec_on_a_terminal(pods: PodNode) -> None:
    """`kubectl exec -it`: a size that follows the user's window, and keys that are signals."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    with pods.exec_stream(container, "sh", tty=True) as stream:
        stream.resize(30, 100)
        # The shell may look before the size is set.
        stream.write("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.05; done; echo s''et\n")
        stream.expect("set\r\n")
        stream.write("sleep 987\n")
        until(lambda: "sleep 987" in pods.exec(container, "ps").out, 5, "it sleeps")
        stream.write("\x03")
        stream.write("echo status $?\n")
        stream.expect("status 130\r\n")
        stream.write("exit 5\n")
        stream.wait()
        assert stream.code == 5
    script = "trap 'stty size' WINCH; trap 'exit 6' INT; echo up; while true; do sleep 0.05; done"
    with pods.exec_stream(container, "sh", "-c", script, tty=True) as stream:
        stream.expect("up\r\n")
        stream.resize(40, 120)
        stream.expect("40 120\r\n")
        stream.write("\x03")
        stream.wait()
        assert stream.code == 6


@pytest.mark.parametrize(
    "job",
    ["sleep 987 &", "trap '' HUP; sleep 987 &", "sleep 987 </dev/null >/dev/null 2>&1 &"],
    ids=["plain", "deaf", "redirected"],
)
def test_a_session_ends_with_its_leader(pods: PodNode, job: str) -> None:
    """A job that it leaves behind keeps neither the user's terminal nor the exec."""
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    with pods.exec_stream(container, "sh", "-ic", f"{job} echo last; exit 3", tty=True) as stream:
        began = time.monotonic()
        stream.wait(15)
        assert stream.code == 3
        assert stream.out.endswith(b"last\r\n"), stream.out
        # What was there before: a wait for the job's end, or containerd's patience of 10 s.
        assert time.monotonic() - began < 9
    assert "sleep 987" in pods.exec(container, "ps").out, "as with runc, the job goes on"


def test_keys_and_sizes_reach_the_first_process(pods: PodNode) -> None:
    """`kubectl attach -it`: a member of a pod is signalled as an exec is."""
    pod = pods.pod()
    script = (
        "trap 'stty size' WINCH; trap 'echo quit' QUIT; trap 'exit 6' INT; echo up;"
        "while true; do sleep 0.05; done"
    )
    container = pod.start("sh", "-c", script, stdin=True, tty=True)
    until(lambda: "up" in pod.log(container), 10, "it is up")
    with pods.attach(container, tty=True) as stream:
        stream.resize(41, 121)
        stream.expect("41 121\r\n")
        stream.write("\x1c")
        stream.expect("quit\r\n")
        stream.write("\x03")
        stream.wait()
    assert pods.wait_exited(container).exit_code == 6


def test_job_control_of_the_first_process(pods: PodNode) -> None:
    """Keys reach the foreground job of a container's own shell, not the shell."""
    pod = pods.pod()
    container = pod.start("sh", "-i", stdin=True, tty=True)
    with pods.attach(container, tty=True) as stream:
        for key, said in (("\x03", "status 130"), ("\x1c", "status 131"), ("\x1a", "status 148")):
            stream.write("sleep 987\n")
            until(lambda: "sleep 987" in pods.exec(container, "ps").out, 10, "it sleeps")
            stream.write(key)
            stream.write("echo status $?\n")
            stream.expect(said)
            stream.write("kill -9 %1; wait\n")
            until(lambda: "sleep 987" not in pods.exec(container, "ps").out, 10, "it ended")
        # The first one only warns of stopped jobs, and may come while there is still one.
        stream.write("exit 7\nexit 7\n")
        stream.wait()
    assert pods.wait_exited(container).exit_code == 7


def test_exec_whose_client_goes_away(pods: PodNode) -> None:
    """containerd deletes it; no process of it goes on, and nothing of it stays in the shim.

    The job in the foreground of a terminal ends with the shell, as the terminal is hung up.
    """
    pod = pods.pod()
    container = pod.start("sleep", "1000")
    shim = pod.shim
    pods.exec(container, "true")
    before = until(lambda: footprint.idle_size(shim), 5, "idle")

    def running() -> list[str]:
        return pods.exec(container, "ps", "-o", "comm").out.split()

    def job() -> bool:
        return " sleep 987\n" in pods.exec(container, "ps").out

    for tty in (False, True, False):
        with pods.exec_stream(container, "sh", "-c", "echo up; exec cat", tty=tty) as stream:
            stream.expect("up")
            until(lambda: "cat" in running(), 10, "cat runs")  # the shell is replaced by it
        until(lambda: "cat" not in running(), 10, "cat has ended")
    for words in (("-i",), ("-c", "sleep 987; true")):  # a group of its own, and the shell's
        with pods.exec_stream(container, "sh", *words, tty=True) as stream:
            stream.write("sleep 987\n")
            until(job, 10, "the job runs")
        until(lambda: not job(), 10, "the job has ended")
    until(lambda: (now := footprint.idle_size(shim)) and now <= before, 10, f"like {before}")


@pytest.mark.core
def test_attach(pods: PodNode) -> None:
    """`kubectl attach -i` reaches the first process; the log has all of its output as well."""
    pod = pods.pod()
    script = "while read line; do echo out $line; echo err $line >&2; done; echo over"
    container = pod.start("sh", "-c", script, stdin=True)
    for word in ("one", "two"):  # who detaches can come back
        with pods.attach(container) as stream:
            stream.write(f"{word}\n")
            stream.expect(f"out {word}\n")
            until(lambda s=stream: s.err or s.pump(), 5, "stderr")  # type: ignore[misc]
            assert stream.err == f"err {word}\n".encode()
    assert pods.status(container).state == cri.RUNNING
    assert pod.log(container, "stdout") == "out one\nout two\n"
    assert pod.log(container, "stderr") == "err one\nerr two\n"


@pytest.mark.core
def test_attach_once_to_a_terminal(pods: PodNode) -> None:
    """`kubectl run -it`: the container has a terminal, and ends when its user leaves."""
    pod = pods.pod()
    container = pod.start("sh", stdin=True, stdin_once=True, tty=True)
    with pods.attach(container, tty=True) as stream:
        stream.resize(33, 99)
        stream.write("until [ \"$(stty size)\" = '33 99' ]; do sleep 0.05; done; echo s''et\n")
        stream.expect("set\r\n")
        stream.write("tty >/dev/null; echo typ''ed; exit 4\n")
        stream.expect("typed\r\n")
        stream.wait()
    assert pods.wait_exited(container).exit_code == 4
    until(lambda: "typed" in pod.log(container), 5, "log")


def test_input_ends_with_its_only_user(pods: PodNode) -> None:
    """stdin_once: the one who attached goes, and the container's input is at its end."""
    pod = pods.pod()
    container = pod.start("sh", "-c", "cat; echo over", stdin=True, stdin_once=True)
    with pods.attach(container) as stream:
        stream.write("text\n")
        stream.expect("text\n")
    assert pods.wait_exited(container).exit_code == 0
    assert pod.log(container) == "text\nover\n"


# -- logs -----------------------------------------------------------------------------------


@pytest.mark.core
def test_large_log_is_whole_to_the_last_byte(pods: PodNode) -> None:
    """Much output, more right before the end, and none of it lost or out of order."""
    pod = pods.pod()
    last = 150000
    container = pod.start("sh", "-c", f"seq 1 {last}; printf end; printf over >&2; exit 3")
    assert pods.wait_exited(container, 30).exit_code == 3
    whole = "".join(f"{n}\n" for n in range(1, last + 1)) + "end"
    until(lambda: len(pod.log(container, "stdout")) >= len(whole), 10, "log")
    assert pod.log(container, "stdout") == whole
    assert pod.log(container, "stderr") == "over"


def test_logs_of_short_lives_are_whole(pods: PodNode) -> None:
    """Containers that end at once, several at a time."""
    pod = pods.pod()
    for batch in range(3):
        containers = [
            pod.create("sh", "-c", f"echo {batch}.{n}; printf last", name=f"b{batch}-{n}")
            for n in range(4)
        ]
        in_parallel([pods.cri.call_later("StartContainer", 20, container_id=c) for c in containers])
        for n, container in enumerate(containers):
            assert pods.wait_exited(container).exit_code == 0
            until(lambda c=container: pod.log(c).endswith("last"), 5, "log")  # type: ignore[misc]
            assert pod.log(container) == f"{batch}.{n}\nlast"


def test_log_is_rotated(pods: PodNode) -> None:
    """The kubelet moves the file away and has a new one begun; no line is in neither."""
    pod = pods.pod()
    script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; done"
    container = pod.start("sh", "-c", script)
    path = Path(pods.status(container).log_path)
    text = pod.wait_log(container, "1000\n")
    for number in range(3):
        path.rename(path.with_suffix(f".{number}"))
        pods.call("ReopenContainerLog", container_id=container)
        until(lambda: path.exists() and path.stat().st_size, 5, "a new file")
    pods.exec(container, "touch", "/tmp/stop")
    pods.wait_exited(container)
    files = [*(path.with_suffix(f".{number}") for number in range(3)), path]
    text = "".join(file.read_text() for file in files)
    lines = [int(line.split()[3]) for line in text.splitlines()]
    assert lines == list(range(1, len(lines) + 1))


# -- many, and for long ---------------------------------------------------------------------


def test_stop_lets_a_container_finish(pods: PodNode) -> None:
    """The grace period is used as far as it is needed, and the pod's stop ends all else."""
    pod = pods.pod()
    script = "trap 'sleep 1; echo saved; exit 0' TERM; echo up; while true; do sleep 0.05; done"
    slow = pod.start("sh", "-c", script)
    stubborn = pod.start("sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.1; done")
    for container in (slow, stubborn):
        pod.wait_log(container, "up")
    began = time.monotonic()
    pods.stop(slow, grace=30)
    assert 0.9 < time.monotonic() - began < 5
    assert pods.status(slow).exit_code == 0
    assert pod.log(slow) == "up\nsaved\n"
    began = time.monotonic()
    pod.stop()
    assert time.monotonic() - began < 5
    assert pods.status(stubborn).exit_code == 137
    assert pod.status.state == cri.NOT_READY


def test_twenty_pods_at_once(pods: PodNode) -> None:
    """Run, filled, looked at, stopped and removed, each step for all at the same time."""
    many = [pods.prepare() for _ in range(20)]
    in_parallel([pod.run_later(60) for pod in many])
    assert len(pods.shims()) == 20
    containers = [
        pod.create("sh", "-c", f"echo {n}; exec sleep 1000") for n, pod in enumerate(many)
    ]
    in_parallel([pods.cri.call_later("StartContainer", 60, container_id=c) for c in containers])
    for n, (pod, container) in enumerate(zip(many, containers, strict=True)):
        assert pod.wait_log(container, "\n") == f"{n}\n"
    calls = [
        pods.cri.call_later("ExecSync", 60, container_id=c, cmd=["hostname"], timeout=30)
        for c in containers
    ]
    assert [done.stdout.decode() for done in in_parallel(calls)] == [f"{p.name}\n" for p in many]
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        in_parallel([pods.cri.call_later(method, 60, pod_sandbox_id=pod.id) for pod in many])
    pods.assert_clean()


@pytest.mark.without_pause
@pytest.mark.core
def test_containerd_comes_back(pods: PodNode) -> None:
    """Every pod is found again, with exits of meanwhile, whole logs, and terminals that work."""
    volume = pods.daemon.folder / "signal"
    volume.mkdir(exist_ok=True)
    go = volume / "go"
    go.unlink(missing_ok=True)
    mount = {"container_path": "/mnt", "host_path": str(volume)}
    wait = "while [ ! -e /mnt/go ]; do sleep 0.05; done"
    many = [pods.pod() for _ in range(3)]
    counting = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; sleep 0.02; done; printf end"
    going = [pod.start("sh", "-c", counting) for pod in many]
    ending = [
        pod.start("sh", "-c", f"{wait}; seq 1 500; exit {n + 5}", mounts=[mount])
        for n, pod in enumerate(many)
    ]
    terminal = many[0].start("sh", tty=True, stdin=True)
    over = many[1].start("sh", "-c", "exit 9")
    pods.wait_exited(over)
    shims = [pod.shim for pod in many]
    for pod, container in zip(many, going, strict=True):
        pod.wait_log(container, "3\n")
    pods.close()
    pods.daemon.stop()
    go.touch()
    time.sleep(0.5)  # not synchronisation: containerd is away for a while
    pods.revive()
    assert [pod.status.state for pod in many] == [cri.READY] * 3
    assert [pod.shim for pod in many] == shims
    codes = [pods.wait_exited(container).exit_code for container in ending]
    if pods.gvisor:  # the reference makes containerd take a task without processes for a leak
        assert codes == [5, 6, 7]
        lines = "".join(f"{n}\n" for n in range(1, 501))
        for pod, container in zip(many, ending, strict=True):
            until(lambda p=pod, c=container: p.log(c), 5, "log")  # type: ignore[misc]
            assert pod.log(container) == lines
    assert pods.status(over).exit_code == 9
    with pods.attach(terminal, tty=True) as stream:
        stream.write("echo st''ill here\n")
        stream.expect("still here\r\n")
    for pod, container in zip(many, going, strict=True):
        assert pods.exec(container, "touch", "/tmp/stop").code == 0
        assert pods.wait_exited(container).exit_code == 0
        _assert_counted(pod, container)
        again = pod.start("sh", "-c", "exit 2", attempt=1)
        assert pods.wait_exited(again).exit_code == 2


def _assert_counted(pod: Pod, container: str) -> None:
    until(lambda: pod.log(container).endswith("end"), 5, "the log's end")
    numbers = [int(line) for line in pod.log(container).removesuffix("end").split()]
    assert numbers == list(range(1, len(numbers) + 1))
