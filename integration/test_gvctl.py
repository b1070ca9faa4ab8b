"""gvctl on real sandboxes: those of containerd through the shim, of runsc, and its own."""

from __future__ import annotations

import array
import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients.gvctl import Gvctl, Shop
from integration.harness.clients.runsc import Runsc
from integration.harness.nodes.node import Node
from integration.test_network import Namespace, connect
from runtime.host import linux
from runtime.runsc.config import RunscConfig
from runtime.runsc.driver import find_driver
from runtime.runsc.release import Generation

pytestmark = pytest.mark.gvisor
NEW = next((g for g in peers.RUNSCS if g >= "2023"), peers.RUNSCS[-1])


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path, short_folder: Path) -> Iterator[Shop]:
    tmp_path.chmod(0o755)
    folder = short_folder / f"g{next(_numbers)}"
    folder.mkdir()
    shop = Shop(getattr(request, "param", NEW), folder)
    yield shop
    shop.close()
    for each in Path("/sys/fs/cgroup").glob(f"*/{shop.cgroup}"):
        assert [d.name for d in each.iterdir() if d.is_dir()] == []
        each.rmdir()


_numbers = iter(range(1, 1000))
every_generation = pytest.mark.parametrize("shop", peers.RUNSCS, indirect=True)


# -- containers of containerd ----------------------------------------------------------------


@pytest.mark.core
def test_a_container_of_the_shims(node: Node, tmp_path: Path) -> None:
    ctl = Gvctl("-n", node.daemon.namespace)
    name = node.run_detached("sh", "-c", "sleep 1000; true")
    state = ctl.json("state", name)
    assert (state["status"], state["pid"]) == ("running", node.pid(name))
    (row,) = [line for line in ctl.ok("list").splitlines() if line.startswith(f"{name} ")]
    assert row.split()[2] == "running" and row.split()[-1] == node.daemon.namespace
    assert name in Gvctl().ok("list", "-q").split()  # without a namespace: in all of them
    assert "sleep" in ctl.ok("ps", name)
    assert {p["cmd"] for p in ctl.json("ps", "-f", "details", name)} == {"sh", "sleep"}
    assert len(ctl.json("ps", "-f", "json", name)) == 2
    stats = ctl.json("events", "--stats", name)
    assert stats["type"] == "stats" and stats["data"]["pids"]["current"] == 2
    assert stats["data"]["cpu"]["usage"]["total"] > 0
    assert ctl.json("usage", "--full", "-f", "json", name)["total"] > 0
    assert ctl.json("usage", "--fd", "-f", "json", name)["mapped"] > 0
    assert "goroutine" in ctl.ok("stacks", name)
    ctl.ok("reduce", "--wait", name)
    before = ctl.ok("log-level", "--only", "shim", name)
    told = ctl.ok("log-level", "--only", "shim", name, "debug")
    assert told == f"shim: {before.split()[1]}, now debug\n"
    assert ctl.ok("log-level", "--only", "shim", name) == "shim: debug\n"
    ctl.ok("debug", "-o", str(tmp_path / "report.tar.gz"), name)
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        parts = {each.name.partition("/")[2]: each for each in archive.getmembers()}
        info = archive.extractfile(parts["shim/info.json"])
        assert info is not None and json.load(info)["containers"][0]["id"] == name
        assert {"shim/stacks.txt", "shim/counters.json", "shim/process.txt"} <= parts.keys()
        lacks = archive.extractfile(parts["lacks.txt"])
        assert lacks is not None and lacks.read() == b""
    (line,) = [p for p in ctl.json("top", "--once", "-f", "json") if p["id"] == name]
    assert line["status"] == "running" and line["cpuPercent"] is not None
    assert line["memory"] > 0 and line["pids"] == 2 and line["gofers"] == line["containers"] == 1
    assert line["cgroup"].endswith(name) and line["oomScoreAdj"] is not None
    heads = ctl.ok("top", "--once").splitlines()[0].split()
    assert heads[:5] == ["POD", "NAMESPACE", "STATUS", "CPU%", "MEMORY"]

    done = ctl("exec", name, "sh", "-c", "cat; echo to-err >&2; exit 9", input="typed")
    assert (done.code, done.out, done.err) == (9, "typed", "to-err\n")
    ctl.ok("pause", name)
    assert ctl.status(name) == "paused"
    ctl.ok("resume", name)
    assert ctl.status(name) == "running"
    waiting = ctl.begin("wait", name)
    asleep = Path(f"/proc/{waiting.pid}/wchan")
    until(lambda: "poll" in asleep.read_text(), 10, "its call is under way")
    ctl.ok("kill", "--all", name, "KILL")
    out, _ = waiting.communicate(timeout=20)
    assert out == "137\n"
    node.wait_stopped(name)
    assert ctl.status(name) == "stopped"
    assert node.api.task("Delete", container_id=name).exit_status == 137
    node.api.unmake(name)
    assert ctl("state", name).code == 1


# -- its own -----------------------------------------------------------------------------------


