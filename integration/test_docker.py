"""Docker: what dockerd asks of the shim as a runtime, and what it shows of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.terminal import Terminal
from integration.harness.base.waiting import until
from integration.harness.host import docker as docker_module
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.host.docker import IMAGE, Docker

pytestmark = pytest.mark.gvisor


def run_docker(folder: Path, release: str, suffix: str = "") -> Iterator[Docker]:
    """A fixture's daemon, which leaves nothing behind."""
    tree = docker_module.tree(release)
    if not (tree / ".done").exists():
        pytest.skip(f"no docker in {tree}: integration/peers fetches it")
    version, generation = peers.PRIMARY
    place = folder / f"docker{release[:2]}{suffix}"
    daemon = Containerd(
        version, generation, place / "c", f"{folder.name}-docker{release[:2]}{suffix}"
    )
    daemon.start()
    docker = Docker(release, daemon, place / "d")
    try:
        docker.start(**({"default-runtime": "plain"} if release == "20.10" else {}))
        docker.import_image()
        yield docker
    finally:
        docker.remove()
        left: list[str] = []

        def nothing() -> bool:
            left[:] = footprint.of(daemon, docker.ids)
            return not left

        try:
            until(nothing, 10, "nothing is left")
        except AssertionError:
            footprint.purge(daemon, docker.ids)
            raise AssertionError("\n".join(["left behind:", *left])) from None
        finally:
            daemon.remove()
            footprint.remove_cgroups(daemon)
            place.rmdir()


@pytest.fixture(scope="module")
def docker(short_folder: Path) -> Iterator[Docker]:
    yield from run_docker(short_folder, "28")


@pytest.fixture(scope="module")
def old_docker(short_folder: Path) -> Iterator[Docker]:
    yield from run_docker(short_folder, "20.10")


def test_run(docker: Docker) -> None:
    done = docker.run("sh", "-c", "cat /proc/version; echo to-err >&2; exit 7")
    assert done.code == 7 and "2016" in done.out and "to-err" in done.err, done
    assert docker.run("nosuch").code == 127
    docker.ok("volume", "create", "shelf")
    script = """
        id -u; echo kept > /shelf/f; touch /no; touch /scratch/y && df -k /scratch | tail -1
        grep CapBnd /proc/self/status; ulimit -n; ulimit -Hn; cat; ps
    """
    options = (
        *("--rm", "-i", "--init", "--read-only", "--tmpfs", "/scratch:size=1m", "--cpus", "0.5"),
        *("--cap-drop", "ALL", "--ulimit", "nofile=100:200", "-v", "shelf:/shelf"),
    )
    done = docker.run("sh", "-c", script, options=options, input="typed\n")
    assert re.search(r"\A0\nnone +1024 .*CapBnd:\t0+\n100\n200\ntyped\n", done.out, re.DOTALL), done
    assert re.search(r"^ +1 root +/sbin/docker-init", done.out, re.MULTILINE), done
    assert "/no: Read-only file system" in done.err
    # As many as the limit allows, though each is more than one on the host.
    fork = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo all"
    done = docker.run("sh", "-c", fork, options=("--rm", "--pids-limit", "10"))
    assert done.out == "all\n", done
    worker = docker.run("cat", "/v/f", options=("--rm", "--user", "worker", "-v", "shelf:/v:ro"))
    assert worker.out == "kept\n", worker


