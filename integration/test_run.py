"""`ctr run`: output, exit codes, standard streams, terminals and what the spec asks for."""

from __future__ import annotations

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.harness.host.image import unpack_rootfs
from integration.harness.nodes.node import Node


@pytest.mark.core
def test_output_and_exit_code(node: Node) -> None:
    done = node.run("sh", "-c", "echo hello; exit 3")
    assert (done.out, done.code) == ("hello\n", 3), done


@pytest.mark.core
def test_streams_are_kept_apart(node: Node) -> None:
    done = node.run("sh", "-c", "echo to-out; echo to-err >&2")
    assert done.out == "to-out\n", done
    assert "to-err" in done.err, done


@pytest.mark.core
@pytest.mark.gvisor
def test_it_is_gvisor(node: Node) -> None:
    assert "gvisor" in node.run("dmesg").out.lower()


@pytest.mark.parametrize(("command", "code"), [(("true",), 0), (("sh", "-c", "exit 7"), 7)])
def test_a_hundred_short_tasks(node: Node, command: tuple[str, ...], code: int) -> None:
    def run(_: int) -> tuple[int, int]:
        name = node.new_id()
        mounts = node.api.make(name, node.runtime, node.api.spec(*command, container=name))
        node.api.task("Create", container_id=name, rootfs=mounts)
        wait = node.api.task_later("Wait", container_id=name)
        node.api.task("Start", container_id=name)
        seen = wait().exit_status
        deleted = node.api.task("Delete", container_id=name).exit_status
        node.api.unmake(name)
        return seen, deleted

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(run, range(100))] == [(code, code)] * 100


@pytest.mark.core
def test_terminal(node: Node) -> None:
    """Prompt, size, a resize and ^C on a terminal; then the exit code."""
    _, terminal = node.run_terminal("sh")
    with terminal:
        terminal.expect("# ")
        terminal.write("stty size\n")
        terminal.expect("24 80")
        terminal.write(
            "until [ \"$(stty size)\" = '40 132' ]; do sleep 0.1; done; echo re''sized\n"
        )
        terminal.resize_until(40, 132, "resized")
        terminal.write("test -t 0 && echo sta''rted && sleep 100\n")
        terminal.expect("started")
        terminal.press_until("\x03", "# ")  # the first one may come before the sleep does
        terminal.write("exit 9\n")
        assert terminal.wait() == 9


