"""Real launchers, servers and shims; this process is their containerd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.host import forkservers
from shim.forkserver import caller
from tests.shim.forkserver.scene import ON, US, Scene, alive, kill, until

OFF = {"GVISOR_SHIM_FORK_SERVER": "off"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def forks(server: forkservers.ForkServerInfo) -> int:
    """How many it has forked; the question is one itself."""
    return forkservers.ask(server.socket).forks


def read(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def descriptors(pid: int) -> list[str]:
    """What they are, without the numbers of single ones."""
    folder, found = f"/proc/{pid}/fd", []
    for number in os.listdir(folder):
        with suppress(FileNotFoundError):  # it was closed just now
            found.append(os.readlink(f"{folder}/{number}").partition("[")[0])
    return sorted(found)


def properties(pid: int, name: str) -> dict[str, object]:
    """All that /proc tells of a process that it was given, or what it made of that."""
    status = dict(line.partition(":")[::2] for line in read(pid, "status").decode().splitlines())
    told = (
        *("Name", "Umask", "Uid", "Gid", "FDSize", "Groups", "NoNewPrivs", "Seccomp", "Threads"),
        *("SigQ", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff"),
        *("CapBnd", "CapAmb", "Cpus_allowed", "Mems_allowed", "THP_enabled", "Seccomp_filters"),
        *("Speculation_Store_Bypass", "SpeculationIndirectBranch"),
    )
    stat = read(pid, "stat").decode().rpartition(")")[2].split()
    found: dict[str, object] = {key: status[key].strip() for key in told if key in status}
    found["SigQ"] = found["SigQ"].partition("/")[2]  # type: ignore[attr-defined]
    found["parent"] = stat[1]
    found["leads its group and session"] = stat[2] == stat[3] == str(pid)
    found["terminal"], found["nice"], found["exit signal"] = stat[4], stat[16], stat[35]
    found["real-time priority, policy"] = stat[37:39]
    for file in ("cgroup", "limits", "oom_score_adj", "comm", "coredump_filter", "loginuid"):
        try:
            found[file] = read(pid, file)
        except OSError:
            found[file] = None
    found["timer slack"] = read(pid, "timerslack_ns")
    found["command line"] = read(pid, "cmdline").replace(name.encode(), b"NAME")
    found["environment"] = sorted(read(pid, "environ").split(b"\0"))
    found["working directory"] = os.readlink(f"/proc/{pid}/cwd").replace(name, "NAME")
    found["root"], found["program"] = (os.readlink(f"/proc/{pid}/{n}") for n in ("root", "exe"))
    found["io priority"] = subprocess.check_output(["ionice", "-p", str(pid)])
    spaces = os.listdir(f"/proc/{pid}/ns")
    found["namespaces"] = {n: os.readlink(f"/proc/{pid}/ns/{n}") for n in spaces}
    found["descriptors"] = descriptors(pid)
    return found


@pytest.mark.parametrize("prepare", ["", "peculiar"])
def test_a_forked_shim_is_like_one_that_was_started(scene: Scene, prepare: str) -> None:
    scene.start("aa")
    server = scene.server()
    before = forks(server)
    forked = scene.start("bb", prepare=prepare)
    assert forks(server) == before + 2, "it wasn't forked, but for the question"
    direct = scene.start("cc", prepare=prepare, environment=OFF)
    until(lambda: len(descriptors(forked)) == len(descriptors(direct)), "both serve")

    def alike() -> bool:
        one, other = properties(forked, "bb"), properties(direct, "cc")
        for found in (one, other):  # but for the switch
            given = found["environment"]
            assert isinstance(given, list)
            found["environment"] = [each for each in given if b"FORK_SERVER=" not in each]
        differences = {k: (one[k], other[k]) for k in other if one[k] != other[k]}
        if differences:
            print(differences)
        return not differences

    until(alike, "they are alike", 10)


def test_output_and_status_are_passed_on(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()
    before = forks(server)
    for name, action in (("a..b/c", "start"), ("..", "delete"), ("xx", "delete")):
        words, _ = scene.command(action, "xx")
        words[words.index("-id") + 1] = name
        results = []
        for environment in ({}, OFF):
            done = subprocess.run(
                words, cwd=scene.directory / "xx", env=environment, capture_output=True
            )
            results.append((done.returncode, done.stdout[:4], done.stderr))
        assert results[0] == results[1]
    assert forks(server) == before + 4
    info = subprocess.run([scene.launcher, "-info"], input=b"", capture_output=True)
    assert info.stdout.startswith(b"\n\x17io.containerd.gvisor.v2")
    assert forks(server) == before + 6


def test_standard_descriptors_may_be_closed(scene: Scene) -> None:
    """The connection to the server then isn't taken for one of them."""
    scene.start("aa")
    server = scene.server()
    before = forks(server)
    info = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -info <&- 2>&-', scene.launcher],
        stdout=subprocess.PIPE,
        timeout=9,  # before the end of a standard input is given up
    )
    assert info.stdout.startswith(b"\n\x17io.containerd.gvisor.v2")
    assert forks(server) == before + 2