def test_a_life(docker: Docker) -> None:
    script = "echo started; trap 'echo term; exit 5' TERM; while :; do sleep 0.05; done"
    docker.detached("life", "sh", "-c", script)
    assert docker("exec", "life", "sh", "-c", "echo in; exit 6")[:2] == (6, "in\n")
    assert docker.ok(
        "exec", "-i", "-u", "worker", "-e", "A=b", "life", "sh", input="id -un; echo $A"
    )
    docker.ok("update", "--memory", "200m", "--memory-swap", "200m", "--cpus", "0.5", "life")
    shown = docker.ok("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "life")
    assert re.match(r"\d\S*B / 200MiB [1-9]", shown), shown
    assert docker("exec", "-d", "life", "sh", "-c", "sleep 986 & sleep 987").code == 0
    until(lambda: "sleep 987" in docker.ok("exec", "life", "ps"), 10, "both sleep")
    # It shows what the host has by the pids that it is told: the sandbox, and nobody else.
    rows = docker.ok("top", "life", "-o", "pid,comm").splitlines()[1:]
    assert [row.split()[0] for row in rows] == [docker.field("life", ".State.Pid")], rows
    docker.ok("pause", "life")
    assert docker.field("life", ".State.Status") == "paused"
    docker.ok("unpause", "life")
    docker.ok("stop", "life")
    assert docker.ok("logs", "life") == "started\nterm"
    assert docker.field("life", ".State.ExitCode") == "5"
    docker.ok("start", "life")
    docker.ok("kill", "life")
    assert docker.ok("wait", "life") == "137"
    docker.ok("rm", "life")


def test_restart_policy_and_health(docker: Docker) -> None:
    docker.detached("again", "sh", "-c", "exit 3", options=("--restart", "on-failure:1"))
    health = ("--health-cmd", "test -e /ok", "--health-interval", "0.2s", "--health-retries", "1")
    docker.detached("ill", "sleep", "1000", options=health)
    until(lambda: docker.field("ill", ".State.Health.Status") == "unhealthy", 20, "it is ill")
    docker.ok("exec", "ill", "touch", "/ok")
    until(lambda: docker.field("ill", ".State.Health.Status") == "healthy", 20, "it is well")

    def given_up() -> bool:
        return docker.field("again", ".RestartCount}} {{.State.Status") == "1 exited"

    until(given_up, 20, "it was started again once")
    docker.ok("rm", "-f", "again", "ill")


def test_terminal(docker: Docker) -> None:
    with Terminal(docker.command("run", "--rm", "-it", "--name", "tty", IMAGE, "sh")) as terminal:
        terminal.expect("# ")
        terminal.press_until("stty size\n", "24 80")
        with Terminal(docker.command("exec", "-it", "tty", "sh")) as other:
            other.expect("# ")
            other.write("echo go; sleep 1000\n")
            other.expect("\ngo\r\n")
            other.press_until("\x03", "# ")
            other.write("sleep 1000 & exit 9\n")
            assert other.wait() == 9
        # Its first process has keys and sizes of its own as well.
        script = (
            "trap 'stty size' WINCH; trap 'exit 7' INT; echo u''p; while :; do sleep 0.05; done"
        )
        terminal.write(f'sh -c "{script}"; echo status $?\n')
        terminal.expect("\nup\r\n")
        terminal.resize_until(41, 121, "41 121")
        terminal.press_until("\x03", "status 7")
        terminal.press_until("\n", "# ")
        terminal.write("exit 8\n")
        assert terminal.wait() == 8


def test_out_of_memory(docker: Docker) -> None:
    limits = ("--memory", "64m", "--memory-swap", "64m")
    docker.detached("hog", "sh", "-c", "x=a; while :; do x=$x$x; done", options=limits)
    docker.ok("wait", "hog")
    assert docker.field("hog", ".State.OOMKilled}} {{.State.ExitCode") == "true 137"
    docker.ok("rm", "hog")


def test_network(docker: Docker) -> None:
    """The server of names is on the network namespace's loopback, gVisor's stack has its own."""
    serve = "mkdir /w; echo page > /w/index.html; exec httpd -f -p 80 -h /w"
    docker.ok("network", "create", "lan")
    docker.detached("far", "sh", "-c", serve, options=("--network", "lan", "-p", "18080:80"))
    address = docker.field("far", ".NetworkSettings.Networks.lan.IPAddress")
    lan = ("--rm", "--network", "lan")
    until(lambda: docker.run("wget", "-qO-", address, options=lan).out == "page\n", 20, "a page")
    shown = docker.inside("curl", "-sm", "9", "http://127.0.0.1:18080/")
    assert shown == "page\n"
    assert docker.run("wget", "-qO-", "far", options=lan).code == 1
    host_net = (*lan, "--runtime", "host-net")
    assert docker.run("wget", "-qO-", "far", options=host_net).out == "page\n"
    docker.detached("near", "sh", "-c", serve)
    linked = ("--rm", "--link", "near:alias")
    until(lambda: docker.run("wget", "-qO-", "alias", options=linked).out == "page\n", 20, "a page")
    docker.ok("rm", "-f", "far", "near")
    docker.ok("network", "rm", "lan")


def test_images(docker: Docker) -> None:
    change = "echo new > /new; rm /etc/notice; sleep 1000"
    docker.detached("hidden", "sh", "-c", change, options=("--runtime", "gvisor"))
    docker.detached("shown", "sh", "-c", change, options=("--runtime", "plain"))
    for name in ("hidden", "shown"):
        gone = ("exec", name, "test", "-e", "/etc/notice")
        until(lambda gone=gone: docker(*gone).code == 1, 10, "it has written")
    assert docker.ok("diff", "hidden") == "", "the overlay in the sandbox is nobody else's"
    assert docker("cp", "hidden:/new", "-").code == 1
    assert sorted(docker.ok("diff", "shown").split("\n")) == ["A /new", "C /etc", "D /etc/notice"]
    docker.ok("cp", "shown:/new", str(docker.folder / "copy"))
    assert (docker.folder / "copy").read_text() == "new\n"
    docker.ok("cp", str(docker.folder / "copy"), "shown:/in")
    assert docker.ok("exec", "shown", "cat", "/in") == "new"
    list_all = ("run", "--rm", "--runtime", "plain")
    for name, wanted in (("hidden", False), ("shown", True)):
        docker.ok("commit", name, f"from-{name}")
        files = docker.ok(*list_all, f"from-{name}", "ls", "-a", "/").split()
        assert ("new" in files) is wanted
        assert not [each for each in files if "gvisor" in each]
    docker.ok("rm", "-f", "hidden", "shown")


def _check_build(docker: Docker) -> None:
    context = docker.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN cat /proc/version > /built\n")
    docker.ok("build", "-t", "built", str(context))
    assert "2016" in docker.ok("run", "--rm", "built", "cat", "/built")


def test_build(docker: Docker) -> None:
    _check_build(docker)


def test_restart_of_dockerd(docker: Docker) -> None:
    docker.detached("kept", "sleep", "1000", options=("--restart", "always"))
    docker.detached("lost", "sleep", "1000")
    docker.stop()
    docker.start(**{"live-restore": True})
    assert docker.field("lost", ".State.Status") == "exited"
    until(lambda: docker.field("kept", ".State.Running") == "true", 20, "it was started again")
    pid = docker.field("kept", ".State.Pid")
    for signo in (signal.SIGTERM, signal.SIGKILL):
        docker.stop(signo)
        docker.start(**{"live-restore": True})
        assert docker.field("kept", ".State.Pid") == pid
        assert docker.ok("exec", "kept", "echo", "alive") == "alive"
    docker.ok("rm", "-f", "kept", "lost")


def test_docker_of_2020(old_docker: Docker) -> None:
    """It knows no shims as runtimes, so gvctl is in runc's place, and builds with the default."""
    done = old_docker.run("sh", "-c", "cat /proc/version; ip -4 addr show eth0; exit 7")
    assert done.code == 7 and "2016" in done.out and "172.17." in done.out, done
    script = "trap 'echo term; exit 5' TERM; while :; do sleep 0.05; done"
    old_docker.detached("old", "sh", "-c", script)
    assert old_docker("exec", "-i", "old", "cat", input="typed")[:2] == (0, "typed")
    old_docker.ok("stop", "old")
    assert old_docker.field("old", ".State.ExitCode") == "5"
    old_docker.ok("rm", "old")
    _check_build(old_docker)
