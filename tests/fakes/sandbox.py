"""A sandbox without a sentry, whose ends and answers a test decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from runtime.base.errors import NotFound
from runtime.bundle.process_spec import ProcessSpec, parse_process
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.cgroups.metrics import HostStats, MemoryUse, SentryStats
from runtime.host.workers import Workers
from runtime.sandbox.sandbox import ExitInfo, SignalMode
from runtime.task.container import Container
from runtime.task.context import Context
from runtime.task.events import Event, TaskCreated
from runtime.task.lifecycle import Op
from runtime.task.pod_memory import PodMemory
from runtime.task.process import IORequest

TRUE = parse_process(b'{"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}}', "spec")

#: Seconds that a request has: hooks that run are given what is left of them.
TIME = 60.0


class FakeReactor:
    """Nothing but timers, which run when a test says that so much time has passed."""

    def __init__(self) -> None:
        self.timers: list[FakeTimer] = []

    def call_later(self, seconds: float, fn: Callable[[], object]) -> FakeTimer:
        self.timers.append(FakeTimer(seconds, fn))
        return self.timers[-1]

    def pass_time(self, seconds: float) -> None:
        due, self.timers = self.timers, []
        for timer in due:
            if timer.when > seconds:
                self.timers.append(timer)
            elif not timer.cancelled:
                timer.fn()


class FakeTimer:
    def __init__(self, when: float, fn: Callable[[], object]) -> None:
        self.when, self.fn = when, fn
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeIO:
    terminal = False
    on_signal: Callable[[int], None] | None = None

    def __init__(self) -> None:
        self.released = self.closed = self.finished = False
        self.awaited: list[tuple[float, float]] = []

    @property
    def sentry_fds(self) -> tuple[int, int, int]:
        return (0, 1, 2)

    def release_sentry_fds(self) -> None:
        self.released = True

    def resize(self, width: int, height: int) -> None: ...
    def close_stdin(self) -> None: ...

    def finish(self) -> None:
        self.finished = True

    def await_reading(self, patience: float, timeout: float) -> None:
        self.awaited.append((patience, timeout))

    def drain(self, timeout: float) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class FakeSandbox:
    """Runs nothing.  ``start`` and ``execute`` may be replaced by a test to fail or to wait."""

    uid = gid = 0
    pid = 4711
    gofer_pid = 4712

    def __init__(self) -> None:
        self.paused = self.restoring = False
        self.restore = None
        self.id, self.network, self.network_argument = "c", "sandbox", None
        #: For what is asked of the sentry itself; a test that needs it puts one there.
        self.control: Any = None
        self.params: list[Any] = []
        self.forgotten: list[str] = []
        self.killed = threading.Event()
        self.gofers_killed: list[str] = []
        self.destroyed = 0
        self.signals: list[tuple[str, int, int, SignalMode]] = []
        self.on_exit: Callable[[ExitInfo], None] | None = None
        self.exec_waits: dict[int, Callable[[ExitInfo], None]] = {}
        self.start: Callable[[], None] = lambda: None
        self.deliver: Callable[[], None] = lambda: None
        self.measured: Callable[[], None] = lambda: None
        self.memory_usage = 4096
        self.next_pid = 2
        self.inside: list[Any] = []
        self.shown: list[Any] = []

    def start_root(self, deadline: float, before: Callable[[], None] | None = None) -> None:
        self.start()
        if before is not None:
            before()

    def start_subcontainer(
        self, cid: str, deadline: float, before: Callable[[], None] | None = None
    ) -> None:
        self.start_root(deadline, before)

    def execute(
        self, cid: str, spec: ProcessSpec, fds: tuple[int, int, int], tty: bool, deadline: float
    ) -> int:
        self.start()
        self.next_pid += 1
        return self.next_pid

    def wait_container(self, cid: str, callback: Callable[[ExitInfo], None]) -> None:
        self.on_exit = callback

    def wait_pid(self, cid: str, pid: int, callback: Callable[[ExitInfo], None]) -> None:
        self.exec_waits[pid] = callback

    def end_exec(self, pid: int, status: int = 0) -> None:
        self.exec_waits.pop(pid)(ExitInfo(status=status))

    def end(self, status: int = 0, sentry_died: bool = False) -> None:
        assert self.on_exit is not None
        callback, self.on_exit = self.on_exit, None
        callback(ExitInfo(status=status, sentry_died=sentry_died))

    def signal(
        self, cid: str, signo: int, *, pid: int = 0, mode: SignalMode, timeout: float = 10
    ) -> None:
        self.deliver()
        self.signals.append((cid, signo, pid, mode))

    def kill(self) -> None:
        self.killed.set()
        if self.on_exit is not None:
            self.end(137, sentry_died=True)

    def kill_gofer(self, cid: str) -> None:
        self.gofers_killed.append(cid)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def members(self) -> list[Any]:
        return self.params

    def destroy_subcontainer(self, cid: str, deadline: float) -> None:
        self.forgotten.append(cid)

    def gofer_of(self, cid: str) -> Any:
        raise NotFound("container", cid)

    def show_limits(self, cid: str, resources: Any) -> None:
        self.shown.append(resources)

    def processes(self, cid: str, timeout: float = 10) -> list[Any]:
        return self.inside

    def event(self, cid: str, timeout: float = 10) -> SentryStats:
        self.measured()
        return SentryStats(cpu_ns={cid: 5_000_000}, memory_usage=self.memory_usage, pids=1)


class FakeMark:
    """A mark on memory use, which a test lets pass."""

    def __init__(self, low: int, high: int, callback: Callable[[], object]) -> None:
        self.low, self.high, self.callback = low, high, callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeCgroup:
    """Counts OOM kills and memory as a test says; has no files."""

    path = "/fake"

    def __init__(self) -> None:
        self.kills = 0
        self.used: int | None = 0
        self.limit: int | None = None
        self.counted: HostStats | None = None
        self.updates: list[Any] = []
        self.marks: list[FakeMark] = []
        self.refuse_update: Callable[[Any], None] = lambda _: None
        self.refuse_mark: Callable[[], None] = lambda: None
        self.tell_of_kills: Callable[[int], object] = lambda _: None

    def oom_kills(self) -> int:
        return self.kills

    def stats(self) -> HostStats | None:
        return self.counted

    def update(self, resources: Any) -> None:
        self.refuse_update(resources)
        self.updates.append(resources)

    def memory_usage(self) -> int | None:
        return self.used

    def memory_limit(self) -> int | None:
        return self.limit

    def watch_oom(self, reactor: Any, callback: Callable[[int], object]) -> FakeMark:
        self.tell_of_kills = callback
        return FakeMark(0, 0, lambda: None)

    def watch_usage(
        self, reactor: Any, low: int, high: int, callback: Callable[[], object]
    ) -> FakeMark:
        self.refuse_mark()
        self.marks.append(FakeMark(low, high, callback))
        return self.marks[-1]


class FakeHoldings:
    def __init__(self) -> None:
        self.sandbox = FakeSandbox()
        self.cgroup = FakeCgroup()
        self.own_cgroup = self.sandbox_cgroup = self.pod_limits = None
        self.forward_program = ""
        self.memory: PodMemory | None = None
        self.statuses: list[str] = []
        self.exit_recorded = threading.Event()
        self.releases = 0
        self.refuse: Callable[[], None] = lambda: None

    def status_changed(self, status: str) -> None:
        self.statuses.append(status)

    def record_exit(self, status: int, at: float) -> None:
        self.statuses.append(f"exit {status}")
        self.exit_recorded.set()

    def record_network(self) -> None:
        """Nothing is on disk."""

    def release(self, guests: Iterable[FakeHoldings] = ()) -> None:
        self.refuse()
        self.releases += 1
        self.sandbox.kill()
        for guest in guests:
            guest.release()


class FakeMeter:
    """The sentry's word on memory: what the bench says is used, and nothing of files."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def memory(self, container_id: str, timeout: float) -> MemoryUse:
        return MemoryUse(bytes=self._bench.used, exact=True)

    def file_memory(self, timeout: float) -> int:
        return 0

    def hold(self, timeout: float) -> None: ...

    def release(self, timeout: float) -> None: ...


