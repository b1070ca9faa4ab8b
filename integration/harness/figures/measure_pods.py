"""Measuring a Kubernetes pod's life through CRI, one at a time and many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from integration.harness.figures import measure
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode

#: What a pod's life takes, in the order in which it happens.
LIFE = (
    "run pod",
    "container to first log byte",
    "exec true",
    "container stats",
    "stop container",
    "remove container",
    "stop pod",
    "remove pod",
)
#: What a container that is being measured runs: one line, then nothing.
_COMMAND = ("sh", "-c", "echo x; exec sleep 1000")
#: Seconds between two looks at log files.
_LOOK = 0.0005
_CGROUPS = Path("/sys/fs/cgroup")


class FirstBytes(threading.Thread):
    """Watches log files that are yet to be written; `wait` gives when each got its first byte."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(daemon=True)
        self._left = dict(enumerate(paths))
        self._at = [0.0] * len(paths)
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while self._left and not self._stopped.wait(_LOOK):
            for number, path in list(self._left.items()):
                try:
                    size = path.stat().st_size
                except FileNotFoundError:
                    continue
                if size:
                    self._at[number] = time.perf_counter()
                    del self._left[number]

    def wait(self, timeout: float) -> list[float]:
        self.join(timeout)
        self._stopped.set()
        self.join()
        assert not self._left, f"nothing in {[str(path) for path in self._left.values()]}"
        return self._at


