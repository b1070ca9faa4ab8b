"""What the README has operators write is what the daemons and Kubernetes understand."""

from __future__ import annotations

import re
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from integration.harness import peers
from shim import options, wire

_TABLES = {"1.7": ("io.containerd.grpc.v1.cri",), "2.1": ("io.containerd.cri.v1.runtime",)}


def _blocks() -> list[str]:
    """The README's blocks of code."""
    text = (peers.CHECKOUT / "README.md").read_text()
    found = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found if block.strip()]


def _daemon_config(version: str) -> str:
    table = _TABLES[version][0]
    found = [block for block in _blocks() if f'"{table}".containerd.runtimes.gvisor]' in block]
    assert len(found) == 1
    return found[0]


def _runtime(config: dict[str, Any], version: str) -> dict[str, Any]:
    runtimes: dict[str, Any] = config["plugins"][_TABLES[version][0]]["containerd"]["runtimes"]
    found: dict[str, Any] = runtimes["gvisor"]
    return found


@pytest.mark.parametrize("version", [v for v in peers.CONTAINERDS if v in _TABLES])
def test_containerd_takes_the_configuration(tmp_path: Path, version: str) -> None:
    """The daemon's own dump has our runtime, with its options and annotations."""
    file = tmp_path / "config.toml"
    file.write_text(_daemon_config(version))
    command = [peers.containerd_bin(version) / "containerd", "--config", file, "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    runtime = _runtime(tomllib.loads(done.stdout), version)
    assert runtime["runtime_type"] == peers.GVISOR
    assert runtime["pod_annotations"] == ["dev.gvisor.*"]
    assert runtime["options"] == _runtime(tomllib.loads(file.read_text()), version)["options"]
    assert runtime["options"]["ConfigPath"] == "/etc/containerd/gvisor.toml"


def test_runtime_class_names_the_handler() -> None:
    """A pod asks for the class by name, the class for the daemon's runtime by handler."""
    manifest = next(block for block in _blocks() if "kind: RuntimeClass" in block)
    pods = next(block for block in _blocks() if "kind: Pod" in block)
    handler = re.findall(r"^handler: (\S+)$", manifest, re.MULTILINE)
    name = re.findall(r"^  name: (\S+)$", manifest, re.MULTILINE)
    assert re.findall(r"^apiVersion: (\S+)$", manifest, re.MULTILINE) == ["node.k8s.io/v1"]
    assert re.findall(r"^  runtimeClassName: (\S+)$", pods, re.MULTILINE) == name
    for version in _TABLES:
        tables = tomllib.loads(_daemon_config(version))
        plugin = tables["plugins"][_TABLES[version][0]]
        assert list(plugin["containerd"]["runtimes"]) == handler


def test_options_file_is_understood(tmp_path: Path) -> None:
    """The example of /etc/containerd/gvisor.toml has keys that the shim knows."""
    text = next(
        block for block in _blocks() if "[runsc_config]" in block and "plugins" not in block
    )
    file = tmp_path / "gvisor.toml"
    file.write_text(text)
    message = wire.bytes_field(2, str(file))
    config = options.decode("runtimeoptions.v1.Options", message, "k8s.io")
    assert config.flags == tomllib.loads(text)["runsc_config"]
    assert config.log_level == tomllib.loads(text)["log_level"]
