"""The test image: one layer with busybox, built without a network or a registry."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from integration.harness.base import peers

IMAGE = "localhost/gvisor-shim-test:busybox"

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home/worker:/bin/sh\n",
    "etc/group": "root:x:0:\nworkers:x:1000:worker\n",
    "etc/notice": "made for the tests\n",
}
_FOLDERS = (
    "bin",
    "etc",
    "root",
    "home/worker",
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "mnt",
    "var/empty",
)
_LAUNCHERS = {"bin/not-executable": ("#!/bin/sh\n", 0o644), "bin/not-a-binary": ("text\n", 0o755)}


class Image:
    """A docker archive on disk, and the chain id of its only layer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        layer = _layer()
        self.chain = "sha256:" + hashlib.sha256(layer).hexdigest()
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/bin", "IMAGE=test"], "Cmd": ["sh"], "WorkingDir": "/"},
                "rootfs": {"type": "layers", "diff_ids": [self.chain]},
                "history": [{"created_by": "integration"}],
            }
        ).encode()
        name = hashlib.sha256(config).hexdigest() + ".json"
        manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        with tarfile.open(path, "w") as archive:
            _add(archive, name, config)
            _add(archive, "layer.tar", layer)
            _add(archive, "manifest.json", json.dumps(manifest).encode())


def unpack_rootfs(folder: Path) -> None:
    """Lay the image's files out in `folder`, as a root file system without a snapshotter."""
    subprocess.run(["tar", "-xC", folder], input=_layer(), timeout=20, check=True)


def _layer() -> bytes:
    binary = peers.busybox().read_bytes()
    applets = subprocess.run(
        [peers.busybox(), "--list"], capture_output=True, text=True, timeout=10, check=True
    ).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as layer:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            layer.addfile(entry)
        _add(layer, "bin/busybox", binary, 0o755)
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                layer.addfile(entry)
        for path, text in _FILES.items():
            _add(layer, path, text.encode())
        for path, (text, mode) in _LAUNCHERS.items():
            _add(layer, path, text.encode(), mode)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
