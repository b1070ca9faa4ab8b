"""A running task: exec, signals, pause, ps, metrics, attach, delete, and the events of it all."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from integration.harness.base.lines import next_line
from integration.harness.base.linux import unified_cgroups
from integration.harness.base.waiting import until
from integration.harness.clients.api import (
    METRICS_V1,
    METRICS_V2,
    Code,
    MetricsV1,
    MetricsV2,
    packed,
    process_spec,
)
from integration.harness.clients.daemon_api import Refused, decode_any
from integration.harness.host import footprint
from integration.harness.nodes.node import Node

SIGKILL, SIGTERM = 9, 15


@pytest.mark.core
def test_exec(node: Node) -> None:
    """Output, errors, exit codes and a terminal of processes that join a container."""
    name = node.run_detached("sleep", "1000")
    done = node.exec(name, "sh", "-c", "echo out; echo err >&2; exit 6")
    assert (done.out, done.code) == ("out\n", 6), done
    assert "err" in done.err
    assert node.exec(name, "true").code == 0

    with node.exec_terminal(name, "sh") as terminal:
        terminal.expect("# ")
        terminal.write("until [ \"$(stty size)\" = '24 80' ]; do sleep 0.1; done; exit 8\n")
        assert terminal.wait() == 8


def test_exec_that_leaves_a_job_behind(node: Node) -> None:
    """The client gets its output's end though the job holds it, and the job lives on."""
    name = node.run_detached("sleep", "1000")
    done = node.exec(name, "sh", "-c", "sleep 987 & echo first; echo last > /dev/stdout; exit 4")
    assert (done.out, done.code) == ("first\nlast\n", 4), done
    assert "sleep 987" in node.exec(name, "ps").out


