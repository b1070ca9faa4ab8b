"""``top``: what each sandbox uses, redrawn while it runs.

Each pod is one line, since the host counts for the sandbox as a whole, not for its containers.
"""

from __future__ import annotations

import signal
import time

from runtime.base.errors import DeadlineExceeded, RuntimeFault
from runtime.base.record import Record
from runtime.cli import find, output
from runtime.cli.exporter.asking import Rests
from runtime.cli.insight import screen
from runtime.host import forkservers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from runtime.state.loaded import StoredContainer

#: Keys that end it, besides the one for SIGINT.
_QUIT = ("q", "\x1b", "\x04")
#: Seconds that a sentry has to tell its processes.
ANSWER = 2.0
#: Seconds between the two looks of which a single table is made: CPU is what happens between.
ONCE_INTERVAL = 0.5
_HEADS = (
    *("POD", "NAMESPACE", "STATUS", "CPU%", "MEMORY", "LIMIT", "PIDS"),
    *("CONTAINERS", "GOFERS", "RESTARTS", "OOM ADJ", "CGROUP"),
)  # fmt: skip


class PodUse(Record):
    """One look at a sandbox.  ``gofers`` are pids, by container."""

    id: str
    name: str
    namespace: str
    status: str
    at: float
    pid: int = 0
    cpu_ns: int | None = None
    memory: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    containers: int = 0
    gofers: Mapping[str, int] = {}
    oom_score_adj: int | None = None
    oom_score: int | None = None
    cgroup: str = ""


class Watcher:
    """Compares one look with the last: CPU time, and gofers that came anew.

    gVisor ends a container whose gofer died, so a new gofer is a container's that was started
    again, under its old id or another.
    """

    def __init__(self) -> None:
        self._last: dict[str, PodUse] = {}
        self._restarts: dict[str, int] = {}

    def see(self, pods: Sequence[PodUse]) -> list[dict[str, Any]]:
        """The lines of the table, as JSON has them."""
        lines = [self._line(pod) for pod in pods]
        self._last = {pod.id: pod for pod in pods}
        self._restarts = {pod.id: self._restarts.get(pod.id, 0) for pod in pods}
        return lines

    def _line(self, pod: PodUse) -> dict[str, Any]:
        last = self._last.get(pod.id)
        percent = None
        if last is not None and last.pid == pod.pid:
            if pod.cpu_ns is not None and last.cpu_ns is not None and pod.at > last.at:
                percent = max(pod.cpu_ns - last.cpu_ns, 0) / (pod.at - last.at) / 1e7
            known = set(last.gofers.values())
            fresh = sum(pid not in known for pid in pod.gofers.values() if pid > 0)
            self._restarts[pod.id] = self._restarts.get(pod.id, 0) + fresh
        return {
            "id": pod.id,
            "name": pod.name,
            "namespace": pod.namespace,
            "status": pod.status,
            "pid": pod.pid,
            "cpuPercent": None if percent is None else round(percent, 1),
            "cpuTime": pod.cpu_ns,
            "memory": pod.memory,
            "memoryLimit": pod.memory_limit,
            "pids": pod.pids,
            "containers": pod.containers,
            "gofers": sum(pid > 0 for pid in pod.gofers.values()),
            "goferRestarts": self._restarts.get(pod.id, 0),
            "oomScoreAdj": pod.oom_score_adj,
            "oomScore": pod.oom_score,
            "cgroup": pod.cgroup,
        }


def look(containers: Sequence[StoredContainer], rests: Rests) -> list[PodUse]:
    """One look at all sandboxes.  What can't be read is left open, and ``rests`` are kept to."""
    families: dict[tuple[str, str], list[StoredContainer]] = {}
    for each in containers:
        families.setdefault((each.root, each.sandbox_id), []).append(each)
    rests.keep(families)
    return [
        _look(root, sandbox, family, rests) for (root, sandbox), family in sorted(families.items())
    ]


