"""State files as runsc writes them, and processes that look like its helpers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_SLEEPER = "import signal\nprint('ready', flush=True)\nsignal.pause()"


class Helpers:
    """Processes named as runsc names its own."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def spawn(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [name, "-IS", "-c", _SLEEPER, *words],
            executable=sys.executable,
            stdout=subprocess.PIPE,
        )
        self.children.append(child)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def runsc_state(
    bundle: Path,
    name: str = "c1",
    sandbox: str = "c1",
    *,
    status: str = "running",
    pid: int = 0,
    gofer: int = 0,
    socket: str | None = "",
    **changes: Any,
) -> dict[str, Any]:
    """A container's state; without ``socket`` it is that of an old release."""
    body: dict[str, Any] = {
        "id": name,
        "spec": {
            "ociVersion": "1.0.2",
            "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": str(bundle / "rootfs")},
            "annotations": {"a": "b"},
        },
        "bundleDir": str(bundle),
        "createdAt": "2026-11-23T12:21:34.922054638Z",
        "owner": "root",
        "consoleSocket": "",
        "status": status,
        "goferPid": gofer,
        "sandbox": {
            "id": sandbox,
            "pid": pid,
            "uid": 0,
            "gid": 0,
            "cgroup": {"cgroupunknown": None},
            "originalOomScoreAdj": 0,
        },
        "compatCgroup": {"cgroupunknown": None},
        "saver": {
            "rootDir": "/run/runsc",
            "id": {"sandboxId": sandbox, "containerId": name},
        },
        **changes,
    }
    if socket is not None:
        body["sandbox"]["controlSocketPath"] = socket
        body["sandbox"]["mountHints"] = {"mounts": {}}
        body["goferMountConfs"] = [{"upper": 0, "lower": 1}]
    return body


def write(root: Path, body: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    ids = body["saver"]["id"]
    path = root / f"{ids['containerId']}_sandbox:{ids['sandboxId']}.state"
    path.write_text(json.dumps(body))
    return path
