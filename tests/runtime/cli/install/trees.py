"""Folder trees of nodes, as the distributions lay them out, and a bundle of three files.

What containerd would print comes from the tree: its files are merged as containerd merges them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from runtime.cli.install.node import Node

_RANCHER = "var/lib/rancher/{}/agent/etc/containerd"
_CONFIG_3 = 'version = 3\nroot = "/var/lib/containerd"\n{}\n[grpc]\n  address = "/run/c.sock"\n'
_CONFIG_2 = (
    'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "pause"\n'
    '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
    '  runtime_type = "io.containerd.runc.v2"\n'
)
_CONTAINERD = {"usr/bin/containerd": "", "usr/local/bin/runsc": ""}
#: name -> files by path, with the texts that matter.
TREES: dict[str, dict[str, str]] = {
    "kubeadm 2.1": {**_CONTAINERD, "etc/containerd/config.toml": _CONFIG_3.format("")},
    "kubeadm 2.2": {
        **_CONTAINERD,
        "etc/containerd/config.toml": _CONFIG_3.format(
            'imports = ["/etc/containerd/conf.d/*.toml"]'
        ),
    },
    "eks": {
        **_CONTAINERD,
        "etc/containerd/config.toml": _CONFIG_3.format(
            'imports = ["/etc/containerd/config.d/*.toml"]'
        ),
    },
    "no configuration": dict(_CONTAINERD),
    "kubeadm 1.7": {**_CONTAINERD, "etc/containerd/config.toml": _CONFIG_2},
    "k3s": {
        "usr/local/bin/runsc": "",
        f"{_RANCHER.format('k3s')}/config.toml": _CONFIG_3.format(
            'imports = ["/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml"]'
        ),
        "var/lib/rancher/k3s/data/current/bin/containerd": "",
    },
    "k3s of before": {
        "usr/local/bin/runsc": "",
        f"{_RANCHER.format('k3s')}/config.toml": _CONFIG_2,
    },
    "rke2": {
        "usr/local/bin/runsc": "",
        f"{_RANCHER.format('rke2')}/config.toml": _CONFIG_3.format(""),
        f"{_RANCHER.format('rke2')}/config-v3.toml.tmpl": (
            '{{ template "base" . }}\n[debug]\n  level = "info"\n'
        ),
    },
    "k0s": {
        "usr/local/bin/runsc": "",
        "etc/k0s/containerd.toml": "# k0s_managed=true\nversion = 2\n",
        "var/lib/k0s/bin/containerd": "",
    },
    "microk8s": {
        "usr/local/bin/runsc": "",
        "var/snap/microk8s/current/args/containerd-template.toml": (
            _CONFIG_2 + '[plugins."io.containerd.grpc.v1.cri".cni]\n'
            '  bin_dir = "${SNAP_DATA}/opt/cni/bin"\n'
        ),
    },
    "crio": {"usr/local/bin/runsc": "", "usr/bin/crio": "", "etc/crio/crio.conf": ""},
    "talos": {"etc/os-release": 'NAME="Talos"\nID=talos\n', "etc/cri/conf.d/00-base.part": ""},
}
RELEASES = {"kubeadm 1.7": "1.7.24", "k0s": "1.7.20", "kubeadm 2.2": "2.2.7"}


class Tree(Node):
    """A node of files alone; what its containerd says comes from them."""

    def __init__(self, root: Path, release: str = "2.1.9") -> None:
        super().__init__(str(root))
        self.release = release
        #: What ``config dump`` fails with.
        self.refuses = ""
        self.commands: list[tuple[str, ...]] = []

    def run(self, *words: str, timeout: float = 30) -> tuple[int, str]:
        self.commands.append(words)
        if words[1:] == ("--version",):
            return 0, f"containerd github.com/containerd/containerd v{self.release} 123abc\n"
        if words[-2:] == ("config", "dump"):
            if self.refuses:
                return 1, f"containerd: {self.refuses}\n"
            return 0, _toml(self._merged(words[2]))
        raise AssertionError(f"nobody expects {words}")

    def _merged(self, path: str) -> dict[str, Any]:
        text = self.read(path)
        document = tomllib.loads(text or "")
        for pattern in document.get("imports", []):
            folder, _, name = pattern.rpartition("/")
            for each in self.names(folder):
                if fnmatch.fnmatch(each, name):
                    _merge(document, tomllib.loads(self.read(f"{folder}/{each}") or ""))
        return document


def make(root: Path, name: str) -> Tree:
    for path, text in TREES[name].items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if "/bin/" in path:
            file.chmod(0o755)
    return Tree(root, RELEASES.get(name, "2.1.9"))


def snapshot(root: Path) -> dict[str, str | None]:
    """Paths with their texts; folders with None.  Without the lock."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if not str(path.relative_to(root)).startswith("run")
    }


def bundle(folder: Path, version: str = "1.0") -> Path:
    """A bundle: what it says of itself, and something to copy."""
    contents = {"version": version, "arch": "amd64"}
    files = {"share/contents.json": json.dumps(contents), "bin/gvctl": "a program\n"}
    lines = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        lines.append(f"{hashlib.sha512(text.encode()).hexdigest()}  {name}\n")
    (folder / "bin/gvctl").chmod(0o755)
    (folder / "share/SHA512SUMS").write_text("".join(lines))
    return folder


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _toml(values: dict[str, Any], path: str = "") -> str:
    text = "".join(
        f"{json.dumps(key)} = {json.dumps(value)}\n"
        for key, value in values.items()
        if not isinstance(value, dict)
    )
    for key, value in values.items():
        if isinstance(value, dict):
            inner = f"{path}.{json.dumps(key)}".lstrip(".")
            text += f"[{inner}]\n{_toml(value, inner)}"
    return text
