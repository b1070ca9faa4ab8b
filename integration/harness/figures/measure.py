"""Measuring a task's life through containerd's API, and what its processes cost."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.clients.api import process_spec
from integration.harness.clients.ttrpc import Lost
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import Bundle

SIGKILL = 9
#: Seconds that a shim is left alone before its memory is measured: it gives back what its work has
#: taken three seconds after the last call (`shim/rest.py`), or imports the rest after two.
SETTLING = 4.0
# What a life's parts are called, in the order in which they happen.
LIFE = (
    "create",
    "start",
    "create and start",
    "create to output",
    "exec true",
    "metrics",
    "state",
    "kill to exit event",
    "delete",
    "kill and delete",
    "whole life",
)


class FirstByte(threading.Thread):
    """A FIFO, and the moment at which its first byte came."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        os.mkfifo(path)
        self.path = path
        self.at = 0.0
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._keep = os.open(path, os.O_WRONLY)  # so that no end of file comes before the task
        os.set_blocking(self._fd, True)
        self.start()

    def run(self) -> None:
        os.read(self._fd, 4096)  # all of it: a delete waits for what is unread
        self.at = time.perf_counter()

    def close(self) -> None:
        os.close(self._keep)
        self.join(5)
        os.close(self._fd)
        self.path.unlink()


@contextmanager
def running(node: Node, *command: str) -> Iterator[str]:
    """A running container with no output, made through the API."""
    name = node.new_id()
    mounts = node.api.make(name, node.runtime, node.api.spec(*command, container=name))
    node.api.task("Create", container_id=name, rootfs=mounts)
    node.api.task("Start", container_id=name)
    try:
        yield name
    finally:
        wait = node.api.task_later("Wait", container_id=name)
        node.api.task("Kill", container_id=name, signal=SIGKILL)
        wait()
        node.api.task("Delete", container_id=name)
        node.api.unmake(name)


def life(node: Node) -> dict[str, float]:
    """One container from creation to deletion: seconds for each of `LIFE`."""
    took: dict[str, float] = {}

    def timed(part: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        took[part] = time.perf_counter() - began

    api, name = node.api, node.new_id()
    spec = api.spec("sh", "-c", "echo x; exec sleep 1000", container=name)
    mounts = api.make(name, node.runtime, spec)
    output = FirstByte(node.daemon.folder / f"{name}.out")
    with api.events() as events:
        born = time.perf_counter()
        io: dict[str, Any] = {"stdout": str(output.path), "stderr": str(output.path)}
        timed("create", lambda: api.task("Create", container_id=name, rootfs=mounts, **io))
        timed("start", lambda: api.task("Start", container_id=name))
        output.join(10)
        took["create to output"] = output.at - born

        true = process_spec(api.spec("true")["process"])

        def exec_true() -> None:
            api.task("Exec", container_id=name, exec_id="x", spec=true)
            wait = api.task_later("Wait", container_id=name, exec_id="x")
            api.task("Start", container_id=name, exec_id="x")
            assert wait().exit_status == 0
            api.task("DeleteProcess", container_id=name, exec_id="x")

        timed("exec true", exec_true)
        timed("metrics", lambda: api.task("Metrics", filters=[f"id=={name}"]))
        timed("state", lambda: api.task("Get", container_id=name))

        def kill() -> None:
            api.task("Kill", container_id=name, signal=SIGKILL)
            events.wait_init_exit(name)

        timed("kill to exit event", kill)
        timed("delete", lambda: api.task("Delete", container_id=name))
        took["whole life"] = time.perf_counter() - born
    for first, second in (("create", "start"), ("kill to exit event", "delete")):
        took[f"{first.split()[0]} and {second}"] = took[first] + took[second]
    output.close()
    api.unmake(name)
    return took


def binary(node: Node) -> dict[str, float]:
    """The shim's binary as a whole process: `start`, and a `delete` with nothing left to do."""
    took: dict[str, float] = {}
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        began = time.perf_counter()
        client = bundle.start()
        took["start (process)"] = time.perf_counter() - began
        with suppress(Lost):  # the reference may end before its reply is out
            client.call("Shutdown", id=bundle.id)
        footprint.wait_gone(node.daemon, bundle.id)
        if not node.gvisor:  # the reference wants to know which runtime it was
            (bundle.path / "runtime").write_text("runc")
        began = time.perf_counter()
        done = bundle.command("delete", options=("-bundle", str(bundle.path)))
        took["delete (process)"] = time.perf_counter() - began
        assert done.returncode == 0, done
    return took


def memory(node: Node) -> dict[str, float]:
    """PSS in bytes of an idle container's processes, summed by role, and of its fork server."""
    with running(node, "sleep", "1000") as name:
        shim = node.shim_pid(name)
        time.sleep(SETTLING)
        found: dict[str, float] = {}
        for pid in [shim, *node.descendants(shim)]:
            role = _role(node, pid, shim)
            found[role] = found.get(role, 0) + pss(pid)
        assert node.daemon.process is not None
        for server in footprint.fork_servers(node.daemon.process.pid):
            if footprint.is_forked_by(server, shim):
                found["fork server"] = pss(server)
        found["all"] = sum(found.values())
    return found


def idle(node: Node, seconds: float = 4) -> dict[str, float]:
    """What an idle container's shim does: wake-ups and CPU milliseconds for each second."""
    with running(node, "sleep", "1000") as name:
        shim = node.shim_pid(name)
        time.sleep(SETTLING)
        wakeups, cpu = switch_count(shim), cpu_seconds(shim)
        time.sleep(seconds)
        return {
            "wake-ups/s": (switch_count(shim) - wakeups) / seconds,
            "CPU ms/s": (cpu_seconds(shim) - cpu) * 1000 / seconds,
            "threads": float(footprint.size(shim)[1]),
            "descriptors": float(footprint.size(shim)[0]),
        }


def _role(node: Node, pid: int, shim: int) -> str:
    words = footprint.command_line(pid)
    text = " ".join(words)
    if pid == shim:
        return "shim"
    if "gofer" in words:
        return "gofer"
    if "boot" in words:
        return "sentry"
    if "runsc" in text or (node.gvisor and not words):
        return "stubs"
    if text.startswith("sleep"):
        return "workload"
    return "logger" if "log" in text else "other"


def pss(pid: int) -> int:
    """Bytes of a process's memory, of shared pages its share."""
    return _rollup(pid, "Pss")


def private(pid: int) -> int:
    """Bytes of memory that a process has for itself alone."""
    return _rollup(pid, "Private_Clean") + _rollup(pid, "Private_Dirty")


def _rollup(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def switch_count(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)
        total += int(found.group(1)) if found else 0
    return total


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def versions(daemon: Containerd, runtime: str) -> dict[str, str]:
    """What was measured: names and versions, for the record."""
    containerd = subprocess.run(
        [daemon.bin / "containerd", "--version"], capture_output=True, text=True, timeout=10
    )
    shim = subprocess.run(
        [peers.shim_path(runtime, daemon.version), "-v"],
        capture_output=True,
        text=True,
        timeout=10,
        env=daemon.environment(),
    )
    return {
        "containerd": containerd.stdout.strip(),
        "runsc": daemon.generation,
        "shim": " ".join(shim.stdout.split()),
    }
