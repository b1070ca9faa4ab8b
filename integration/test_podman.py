"""podman with gvctl as its OCI runtime: what it runs, it runs under gVisor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.done import Done
from integration.harness.base.terminal import Terminal
from integration.harness.base.waiting import until
from integration.harness.clients.gvctl import Gvctl
from integration.harness.host.image import unpack_rootfs

pytestmark = pytest.mark.gvisor
_TREE = peers.PEERS / "podman"
#: Both are unpacked, so their libraries are not where the loader looks; conmon's children, podman
#: among them, need that said again.
_CONF = """\
[containers]
seccomp_profile = "{tree}/usr/share/containers/seccomp.json"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{conmon}"]
runtime = "gvctl"
runtime_supports_json = ["gvctl"]
[engine.runtimes]
gvctl = ["{gvctl}"]
"""
_CONMON = """\
#!/bin/sh
export LD_LIBRARY_PATH='{libraries}'
exec '{tree}/usr/bin/conmon' "$@"
"""


class Podman:
    """podman with storage, state and configuration of its own."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.folder = folder
        libraries = f"{_TREE}/usr/lib/x86_64-linux-gnu:{_TREE}/lib/x86_64-linux-gnu"
        conmon = folder / "conmon"
        conmon.write_text(_CONMON.format(libraries=libraries, tree=_TREE))
        conmon.chmod(0o755)
        conf = folder / "containers.conf"
        gvctl = peers.shim_bin() / "gvctl"
        conf.write_text(_CONF.format(tree=_TREE, conmon=conmon, gvctl=gvctl))
        runsc = peers.runsc(generation).parent
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(conf),
            "LD_LIBRARY_PATH": libraries,
            "PATH": f"{runsc}:{os.environ['PATH']}",
        }
        self.command = [
            str(_TREE / "usr/bin/podman"),
            *("--root", str(folder / "root"), "--runroot", str(folder / "run")),
            *("--tmpdir", str(folder / "tmp"), "--storage-driver", "vfs"),
        ]
        self.rootfs = folder / "rootfs"
        self.rootfs.mkdir()
        unpack_rootfs(self.rootfs)

    def __call__(self, *words: str, input: str = "") -> Done:
        done = subprocess.run(
            [*self.command, *words],
            input=input,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=40,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str, options: tuple[str, ...] = ("--rm",)) -> Done:
        network = () if "--network" in options else ("--network", "none")
        return self("run", *network, *options, "--rootfs", str(self.rootfs), *words)


@pytest.fixture(scope="module")
def podman(short_folder: Path) -> Iterator[Podman]:
    if not (_TREE / ".done").exists():
        pytest.skip(f"no podman in {_TREE}: integration/peers fetches it")
    folder = short_folder / "podman"
    folder.mkdir()
    podman = Podman(folder, peers.PRIMARY[1])
    done = podman("--version")
    if done.code:
        pytest.skip(f"podman can't be run here: {done.err.strip()}")
    yield podman
    for name in podman("ps", "-aq").out.split():
        podman("rm", "-f", "-t", "0", name)
    subprocess.run(["umount", "-l", str(folder / "root" / "vfs")], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    # What removes a container with --rm is a process of its own, which conmon starts at the end.
    until(lambda: Gvctl("--root", "/run/gvctl").ok("list", "-q") == "", 20, "all are gone")
    for place in Path("/sys/fs/cgroup").glob("*/libpod_parent"):
        for each in (*place.glob("*/"), place):
            until(lambda each=each: _removed(each), 20, f"{each} is empty")  # type: ignore[misc]


def _removed(cgroup: Path) -> bool:
    """Whether it is gone by now; a conmon that is about to end holds its own."""
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_run(podman: Podman) -> None:
    done = podman.run("sh", "-c", "dmesg | head -1; echo to-err >&2; exit 7")
    assert done.code == 7, done
    assert "gVisor" in done.out and "to-err" in done.err
    done = podman.run("nosuch")
    assert done.code == 127 and "executable file not found" in done.err
    mounts = ("--rm", "--read-only", "-v", f"{podman.folder}:/mnt:ro", "--memory", "100m")
    done = podman.run("ls", "/mnt", options=mounts)
    assert done.code == 0 and "containers.conf" in done.out, done
    done = podman(
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        "--rootfs",
        str(podman.rootfs),
        "cat",
        input="typed",
    )
    assert (done.code, done.out) == (0, "typed")


def test_a_life(podman: Podman) -> None:
    script = "echo started; trap 'echo term; exit 5' TERM; while :; do sleep 0.05; done"
    done = podman.run("sh", "-c", script, options=("-d", "--name", "one"))
    assert done.code == 0, done
    long_id = done.out.strip()
    try:
        state = Gvctl("--root", "/run/gvctl").json("state", long_id)
        assert state["status"] == "running"
        found = json.loads(podman("inspect", "one").out)[0]
        assert (found["State"]["Pid"], found["OCIRuntime"]) == (state["pid"], "gvctl")
        assert podman("exec", "one", "sh", "-c", "echo in; exit 6") == Done(6, "in\n", "")
        assert podman("exec", "-i", "one", "cat", input="typed").out == "typed"
        assert podman("pause", "one").code == 0
        assert podman("inspect", "one", "--format", "{{.State.Status}}").out.strip() == "paused"
        assert podman("unpause", "one").code == 0
        assert podman("stop", "-t", "5", "one").code == 0
        assert podman("logs", "one").out == "started\nterm\n"
        ended = podman("inspect", "one", "--format", "{{.State.Status}} {{.State.ExitCode}}")
        assert ended.out.strip() == "exited 5"
        assert podman("start", "one").code == 0
        assert podman("kill", "one").code == 0
        assert podman("wait", "one").out.strip() == "137"
    finally:
        assert podman("rm", "-f", "one").code == 0
    until(lambda: Gvctl("--root", "/run/gvctl").ok("list", "-q") == "", 10, "it is gone")


def test_terminals(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTAINERS_CONF", "LD_LIBRARY_PATH", "PATH"):
        monkeypatch.setenv(name, podman.environment[name])
    words = ["run", "--rm", "-it", "--name", "two", "--network", "none"]
    with Terminal([*podman.command, *words, "--rootfs", str(podman.rootfs), "sh"]) as terminal:
        terminal.expect("# ")
        with Terminal([*podman.command, "exec", "-it", "two", "sh"]) as other:
            other.expect("# ")
            other.write("stty size\n")
            other.expect("24 80")
            other.expect("# ")
            # The echo of what is typed has no line of its own that begins so.
            other.write("echo go; sleep 1000\n")
            other.expect("\ngo\r\n")
            other.press_until("\x03", "# ")
            other.write("exit 9\n")
            assert other.wait() == 9
        terminal.write("exit 8\n")
        assert terminal.wait() == 8
