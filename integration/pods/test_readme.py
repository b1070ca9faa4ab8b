"""What the README has operators write is what the daemons and Kubernetes understand."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients.gvctl import Gvctl
from integration.harness.nodes.pods import PodNode
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


@pytest.mark.gvisor
def test_commands_of_gvctl(pods: PodNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the README's block does what it says, as it stands there, for a pod's container.

    `install` has tests of its own (integration/nodes), and `fscheckpoint`, which few runscs can.
    """
    monkeypatch.chdir(tmp_path)
    ctl = Gvctl("--root", str(pods.daemon.folder / "runsc" / "k8s.io"))
    pod = pods.pod()
    script = "mkdir -p /var/log; echo kept > /var/log/file; httpd -p 80; exec sleep 1000"
    container = pod.start("sh", "-c", script)
    session = tmp_path / "session.json"
    session.write_text(json.dumps({"points": [], "sinks": []}))
    meant = {"ID": container, "FILE": str(session), "DIR": str(tmp_path / "image")}
    meant["8080:80"] = ":80"  # another port may be in use
    parts = [
        part
        for line in _block("gvctl top ").splitlines()
        for part in line.split("#")[0].split(";")
        if not {"install", "fscheckpoint"} & set(part.split())
    ]
    lines = [[meant.get(word, word) for word in shlex.split(part)[1:]] for part in parts]
    told: dict[str, str] = {}
    until(lambda: pods.exec(container, "test", "-e", "/var/log/file").code == 0, 10, "a log")
    for words in lines:
        verb = words[0]
        if verb == "port-forward":
            with ctl.begin(*words) as process:
                assert process.stdout is not None
                port = int(process.stdout.readline().split()[0].rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port), 20) as connection:
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert connection.recv(100).startswith(b"HTTP/1")
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0
        elif verb in ("top", "exec"):
            with ctl.terminal(*words) as terminal:
                terminal.expect(pod.name if verb == "top" else "# ")
                terminal.write("q" if verb == "top" else "exit 7\n")
                assert terminal.wait() == (0 if verb == "top" else 7)
        elif verb == "doctor":
            assert "containerd" in ctl(*words, timeout=90).out
        elif verb == "logs":
            # Of no log file there is nothing to follow.
            assert "set debug-log" in ctl(*words).err
        else:
            told[verb] = ctl.ok(*(word.replace("ID:", f"{container}:") for word in words))
    assert container in told["list"] and f'id="{container}"' in told["metrics"]
    assert Path("log", "file").read_text() == "kept\n"
    assert "runtimes.gvisor" in told["config"] and "RuntimeClass" in told["config"]
    assert list(tmp_path.glob("*.tar*")) and list((tmp_path / "image").iterdir())
