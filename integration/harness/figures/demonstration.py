"""The demonstration behind `integration/demo`: a pod of two containers, told step by step."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode

_STYLES = ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
_BOLD, _DIM, _GREEN, _RED, _PLAIN = _STYLES if sys.stdout.isatty() else ("",) * 5
_STEPS = 9
#: Columns of a step, of its name in the timeline, and of the bars.
_WIDTH, _LABEL, _BAR = 56, 32, 32
_EXECS = 9


class _Timeline:
    """The steps so far, with when they began and ended."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._steps: list[tuple[str, float, float]] = []
        self._notes: list[str] = []
        self._stopping = False

    def stop(self, *_: object) -> None:
        """Have it end with the step that is under way; for signals.

        A call that is broken off somewhere in its middle would leave locks that a clean-up needs.
        """
        self._stopping = True

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One line for the step when it is over, then what was said meanwhile."""
        began = time.monotonic()
        head = f"[{len(self._steps) + 1}/{_STEPS}] {title}"
        print(f"{_BOLD}{head:<{_WIDTH}}{_PLAIN}", end="", flush=True)
        try:
            yield
        except BaseException:
            print(f"{_RED}failed{_PLAIN}", flush=True)
            self._tell()
            raise
        ended = time.monotonic()
        self._steps.append((title, began, ended))
        print(f"{_GREEN}{_duration(ended - began):>9}{_PLAIN}", flush=True)
        self._tell()
        if self._stopping:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self._notes.append(text)

    def _tell(self) -> None:
        for note in self._notes:
            print(f"      {_DIM}{note}{_PLAIN}", flush=True)
        self._notes.clear()

    def show(self) -> None:
        """All steps, drawn to scale."""
        whole = time.monotonic() - self.began
        print(f"\n{_BOLD}{'Timeline':<{_LABEL}}{_PLAIN}0{_duration(whole):>{_BAR + 8}}")
        for title, began, ended in self._steps:
            first = int((began - self.began) / whole * _BAR)
            last = max(first + 1, round((ended - self.began) / whole * _BAR))
            bar = f"{' ' * first}{'█' * (last - first)}".ljust(_BAR)
            took = _duration(ended - began)
            print(f"{title:<{_LABEL}}{_GREEN}{bar}{_PLAIN}{took:>9}", flush=True)


def main() -> int:
    """Run it; 0 when every step did what it should.  Cleans up also after a failure or ^C."""
    if missing := peers.missing():
        sys.exit(f"demo: missing, run integration/setup: {', '.join(missing)}")
    folder = Path("/run/gvisor-shim-demo", str(os.getpid()))
    version = peers.CONTAINERDS[-1]
    node = PodNode(folder, version, peers.RUNSCS[-1], peers.GVISOR, 0)
    timeline = _Timeline()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, timeline.stop)
    try:
        _show(node, timeline)
        timeline.show()
        print(f"\n{_GREEN}A pod ran under gVisor, and nothing of it is left.{_PLAIN}")
        return 0
    except KeyboardInterrupt:
        print(f"\n{_RED}Stopped{_PLAIN}: cleaning up.", flush=True)
        return 130
    except Exception as error:
        print(f"\n{_RED}Failed{_PLAIN}: {error}\n{node.daemon.log_tail(8)}", flush=True)
        return 1
    finally:
        _clean_up(node)


def _clean_up(node: PodNode) -> None:
    try:
        if node.daemon.process is not None:
            node.clean()
            node.assert_clean()
    except Exception as error:
        print(f"{_RED}Not clean{_PLAIN}: {error}", flush=True)
    finally:
        node.remove()
        shutil.rmtree(node.daemon.folder, ignore_errors=True)
        with suppress(OSError):
            node.daemon.folder.parent.rmdir()  # unless another demonstration runs


def _show(node: PodNode, timeline: _Timeline) -> None:
    step, say = timeline.step, timeline.say
    with step("Start a containerd of its own"):
        node.start()
        say(_first_line(node.daemon.bin / "containerd", "--version"))
        say(_first_line(peers.runsc(node.daemon.generation), "--version"))
    with step("Run a pod"):
        pod = node.pod(hostname="demo")
        say(f"its address on the bridge is {pod.ips[0]}")
    with step("Start a web server in it"):
        web = pod.start("httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc", name="web")
    with step("Start a client beside it"):
        client = pod.start("sh", "-c", _CLIENT, name="client")
        say("the server listens on localhost alone, where the client asks it for a page")
        page = pod.wait_log(client, "made for the tests\n").strip().splitlines()[-1]
        say(f"the client's log: {page!r}")
    with step("Look at what runs"):
        kernel = node.exec(client, "sh", "-c", "dmesg | head -n 1").out.strip()
        assert "gVisor" in kernel, kernel
        say(f"the host's kernel is {os.uname().release}; in the pod: {kernel.split('] ')[-1]}")
        for line in _processes(node, pod):
            say(line)
    with step(f"Run a command, {_EXECS} times"):
        say(f"{_duration(statistics.median(_execs(node, web)))} each, in the middle")
    with step("Ask for statistics"):
        for name, container in (("web", web), ("client", client)):
            stats = node.call("ContainerStats", container_id=container).stats
            say(f"{name}: {_stats(stats)}")
    with step("Stop the client, politely"):
        node.stop(client, grace=10)
        code = node.status(client).exit_code
        last = pod.log(client).splitlines()[-1]
        assert (code, last) == (42, "goodbye"), (code, last)
        say(f"it was asked to end; its last words: {last!r}, its exit code: {code}")
    with step("Stop and remove the pod"):
        pod.remove()
        node.assert_clean()
        say("no process, mount, cgroup, socket, address or state file is left")


_CLIENT = """
trap 'echo goodbye; exit 42' TERM
until wget -q -O - http://127.0.0.1:8080/notice; do sleep 0.05; done
while true; do sleep 0.05; done
"""


def _processes(node: PodNode, pod: Pod) -> Iterator[str]:
    shim = pod.shim
    below = [footprint.command_line(pid) for pid in footprint.descendants(shim)]
    gofers = sum("gofer" in words for words in below)
    memory = _proportional(shim) / (1 << 20)
    yield f"one shim ({memory:.1f} MiB), one sandbox and {gofers} gofers for three containers"


def _proportional(pid: int) -> int:
    """The process's share of memory, in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _execs(node: PodNode, container: str) -> list[float]:
    took = []
    for _ in range(_EXECS):
        began = time.monotonic()
        done = node.exec(container, "true")
        took.append(time.monotonic() - began)
        assert done.code == 0, done
    return took


def _stats(stats: Any) -> str:
    cpu = stats.cpu.usage_core_nano_seconds.value / 1e6
    memory = stats.memory.working_set_bytes.value / (1 << 20)
    return f"{cpu:.0f} ms of CPU, {memory:.1f} MiB of memory"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _first_line(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.splitlines()[0].strip()


if __name__ == "__main__":
    sys.exit(main())
