"""gvctl as an operator, or a program that wants an OCI runtime, calls it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.base.done import Done
from integration.harness.base.terminal import Terminal
from integration.harness.host.image import unpack_rootfs


class Gvctl:
    """gvctl with some global options."""

    def __init__(self, *options: str) -> None:
        self.command = [str(peers.shim_bin() / "gvctl"), *options]

    def __call__(self, *words: str, input: str = "", timeout: float = 30) -> Done:
        """Run a command to its end, which all that holds its output must have come to."""
        done = subprocess.run(
            [*self.command, *words], input=input, capture_output=True, text=True, timeout=timeout
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, input: str = "") -> str:
        """The output of a command that has to succeed."""
        done = self(*words, input=input)
        assert done.code == 0, (words, done)
        return done.out

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words))

    def status(self, container: str) -> str:
        return str(self.json("state", container)["status"])

    def begin(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """A command that goes on; its output is in pipes unless ``options`` say otherwise."""
        pipe = subprocess.PIPE
        options = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, **options}
        return subprocess.Popen([*self.command, *words], **options)

    def terminal(self, *words: str) -> Terminal:
        return Terminal([*self.command, *words])


class Shop:
    """A root directory of its own, bundles, and gvctl on them with one generation of runsc."""

    def __init__(self, generation: str, folder: Path) -> None:
        self.generation, self.folder = generation, folder
        self.root = folder / "root"
        self.rootfs = folder / "rootfs"
        self.rootfs.mkdir(parents=True)
        unpack_rootfs(self.rootfs)
        self.options = ("--root", str(self.root), "--runsc", str(peers.runsc(generation)))
        self.gvctl = Gvctl(*self.options)
        self.output = folder / "output"
        #: Of all its containers; the tests remove it.
        self.cgroup = f"gvctl-test-{os.getpid()}-{folder.name}"

    @property
    def old(self) -> bool:
        return self.generation < "2023"

    def bundle(self, name: str, *args: str, terminal: bool = False, **changes: Any) -> str:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": terminal,
                "args": list(args),
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")
                },
            },
            "root": {"path": str(self.rootfs)},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": f"/{self.cgroup}/{name}",
                "namespaces": [{"type": n} for n in ("pid", "ipc", "uts", "mount", "network")],
            },
            **changes,
        }
        (folder / "config.json").write_text(json.dumps(spec))
        return str(folder)

    def create(self, name: str, *args: str, **changes: Any) -> int:
        """Create a container whose output goes to ``output``; the pid that the pid file has."""
        bundle = self.bundle(name, *args, **changes)
        pid_file = self.folder / f"{name}.pid"
        words = ("create", "--bundle", bundle, "--pid-file", str(pid_file), name)
        self.leave(self.output, *words)
        return int(pid_file.read_text())

    def leave(self, place: Path, *words: str) -> None:
        """A command that has to succeed and leaves a container, whose output goes to ``place``."""
        errors = self.folder / "errors"
        with place.open("ab") as output, errors.open("wb") as told:
            done = subprocess.run(
                [*self.gvctl.command, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=told,
                timeout=60,
            )
        assert done.returncode == 0, errors.read_text()

    def run(self, name: str, *args: str, **changes: Any) -> int:
        pid = self.create(name, *args, **changes)
        self.leave(self.output, "start", name)
        return pid

    def close(self) -> None:
        """Delete whatever there is."""
        for name in self.gvctl.ok("list", "-q").split():
            self.gvctl("delete", "--force", name)
        assert self.gvctl.ok("list", "-q") == ""
