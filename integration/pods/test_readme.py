"""What the README has operators write is what the daemons and Kubernetes understand."""

from __future__ import annotations

import re
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from runtime.cli import config_snippets
from shim.base import options
from shim.ttrpc import protobuf

_TABLES = {1: "io.containerd.grpc.v1.cri", 2: "io.containerd.cri.v1.runtime"}
_OLDER = """\
version = 2
{imports}
[plugins."io.containerd.grpc.v1.cri"]
  max_container_log_line_size = 12345
"""
_NEWER = """\
version = 3
{imports}
[plugins."io.containerd.cri.v1.runtime"]
  max_container_log_line_size = 12345
"""


def _blocks() -> list[str]:
    """The README's blocks of code."""
    text = (peers.CHECKOUT / "README.md").read_text()
    found = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found if block.strip()]


def _block(words: str) -> str:
    """The only one with these words."""
    found = [block for block in _blocks() if words in block]
    assert len(found) == 1
    return found[0]


def _daemon_config(major: int) -> str:
    """The recommended table of the runtime; that of pods without a pause container adds to it."""
    table = f'"{_TABLES[major]}".containerd.runtimes.gvisor]'
    (found,) = [block for block in _blocks() if table in block and "sandboxer" not in block]
    return found


def _dump(version: str, file: Path, major: int) -> dict[str, Any]:
    """The daemon's own settings of CRI with that configuration."""
    command = [peers.containerd_bin(version) / "containerd", "--config", file, "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = tomllib.loads(done.stdout)["plugins"][_TABLES[major]]
    return found


@pytest.mark.parametrize("version", [v for v in peers.CONTAINERDS if v != "1.6"])
def test_containerd_takes_the_configuration(tmp_path: Path, version: str) -> None:
    """The daemon's own dump has our runtime, and what was configured before."""
    major = peers.daemon_generation(version)[0]
    table, file = _daemon_config(major), tmp_path / "config.toml"
    if major == 1:
        file.write_text(_OLDER.format(imports="") + table)
        dumps = [_dump(version, file, major)]
    else:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d" / "gvisor.toml").write_text(table)
        imports = _block("imports = ").replace("/etc/containerd", str(tmp_path))
        dumps = []
        for before in (_OLDER, _NEWER):
            file.write_text(before.format(imports=imports))
            dumps.append(_dump(version, file, major))
    for settings in dumps:
        assert settings["max_container_log_line_size"] == 12345
        assert {"runc", "gvisor"} <= set(settings["containerd"]["runtimes"])
        runtime = settings["containerd"]["runtimes"]["gvisor"]
        assert runtime["runtime_type"] == peers.GVISOR
        assert runtime["runtime_path"] == "/usr/local/bin/containerd-shim-gvisor-v2"
        assert runtime["pod_annotations"] == ["dev.gvisor.*"]
        assert runtime["options"] == {
            "TypeUrl": "io.containerd.gvisor.v2.options",
            "ConfigPath": "/etc/containerd/gvisor.toml",
        }


def test_gvctl_prints_the_same() -> None:
    for version, major in ((2, 1), (3, 2)):
        printed = config_snippets.containerd_snippet(version, "gvisor").strip()
        assert _daemon_config(major).startswith(printed)
    assert config_snippets.DROP_INS in _block("imports = ")


def test_runtime_class_names_the_handler() -> None:
    """A pod asks for the class by name, the class for the daemon's runtime by handler."""
    manifest = next(block for block in _blocks() if "kind: RuntimeClass" in block)
    assert manifest.strip() == config_snippets.runtime_class("gvisor").strip()
    pods = next(block for block in _blocks() if "kind: Pod" in block)
    handler = re.findall(r"^handler: (\S+)$", manifest, re.MULTILINE)
    name = re.findall(r"^  name: (\S+)$", manifest, re.MULTILINE)
    assert re.findall(r"^apiVersion: (\S+)$", manifest, re.MULTILINE) == ["node.k8s.io/v1"]
    assert re.findall(r"^  runtimeClassName: (\S+)$", pods, re.MULTILINE) == name
    for major, plugin_id in _TABLES.items():
        plugin = tomllib.loads(_daemon_config(major))["plugins"][plugin_id]
        assert list(plugin["containerd"]["runtimes"])[:1] == handler


def test_options_file_is_understood(tmp_path: Path) -> None:
    """The example of /etc/containerd/gvisor.toml has keys that the shim knows."""
    text = next(
        block for block in _blocks() if "[runsc_config]" in block and "plugins" not in block
    )
    file = tmp_path / "gvisor.toml"
    file.write_text(text)
    message = protobuf.bytes_field(2, str(file))
    config = options.decode("runtimeoptions.v1.Options", message, "k8s.io")
    assert config.flags == tomllib.loads(text)["runsc_config"]
    assert config.log_level == tomllib.loads(text)["log_level"]