def test_a_stopped_server_is_not_waited_for(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        pid = scene.start("bb")
        # Not a fork: it has what the interpreter was called with.
        assert alive(pid)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    # What the server then finds is a caller that has hung up, and does nothing.
    assert scene.daemon("bb") == pid
    assert forks(server) >= 2


def test_a_killed_server_is_replaced(scene: Scene) -> None:
    first = scene.start("aa")
    server = scene.server()
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not alive(server.pid), "it is dead")
    assert alive(first), "shims don't need it"
    scene.start("bb")
    other = scene.server()
    assert other.pid != server.pid
    assert other.socket == server.socket


def test_one_server_for_many_starts_at_once(scene: Scene) -> None:
    words = [scene.command("start", f"n{n}") for n in range(4)]
    running = [
        subprocess.Popen(w, cwd=b, env=ON, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for w, b in words
    ]
    for n, process in enumerate(running):
        process.communicate(scene.stdin(f"n{n}"), timeout=60)
        scene.daemons.append(scene.daemon(f"n{n}"))
    scene.server()
    assert len(forkservers.sockets(str(scene.servers))) == 1


_CONTAINERD = """
import subprocess, sys
subprocess.run(sys.argv[2:], cwd=sys.argv[1], input=bytes.fromhex({stdin!r}), check=True)
print("started", flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_containerd(scene: Scene) -> None:
    words, bundle = scene.command("start", "aa")
    program = _CONTAINERD.format(stdin=scene.stdin("aa").hex())
    reader, writer = os.pipe()
    containerd = subprocess.Popen(
        [sys.executable, "-c", program, str(bundle), *words],
        env={**os.environ, **ON},
        stdin=reader,
        stdout=subprocess.DEVNULL,
    )
    try:
        server = scene.server()
        assert server.containerd == containerd.pid
        scene.daemons.append(scene.daemon("aa"))
        # Another containerd's is another.
        scene.start("bb")
        until(lambda: len(forkservers.every(str(scene.servers))) == 2, "two servers")
    finally:
        containerd.kill()
        containerd.wait()
        os.close(reader)
        os.close(writer)
    until(lambda: not alive(server.pid), "its end")
    assert not os.path.exists(server.socket)
    assert alive(scene.daemon("aa"))
    assert scene.server().containerd == os.getpid()


def test_another_version_ends_it(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()
    scene.start("bb", launcher=scene.compile("later", "two"))
    until(lambda: not alive(server.pid), "its end")
    assert scene.server().pid != server.pid


def test_it_ends_when_its_files_are_replaced(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()
    shutil.copytree(os.path.realpath(scene.site / "shim"), scene.site / "copy")
    (scene.site / "shim").unlink()
    (scene.site / "copy").rename(scene.site / "shim")
    pid = scene.start("bb")
    until(lambda: not alive(server.pid), "its end")
    assert alive(pid)


def test_what_it_can_not_become_ends_it(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()

    pid = scene.start("bb", prepare="without_new_privileges")
    assert b"NoNewPrivs:\t1\n" in read(pid, "status")
    # The one that was left behind has it.
    other = scene.next_server(server, "without_new_privileges")
    before = forks(other)
    pid = scene.start("cc", prepare="without_new_privileges")
    assert b"NoNewPrivs:\t1\n" in read(pid, "status")
    assert forks(other) == before + 2


def test_servers_that_are_always_unlike_are_given_up(scene: Scene) -> None:
    """As where a security module gives the interpreter another label than the launcher."""
    scene.start("aa")
    path = scene.server().socket
    server = scene.server()
    for number in range(3):
        # Each in another way than the last.
        prepare = "" if number % 2 else "without_new_privileges"
        scene.start(f"b{number}", prepare=prepare)
        if number < 2:
            server = scene.next_server(server, prepare)
        assert len(forkservers.reasons(path)) == number + 1
    until(lambda: not alive(server.pid), "its end")
    pid = scene.start("cc")
    assert alive(pid)
    assert not os.path.exists(path + ".lock"), "another one was left behind"
    (line,) = forkservers.given_up(str(scene.servers))
    assert line == f"none for process {os.getpid()}, whose shims differ: NoNewPrivs"
    os.unlink(path + forkservers.UNLIKE)


def test_it_can_be_switched_off(scene: Scene) -> None:
    scene.start("aa", environment=OFF)
    assert scene.none()
    scene.start("bb", stdin=scene.stdin("bb", b"fork_server = false"))
    assert scene.none()
    scene.start("cc")
    server = scene.server()
    before = forks(server)
    scene.start("dd", environment=OFF)
    assert forks(server) == before + 1
    # The option is read by the fork, which gives back what it has read.
    stdin = scene.stdin("ee", b"fork_server = false")
    pid = scene.start("ee", stdin=stdin)
    assert forks(server) == before + 3
    assert alive(pid) and scene.server().pid == server.pid


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("said", ["", "on", "1", "off", "0", "no", "odd"])
@pytest.mark.parametrize("option", [None, False, True])
def test_who_wants_it(
    monkeypatch: pytest.MonkeyPatch, default: bool, said: str, option: bool | None
) -> None:
    monkeypatch.setattr(caller, "DEFAULT", default)
    monkeypatch.setenv(caller.SWITCH, said)
    off, on = said in ("off", "0", "no"), said in ("on", "1")
    expected = not off and (option if option is not None else on or default)
    assert caller.wants_server(option) is expected


def test_it_is_left_for_containerd_only(scene: Scene) -> None:
    for binary in ("/bin/true", "true", ""):
        scene.start("aa" + os.path.basename(binary), binary=binary)
        assert scene.none()
    scene.servers.mkdir(0o755)
    scene.start("bb")
    assert scene.none(), "a folder that others may enter"
    assert US.startswith("/")


def test_the_fork_dies_with_its_launcher(scene: Scene) -> None:
    scene.start("aa")
    server = scene.server()
    words, bundle = scene.command("start", "bb")
    reader, writer = os.pipe()
    launcher = subprocess.Popen(words, cwd=bundle, env=ON, stdin=reader)
    try:
        # It waits for the end of its standard input.
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")

        def reads() -> int:
            for child in children.read_text().split():
                if "pipe" in os.path.realpath(f"/proc/{child}/fd/0"):
                    return int(child)
            return 0

        fork = until(reads, "a fork that has begun")
        launcher.kill()
        launcher.wait()
        until(lambda: not alive(fork), "its end", 5)
    finally:
        os.close(writer)
        os.close(reader)
        kill(launcher.pid, signal.SIGKILL)
    assert not (bundle / "shim.pid").exists()
    assert alive(server.pid)