@every_generation
def test_create_start_kill_delete(shop: Shop, tmp_path: Path) -> None:
    ctl = shop.gvctl
    pid = shop.create("one", "sh", "-c", "echo up; sleep 1000; true")
    state = ctl.json("state", "one")
    assert (state["status"], state["pid"], state["id"]) == ("created", pid, "one")
    assert state["bundle"] == str(shop.folder / "one")
    again = ctl("create", "-b", state["bundle"], "one")
    assert again.code == 1 and "already exists" in again.err
    assert ctl("exec", "one", "true").code == 255  # nothing runs there yet
    ctl.ok("start", "one")
    until(lambda: shop.output.read_text() == "up\n", 10, "its output came")
    assert ctl("start", "one").code == 1
    done = ctl(
        "exec", "--cwd", "/tmp", "-e", "A=B", "-u", "5:6", "one", "sh", "-c", "pwd; echo $A; id"
    )
    assert done.out.splitlines()[:2] == ["/tmp", "B"] and "uid=5 gid=6" in done.out
    log = tmp_path / "log"
    done = Gvctl(*shop.options, "--log", str(log), "--log-format=json")("exec", "one", "nosuch")
    assert done.code == 255 and "executable file not found in $PATH" in done.err
    assert "executable file not found" in json.loads(log.read_text())["msg"]
    process = {"args": ["sh", "-c", "exit 3"], "cwd": "/", "env": ["PATH=/bin"], "user": {}}
    (tmp_path / "process.json").write_text(json.dumps(process))
    assert ctl("exec", "-p", str(tmp_path / "process.json"), "one").code == 3
    refused = ctl("delete", "one")
    assert refused.code == 1 and 'container "one" in state running' in refused.err
    ctl.ok("kill", "one", "9")
    until(lambda: ctl.status("one") == "stopped", 10, "it stopped")
    assert ctl("ps", "one").code == 1
    ctl.ok("delete", "one")
    assert ctl("delete", "one").code == 1
    ctl.ok("delete", "--force", "one")
    assert not [*shop.root.iterdir()]


@every_generation
def test_run(shop: Shop) -> None:
    ctl = shop.gvctl
    bundle = shop.bundle("one", "sh", "-c", "cat; echo to-err >&2; exit 5")
    done = ctl("run", "--bundle", bundle, "one", input="typed\n" * 20_000)
    assert (done.code, done.err) == (5, "to-err\n") and done.out == "typed\n" * 20_000
    assert ctl.ok("list", "-q") == ""
    done = ctl("run", "--keep", "-b", shop.bundle("two", "true"), "two")
    assert done.code == 0 and ctl.status("two") == "stopped"
    ctl.ok("delete", "two")
    done = ctl("run", "-b", shop.bundle("three", "nosuch"), "three")
    assert done.code == 1 and "executable file not found in $PATH" in done.err
    assert ctl.ok("list", "-q") == ""


def test_output_that_nobody_reads_any_more(shop: Shop) -> None:
    """`gvctl exec one cat big | head`."""
    shop.run("one", "sleep", "1000")
    bundle = shop.bundle("two", "sh", "-c", "while echo more; do :; done; exit 6")
    for words in (
        ("exec", "one", "sh", "-c", "while echo more; do :; done; exit 6"),
        ("run", "--bundle", bundle, "two"),
    ):
        with shop.gvctl.begin(*words) as process:
            assert process.stdout is not None and process.stdout.readline() == "more\n"
            process.stdout.close()
            assert process.wait(20) == 6