class Bench:
    """A container in state CREATED, and everything that came out of it."""

    def __init__(self, container_id: str = "c") -> None:
        self.events: list[Event] = []
        self.io: list[FakeIO] = []
        self.refuse_io: Callable[[], None] = lambda: None
        self.used = 0  # bytes of its memory
        self.workers = Workers()
        self.reactor = FakeReactor()
        self.context: Any = Context(
            namespace="ns",
            reactor=self.reactor,  # type: ignore[arg-type]  # nothing here waits for a descriptor
            workers=self.workers,
            emit=self.events.append,
            open_io=self._open_io,
            cache_dir="/nonexistent",
            cgroup_root=CgroupRoot(),
        )
        self.container = Container(self.context, container_id, "/bundle", IORequest())
        self.holdings = FakeHoldings()
        self.sandbox = self.holdings.sandbox
        holdings: Any = self.holdings
        self.container.holdings = holdings
        self.memory = PodMemory(
            container_id,
            self.holdings.cgroup,
            FakeMeter(self),
            self.context.reactor,
            self.workers,
        )
        self.holdings.memory = self.memory
        self.memory.open()
        self.memory.add(self.container)
        self.sandbox.on_exit = self.container.init_exited
        self.container.init.commit(
            Op.CREATED,
            TaskCreated(container_id=container_id, bundle="/bundle", pid=self.sandbox.pid),
            self.sandbox.pid,
        )

    def _open_io(self, *_: object) -> FakeIO:
        self.refuse_io()
        self.io.append(FakeIO())
        return self.io[-1]

    def run(self) -> None:
        self.container.start(time.monotonic() + TIME)

    def exec(self, exec_id: str) -> int:
        deadline = time.monotonic() + TIME
        self.container.add_exec(exec_id, TRUE, IORequest(), deadline)
        return self.container.start_exec(exec_id, deadline)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def not_found() -> None:
    raise NotFound("process", "c")
