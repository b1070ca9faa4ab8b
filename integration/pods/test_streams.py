"""Containers whose stdio are streams in place of FIFOs (`io_type = "streaming"`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.nodes.pods import Pod, PodNode
from integration.upgrades import address, upgrade

pytestmark = pytest.mark.gvisor


@pytest.fixture
def pod(pods: PodNode) -> Pod:
    if pods.daemon.release < (2, 1):
        pytest.skip("containerd before 2.1 has no sandboxer that has streams")
    return pods.pod(variant="streams")


def test_logs_and_execs(pods: PodNode, pod: Pod) -> None:
    """Both outputs, whole; exit codes; much output."""
    container = pod.start("sh", "-c", "echo out; echo err >&2; seq 20000; echo end; exit 3")
    assert pods.wait_exited(container).exit_code == 3
    pod.wait_log(container, "end\n")
    numbers = "".join(f"{n}\n" for n in range(1, 20001))
    assert pod.log(container, "stdout") == f"out\n{numbers}end\n"
    assert pod.log(container, "stderr") == "err\n"
    longer = pod.start("sleep", "1000")
    done = pods.exec(longer, "sh", "-c", "echo here; echo there >&2; exit 4")
    assert done == (4, "here\n", "there\n")
    done = pods.exec(longer, "seq", "1", "20000")
    assert done.out == numbers
    pods.stop(longer)
    pod.remove()
    pods.assert_clean()


def test_input_and_terminals(pods: PodNode, pod: Pod) -> None:
    container = pod.start("sh", tty=True, stdin=True)
    script = "read line; echo got $line; echo oops >&2; head -c 300000 /dev/zero; exit 7"
    with pods.exec_stream(container, "sh", "-c", script) as stream:
        stream.write("a word\n")
        stream.expect("got a word\n")
        stream.wait()
        assert (stream.out, stream.err, stream.code) == (bytes(300000), b"oops\n", 7)
    with pods.exec_stream(container, "sh", tty=True) as stream:
        stream.resize(30, 100)
        stream.write("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.05; done; echo s''et\n")
        stream.expect("set\r\n")
        stream.write("exit 5\n")
        stream.wait()
        assert stream.code == 5
    with pods.attach(container, tty=True) as stream:
        stream.write("echo st''ill here\n")
        stream.expect("still here\r\n")


def test_the_shim_becomes_another_version(pods: PodNode, pod: Pod) -> None:
    """Below much output, input that waits, a terminal, and with an end in between."""
    script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; done; exit 9"
    counting = pod.start("sh", "-c", script)
    server = pod.start("sleep", "1000")
    shim = address(pods.daemon, pod.id)
    with pods.exec_stream(server, "sh", tty=True) as terminal:
        script = "until [ -e /tmp/go ]; do sleep 0.1; done; cat; exit 6"
        with pods.exec_stream(server, "sh", "-c", script) as stream:
            # More than the windows and pipes on the way have room for.
            waiting = "x" * 500_000
            stream.write(waiting)
            assert upgrade(shim) == ""
            pods.exec(server, "touch", "/tmp/go")
            stream.write("\nafter\n")
            assert stream.expect("after\n", 60) == f"{waiting}\nafter\n"
            assert upgrade(shim) == ""
            terminal.write("echo st''ill here\n")
            terminal.expect("still here\r\n")
        for number in range(3):
            done = pods.exec(server, "sh", "-c", f"seq 2000; exit {number}")
            assert (done.code, len(done.out.split())) == (number, 2000)
            assert upgrade(shim) == ""
        terminal.write("exit 5\n")
        terminal.wait()
        assert terminal.code == 5
    assert pods.exec(counting, "touch", "/tmp/stop").code == 0
    assert pods.wait_exited(counting, 60).exit_code == 9
    lines = [int(line) for line in pod.log(counting).split()]
    assert lines == list(range(1, len(lines) + 1)) and len(lines) > 100


def test_containerd_is_killed(pods: PodNode, pod: Pod, tmp_path: Path) -> None:
    """It opens the streams anew: no line is missing, none comes twice, and input arrives.

    Nothing is under way when it is killed.  What it had been sent by then, and had not yet logged,
    would be lost with it: it takes up to 64 KiB before it has read any of it, and says of none
    when it is in the log.
    """
    script = (
        "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; [ $n -lt 6 ] || > /mnt/six;"
        " while [ $n = 3 -a ! -e /mnt/go ]; do sleep 0.05; done; sleep 0.05; done; exit 9"
    )
    mounts = [{"container_path": "/mnt", "host_path": str(tmp_path)}]
    counting = pod.start("sh", "-c", script, mounts=mounts)
    terminal = pod.start("sh", tty=True, stdin=True)
    pod.wait_log(counting, "3\n")
    pods.close()
    pods.daemon.kill()
    (tmp_path / "go").touch()
    until((tmp_path / "six").exists, 20, "lines that no containerd is there for")
    pods.revive()
    assert pods.exec(counting, "touch", "/tmp/stop").code == 0
    assert pods.wait_exited(counting).exit_code == 9
    lines = [int(line) for line in pod.log(counting).split()]
    assert lines == list(range(1, len(lines) + 1)) and len(lines) > 5
    with pods.attach(terminal, tty=True) as stream:
        stream.write("echo st''ill here\n")
        stream.expect("still here\r\n")