@pytest.mark.core
def test_exec_of_a_missing_program(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    done = node.exec(name, "/bin/no-such-program")
    assert done.code != 0
    assert "no-such-program" in done.err, done
    assert node.exec(name, "echo", "still here").out == "still here\n"


def test_exec_sees_the_container(node: Node) -> None:
    name = node.run_detached("sh", "-c", "echo mark > /file; exec sleep 1000")
    until(lambda: node.exec(name, "cat", "/file").out == "mark\n", 10, "the file is seen")
    done = node.exec(name, "sh", "-c", "pwd; id -u", options=["--cwd", "/tmp", "--user", "1000"])
    assert done.out == "/tmp\n1000\n", done


def test_exec_with_input(node: Node) -> None:
    """Late input, for the reason given in test_stdin_is_piped_and_ends."""
    name = node.run_detached("sleep", "1000")
    data = b"0123456789abcdef" * (1 << 16)
    process = node.ctr_process(
        *node.exec_command(name, "input", ["sha256sum"]), stdin=subprocess.PIPE
    )
    until(lambda: "sha256sum" in node.exec(name, "ps").out, 10, "the exec runs")
    out, _ = process.communicate(data, timeout=30)
    assert out.split()[:1] == [hashlib.sha256(data).hexdigest().encode()]


def test_many_execs_at_once(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    running = []
    for number in range(10):
        line = node.exec_command(
            name, f"many{number}", ["sh", "-c", f"echo {number}; sleep 0.3; exit {number}"]
        )
        running.append(node.ctr_process(*line))
    for number, process in enumerate(running):
        out, _ = process.communicate(timeout=60)
        assert (out.decode(), process.returncode) == (f"{number}\n", number)


def test_shim_keeps_nothing_of_an_exec(node: Node) -> None:
    """After many execs the shim has as many descriptors and threads as after a few."""
    name = node.run_detached("sleep", "1000")
    shim = node.shim_pid(name)

    def after_execs(count: int) -> tuple[int, int]:
        for _ in range(count):
            assert node.exec(name, "true").code == 0
        return until(lambda: footprint.idle_size(shim), 5, "the shim rests")

    first = after_execs(5)
    second = after_execs(20)
    assert second[0] <= first[0] + 2, "descriptors"
    assert second[1] <= first[1] + 4, "threads"


@pytest.mark.core
def test_signals(node: Node) -> None:
    script = "trap 'echo term; exit 21' TERM; echo ready; while true; do sleep 0.1; done"
    name, process = node.run_in_background("sh", "-c", script)
    assert next_line(process) == "ready"
    assert node.kill(name, "SIGTERM").code == 0
    out, err = process.communicate(timeout=15)
    assert (out, process.returncode) == (b"term\n", 21), err


@pytest.mark.core
def test_kill_of_a_dead_task_is_not_found(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    assert node.kill(name, "SIGKILL").code == 0
    node.wait_stopped(name)
    with pytest.raises(Refused) as refused:
        node.api.task("Kill", container_id=name, signal=SIGKILL)
    assert refused.value.code == Code.NOT_FOUND, refused.value
    done = node.kill(name, "SIGTERM")
    assert "not found" in done.err or "already finished" in done.err, done
    assert node.api.task("Wait", container_id=name).exit_status == 137
    assert node.api.task("Delete", container_id=name).exit_status == 137


def test_kill_all(node: Node) -> None:
    """Every process of the container gets the signal, execs included."""
    name = node.run_detached("sleep", "1000")
    line = node.exec_command(name, "other", ["sleep", "1000"])
    process = node.ctr_process(*line)
    until(lambda: node.exec(name, "ps").out.count("sleep 1000") == 2, 10, "the exec runs")
    assert node.kill(name, "SIGKILL", "-a").code == 0
    assert process.wait(15) == 137
    node.wait_stopped(name)


def test_kill_of_one_exec(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    line = node.exec_command(name, "victim", ["sleep", "1000"])
    process = node.ctr_process(*line)
    until(lambda: node.exec(name, "ps").out.count("sleep 1000") == 2, 10, "the exec runs")
    assert node.kill(name, "SIGTERM", "--exec-id", "victim").code == 0
    assert process.wait(15) == 143
    assert node.status(name) == "RUNNING"


@pytest.mark.core
def test_kill_of_a_created_task(node: Node) -> None:
    """A task that never started can be killed; its exit is told, and it can be deleted."""
    name = node.new_id()
    mounts = node.api.make(name, node.runtime, node.api.spec("sleep", "1000", container=name))
    with node.api.events() as events:
        node.api.task("Create", container_id=name, rootfs=mounts)
        assert node.status(name) == "CREATED"
        wait = node.api.task_later("Wait", container_id=name)
        node.api.task("Kill", container_id=name, signal=SIGKILL)
        assert wait().exit_status == 137
        events.wait(name, "exit")
        assert node.api.task("Delete", container_id=name).exit_status == 137


def test_delete_of_a_created_task(node: Node) -> None:
    name = node.new_id()
    mounts = node.api.make(name, node.runtime, node.api.spec("sleep", "1000", container=name))
    node.api.task("Create", container_id=name, rootfs=mounts)
    node.api.task("Delete", container_id=name)
    assert node.status(name) == ""


@pytest.mark.core
def test_pause_and_resume(node: Node) -> None:
    script = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.02; done"
    name = node.run_detached("sh", "-c", script)
    with node.api.events() as events:
        assert node.ctr("tasks", "pause", name).code == 0
        assert node.status(name) == "PAUSED"
        assert node.exec(name, "true").code != 0
        assert node.ctr("tasks", "resume", name).code == 0
        assert node.status(name) == "RUNNING"
        events.wait(name, "paused")
        events.wait(name, "resumed")
    before = int(node.exec(name, "cat", "/count").out or 0)
    until(lambda: int(node.exec(name, "cat", "/count").out or 0) > before, 10, "it counts again")


def test_kill_of_a_paused_task(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    assert node.ctr("tasks", "pause", name).code == 0
    done = node.ctr("tasks", "delete", "-f", name, timeout=20)
    if done.code != 0:  # the reference runtime wants it resumed first
        assert node.ctr("tasks", "resume", name).code == 0
        assert node.ctr("tasks", "delete", "-f", name).code == 0
    assert node.status(name) == ""


@pytest.mark.core
def test_ps(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    lines = node.ctr("tasks", "ps", name).out.split("\n")
    assert lines[0].split()[0] == "PID"
    assert [line.split()[0] for line in lines[1:] if line.strip()], lines
    assert str(node.pid(name)) in [line.split()[0] for line in lines[1:] if line.strip()]


@pytest.mark.core
def test_metrics(node: Node) -> None:
    """The type fits the host, and the numbers are plausible and follow the container's work."""
    limit = 256 << 20
    work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; sleep 1000"
    options = ["--memory-limit", str(limit)]
    name, process = node.run_in_background("sh", "-c", work, options=options)
    assert next_line(process) == "done"
    data = node.api.task("Metrics", filters=[f"id=={name}"]).metrics[0].data
    kind = data.type_url.rpartition("/")[2]
    if unified_cgroups():
        assert kind == METRICS_V2
        v2 = decode_any(data, MetricsV2)
        usage, seen_limit, cpu = v2.memory.usage, v2.memory.usage_limit, v2.cpu.usage_usec * 1000
        pids = v2.pids.current
    else:
        assert kind == METRICS_V1
        v1 = decode_any(data, MetricsV1)
        usage, seen_limit = v1.memory.usage.usage, v1.memory.usage.limit
        cpu, pids = v1.cpu.usage.total, v1.pids.current
    assert 0 < usage < limit
    assert seen_limit == limit
    assert 10_000_000 < cpu < 60_000_000_000  # ns
    assert 1 <= pids < 1000
    assert node.metrics(name)
    node.kill(name, "SIGKILL")
    process.communicate(timeout=15)


@pytest.mark.core
def test_delete_of_a_running_task(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    with pytest.raises(Refused) as refused:
        node.api.task("Delete", container_id=name)
    assert "running process" in refused.value.message
    if node.gvisor:  # the reference runtime says UNKNOWN
        assert refused.value.code == Code.FAILED_PRECONDITION, refused.value
    assert node.status(name) == "RUNNING"
    done = node.ctr("tasks", "delete", "-f", name)
    assert done.code == 0, done
    assert node.status(name) == ""


def test_attach(node: Node) -> None:
    """What the task prints after an attach arrives at the one who attached."""
    name, first = node.run_in_background("sh", "-c", "sleep 0.5; echo early; read x; echo got $x")
    first.kill()  # the task outlives its first ctr
    first.communicate()
    attached = node.ctr_process("tasks", "attach", name, stdin=subprocess.PIPE)
    assert attached.stdin is not None
    assert next_line(attached) == "early"
    attached.stdin.write(b"word\n")
    attached.stdin.flush()
    assert next_line(attached) == "got word"
    attached.communicate(timeout=15)


@pytest.mark.core
def test_events_are_complete_and_in_order(node: Node) -> None:
    with node.api.events() as events:
        name = node.run_detached("sleep", "1000")
        assert node.exec(name, "sh", "-c", "exit 5").code == 5
        node.kill(name, "SIGKILL")
        node.wait_stopped(name)
        node.delete(name)
        events.wait(name, "delete")
        seen = events.of(name)
    topics = [topic for topic, _ in seen]
    # An exec's own delete event is optional: the documentation asks for it, runc sends none.
    if topics.count("delete") == 2:
        topics.remove("delete")
        exec_deleted = next(event for topic, event in seen if topic == "delete")
        seen.remove(("delete", exec_deleted))
    wanted = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    assert topics == wanted
    create, start, added, exec_start, exec_exit, init_exit, deleted = (event for _, event in seen)
    assert create.pid == start.pid == init_exit.pid == deleted.pid != 0
    assert exec_start.exec_id == added.exec_id == exec_exit.id
    assert (exec_exit.exit_status, init_exit.exit_status) == (5, 137)
    assert init_exit.id == name
    assert deleted.exit_status == 137
    assert init_exit.exited_at.seconds >= exec_exit.exited_at.seconds > 0


def test_ctr_events_prints_them(node: Node) -> None:
    process = node.ctr_process("events")
    try:
        for _ in range(10):  # until the subscription stands, events may pass by it
            name, topics = node.new_id(), []
            assert node.run("true", container=name).code == 0
            while "/tasks/delete" not in topics:
                line = next_line(process, timeout=1)
                if line is None:
                    break
                if f'{{"container_id":"{name}"' in line:
                    topics.append(line.split()[5])
            if topics:
                break
    finally:
        process.kill()
        process.communicate()
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_failed_start_of_an_exec(node: Node) -> None:
    """A start that fails leaves an exec whose wait resolves and which can be deleted."""
    name = node.run_detached("sleep", "1000")
    spec = node.api.spec("/no/such")["process"]
    node.api.task("Exec", container_id=name, exec_id="bad", spec=process_spec(spec))
    wait = node.api.task_later("Wait", container_id=name, exec_id="bad")
    with pytest.raises(Refused) as refused:
        node.api.task("Start", container_id=name, exec_id="bad")
    assert "/no/such" in refused.value.message
    status = wait().exit_status
    assert status != 0 or not node.gvisor  # the reference runtime says 0
    node.api.task("DeleteProcess", container_id=name, exec_id="bad")
    with pytest.raises(Refused) as refused:
        node.api.task("Get", container_id=name, exec_id="bad")
    assert refused.value.code == Code.NOT_FOUND


def test_same_exec_id_twice(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    spec = process_spec(node.api.spec("sleep", "1000")["process"])
    node.api.task("Exec", container_id=name, exec_id="twin", spec=spec)
    with pytest.raises(Refused) as refused:
        node.api.task("Exec", container_id=name, exec_id="twin", spec=spec)
    assert refused.value.code == Code.ALREADY_EXISTS, refused.value


def test_init_exit_is_the_last(node: Node) -> None:
    """Execs that are alive when the init dies are ended and told of before it."""
    with node.api.events() as events:
        name = node.run_detached("sleep", "1000")
        spec = process_spec(node.api.spec("sleep", "1000")["process"])
        for number in range(3):
            node.api.task("Exec", container_id=name, exec_id=f"x{number}", spec=spec)
            node.api.task("Start", container_id=name, exec_id=f"x{number}")
        node.api.task("Kill", container_id=name, signal=SIGKILL)
        events.wait(name, "exit", count=4)
        exits = [event.id for topic, event in events.of(name) if topic == "exit"]
    assert exits[-1] == name
    assert sorted(exits[:-1]) == ["x0", "x1", "x2"]


def test_update(node: Node) -> None:
    name = node.run_detached("sleep", "1000", options=["--memory-limit", str(256 << 20)])
    resources = packed(
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        {"memory": {"limit": 300 << 20}},
    )
    node.api.task("Update", container_id=name, resources=resources)
    text = str(node.metrics(name))
    assert str(300 << 20) in text, text
    node.kill(name, "SIGKILL")
    node.wait_stopped(name)
    # The last figures stay: containerd asks when it hears of an OOM, and others scrape.
    assert str(300 << 20) in str(node.metrics(name))


def test_the_pid_is_gone_when_its_end_is_told(node: Node) -> None:
    """Who hears of a container's end looks at the pid that Create reported, and finds nobody."""
    for _ in range(3):
        name = node.run_detached("sleep", "1000")
        pid = node.pid(name)
        with node.shim(name) as shim:
            started = time.monotonic()
            shim.call("Kill", id=name, signal=SIGKILL, all=True)
            assert shim.call("Wait", id=name).exit_status == 128 + SIGKILL
            lives, took = Path(f"/proc/{pid}").exists(), time.monotonic() - started
        # A sentry that takes longer than that to end is not waited for.
        assert not lives or took > 0.2, took
        node.delete(name)