@pytest.mark.core
def test_detached(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    assert node.status(name) == "RUNNING"
    assert node.kill(name, "SIGKILL").code == 0
    node.wait_stopped(name)
    assert node.api.task("Delete", container_id=name).exit_status == 137


@pytest.mark.core
def test_stdin_is_piped_and_ends(node: Node) -> None:
    """The input comes once the task runs: ctr forgets an end of input that it sees earlier."""
    _, process = node.run_in_background("sh", "-c", "cat; echo end", stdin=subprocess.PIPE)
    out, err = process.communicate(b"hi\n", timeout=15)
    assert (out, process.returncode) == (b"hi\nend\n", 0), err


def test_much_input(node: Node) -> None:
    data = b"0123456789abcdef" * (4 << 16)
    _, process = node.run_in_background("sha256sum", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=60)
    assert out.split()[:1] == [hashlib.sha256(data).hexdigest().encode()], err


def test_much_output(node: Node) -> None:
    script = "dd if=/dev/zero bs=65536 count=160 2>/dev/null | tr '\\0' 'x'"
    done = node.run("sh", "-c", script, timeout=60)
    assert (len(done.out), done.code) == (10 << 20, 0), done.err
    assert not done.out.strip("x")


def test_much_output_on_a_terminal(node: Node) -> None:
    _, terminal = node.run_terminal("sh", "-c", "seq 1 100000; echo done; exit 4")
    with terminal:
        assert terminal.wait(60) == 4
        lines = terminal.output.replace("\r", "").splitlines()
    # ctr shows the daemon's warnings there, as of cgroup v1 since containerd 2.2.
    lines = [line for line in lines if "DEPRECATION" not in line]
    assert lines == [*map(str, range(1, 100001)), "done"]


def test_environment_cwd_user_hostname(node: Node) -> None:
    options = ["--env", "COLOUR=green", "--cwd", "/tmp", "--user", "1000:1000"]
    if node.daemon.release >= (1, 7):
        options += ["--hostname", "vessel"]
    script = "echo $COLOUR; pwd; id -u; id -g; echo $IMAGE; hostname"
    done = node.run("sh", "-c", script, options=options)
    assert done.out.split()[:5] == ["green", "/tmp", "1000", "1000", "test"], done
    if node.daemon.release >= (1, 7):
        assert done.out.split()[5] == "vessel"


def test_read_only_root(node: Node) -> None:
    done = node.run("sh", "-c", "touch /file; echo $?", options=["--read-only"])
    assert done.out == "1\n", done
    assert "Read-only file system" in done.err


def test_writable_root_is_thrown_away(node: Node) -> None:
    assert node.run("sh", "-c", "echo kept > /file; cat /file").out == "kept\n"
    assert node.run("cat", "/file").code != 0


def test_bind_mounts(node: Node, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "write").mkdir()
    (tmp_path / "read" / "file").write_text("from the host\n")
    options = []
    for folder, mode in (("read", "ro"), ("write", "rw")):
        options += [
            "--mount",
            f"type=bind,src={tmp_path / folder},dst=/mnt/{folder},options=rbind:{mode}",
        ]
    script = "cat /mnt/read/file; echo back > /mnt/write/file; touch /mnt/read/no; echo $?"
    done = node.run("sh", "-c", script, options=options)
    assert done.out == "from the host\n1\n", done
    assert (tmp_path / "write" / "file").read_text() == "back\n"


def test_rootfs_without_a_snapshotter(node: Node, tmp_path: Path) -> None:
    unpack_rootfs(tmp_path)
    name = node.new_id()
    command = ["run", "--rm", "--runtime", node.runtime, "--fifo-dir", str(node.daemon.fifos)]
    done = node.ctr(*command, "--rootfs", str(tmp_path), name, "/bin/cat", "/etc/notice")
    assert (done.out, done.code) == ("made for the tests\n", 0), done


def test_null_io(node: Node) -> None:
    assert node.run("sh", "-c", "echo nothing; exit 5", options=["--null-io"]).code == 5


def test_twenty_at_once(node: Node) -> None:
    running = []
    for number in range(20):
        name = node.new_id()
        line = node.run_command(name, ["sh", "-c", f"echo {number}; exit {number}"], ["--rm"])
        process = node.ctr_process(*line)
        running.append(process)
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=90)
        assert (out.decode(), process.returncode) == (f"{number}\n", number), err


def test_log_to_a_file(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "sub" / "task.log"
    name = node.run_detached("echo", "to the log", options=["--log-uri", f"file://{log}"])
    node.wait_stopped(name)
    node.delete(name)
    assert log.read_text() == "to the log\n"


def test_log_to_a_program(node: Node, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(_LOGGER)
    logger.chmod(0o755)
    uri = f"binary://{logger}?folder={tmp_path}"
    name = node.run_detached(
        "sh", "-c", "echo one; echo two >&2; exit 2", options=["--log-uri", uri]
    )
    node.wait_stopped(name)
    node.delete(name)
    assert (tmp_path / "out").read_text() == "one\n"
    assert (tmp_path / "err").read_text() == "two\n"
    seen = (tmp_path / "environment").read_text().split()
    assert f"CONTAINER_ID={name}" in seen
    assert f"CONTAINER_NAMESPACE={node.daemon.namespace}" in seen


# Reads the container's two streams from fds 3 and 4, and says by fd 5 that it is ready.
_LOGGER = """#!/bin/bash
env > "$2/environment"
exec 5>&-
cat <&3 > "$2/out" &
cat <&4 > "$2/err" &
wait
"""
