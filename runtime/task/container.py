"""One container: its init, its execs, and what was acquired for it.

Owns the rules that tie processes together: init's exit is published last, after the execs'; a
delete joins one that is under way; a kill reaches a container in whatever state it is.
``task/create.py`` creates one, ``pod.py`` keeps the registry of a pod's containers.
"""

from __future__ import annotations

import threading
import time

from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
)
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.bundle.spec import validate_id
from runtime.cgroups.pod_limits import Limits
from runtime.cgroups.resources import parse
from runtime.sandbox.sandbox import ExitInfo, SignalMode
from runtime.task import hook_stages
from runtime.task.callers import looks_pids_up
from runtime.task.events import (
    TaskDeleted,
    TaskExecAdded,
    TaskExecStarted,
    TaskOOM,
    TaskStarted,
)
from runtime.task.joined import Joined
from runtime.task.kill import Killing, watch_gofer
from runtime.task.lifecycle import Op, State
from runtime.task.process import Exit, IORequest, Pid, Process, size_terminal
from runtime.task.stats import LOOK_TIMEOUT, Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.bundle.spec import Spec
    from runtime.cgroups.metrics import Metrics
    from runtime.host.children import Child
    from runtime.runsc.driver import Driver
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.acquired import Holdings
    from runtime.task.context import Context

#: Seconds that execs get to report their end after init's, before they are given up.
EXEC_END_TIMEOUT = 5.0
#: Seconds after an OOM event in which an end with the status below is that kill's.
OOM_END_TIMEOUT = 5.0
#: What the sentry says of a process (EPERM) whose own on the host was killed, before 2026; then it
#: says SIGKILL (gVisor pkg/sentry/kernel/task_run.go).
_PROCESS_LOST = 1
#: Seconds a delete may spend on draining a terminal, as containerd's runc shim allows.
DRAIN_TIMEOUT = 10.0
#: What a start that failed leaves as exit status, as runc's shim does.
FAILED_START_STATUS = 128


