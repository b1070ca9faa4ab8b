"""The demonstration behind `integration/demo`: one container's life, told step by step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.harness import footprint, peers
from integration.harness.api import MetricsV1, MetricsV2
from integration.harness.containerd import Containerd
from integration.harness.daemon_api import decode_any
from integration.harness.linux import unified_cgroups
from integration.harness.node import Node

_COLOURS = ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[0m")
_BOLD, _DIM, _GREEN, _PLAIN = _COLOURS if sys.stdout.isatty() else ("", "", "", "")
_LIMIT = 256 << 20


def main() -> int:
    """Run it; 0 when every step did what it should."""
    if missing := peers.missing():
        sys.exit(f"demo: missing, run integration/setup: {', '.join(missing)}")
    began = time.monotonic()
    folder = Path("/run/gvisor-shim-demo", str(os.getpid()))
    daemon = Containerd(*peers.PRIMARY, folder, f"demo{os.getpid()}")
    node = Node(daemon, peers.GVISOR)
    try:
        with _step("Starting a private containerd, with runsc on its PATH"):
            daemon.start()
            _say(_output(daemon.bin / "containerd", "--version"))
            _say(_output(peers.runsc(daemon.generation), "--version").splitlines()[0])
            _say(f"shim: {peers.shim_path(node.runtime, daemon.version)}")
        with _step("Importing a busybox image made on the spot"):
            daemon.import_image()
        _show(node)
        with _step("Cleaning up, and looking for anything left behind"):
            node.clean()
            node.assert_clean()
            _say("no process, mount, cgroup, socket or state file is left")
    finally:
        node.close()
        daemon.remove()
        footprint.remove_cgroups(daemon)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    took = time.monotonic() - began
    print(f"\n{_GREEN}All done in {took:.1f} s.{_PLAIN} A container under gVisor")
    print("was created, run, measured, joined by exec, stopped and cleaned up by this shim.")
    return 0


def _show(node: Node) -> None:
    with _step("ctr run --rm: output and exit code come through"):
        done = node.run(
            "sh", "-c", "echo hello from $PLACE; exit 7", options=["--env", "PLACE=inside"]
        )
        _say(f"output {done.out.strip()!r}, exit code {done.code}")
        assert (done.out.startswith("hello"), done.code) == (True, 7), done

    with _step("The kernel in there is gVisor's, not the host's"):
        inside = node.run("sh", "-c", "uname -r -v; dmesg | head -n 3").out.splitlines()
        _say(f"host:      {os.uname().release}")
        _say(f"container: {inside[0]}")
        for line in inside[1:]:
            _say(f"dmesg:     {line}")
        assert any("gVisor" in line for line in inside), inside

    with node.api.events() as events:
        with _step("A container in the background, limited to 256 MiB"):
            script = "trap 'exit 42' TERM; while true; do sleep 0.1; done"
            options = ["--memory-limit", str(_LIMIT)]
            name = node.run_detached("sh", "-c", script, options=options)
            shim = node.shim_pid(name)
            _say(f"{node.status(name).lower()}; its shim is process {shim}")
            for pid in node.descendants(shim):
                words = footprint.command_line(pid)
                if "boot" in words or "gofer" in words:
                    kind = "sandbox" if "boot" in words else "gofer"
                    _say(f"below it, process {pid}: the {kind}")

        with _step("ctr task exec: one more process in it"):
            done = node.exec(name, "ps", "-o", "pid,args")
            for line in done.out.splitlines():
                _say(line)
            assert "sleep" in done.out

        with _step("What the API's clients see of it: metrics"):
            _metrics(node, name)

        with _step("Pause, resume, SIGTERM: it ends with the exit code that it chose"):
            assert node.ctr("tasks", "pause", name).code == 0
            _say(node.status(name).lower())
            assert node.ctr("tasks", "resume", name).code == 0
            wait = node.api.task_later("Wait", container_id=name)
            node.api.task("Kill", container_id=name, signal=15)
            code = wait().exit_status
            _say(f"exit code {code}")
            assert code == 42

        with _step("The events that containerd was told, in order"):
            node.delete(name)
            events.wait(name, "delete")
            topics = events.topics(name)
            _say(" > ".join(topics))
            assert topics[:2] == ["create", "start"]
            assert topics[-2:] == ["exit", "delete"]


def _metrics(node: Node, name: str) -> None:
    data = node.api.task("Metrics", filters=[f"id=={name}"]).metrics[0].data
    if unified_cgroups():
        v2 = decode_any(data, MetricsV2)
        cpu, used, limit = v2.cpu.usage_usec / 1e6, v2.memory.usage, v2.memory.usage_limit
    else:
        v1 = decode_any(data, MetricsV1)
        cpu, used, limit = v1.cpu.usage.total / 1e9, v1.memory.usage.usage, v1.memory.usage.limit
    _say(f"{cpu:.2f} s of CPU, {used / (1 << 20):.1f} MiB of {limit / (1 << 20):.0f} MiB memory")
    assert limit == _LIMIT


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"{_BOLD}== {title}{_PLAIN}", flush=True)
    began = time.monotonic()
    yield
    print(f"{_DIM}   ({time.monotonic() - began:.2f} s){_PLAIN}", flush=True)


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