class Clock:
    """Runs the same calls for several pods at once and keeps how long each took."""

    def __init__(self) -> None:
        #: Measure -> seconds of each call.
        self.each: dict[str, list[float]] = {}
        #: Measure -> seconds until all had ended.
        self.all: dict[str, float] = {}

    def run(self, name: str, calls: list[Callable[[], object]]) -> None:
        """Make all calls at once, each in a thread if there are several; failures are raised."""
        took = [0.0] * len(calls)
        failures: list[BaseException] = []

        def one(number: int) -> None:
            began = time.perf_counter()
            try:
                calls[number]()
            except BaseException as failure:
                failures.append(failure)
            took[number] = time.perf_counter() - began

        began = time.perf_counter()
        if len(calls) == 1:
            one(0)
        else:
            threads = [threading.Thread(target=one, args=(n,)) for n in range(len(calls))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.keep(name, took, time.perf_counter() - began)
        if failures:
            raise failures[0]

    def keep(self, name: str, each: list[float], all: float) -> None:
        self.each[name], self.all[name] = each, all


def life(node: PodNode, handler: str, count: int) -> Clock:
    """`count` pods at once, of one container each, from RunPodSandbox to RemovePodSandbox."""
    clock = Clock()
    pods = [node.prepare(handler=handler) for _ in range(count)]
    clock.run("run pod", [pod.run for pod in pods])
    containers = _start_containers(clock, pods)

    def each(name: str, method: str, **values: Any) -> None:
        clock.run(
            name,
            [
                lambda c=container: node.call(method, 60, container_id=c, **values)  # type: ignore[misc]
                for container in containers
            ],
        )

    def of_pods(name: str, method: str) -> None:
        clock.run(
            name,
            [lambda p=pod: node.call(method, 60, pod_sandbox_id=p.id) for pod in pods],  # type: ignore[misc]
        )

    each("exec true", "ExecSync", cmd=["true"], timeout=30)
    each("container stats", "ContainerStats")
    each("stop container", "StopContainer", timeout=0)
    each("remove container", "RemoveContainer")
    of_pods("stop pod", "StopPodSandbox")
    of_pods("remove pod", "RemovePodSandbox")
    return clock


def _start_containers(clock: Clock, pods: list[Pod]) -> list[str]:
    containers = [""] * len(pods)
    paths = [pod.logs / "measured-0.log" for pod in pods]
    watcher = FirstBytes(paths)
    began = [0.0] * len(pods)

    def start(number: int) -> None:
        began[number] = time.perf_counter()
        containers[number] = pods[number].start(*_COMMAND, name="measured")

    Clock().run("", [lambda n=number: start(n) for number in range(len(pods))])  # type: ignore[misc]
    seen = watcher.wait(30)
    each = [at - start for at, start in zip(seen, began, strict=True)]
    clock.keep("container to first log byte", each, max(seen) - min(began))
    return containers


@contextmanager
def running(
    node: PodNode, handler: str, count: int, containers: int = 1
) -> Iterator[list[tuple[Pod, list[str]]]]:
    """`count` pods that run and do nothing, each with that many containers."""
    pods = [node.prepare(handler=handler) for _ in range(count)]
    clock = Clock()
    found: dict[str, list[str]] = {pod.name: [] for pod in pods}
    try:
        clock.run("run", [pod.run for pod in pods])
        for _ in range(containers):
            for pod in pods:
                found[pod.name].append(pod.start(*_COMMAND))
        yield [(pod, found[pod.name]) for pod in pods]
    finally:
        clock.run("remove", [pod.remove for pod in pods if pod.id])


class CpuClock:
    """The CPU time of a node: of its daemon with all that came of it, and of its pods' cgroups."""

    def __init__(self, node: PodNode) -> None:
        """Puts the daemon into a cgroup of its own, where its shims will be as well."""
        v2 = (_CGROUPS / "cgroup.controllers").exists()
        top = _CGROUPS if v2 else _CGROUPS / "cpuacct"
        self._file = "cpu.stat" if v2 else "cpuacct.usage"
        self._own, self._pods = top / f"{node.cgroup}-daemon", top / node.cgroup
        for folder in (self._own, self._pods):
            folder.mkdir(exist_ok=True)
        assert node.daemon.process is not None
        (self._own / "cgroup.procs").write_text(str(node.daemon.process.pid))

    def seconds(self) -> float:
        """What was used so far, by processes that have ended as well."""
        return sum(self._used(folder / self._file) for folder in (self._own, self._pods))

    def close(self) -> None:
        """Remove the daemon's cgroup, once that has ended."""
        self._own.rmdir()

    @staticmethod
    def _used(file: Path) -> float:
        text = file.read_text()
        if file.name == "cpuacct.usage":
            return int(text) / 1e9
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6


def crowd(node: PodNode, handler: str, count: int, cpu: CpuClock) -> dict[str, float]:
    """`count` pods of one container each, started and ended four at a time.

    Seconds of time and of CPU for each pod; bytes for each pod while all run, by role.
    """
    pods = [node.prepare(handler=handler) for _ in range(count)]
    found: dict[str, float] = {}

    def start(pod: Pod) -> None:
        pod.run(120)
        pod.start(*_COMMAND)

    def timed(name: str, act: Callable[[Pod], object]) -> None:
        began, used = time.perf_counter(), cpu.seconds()
        with ThreadPoolExecutor(4) as threads:
            for _ in threads.map(act, pods):
                pass
        found[f"{name}, time"] = (time.perf_counter() - began) / count
        found[f"{name}, CPU"] = (cpu.seconds() - used) / count

    try:
        timed("start", start)
        time.sleep(measure.SETTLING)
        found |= _rest(node, count, cpu, 4)
        found |= {f"PSS {role}": size for role, size in memory(node, count).items()}
        shims = sum(map(measure.private, node.shims()))
        found["PSS shim, private part"] = shims / count
    finally:
        timed("end", lambda pod: pod.remove(60) if pod.id else None)
    return found


def _rest(node: PodNode, count: int, cpu: CpuClock, seconds: float) -> dict[str, float]:
    """What each of `count` idle pods costs: all of it, and what is the shims' and the server's."""
    assert node.daemon.process is not None
    ours = [*node.shims(), *footprint.fork_servers(node.daemon.process.pid)]
    used, own = cpu.seconds(), sum(map(measure.cpu_seconds, ours))
    switches = sum(map(measure.switch_count, ours))
    time.sleep(seconds)
    found = {
        "idle CPU ms/s": (cpu.seconds() - used) * 1000,
        "idle CPU ms/s, shim": (sum(map(measure.cpu_seconds, ours)) - own) * 1000,
        "idle wake-ups/s, shim": sum(map(measure.switch_count, ours)) - switches,
    }
    return {name: value / seconds / count for name, value in found.items()}


def memory(node: PodNode, count: int) -> dict[str, float]:
    """PSS in bytes for each of `count` idle pods, summed by role; no other pods may run."""
    sums: dict[str, float] = {}
    seen: set[int] = set()
    for shim in node.shims():
        for pid in [shim, *footprint.descendants(shim)]:
            if pid not in seen:
                seen.add(pid)
                name = role(pid)
                sums[name] = sums.get(name, 0) + measure.pss(pid) / count
    assert node.daemon.process is not None
    shims = node.shims()
    for server in footprint.fork_servers(node.daemon.process.pid):
        # Another runtime's is not what these shims take.
        if any(footprint.is_forked_by(server, pid) for pid in shims):
            sums["fork server"] = measure.pss(server) / count
    sums["all"] = sum(sums.values())
    return sums


def role(pid: int) -> str:
    """What a process below a shim is there for."""
    words = footprint.command_line(pid)
    if any(word.rpartition("/")[2].startswith("containerd-shim-") for word in words[:7]):
        return "shim"
    for word, name in (("gofer", "gofers"), ("boot", "sentry"), ("wait", "waiters")):
        if word in words:
            return name
    if not words or "runsc" in words[0]:
        return "stubs"
    return "workload" if words[0] in ("sleep", "/bin/sleep", "sh") else "other"


def idle(shim: int, seconds: float) -> dict[str, float]:
    """What a shim does while its pod does nothing, and what it holds."""
    wakeups, cpu = measure.switch_count(shim), measure.cpu_seconds(shim)
    time.sleep(seconds)
    descriptors, threads = footprint.size(shim)
    return {
        "idle wake-ups/s": (measure.switch_count(shim) - wakeups) / seconds,
        "idle CPU ms/s": (measure.cpu_seconds(shim) - cpu) * 1000 / seconds,
        "idle threads": float(threads),
        "idle descriptors": float(descriptors),
    }