def _look(root: str, sandbox_id: str, family: list[StoredContainer], rests: Rests) -> PodUse:
    first = next((each for each in family if each.is_root), family[0])
    pod = PodUse(
        id=sandbox_id,
        name=_name(first) or sandbox_id,
        namespace=find.namespace_of(root),
        status=first.status(),
        at=time.monotonic(),
        containers=len(family),
        gofers={each.id: each.gofer_pid for each in family},
    )
    pid = first.sandbox_pid
    if pid <= 0:
        return pod
    pod = pod.replace(pid=pid, oom_score_adj=_number(pid, "oom_score_adj"))
    pod = pod.replace(oom_score=_number(pid, "oom_score"))
    key = (root, sandbox_id)
    if not rests.is_resting(key):
        try:
            pod = pod.replace(pids=len(first.control().processes("", ANSWER)))
            rests.answered(key)
        except DeadlineExceeded:
            rests.missed(key)
        except RuntimeFault:
            pass  # it is just coming, or going
    return _measure(pod, pid)


def _measure(pod: PodUse, pid: int) -> PodUse:
    """With the figures of the cgroup that the sentry is in."""
    from runtime.cgroups import factory

    try:
        cgroup = factory.of_process(pid)
        stats = cgroup.stats()
        paths = factory.CgroupRoot().own_paths(pid)
    except (RuntimeFault, OSError):
        return pod
    return pod.replace(
        cpu_ns=stats.cpu_usage_ns,
        memory=stats.memory.usage,
        memory_limit=stats.memory.limit,
        cgroup=paths.get("memory") or next(iter(paths.values()), ""),
    )


def _name(container: StoredContainer) -> str:
    """What Kubernetes calls the pod."""
    try:
        annotations = container.annotations
    except RuntimeFault:
        return ""
    pod = annotations.get("io.kubernetes.cri.sandbox-name", "")
    space = annotations.get("io.kubernetes.cri.sandbox-namespace", "")
    return f"{space}/{pod}" if space and pod else pod


def _number(pid: int, name: str) -> int | None:
    try:
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def rows(lines: Sequence[Mapping[str, Any]]) -> list[Sequence[object]]:
    """The cells of the table."""

    def known(value: object) -> object:
        return "-" if value is None else value

    return [
        (
            line["name"],
            line["namespace"] or "-",
            line["status"],
            "-" if line["cpuPercent"] is None else f"{line['cpuPercent']:.1f}",
            output.size(line["memory"]),
            output.size(line["memoryLimit"]),
            known(line["pids"]),
            line["containers"],
            line["gofers"],
            line["goferRestarts"],
            known(line["oomScoreAdj"]),
            line["cgroup"] or "-",
        )
        for line in lines
    ]


def top_verb(args: argparse.Namespace) -> int:
    """``top``: until a key or a signal comes; once where asked, or for no terminal line by line."""
    watcher, rests = Watcher(), Rests()

    def see() -> list[dict[str, Any]]:
        containers, _ = find.every(args)
        return sorted(watcher.see(look(containers, rests)), key=screen.ORDERS[args.sort])

    if args.format == "table" and not args.once and screen.is_terminal():
        return _live(args, see)
    see()
    time.sleep(ONCE_INTERVAL)
    while True:
        lines = see()
        if args.format == "json":
            output.write(output.dumps(lines))
        else:
            text = output.table(_HEADS, rows([*lines, screen.totals(lines)]))
            output.write(text + "".join(f"{note}\n" for note in _servers()))
        if args.once:
            return 0
        time.sleep(max(args.interval, 0.1))


def _live(args: argparse.Namespace, see: Callable[[], list[dict[str, Any]]]) -> int:
    """On a terminal: redrawn at each interval, key and change of size."""
    interval, order, colour = max(args.interval, 0.1), args.sort, screen.has_colours()
    lines, notes = see(), _servers()
    due = time.monotonic() + ONCE_INTERVAL
    with screen.Screen() as terminal:
        while True:
            width, height = terminal.size()
            title = f"gvctl top {time.strftime('%H:%M:%S')}, every {interval:g} s"
            terminal.draw(
                screen.render(lines, order, width, height, colour=colour, title=title, notes=notes)
            )
            key = terminal.wait(max(due - time.monotonic(), 0.0))
            if key in _QUIT:
                return 0
            if key == "end":
                return 0 if terminal.ended == signal.SIGINT else 128 + terminal.ended
            order = screen.KEYS.get(key, order)
            if time.monotonic() >= due:
                lines, notes = see(), _servers()
                due = time.monotonic() + interval


def _servers() -> list[str]:
    """A line for each fork server, which is of no pod."""
    return [f"fork server: {forkservers.describe(each)}" for each in forkservers.every()]