class Container:
    """A container and its processes.  Methods may be called by any thread; those that talk to
    the sentry block for as long as their deadline says.

    Nothing that it has refers to it: so all of it goes with its last user, and waits for no
    garbage collector.
    """

    def __init__(self, context: Context, container_id: str, bundle: str, io: IORequest) -> None:
        self.id = container_id
        self.bundle = bundle
        self.init = Process(container_id, "", io, context.emit)
        self._context = context
        self._log = get_logger("container", container=container_id)
        # Set once by task/create.py, before init is committed to CREATED.
        self.spec: Spec | None = None
        self.holdings: Holdings | None = None
        self.is_root = True
        self.io_owner = (0, 0)
        #: What drives its sandbox, and the flags that its options gave; None before that is known.
        self.made_with: tuple[Driver, Mapping[str, str]] | None = None
        #: Set by a delete that comes while the container is being created.
        self.abandoned = threading.Event()
        #: Set once creation has come to its end, either way.
        self.settled = threading.Event()
        #: Whether a delete has freed all that it held, though its caller never heard of it.
        self.freed = False
        self.killing = Killing(self, context.reactor)
        self.stats = Stats(container_id)
        #: Whether its sandbox, another container's, was deleted before it.
        self.orphaned = False
        #: The containers that are guests in its sandbox, or in another's.
        self.guests: Callable[[Container], list[Container]] = lambda _: []
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._execs: dict[str, Process] = {}  # guarded by _lock
        self._init_exit: Exit | None = None  # guarded by _lock
        self._booting: Child | None = None  # guarded by _lock
        self._deleting: Joined | None = None  # guarded by _lock
        self._oom = False  # guarded by _lock; whether its TaskOOM was published
        self._oom_at = 0.0  # guarded by _lock; when (monotonic)
        self._over_limit = False  # guarded by _lock; whether it is ended for its own limit
        #: What its spec, and updates since, allow it.
        self.limits = Limits()

    # -- what others need to know ---------------------------------------------------------

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox; raises InvalidState while the container is being created."""
        holdings = self.holdings
        if holdings is None or holdings.sandbox is None:
            raise InvalidState("use", self.init.subject, "creating")
        return holdings.sandbox

    def process(self, exec_id: str) -> Process:
        """Init, or the exec.  Raises NotFound."""
        if not exec_id:
            return self.init
        with self._lock:
            found = self._execs.get(exec_id)
        if found is None:
            raise NotFound("exec", exec_id, f"process does not exist {exec_id}")
        return found

    def submit(self, task: Callable[[], None]) -> None:
        """Have a worker do what may block."""
        self._context.workers.submit(task)

    def abandon(self) -> None:
        """Give up a creation that is under way: what it waits for is killed, so it ends soon."""
        with self._lock:
            self.abandoned.set()
            child = self._booting
        if child is not None:
            child.kill(SIGKILL)

    def booting(self, child: Child | None) -> None:
        """A creation waits for this process to be ready; None: it doesn't any more."""
        with self._lock:
            self._booting = child
            unwanted = self.abandoned.is_set()
        if child is not None and unwanted:
            child.kill(SIGKILL)

    def require_created(self) -> None:
        """Raise InvalidState while the container's slot is reserved but creation is under way."""
        if self.init.state is State.CREATING:
            raise InvalidState("use", self.init.subject, "creating: container must be created")

    # -- start ----------------------------------------------------------------------------

    def start(self, deadline: float) -> int:
        """Run init; returns its pid.  A failure leaves a stopped container that can be deleted."""
        self.require_created()
        sandbox = self.sandbox
        if sandbox.paused:
            raise InvalidState("start", self.init.subject, "paused")
        self.init.reserve(Op.START)
        try:
            before = hook_stages.before_start(self, sandbox, deadline)
            if self.is_root:
                sandbox.start_root(deadline, *before)
            else:
                sandbox.start_subcontainer(self.id, deadline, *before)
        except BaseException as fault:
            status = self.killing.status or FAILED_START_STATUS
            self.init.fail_start(Exit(status=status, at=time.time()), publish=True)
            if self.is_root:
                sandbox.kill()
            self._log.info("container.start_failed", error=str(fault))
            raise
        pid = self.init.pid
        self._show_limits()
        self.killing.follow_terminal(self.init.io, 0)
        self.status_changed("running")
        if self.is_root and self.holdings is not None:
            # While a delete has to wait: it removes what is written down.
            self.holdings.record_network()
            self._forward_ports(self.holdings)
        self.init.commit(Op.STARTED, TaskStarted(container_id=self.id, pid=pid))
        if not self.is_root:
            sandbox.wait_container(self.id, self.init_exited)
        watch_gofer(self, self._context.reactor)
        hook_stages.after_start(self, deadline)
        return pid

    def _forward_ports(self, holdings: Holdings) -> None:
        """Have CRI's PortForward reach the pod.  Never raises: the pod is good without."""
        spec, sandbox = self.spec, self.sandbox
        # With the host's stack what CRI dials is what the container listens on.
        if spec is None or not holdings.forward_program or sandbox.network == "host":
            return
        from runtime.sandbox.port_forward import PortForward

        try:
            holdings.port_forward = PortForward.open(
                sandbox,
                holdings.forward_program,
                spec.netns_path,
                self._context.reactor,
                self._context.workers,
            )
        except RuntimeFault as fault:
            self._log.info("port_forward.unavailable", error=str(fault))

    def _show_limits(self) -> None:
        """Have the container see its own limits.  Never raises: it may have ended already."""
        try:
            self.sandbox.show_limits(self.id, self.limits.resources)
        except RuntimeFault as fault:
            self._log.info("limits.not_shown", error=str(fault))

    def status_changed(self, status: str) -> None:
        """Write the status down where runsc's commands read it.  Never raises."""
        if self.holdings is not None:
            self.holdings.status_changed(status)

    # -- exec -----------------------------------------------------------------------------

    def add_exec(self, exec_id: str, spec: ProcessSpec, io: IORequest, deadline: float) -> None:
        """Register an exec and open its stdio; nothing runs yet.

        The stdio is opened this early so that the client's own opening of it, which waits for ours,
        is over before the process is: nobody would else read what one wrote that ends at once.
        Raises AlreadyExists, InvalidState, and what opening raises.
        """
        validate_id("exec", exec_id)
        self.require_created()
        state = self.init.state
        if state not in (State.CREATED, State.STARTING, State.RUNNING):
            raise InvalidState("exec in", self.init.subject, state.value)
        process = Process(self.id, exec_id, io, self._context.emit, spec)
        with self._lock:
            if exec_id in self._execs:
                raise AlreadyExists("exec", exec_id)
            self._execs[exec_id] = process
        try:
            opened = self._context.open_io(process.stdio(self.io_owner, deadline))
            size_terminal(opened, spec)
            with self._lock:
                # Opening waits for the client: the container may have been deleted meanwhile.
                if self._execs.get(exec_id) is process:
                    process.attach(opened)
                    process.commit(Op.CREATED, TaskExecAdded(container_id=self.id, exec_id=exec_id))
                    return
            opened.close()
            raise NotFound("container", self.id, f"container {self.id!r} was deleted")
        except BaseException:
            process.commit(Op.CREATE_FAILED)
            with self._lock:
                self._execs.pop(exec_id, None)
            raise

    def start_exec(self, exec_id: str, deadline: float) -> int:
        """Run an exec; returns its pid in the sandbox.  After a failure its Wait resolves."""
        process = self.process(exec_id)
        state = self.init.state
        if state is not State.RUNNING:
            raise InvalidState("start exec in", self.init.subject, state.value)
        spec, io = process.spec, process.io
        if spec is None or io is None:
            raise InvalidState("start", process.subject, process.state.value)
        # Counted as live from here on: init's exit waits for this exec's end.
        process.reserve(Op.START)
        terminal = process.io_request.terminal
        sandbox = self.sandbox
        try:
            pid = sandbox.execute(self.id, spec, io.sentry_fds, terminal, deadline)
        except BaseException:
            process.detach()
            io.close()
            process.fail_start(Exit(status=FAILED_START_STATUS, at=time.time()), publish=False)
            with self._quiet:
                self._quiet.notify_all()
            raise
        io.release_sentry_fds()
        self.killing.follow_terminal(io, pid)
        process.commit(
            Op.STARTED, TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=pid), pid
        )
        sandbox.wait_pid(self.id, pid, lambda info: self._exec_exited(process, info))
        return pid

    def _exec_exited(self, process: Process, info: ExitInfo) -> None:
        process.finish_io()
        process.exited(Exit(status=info.status, at=time.time()))
        with self._quiet:
            self._quiet.notify_all()

    # -- init's end -----------------------------------------------------------------------

    def init_exited(self, info: ExitInfo) -> None:
        """The sandbox's word that init ended.  Called once, by the reactor."""
        self.init.finish_io()
        with self._lock:
            status = self.killing.outcome(info)
            self._init_exit = Exit(status=status, at=time.time())
            busy = bool(self._live_locked())
        if info.detail:
            self._log.info("container.init_exited", status=status, detail=info.detail)
        orphans = self._leaves_processes() and not info.sentry_died
        if busy or orphans:
            if not self._context.workers.submit(lambda: self._finish_init(orphans)):
                self._context.reactor.call_later(2 * EXEC_END_TIMEOUT, self._end_execs)
        else:
            self._publish_init_exit()

    def started_execs(self) -> int:
        """How many execs run."""
        with self._lock:
            return len(self._live_locked())

    def _live_locked(self) -> list[Process]:
        return [each for each in self._execs.values() if each.started]

    def _leaves_processes(self) -> bool:
        """Whether init's end is not everybody's: in a pid namespace that is the pod's."""
        spec = self.spec
        if self.is_root or spec is None or not self.init.started:
            return False
        return spec.namespaces.get("pid") != ""

    def _finish_init(self, orphans: bool) -> None:
        """End what init left, which would keep the output open (containerd: ShouldKillAllOnExit).
        Then wait for the execs' own exits, which the sentry reports since they were killed."""
        if orphans:
            try:
                self.killing.signal(SIGKILL, 0, SignalMode.ALL)
            except RuntimeFault as fault:
                self._log.warning("container.orphans_left", error=str(fault))
        with self._quiet:
            self._quiet.wait_for(lambda: not self._live_locked(), EXEC_END_TIMEOUT)
        self._end_execs()

    def _end_execs(self) -> None:
        """Count the execs as ended that nothing is heard of, and publish init's exit."""
        with self._lock:
            live = self._live_locked()
        for each in live:
            self._log.warning("exec.end_unknown", exec=each.exec_id)
            each.exited(Exit(status=128 + SIGKILL, at=time.time()))
        self._publish_init_exit()

    def _publish_init_exit(self) -> None:
        # Synchronously, so that an OOM kill comes before the exit that it caused.
        event = self._new_oom()
        with self._lock:
            exit, over = self._init_exit, self._over_limit
            # The event may have been quicker than the exit.
            told = self._oom and time.monotonic() - self._oom_at < OOM_END_TIMEOUT
        if exit is None:
            return
        killed = over or event is not None or (told and exit.status == _PROCESS_LOST)
        if killed and exit.status != 128 + SIGKILL:
            self._log.info("container.oom_status", reported=exit.status)
            exit = exit.replace(status=128 + SIGKILL)
        self.init.exited(exit, event)
        holdings, known = self.holdings, exit
        if holdings is not None:
            # For whoever asks when this process is gone; nobody waits for it.
            self._context.workers.submit(lambda: holdings.record_exit(known.status, known.at))

    def _new_oom(self) -> TaskOOM | None:
        memory = self.holdings.memory if self.holdings is not None else None
        if memory is None or not memory.claims(self.id):
            return None
        with self._lock:
            fresh, self._oom = not self._oom, True
            self._oom_at = self._oom_at or time.monotonic()
        return TaskOOM(container_id=self.id) if fresh else None

    # -- memory ---------------------------------------------------------------------------

    @property
    def memory_limit(self) -> int | None:
        """Its own limit in bytes, which in a pod is apart from the sandbox's."""
        return self.limits.memory

    @property
    def is_pause(self) -> bool:
        """Whether it is the one that only holds the pod's namespaces."""
        return self.spec is not None and self.spec.container_type == "sandbox"

    @property
    def runs(self) -> bool:
        """Whether init was started and its exit is yet to be published."""
        return self.init.started

    @property
    def gofer_killed(self) -> bool:
        """Whether its gofer was ended by a SIGKILL."""
        try:
            return self.sandbox.gofer_of(self.id).killed
        except NotFound:
            return False  # it is being deleted

    def out_of_memory(self, kill: bool) -> None:
        """It has used too much: publish that, once, and end it unless the kernel does so.

        From any thread.  Nothing happens after its end.
        """
        with self._lock:
            if self._init_exit is not None:
                return
            self._over_limit = self._over_limit or kill
            if not self._oom:
                self._oom, self._oom_at = True, time.monotonic()
                # Under the lock, so that its exit can't come before it.
                self._context.emit(TaskOOM(container_id=self.id))
        try:
            if kill:
                self.killing.signal(SIGKILL, 0, SignalMode.ALL)
        except NotFound:
            return  # it is on its way

    # -- kill -----------------------------------------------------------------------------

    def kill(self, exec_id: str, signo: int, everyone: bool) -> None:
        """See :meth:`runtime.task.kill.Killing.kill`."""
        self.killing.kill(exec_id, signo, everyone)

    @property
    def has_ended(self) -> bool:
        """Whether init is known to have ended, though its exit may wait for the execs'."""
        with self._lock:
            return self._init_exit is not None

    # -- small calls ----------------------------------------------------------------------

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set the terminal's size.  Without a terminal nothing happens."""
        process = self.process(exec_id)
        for name, value in (("width", width), ("height", height)):
            if not 0 <= value <= 65535:
                raise InvalidRequest(name, f"{value} is not between 0 and 65535")
        if exec_id and process.exit is not None:
            raise InvalidState("resize", process.subject, process.state.value)
        process.resize(width, height)

    def pids(self) -> list[Pid]:
        """The processes; init under the pid that Create reported, others under the sandbox's own.

        On the host those are other processes, so a caller that looks there is told of init alone.
        Never empty: a task without processes is what containerd takes for a leak when it starts
        (core/runtime/v2/shim_load.go), so a stopped one has its init until it is deleted.
        """
        self.require_created()
        main = Pid(pid=self.init.pid)
        if not self.init.alive or self.init.state is State.CREATED:
            return [main]
        if looks_pids_up(self._context.namespace, self.id, self.spec):
            return [main]
        try:
            inside = self.sandbox.processes(self.id, LOOK_TIMEOUT)
        except RuntimeFault as fault:
            self._log.debug("pids.unknown", error=str(fault))
            return [main]
        with self._lock:
            execs = {p.pid: p.exec_id for p in self._execs.values() if p.started}
        # Init is the process that no other process of the container started, the eldest.
        first = min((p.pid for p in inside if p.ppid == 0), default=0)
        return [main] + [
            Pid(pid=p.pid, exec_id=execs.get(p.pid, "")) for p in inside if p.pid != first
        ]

    def metrics(self) -> Metrics:
        """See :meth:`runtime.task.stats.Stats.metrics`."""
        return self.stats.metrics(self)

    def update(self, resources: Mapping[str, Any]) -> None:
        """Apply new limits, all of them or none.  Raises NotFound if stopped.

        Those of a container in a pod go to its own, empty cgroup, where they can be seen.  Its
        memory limit binds (see ``pod_memory.py``), so one below its use is refused with Failed;
        and where the pod's limits are the sums of its containers', they change by as much.
        """
        self.require_created()
        if not self.init.alive:
            raise NotFound("task", self.id, "process already finished")
        holdings = self.holdings
        if holdings is None or (holdings.cgroup is None and holdings.own_cgroup is None):
            raise InvalidState("update", self.init.subject, "running without a cgroup")
        limit, now = parse(resources).memory_limit or 0, self.memory_limit
        if limit > 0 and (now is None or limit < now) and not self.is_root and holdings.memory:
            holdings.memory.require_room(self.id, limit)
        self.limits.update(resources, holdings.cgroup, holdings.own_cgroup, holdings.pod_limits)
        if self.init.started:
            self._show_limits()
        if holdings.memory is not None:
            holdings.memory.refresh()

    # -- delete ---------------------------------------------------------------------------

    def delete_exec(self, exec_id: str) -> tuple[int, Exit]:
        """Forget an exec that has ended, or was never started; returns its pid and exit."""
        process = self.process(exec_id)
        if process.started and process.exit is None:
            raise InvalidState("delete a running process:", process.subject, process.state.value)
        process.reserve(Op.DELETE)
        io = process.detach()
        if io is not None:
            io.drain(DRAIN_TIMEOUT)
            io.close()
        with self._lock:
            self._execs.pop(exec_id, None)
        never = Exit(status=0, at=time.time())
        process.commit(Op.DELETED, never=never)
        return process.pid, process.exit or never

    def delete(
        self, release: Callable[[], None], heard: Callable[[], bool] = lambda: True
    ) -> tuple[int, Exit]:
        """Free everything; returns init's pid and exit.  ``release`` forgets the id.

        Calls that come while one is under way share its outcome.  After a failure the container
        is stopped and the call can be made again.  Raises InvalidState while init runs.

        If nobody has ``heard`` when all is freed, the container isn't forgotten: a containerd
        that was killed meanwhile comes back and asks for the exit.
        """
        self.require_created()
        with self._lock:
            joined = self._deleting
            if joined is None:
                # Reserved under the lock, so that a second caller finds the first.
                state = self.init.state
                if state not in (State.CREATED, State.STOPPED):
                    raise InvalidState("delete a running process:", self.init.subject, state.value)
                self.init.reserve(Op.DELETE)
                self._deleting = mine = Joined()
            else:
                joined.shared = True
        if joined is not None:
            return joined.result()
        try:
            outcome = self._delete(release, lambda: mine.shared or heard())
        except BaseException as fault:
            with self._lock:
                self._deleting = None
            self.init.commit(Op.DELETE_FAILED)
            mine.fail(fault)
            raise
        mine.finish(outcome)
        return outcome

    def _delete(self, release: Callable[[], None], heard: Callable[[], bool]) -> tuple[int, Exit]:
        holdings = self.holdings
        assert holdings is not None
        ended = threading.Event()
        if self.init.exit is None:
            # Created and never started: its end is reported like any other.
            self.killing.claim(SIGKILL)
            self.init.wait(lambda _: ended.set())
            if not self.is_root:
                self.init_exited(ExitInfo(status=128 + SIGKILL))
        else:
            ended.set()
        io = self.init.detach()
        if io is not None:
            if self.init.exit is not None:
                io.drain(DRAIN_TIMEOUT)
            io.close()
        with self._lock:
            execs, self._execs = list(self._execs.values()), {}
        for process in execs:
            process.drop(Exit(status=128 + SIGKILL, at=time.time()))
        guests = [each.holdings for each in self.guests(self) if each.holdings is not None]
        holdings.release(guests)
        if not ended.wait(EXEC_END_TIMEOUT):
            self.init.exited(Exit(status=128 + SIGKILL, at=time.time()))
        exit = self.init.exit or Exit(status=128 + SIGKILL, at=time.time())
        pid = self.init.pid
        if not self.freed:
            self.freed = True
            hook_stages.after_delete(self)
        if not heard():
            raise Failed(f"delete {self.init.subject}: nobody waits for the outcome any more")
        self.init.commit(
            Op.DELETED,
            TaskDeleted(
                container_id=self.id,
                id=self.id,
                pid=pid,
                exit_status=exit.status,
                exited_at=exit.at,
            ),
        )
        release()  # only now, as another of the same id has events as well
        return pid, exit