def test_a_run_passes_signals_on_and_dies_with_its_caller(shop: Shop) -> None:
    ctl = shop.gvctl
    script = "trap 'echo caught; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    process = ctl.begin("run", "-b", shop.bundle("one", "sh", "-c", script), "one")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (6, "caught\n")
    process = ctl.begin(
        "run", "-b", shop.bundle("two", "sh", "-c", "echo ready; sleep 1000"), "two"
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    sentry = ctl.json("state", "two")["pid"]
    process.kill()
    process.communicate(timeout=20)
    until(lambda: not Path(f"/proc/{sentry}").exists(), 10, "the sentry is gone, too")
    assert ctl.status("two") == "stopped"
    ctl.ok("delete", "two")


def test_a_detached_run(shop: Shop) -> None:
    pid_file = shop.folder / "pid"
    bundle = shop.bundle("one", "sh", "-c", "echo out; sleep 1000")
    shop.leave(shop.output, "run", "-d", "--pid-file", str(pid_file), "-b", bundle, "one")
    assert shop.gvctl.json("state", "one")["pid"] == int(pid_file.read_text())
    until(lambda: shop.output.read_text() == "out\n", 10, "its output came")


@every_generation
def test_files_are_copied_out_and_in(shop: Shop, tmp_path: Path) -> None:
    """With nothing in the image for it; what leads out of one side leads nowhere on the other."""
    ctl = shop.gvctl
    victim = tmp_path / "victim"
    victim.write_text("mine")
    script = (
        f"mkdir -p /d/e; ln -s {victim} /d/l; ln -s /tmp /d/up; mkfifo /d/p; echo $$ >/d/pid;"
        "head -c 3000000 /dev/zero | tr '\\0' x >/d/e/big; chmod 4750 /d/pid; touch -d @77 /d/pid;"
        "ln -s e /d/to-e; echo up; sleep 1000"
    )
    shop.run("one", "sh", "-c", script)
    until(lambda: shop.output.read_text() == "up\n", 20, "it has made its files")
    out = tmp_path / "out"
    ctl.ok("cp", "one:/d", str(out))
    assert sorted(p.name for p in out.iterdir()) == ["e", "l", "p", "pid", "to-e", "up"]
    assert (out / "e/big").read_bytes() == b"x" * 3_000_000
    assert os.readlink(out / "l") == str(victim) and os.readlink(out / "up") == "/tmp"
    status = (out / "pid").stat()
    assert status.st_mode & 0o7777 == 0o750 and status.st_mtime == 77
    ctl.ok("cp", "-a", "one:d/pid", str(out / "kept"))
    assert (out / "kept").stat().st_mode & 0o7777 == 0o4750
    ctl.ok("cp", "-L", "one:/d/to-e", str(out / "e"))  # into the folder that is there
    assert (out / "e/to-e/big").stat().st_size == 3_000_000 and (out / "to-e").is_symlink()
    assert ctl("cp", "-L", "one:/d/to-e", str(out)).code == 1  # a link is in the folder's place
    # Again, over what is there: not through its links.
    ctl.ok("cp", "one:/d/.", str(out))
    assert victim.read_text() == "mine"

    (out / "l").unlink()
    (out / "l").symlink_to("/etc/passwd")
    ctl.ok("cp", str(out), "one:/tmp")
    listing = ctl.ok("exec", "one", "sh", "-c", "cd /tmp/out; md5sum e/big; readlink l; ls -A")
    same = ctl.ok("exec", "one", "md5sum", "/d/e/big").split()[0]
    assert listing.split()[0] == same and "/etc/passwd" in listing
    # A link of the container's is the container's own matter, and leads to its files.
    (tmp_path / "f").write_text("new")
    ctl.ok("cp", str(tmp_path / "f"), "one:/d/up/g")
    assert ctl.ok("exec", "one", "cat", "/tmp/g") == "new"
    assert not Path("/tmp/g").exists()

    piped = subprocess.run(
        [*ctl.command, "cp", "one:/d", "-"], stdout=subprocess.PIPE, check=True, timeout=30
    )
    listed = subprocess.run(["tar", "-t"], input=piped.stdout, capture_output=True, check=True)
    assert b"d/e/big" in listed.stdout.split()
    ctl.ok("exec", "one", "mkdir", "/copy")
    subprocess.run(
        [*ctl.command, "cp", "-", "one:/copy"], input=piped.stdout, check=True, timeout=30
    )
    assert ctl.ok("exec", "one", "md5sum", "/copy/d/e/big").split()[0] == same
    assert {p["cmd"] for p in ctl.json("ps", "-f", "details", "one")} <= {"sleep", "sh"}


def test_a_copy_that_finds_no_room_leaves_nothing_behind_inside(shop: Shop, tmp_path: Path) -> None:
    shop.run("one", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=4; sleep 1000; true")
    until(lambda: len(shop.gvctl.json("ps", "-f", "json", "one")) == 2, 20, "the file is there")
    linux.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=1m")
    try:
        done = shop.gvctl("cp", "one:/big", str(tmp_path))
        assert done.code == 1 and "no space left on device" in done.err
    finally:
        linux.umount2(str(tmp_path), linux.MNT_DETACH)
    assert {p["cmd"] for p in shop.gvctl.json("ps", "-f", "details", "one")} == {"sh", "sleep"}
    # Nor does one that is killed in the middle.
    copying = shop.gvctl.begin("cp", "one:/dev/zero", "-")
    copying.kill()
    copying.communicate(timeout=20)
    until(lambda: len(shop.gvctl.json("ps", "-f", "json", "one")) == 2, 10, "its program ended")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("one:/none", "/run/new"), "one:/none to /run/new: no such file or directory: none"),
        (("/none", "one:/new"), "/none to one:/new: no such file or directory: none"),
        (("one:/etc", "one:/new"), "one of the two must be in a container"),
        (("/etc", "/run/new"), "one of the two must be in a container"),
        (("one:/etc", "/etc/passwd"), "/etc/passwd: is there and not a folder"),
        (("one:/etc/passwd", "/run/none/"), "/run/none/: no such folder"),
        (("one:/etc/passwd", "/etc/passwd/x"), "is not a folder"),
        (("/etc/passwd", "one:/proc/none"), "one:/proc/none: "),
        (("one:/etc/passwd/", "/run/new"), "one:/etc/passwd/: is not a folder"),
        (("-", "one:/none"), "no such file or directory"),
        (("a/b:c", "one:/"), "is neither ID:PATH nor a path"),
        (("none:/etc", "/run/new"), 'container "none" does not exist'),
    ],
)
def test_copies_that_cannot_be(shop: Shop, words: tuple[str, str], text: str) -> None:
    shop.run("one", "sleep", "1000")
    done = shop.gvctl("cp", *words)
    assert done.code == 1 and text in done.err and not Path("/run/new").exists()


@every_generation
def test_a_trace_session(shop: Shop, tmp_path: Path) -> None:
    ctl = shop.gvctl
    shop.run("one", "sh", "-c", "while :; do /bin/true; sleep 0.2; done")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(shop.folder / "sink"))
        listener.listen()
        sink = {"name": "remote", "config": {"endpoint": str(shop.folder / "sink")}}
        points = [{"name": "sentry/execve", "optional_fields": [], "context_fields": ["time"]}]
        session = tmp_path / "session.json"
        session.write_text(json.dumps({"points": points, "sinks": [{"name": "null"}, sink]}))
        creating = ctl.begin("trace", "create", "--session", str(session), "one")
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(100) == b"\x08\x01"
            peer.send(b"\x08\x01")
            assert creating.communicate(timeout=30)[0] == "session Default created\n"
            size, kind = struct.unpack_from("<HH", peer.recv(65536))
            assert (size, kind) == (8, 3)  # MESSAGE_SENTRY_EXEC
            (found,) = ctl.json("trace", "list", "-f", "json", "one")
            assert found["name"] == "Default"
            assert sorted(each["name"] for each in found["sinks"]) == ["null", "remote"]
            session.write_text(json.dumps({"points": points, "sinks": []}))
            again = ctl("trace", "create", "--session", str(session), "one")
            assert again.code == 1 and "already exists" in again.err
            ctl.ok("trace", "create", "--force", "--session", str(session), "one")
            while peer.recv(65536):  # to its end, as the sentry has let go of it
                continue
        ctl.ok("trace", "delete", "one")
        assert ctl.ok("trace", "list", "one").splitlines()[1:] == []
        assert "not found" in ctl("trace", "delete", "one").err
    session.write_text(json.dumps({"points": [{"name": "none/such"}]}))
    wrong = ctl("trace", "create", "--session", str(session), "one")
    assert wrong.code == 1 and 'point "none/such" not found' in wrong.err
    lines = [json.loads(line) for line in ctl.ok("trace", "procfs", "one").splitlines()]
    assert "sh" in {each["status"]["comm"] for each in lines}
    assert not any("env" in each for each in lines)
    assert "PATH=/bin" in ctl.ok("trace", "procfs", "--environment", "one")


