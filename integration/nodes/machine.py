"""A machine of its own: glibc, busybox, a containerd that reads /etc/containerd, and its pods."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.base.linux import unmount
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.host.bare_root import BareRoot
from integration.harness.host.image import IMAGE
from integration.harness.nodes.pods import PAUSE_IMAGE, write_images

_BEFORE = """\
version = {version}
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
{pause}
[plugins."{plugin}"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
"""
_PAUSE_1 = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
"""
_PAUSE_2 = """
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
"""
#: Written by who uses a machine, and no part of an installation.
_OTHERS = ("old", "proc", "sys", "dev", "run", "tmp")


class Machine:
    """`start` it, and `remove` it with all that it had."""

    def __init__(self, folder: Path, version: str, number: int) -> None:
        self.folder, self.version = folder, version
        self.root = BareRoot(folder / "machine", [peers.PEERS])
        self.address = folder / "c.sock"
        self.cgroup = f"gvm{os.getpid()}-{number}"
        self.config = self.path("/etc/containerd/config.toml")
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._cri: cri.Cri | None = None

    def path(self, path: str) -> Path:
        """Where a file of the machine's lies for the tests."""
        return self.root.folder / path.lstrip("/")

    def make(self) -> None:
        """Its file system, as it is before anything is installed."""
        self.root.make()
        shutil.copy(peers.containerd_bin(self.version) / "containerd", self.path("/usr/bin"))
        shutil.copy(peers.runc_bin() / "runc", self.path("/usr/bin"))
        shutil.copy(
            peers.containerd_bin(self.version) / "containerd-shim-runc-v2", self.path("/usr/bin")
        )
        # runc is the machine's own, with a library of its own.
        for library in Path("/usr/lib").glob("*/libseccomp.so.2"):
            shutil.copy(library, self.path(f"/lib/{library.parent.name}"))
        self.config.parent.mkdir(exist_ok=True)
        new = self.version != "1.7"
        plugin = "io.containerd.cri.v1.runtime" if new else "io.containerd.grpc.v1.cri"
        text = _BEFORE.format(
            version=3 if new else 2,
            folder=self.folder,
            plugin=plugin,
            pause=_PAUSE_2.format(pause=PAUSE_IMAGE) if new else "",
        )
        if not new:
            text += f'  sandbox_image = "{PAUSE_IMAGE}"\n'
        self.config.write_text(text)

    def snapshot(self) -> dict[str, str]:
        """What is in its file system: path -> what it is, with a file's digest."""
        found = {}
        for path in sorted(self.root.folder.rglob("*")):
            name = path.relative_to(self.root.folder)
            if name.parts[0] in _OTHERS or str(path).startswith(str(self.path(str(peers.PEERS)))):
                continue
            if path.is_symlink():
                found[str(name)] = f"link to {os.readlink(path)}"
            elif path.is_dir():
                found[str(name)] = "folder"
            elif path.stat().st_size > 1 << 20:
                found[str(name)] = f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
            else:
                found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    # -- containerd -------------------------------------------------------------------------

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.root.command("/usr/bin/containerd", "--log-level", "debug"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "GVISOR_SHIM_FORK_SERVER": "on"},
                cwd="/",
                start_new_session=True,
            )
        until(self._answers, 40, f"containerd {self.version} answers, see {self.folder}/log")

    def stop(self) -> None:
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = (self.folder / "log").read_text()[-2000:]
            raise AssertionError(f"containerd {self.version} ended:\n{log}")
        if not self.address.exists():
            return False
        self._cri = self._cri or cri.Cri(self.address)
        try:
            conditions = self._cri.call("Status", 10).status.conditions
            self._cri.call("ListPodSandbox", 10)
        except Refused:
            return False
        return any(each.type == "RuntimeReady" and each.status for each in conditions)

    def import_images(self) -> None:
        images = self.folder / "images.tar"
        write_images(images)
        command = [peers.containerd_bin(self.version) / "ctr", "-a", self.address, "-n", "k8s.io"]
        subprocess.run(
            [*command, "images", "import", images], check=True, capture_output=True, timeout=60
        )
        for name in (IMAGE, PAUSE_IMAGE):
            until(lambda name=name: self._has(name), 15, f"CRI knows {name}")  # type: ignore[misc]

    def _has(self, name: str) -> bool:
        return bool(self.call("ImageStatus", image={"image": name}).image.id)

    def call(self, method: str, timeout: float = 40, /, **values: Any) -> Any:
        assert self._cri is not None
        return self._cri.call(method, timeout, **values)

    # -- gvctl ------------------------------------------------------------------------------

    def gvctl(self, bundle: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A bundle's gvctl on the machine."""
        return subprocess.run(
            self.root.command(bundle / "bin/gvctl", *words),
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": "/bin"},
        )

    # -- pods -------------------------------------------------------------------------------

    def run_pod(self, handler: str = "gvisor") -> tuple[str, str]:
        """A pod with the host's network and a container that sleeps; the ids of both."""
        name = f"pod{next(self._numbers)}"
        config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "log_directory": str(self.folder / "logs"),
            "linux": {
                "cgroup_parent": f"/{self.cgroup}/{name}",
                "security_context": {"namespace_options": {"network": cri.NODE}},
            },
        }
        pod = self.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id
        container = self.call(
            "CreateContainer",
            pod_sandbox_id=pod,
            sandbox_config=config,
            config={
                "metadata": {"name": "c"},
                "image": {"image": IMAGE},
                "command": ["sleep", "1000"],
                "log_path": f"{name}.log",
                "linux": {"security_context": {"namespace_options": {"network": cri.NODE}}},
            },
        ).container_id
        self.call("StartContainer", container_id=container)
        return pod, container

    def exec(self, container: str, *command: str) -> str:
        done = self.call("ExecSync", container_id=container, cmd=command, timeout=20)
        assert done.exit_code == 0, done
        return str(done.stdout.decode())

    def remove_pod(self, pod: str) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=pod)
        self.call("RemovePodSandbox", pod_sandbox_id=pod)

    def shim_of(self, pod: str) -> str:
        """The path of what a pod's shim executes, as the machine has it."""
        for base in Path("/proc").iterdir():
            with suppress(OSError):
                words = (base / "cmdline").read_bytes().split(b"\0")
                if pod.encode() in words and b"-id" in words and words[-2] != b"delete":
                    return os.readlink(base / "exe")
        raise AssertionError(f"no shim of {pod}")

    def processes(self) -> Iterator[tuple[int, str]]:
        """All that runs of the machine: pid and command line."""
        for base in Path("/proc").iterdir():
            if not base.name.isdigit():
                continue
            with suppress(OSError):
                marks = (base / "cmdline").read_bytes() + (base / "environ").read_bytes()
                cgroup = (base / "cgroup").read_text()
                ours = f"/{self.cgroup}/" in cgroup or str(self.folder).encode() in marks
                if ours and int(base.name) != os.getpid():
                    yield int(base.name), marks[:300].decode("utf-8", "replace")

    def remove(self) -> None:
        """Take it away; what still runs of it is an error."""
        with suppress(Refused, AssertionError):
            for pod in self.call("ListPodSandbox").items:
                self.remove_pod(pod.id)
        self.stop()
        with suppress(AssertionError):
            until(lambda: not list(self.processes()), 10, "all processes are gone")
        left = list(self.processes())
        for pid, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{self.folder}/"):
                unmount(line.split()[4])
        shutil.rmtree(self.folder, ignore_errors=True)
        for top in Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}"):
            for path in sorted(top.rglob("*/"), reverse=True):
                with suppress(OSError):
                    path.rmdir()
            with suppress(OSError):
                top.rmdir()
        assert left == []


def another_version(bundle: Path, place: Path) -> Path:
    """A bundle of another version: the same but for what it calls itself."""
    made = place / "another version"
    shutil.copytree(bundle, made)
    contents = made / "share/contents.json"
    values = json.loads(contents.read_text())
    contents.write_text(json.dumps({**values, "version": "99.0"}))
    sums = made / "share/SHA512SUMS"
    digest = hashlib.sha512(contents.read_bytes()).hexdigest()
    lines = [
        f"{digest}  share/contents.json" if line.endswith("  share/contents.json") else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")
    return made