@every_generation
def test_an_archive_for_a_report(shop: Shop, tmp_path: Path) -> None:
    """With a sentry that logs every system call; and nothing of it that is secret."""
    log = shop.folder / "log"
    ctl = Gvctl(*shop.options, "--flag=debug", "--flag=strace", f"--flag=debug-log={log}/")
    log.mkdir()
    script = "SAID=later-secret env >/dev/null; /bin/true argument-secret; echo up; sleep 1000"
    process = {
        "args": ["sh", "-c", script, "init-secret"],
        "env": ["PATH=/bin", "PASSWORD=hunter2222"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    }
    bundle = shop.bundle("one", "sh", process=process)
    shop.gvctl.command[:] = ctl.command
    shop.leave(shop.output, "run", "-d", "-b", bundle, "one")
    until(lambda: shop.output.read_text() == "up\n", 20, "its output came")
    path = tmp_path / "report.tar.gz"
    assert ctl.ok("debug", "-o", str(path), "one") == f"{path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    again = ctl("debug", "-o", str(path), "one")
    assert again.code == 1 and "file exists" in again.err
    subprocess.run(["tar", "-xzf", path, "-C", tmp_path], check=True)
    (top,) = tmp_path.glob("gvctl-debug-one-*")
    names = {each.relative_to(top).as_posix() for each in top.rglob("*") if each.is_file()}
    assert {"doctor.txt", "versions.txt", "sentry/stacks.txt", "containers/one/ps.txt"} <= names
    assert "goroutine" in (top / "sentry/stacks.txt").read_text()
    logged = "".join(each.read_text() for each in (top / "logs").iterdir())
    assert "execve" in logged  # so there was something to leave out
    raw = b"".join(each.read_bytes() for each in log.iterdir())
    assert b"hunter2222" in raw and b"argument-secret" in raw and b"later-secret" in raw
    for each in (each for each in top.rglob("*") if each.is_file()):
        for secret in ("hunter2222", "argument-secret", "later-secret", "init-secret"):
            assert secret not in each.read_text(), (each, secret)
    assert "shim: there is none" in (top / "lacks.txt").read_text()
    # How much it logs, while it runs.
    assert ctl.ok("log-level", "one", "warn") == "shim: none\nsentry: now warn\n"

    def calls() -> int:
        return sum(each.read_text().count(" exit_group(") for each in log.glob("*boot*"))

    before = calls()
    ctl.ok("exec", "one", "true")
    assert calls() == before
    assert ctl.ok("log-level", "--only", "sentry", "one", "debug") == "sentry: now debug\n"
    ctl.ok("exec", "one", "true")
    assert calls() > before
    assert ctl("log-level", "--only", "shim", "one", "debug").code == 1


def test_an_archive_of_a_sandbox_that_hangs(shop: Shop) -> None:
    """Nobody is kept waiting for each part of a sentry that answers none."""
    sentry = shop.run("one", "sleep", "1000")
    os.kill(sentry, signal.SIGSTOP)
    try:
        command = [*shop.gvctl.command, "debug", "-o", "-", "one"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|gz") as archive:
                parts = {}
                for each in archive:
                    data = archive.extractfile(each)
                    assert data is not None
                    parts[each.name.partition("/")[2]] = data.read().decode()
    finally:
        os.kill(sentry, signal.SIGCONT)
    assert "sentry/process.txt" in parts and "sentry/stacks.txt" not in parts
    assert parts["lacks.txt"].count("no answer within") == 1
    assert "the sentry didn't answer before" in parts["lacks.txt"]


# -- terminals ---------------------------------------------------------------------------------


def test_top_on_a_terminal(shop: Shop) -> None:
    shop.run("one", "sleep", "1000")
    shop.run("two", "sleep", "1000")
    with shop.gvctl.terminal("top", "--interval", "0.2") as terminal:
        terminal.expect("CPU%▾")
        terminal.expect("2 pods")
        terminal.press_until("n", "POD▾")
        terminal.resize_until(24, 200, "CGROUP")
        terminal.write("q")
        assert terminal.wait() == 0
        assert terminal.output.endswith("\x1b[?25h\x1b[?1049l")  # as it was before


@every_generation
def test_an_interactive_exec(shop: Shop) -> None:
    shop.run("one", "sleep", "1000")
    with shop.gvctl.terminal("exec", "-it", "one", "sh") as terminal:
        terminal.expect("# ")
        terminal.write("stty size\n")
        terminal.expect("24 80")
        terminal.resize(40, 132)
        terminal.write("stty size\n")
        terminal.expect("40 132")
        terminal.expect("# ")
        terminal.write("trap 'echo int-caught' INT; echo started; sleep 1000\n")
        terminal.expect("started\r\n")
        terminal.press_until("\x03", "# ")
        terminal.write("exit 7\n")
        assert terminal.wait() == 7


def test_a_run_with_a_terminal(shop: Shop) -> None:
    bundle = shop.bundle("one", "sh", terminal=True)
    with shop.gvctl.terminal("run", "-b", bundle, "one") as terminal:
        terminal.expect("# ")
        terminal.write("stty size; sleep 1000\n")
        terminal.expect("24 80\r\n")
        terminal.press_until("\x03", "# ")
        terminal.write("exit 8\n")
        assert terminal.wait() == 8
    done = shop.gvctl("run", "-b", bundle, "two")
    assert done.code == 1 and "stdin is none" in done.err
    assert shop.gvctl.ok("list", "-q") == ""


class Console:
    """Who takes terminals, as podman's conmon does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(20)
        self.master = -1

    def take(self) -> int:
        connection, _ = self._listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
        fds = array.array("i")
        fds.frombytes(ancillary[0][2][:4])
        self.master = fds[0]
        return self.master

    def expect(self, text: str, timeout: float = 15) -> str:
        seen, deadline = "", time.monotonic() + timeout
        while text not in seen:
            ready = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"{text!r} not seen; got {seen!r}"
            seen += os.read(self.master, 4096).decode()
        return seen

    def interrupt(self) -> None:
        """Press ^C, and again after a second: the program may have been yet to start."""
        seen, deadline, pressed = "", time.monotonic() + 15, 0.0
        while "# " not in seen:
            now = time.monotonic()
            assert now < deadline, f"no prompt after ^C; got {seen!r}"
            if now - pressed >= 1:
                os.write(self.master, b"\x03")
                pressed = now
            if select.select([self.master], [], [], 0.2)[0]:
                seen += os.read(self.master, 4096).decode()

    def close(self) -> None:
        self._listener.close()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def console(shop: Shop) -> Iterator[Console]:
    console = Console(shop.folder / "console")
    yield console
    console.close()


def test_a_terminal_that_goes_to_a_socket(shop: Shop, console: Console) -> None:
    bundle = shop.bundle("one", "sh", terminal=True)
    words = ("create", "-b", bundle, "--console-socket", str(console.path), "one")
    shop.leave(shop.output, *words)
    console.take()
    shop.gvctl.ok("start", "one")
    console.expect("# ")
    os.write(console.master, b"echo go; sleep 1000\n")
    console.expect("\ngo\r\n")
    console.interrupt()
    refused = shop.gvctl("create", "-b", bundle, "two")
    assert refused.code == 1 and "console socket" in refused.err


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans become the test's children, as they become conmon's."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(36, 1, 0, 0, 0) == 0
    yield
    libc.prctl(36, 0, 0, 0, 0)


def test_a_detached_exec_leaves_one_behind_who_ends_like_it(
    shop: Shop, console: Console, subreaper: None
) -> None:
    shop.run("one", "sleep", "1000")
    pid_file = shop.folder / "exec.pid"
    words = ("exec", "-d", "--pid-file", str(pid_file))
    shop.leave(shop.output, *words, "one", "sh", "-c", "sleep 0.2; exit 11")
    _, raw = os.waitpid(int(pid_file.read_text()), 0)
    assert os.waitstatus_to_exitcode(raw) == 11
    # Its signals go to what it stands for.
    script = "trap 'exit 12' TERM; while :; do sleep 0.05; done"
    shop.leave(shop.output, *words, "one", "sh", "-c", script)
    until(lambda: len(shop.gvctl.json("ps", "-f", "json", "one")) > 2, 10, "it runs")
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    _, raw = os.waitpid(int(pid_file.read_text()), 0)
    assert os.waitstatus_to_exitcode(raw) == 12
    # With a terminal: keys and sizes are the kernel's matter, and arrive.
    terminal = ("-t", "--console-socket", str(console.path))
    shop.leave(shop.output, *words, *terminal, "one", "sh")
    console.take()
    console.expect("# ")
    os.write(console.master, b"echo go; sleep 1000\n")
    console.expect("\ngo\r\n")
    console.interrupt()
    os.write(console.master, b"exit 13\n")
    _, raw = os.waitpid(int(pid_file.read_text()), 0)
    assert os.waitstatus_to_exitcode(raw) == 13
    done = shop.gvctl(*words, "one", "nosuch")
    assert done.code == 255 and "executable file not found" in done.err


# -- the rest ----------------------------------------------------------------------------------


def test_port_forward(shop: Shop) -> None:
    shop.run("one", "sh", "-c", "httpd -p 8080 -h /etc; sleep 1000")
    until(lambda: "httpd" in shop.gvctl.ok("ps", "one"), 10, "it serves")
    process = shop.gvctl.begin("port-forward", "one", ":8080", ":9")
    assert process.stdout is not None and process.stderr is not None
    places = [process.stdout.readline().split() for _ in range(2)]
    assert [place[1:] for place in places] == [["->", "8080"], ["->", "9"]]
    ports = [int(place[0].rpartition(":")[2]) for place in places]

    def fetch(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"GET /notice HTTP/1.0\r\n\r\n")
            data = b""
            try:
                while chunk := connection.recv(4096):
                    data += chunk
            except ConnectionResetError:
                pass  # refused, or closed with a part of the request unread
            return data

    for _ in range(3):
        assert b"made for the tests" in fetch(ports[0])
    assert fetch(ports[1]) == b""  # nobody listens there
    assert process.stderr.readline().startswith("gvctl: port 9: ")
    assert b"made for the tests" in fetch(ports[0])
    shop.gvctl.ok("kill", "one", "KILL")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "has ended" in err
    assert shop.gvctl("port-forward", "one", "80").code == 1


@pytest.mark.parametrize("shop", [g for g in peers.RUNSCS if g < "2023"], indirect=True)
def test_port_forward_where_the_sentry_has_none(shop: Shop) -> None:
    shop.run("one", "sleep", "1000")
    process = shop.gvctl.begin("port-forward", "one", ":80")
    assert process.stdout is not None
    local = process.stdout.readline().split()[0].rpartition(":")[2]
    socket.create_connection(("127.0.0.1", int(local)), 10).close()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "can't forward ports" in err


def test_port_forward_ends_at_a_signal(shop: Shop) -> None:
    shop.run("one", "sleep", "1000")
    process = shop.gvctl.begin("port-forward", "one", ":80")
    assert process.stdout is not None and "->" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


@every_generation
def test_checkpoint_and_restore(shop: Shop) -> None:
    ctl, image = shop.gvctl, shop.folder / "image"
    count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"
    shop.run("one", "sh", "-c", count)
    until(lambda: len(shop.output.read_text().split()) >= 5, 10, "it counts")
    ctl.ok("checkpoint", "--image-path", str(image), "one")
    assert ctl.status("one") == "stopped"
    ctl.ok("delete", "one")
    last = int(shop.output.read_text().split()[-1])
    bundle = str(shop.folder / "one")
    words = ("restore", "-d", "--image-path", str(image), "-b", bundle, "one")
    shop.leave(shop.folder / "more", *words)
    until(lambda: len((shop.folder / "more").read_text().split()) >= 3, 10, "it counts on")
    first = int((shop.folder / "more").read_text().split()[0])
    assert last < first <= last + 2
    assert ctl.status("one") == "running"
    again = ctl("checkpoint", "--image-path", str(image), "one")
    assert again.code == 1 and "already exists" in again.err
    ctl.ok("delete", "-f", "one")
    broken = shop.folder / "broken"
    broken.mkdir()
    done = ctl("restore", "--image-path", str(broken), "-b", str(shop.folder / "one"), "two")
    assert done.code == 1 and str(broken) in done.err


def test_an_exec_as_a_user_by_name(shop: Shop) -> None:
    shop.run("one", "sleep", "1000")
    ctl = shop.gvctl
    group = shop.rootfs / "etc" / "group"
    group.write_text(group.read_text() + "more:x:55:worker\n")
    assert ctl.ok("exec", "-u", "worker", "one", "id").startswith("uid=1000(worker) gid=1000(")
    assert ctl.ok("exec", "-u", "worker", "one", "id", "-G").split() == ["1000", "55"]
    assert ctl.ok("exec", "-u", "worker:root", "one", "id", "-G") == "0\n"
    assert ctl.ok("exec", "-u", "7:9", "one", "sh", "-c", "id -u; id -g") == "7\n9\n"
    done = ctl("exec", "-u", "nobody-knows", "one", "true")
    assert (done.code, "no 'nobody-knows' in the container's /etc/passwd" in done.err) == (
        255,
        True,
    )
    (shop.rootfs / "etc" / "passwd").unlink()
    (shop.rootfs / "etc" / "passwd").symlink_to("../../../../../../../../etc/passwd")
    done = ctl("exec", "-u", "root", "one", "true")
    assert (done.code, "a number is wanted" in done.err) == (255, True), done


def test_other_limits(shop: Shop) -> None:
    ctl = shop.gvctl
    resources = {"memory": {"limit": 512 << 20}, "cpu": {"quota": 50000, "period": 100000}}
    linux = {
        "cgroupsPath": f"/{shop.cgroup}/one",
        "namespaces": [{"type": n} for n in ("pid", "ipc", "uts", "mount", "network")],
        "resources": resources,
    }
    shop.run("one", "sleep", "1000", linux=linux)

    def value(file: str) -> str:
        place = Path("/sys/fs/cgroup", file.partition(".")[0], shop.cgroup, "one", file)
        return place.read_text().strip()

    assert value("memory.limit_in_bytes") == str(512 << 20)
    ctl.ok("update", "--memory", "256M", "--cpu-quota", "70000", "--pids-limit", "900", "one")
    assert value("memory.limit_in_bytes") == str(256 << 20)
    assert (value("cpu.cfs_quota_us"), value("pids.max")) == ("70000", str(128 + 4 * 900))
    ctl.ok("update", "-r", "-", "one", input='{"cpu": {"shares": 99, "quota": -1}}')
    assert (value("cpu.cfs_quota_us"), value("cpu.shares")) == ("-1", "99")
    for words, why in (
        (("--memory", "lots"), "'lots' is no size"),
        (("--memory", "128M", "--cpu-period", "7"), "cpu"),
        ((), "a limit is wanted"),
    ):
        done = ctl("update", *words, "one")
        assert (done.code, why in done.err) == (1, True), done
    assert value("memory.limit_in_bytes") == str(256 << 20)
    assert ctl.ok("exec", "one", "echo", "on") == "on\n"


def test_a_pods_limits_follow_its_members(shop: Shop) -> None:
    _pod(shop, **{"io.kubernetes.cri.sandbox-memory": str(1 << 30)})
    limit = "memory.limit_in_bytes"
    pods = Path("/sys/fs/cgroup/memory", shop.cgroup)
    assert (pods / "pod" / limit).read_text().strip() == str(1 << 30)
    for own, total in ((300, 1324), (200, 1224)):
        shop.gvctl.ok("update", "-m", f"{own}M", "member")
        assert (pods / "member" / limit).read_text().strip() == str(own << 20)
        assert (pods / "pod" / limit).read_text().strip() == str(total << 20)


def test_a_shim_is_asked_for_other_limits(node: Node) -> None:
    """It is told, as it would else go by what it knew."""
    ctl = Gvctl("-n", node.daemon.namespace)
    name = node.run_detached("sleep", "1000")
    groups = dict(
        line.rstrip().split(":")[1:]
        for line in Path(f"/proc/{node.pid(name)}/cgroup").read_text().splitlines()
    )
    ctl.ok("update", "--memory", "300M", name)
    place = Path("/sys/fs/cgroup/memory" + groups["memory"])
    assert place.name == name
    assert (place / "memory.limit_in_bytes").read_text().strip() == str(300 << 20)
    done = ctl("update", "--cpu-period", "7", name)
    assert done.code == 1 and "cpu" in done.err and "(code" not in done.err


@every_generation
def test_execs_keep_a_sandbox_from_being_saved(shop: Shop) -> None:
    """Old sentries would make an image that none restores, new ones leave an exec out of it.

    What ended is no obstacle, nor is what init started.
    """
    ctl, image = shop.gvctl, shop.folder / "image"
    shop.run("one", "sh", "-c", "sleep 1000 & wait")
    ctl.ok("exec", "one", "true")
    helper = shop.folder / "pid"
    shop.leave(shop.output, "exec", "-d", "--pid-file", str(helper), "one", "sleep", "500")
    if not _generation(shop).saves_without_execs:  # before 20260520
        done = ctl("checkpoint", "--image-path", str(image), "one")
        assert (done.code, "running execs" in done.err) == (1, True), done
        assert not image.exists() and ctl.status("one") == "running"
        os.kill(int(helper.read_text()), signal.SIGTERM)
        until(lambda: "500" not in ctl.ok("ps", "one") and len(_pids(ctl)) == 2, 10, "it ended")
    ctl.ok("checkpoint", "--image-path", str(image), "one")
    ctl.ok("delete", "one")
    shop.leave(
        shop.output, "restore", "-d", "--image-path", str(image), "-b", f"{shop.folder}/one", "two"
    )
    assert ctl.status("two") == "running"
    assert "500" not in ctl.ok("ps", "two")


def _generation(shop: Shop) -> Generation:
    config = RunscConfig(root=str(shop.root), binary=str(peers.runsc(shop.generation)))
    return find_driver(config, str(shop.folder / "cache")).generation


def _pids(ctl: Gvctl) -> list[int]:
    found: list[int] = ctl.json("ps", "-f", "json", "one")
    return found


@every_generation
@pytest.mark.parametrize("apart", [False, True], ids=["run", "create"])
def test_a_restored_sandbox_has_the_network_again(shop: Shop, apart: bool) -> None:
    """In the namespace whose addresses the first one took, however both were started."""
    pod, peer = Namespace(), Namespace()
    try:
        connect(pod, peer)
        pod.ip("address", "add", "10.211.9.2/24", "dev", "eth0")
        kinds: list[dict[str, str]] = [{"type": n} for n in ("pid", "ipc", "uts", "mount")]
        linux = {
            "cgroupsPath": f"/{shop.cgroup}/one",
            "namespaces": [*kinds, {"type": "network", "path": pod.path}],
        }
        bundle = shop.bundle("one", "sleep", "1000", linux=linux)
        ctl, image = shop.gvctl, str(shop.folder / "image")
        for restored in (False, True):
            words = ("restore", "--image-path", image) if restored else ("run",)
            if apart:
                shop.leave(shop.output, "create", "-b", bundle, "one")
                words = (*words, "one") if restored else ("start", "one")
            else:
                words = (*words, "-d", "-b", bundle, "one")
            shop.leave(shop.output, *words)
            assert "10.211.9.2" in ctl.ok("exec", "one", "ip", "address")
            assert "10.211.9.2" not in pod.ip("address")
            if not restored:
                ctl.ok("checkpoint", "--image-path", image, "one")
            ctl.ok("delete", "-f", "one")
    finally:
        pod.close()
        peer.close()


def test_a_stopped_member_is_left_out_of_a_checkpoint(shop: Shop) -> None:
    ctl, image = shop.gvctl, shop.folder / "image"
    _pod(shop)
    ctl.ok("kill", "member", "KILL")
    until(lambda: ctl.status("member") == "stopped", 10, "it stopped")
    ctl.ok("checkpoint", "--leave-running", "--image-path", str(image), "pod")
    about = json.loads((image / "gvisor-shim.json").read_text())
    assert [each["args"] for each in about["containers"]] == [["sleep", "1000"]]
    assert (ctl.status("pod"), ctl.status("member")) == ("running", "stopped")
    assert ctl.ok("wait", "member") == "137\n"
    ctl.ok("delete", "member")
    ctl.ok("delete", "-f", "pod")
    shop.leave(
        shop.output, "restore", "-d", "--image-path", str(image), "-b", f"{shop.folder}/pod", "pod"
    )
    until(lambda: ctl.status("pod") == "running", 10, "it waits for no member")


def test_logs(shop: Shop) -> None:
    folder = shop.folder / "logs"
    shop.gvctl.command += ["--flag", f"debug-log={folder}/%ID%/", "--flag", "debug=true"]
    shop.run("one", "sleep", "1000")
    rows = [line.split() for line in shop.gvctl.ok("logs", "--list", "one").splitlines()[1:]]
    assert {(kind, writer) for kind, writer, _ in rows} == {("debug", "boot"), ("debug", "gofer")}
    assert all(Path(path).is_file() for _, _, path in rows)
    assert len(shop.gvctl.ok("logs", "--tail", "3", "one").splitlines()) == 2 * 4
    follower = shop.gvctl.begin("logs", "--tail", "0", "-F", "one")
    shop.gvctl.ok("exec", "one", "true")
    shop.gvctl.ok("kill", "one", "KILL")
    out, _ = follower.communicate(timeout=20)
    assert follower.returncode == 0
    assert [line for line in out.splitlines() if not line.startswith("==> ")]
    until(lambda: shop.gvctl.status("one") == "stopped", 10, "it stopped")
    assert len(shop.gvctl.ok("logs", "--list", "one").splitlines()) == 3  # by the pattern now


@every_generation
def test_a_container_of_runscs(shop: Shop) -> None:
    runsc = Runsc(shop.generation, shop.root)
    bundle = shop.bundle("one", "sleep", "1000")
    runsc.ok("create", "--bundle", bundle, "one", output=False)
    ctl = shop.gvctl
    assert ctl.status("one") == "created"
    ctl.ok("start", "one")
    assert (ctl.status("one"), runsc.status("one")) == ("running", "running")
    assert ctl.ok("exec", "one", "echo", "hi") == "hi\n"
    ctl.ok("pause", "one")
    assert runsc.status("one") == "paused"
    ctl.ok("resume", "one")
    ctl.ok("delete", "--force", "one")
    assert ctl.ok("list", "-q") == "" and "one" not in runsc.ok("list")


def test_files_are_passed_on(shop: Shop) -> None:
    if shop.old:
        pytest.skip("runsc 20221219 can't pass files on")
    kept = shop.folder / "kept"
    kept.write_text("from the host\n")
    words = ("run", "--bundle", shop.bundle("one", "sh", "-c", "cat <&3"), "--preserve-fds", "1")
    command = ["sh", "-c", 'exec "$@" 3<"$0"', str(kept), *shop.gvctl.command, *words, "one"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, b"from the host\n"), done.stderr


def test_runsc_on_a_container_of_gvctls(shop: Shop) -> None:
    runsc = Runsc(shop.generation, shop.root)
    shop.run("one", "sleep", "1000")
    assert runsc.status("one") == "running"
    assert runsc.ok("exec", "one", "echo", "hi") == "hi\n"
    runsc.ok("delete", "--force", "one")
    assert shop.gvctl("state", "one").code == 1 or shop.gvctl.status("one") == "stopped"


def test_hooks(shop: Shop) -> None:
    log = shop.folder / "hooks"
    stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks: dict[str, Any] = {
        stage: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {stage} >>{log}"]}]
        for stage in stages
    }
    hooks["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "echo in >/tmp/mark"]}]
    shop.create("one", "sh", "-c", "cat /tmp/mark; sleep 1000", hooks=hooks)
    assert log.read_text().split() == [*stages[:3]]
    shop.gvctl.ok("start", "one")
    until(lambda: shop.output.read_text() == "in\n", 10, "the hook in the container came first")
    assert log.read_text().split() == [*stages[:4]]
    shop.gvctl.ok("delete", "--force", "one")
    assert log.read_text().split() == [*stages]


def _pod(shop: Shop, **annotations: str) -> None:
    """A sandbox called pod with a container called member, as CRI has them."""
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    root = {"path": str(shop.folder / "rootfs2")}
    subprocess.run(["cp", "-a", shop.rootfs, root["path"]], check=True)
    shop.run("pod", "sleep", "1000", annotations={kind: "sandbox", **annotations})
    member = {kind: "container", sandbox: "pod"}
    shop.run("member", "sleep", "2000", annotations=member, root=root)


def test_members_of_a_sandbox(shop: Shop) -> None:
    """The second joins the first's, and top shows one pod."""
    _pod(shop)
    (line,) = shop.gvctl.json("top", "--once", "-f", "json")
    assert (line["id"], line["containers"], line["gofers"]) == ("pod", 2, 2)
    assert shop.gvctl.json("state", "member")["sandbox"] == "pod"
    assert shop.gvctl.ok("exec", "member", "echo", "hi") == "hi\n"
    shop.gvctl.ok("kill", "member", "KILL")
    until(lambda: shop.gvctl.status("member") == "stopped", 10, "it stopped")
    assert shop.gvctl.status("pod") == "running"
    shop.gvctl.ok("delete", "member")


def test_the_way_to_containerd_is_found(node: Node) -> None:
    environment = {**os.environ, "PATH": f"{node.daemon.bin}:{os.environ['PATH']}"}
    binary = str(peers.shim_bin() / "gvctl")
    config = subprocess.run(
        [binary, "config", "containerd"], env=environment, capture_output=True, text=True
    )
    plugin = "cri.v1.runtime" if node.daemon.release >= (2, 0) else "grpc.v1.cri"
    assert config.returncode == 0 and f'\n[plugins."io.containerd.{plugin}"' in config.stdout
    assert f'runtime_path = "{peers.shim_bin()}/containerd-shim-gvisor-v2"' in config.stdout
    runsc = str(peers.runsc(node.daemon.generation))
    doctor = subprocess.run(
        [binary, "--runsc", runsc, "doctor", "-f", "json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    found = {each["check"]: each for each in json.loads(doctor.stdout)["checks"]}
    assert found["containerd"]["level"] == found["runsc"]["level"] == found["shim"]["level"] == "ok"
