"""A sandbox: a sentry, the gofers of its containers, and their common life.

Owns starting them together, reporting each exit exactly once, and taking everything down again.
Knows nothing of the task API; cgroups, networks and stdio it only hands on.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from runtime.base.cleanup_steps import Steps
from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unreachable,
)
from runtime.base.log import get_logger
from runtime.base.stages import stage
from runtime.cgroups.metrics import MemoryUse
from runtime.host.fds import own_stdio
from runtime.network.setup import NetworkSetup, loopback_argument
from runtime.runsc.control import ContainerState, Control, SandboxProcess, SignalMode
from runtime.runsc.urpc import DEFAULT_TIMEOUT
from runtime.sandbox import inner_limits, stopped_start
from runtime.sandbox.boot_params import BootParams
from runtime.sandbox.exits import ExitInfo, Exits
from runtime.sandbox.gofer import Gofer
from runtime.sandbox.gofer_mounts import remove_filestores
from runtime.sandbox.prepare_spec import exec_capabilities
from runtime.sandbox.sentry import Sentry, undo_boot
from runtime.sandbox.subcontainer import Subcontainer
from runtime.sandbox.watchdog import Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bundle.capabilities import Capabilities
    from runtime.bundle.process_spec import ProcessSpec
    from runtime.bundle.spec import Spec
    from runtime.cgroups.metrics import SentryStats
    from runtime.host.pids import ProcessHandle
    from runtime.host.reactor import Reactor
    from runtime.host.spawn import Child
    from runtime.runsc.flags import Settings
    from runtime.sandbox.restore import Restore

__all__ = ["BootParams", "ExitInfo", "NetworkSetup", "Sandbox", "SandboxProcess", "SignalMode"]

_log = get_logger("sandbox")
#: Seconds to learn why the sentry went away in the middle of a call.
_AUTOPSY_TIMEOUT = 0.5
#: Seconds to reap what was killed, even where the deadline is over.
_REAP_TIMEOUT = 0.5


class Sandbox:
    """A running sandbox.  Methods may be called by any thread; those that call the sentry block
    for ``timeout`` seconds at most, or until ``deadline`` (``time.monotonic()``).
    Callbacks are made by the reactor's thread, and must not block.
    """

    def __init__(
        self,
        params: BootParams,
        settings: Settings,
        sentry: Sentry,
        gofer: Gofer,
        reactor: Reactor,
    ) -> None:
        self.id = params.id
        self._params = params
        self._settings = settings
        self._driver = params.driver
        self._sentry = sentry
        self._gofer = gofer
        self._control = Control(sentry.address, params.driver, self._autopsy, sentry.child.pid)
        #: Bytes of all containers' memory that are files, mapped or cached; may block.
        self.file_memory = self._control.file_memory
        #: Stop all containers for a moment, and have them go on: no pause in anybody's eyes.
        self.hold, self.release = self._control.pause, self._control.resume
        #: How it comes to life if not by a start.
        self.restore: Restore | None = None
        if params.image is not None:
            from runtime.sandbox.restore import Restore

            self.restore = Restore(params.image)
        self._shared_filestores = list(gofer.plan.shared_filestores)  # guarded by _lock
        self._network: Callable[[int], NetworkSetup | None] | None = None
        #: What the sentry was told of its network, for a restore; None before the start.
        self.network_argument: Mapping[str, Any] | None = None
        self._exits = Exits(params.id, sentry, self._control, reactor)
        self._lock = threading.Lock()
        self._paused = False  # guarded by _lock
        self._subs: dict[str, Subcontainer] = {}  # guarded by _lock
        self._destroying = threading.Lock()
        self._watchdog = Watchdog(reactor, self.members, self._children)

    # -- start -----------------------------------------------------------------------------

    @classmethod
    def boot(
        cls,
        params: BootParams,
        *,
        reactor: Reactor,
        network: Callable[[int], NetworkSetup | None] | None = None,
        started: Callable[[Child], None] | None = None,
        deadline: float,
    ) -> Sandbox:
        """Start the sentry and the gofer and wait until the sentry answers.

        ``started`` is told of the sentry before that: others may end the wait, or use it.
        ``network`` is asked at the start of init for the interfaces of a sandboxed network; it
        gets the sentry's pid.  Without it, or if it returns None, there is only a loopback.

        Raises Failed with the gofer's or the sentry's own words, InvalidRequest, Unsupported,
        AlreadyExists, DeadlineExceeded; then nothing is left of it.
        """
        settings = params.driver.settings(params.config, params.spec)
        gofer = Gofer.prepare(params, settings, params.id, params.spec.annotations)
        sentry = None
        try:
            sentry = Sentry.start(params, settings, gofer, started, deadline)
            sandbox = cls(params, settings, sentry, gofer, reactor)
            sandbox._network = network
            sandbox._exits.watch()
        except BaseException:
            undo_boot(sentry, gofer)
            raise
        return sandbox

    def start_root(self, deadline: float, before: Callable[[], None] | None = None) -> None:
        """Configure the network and run the root container's init, or restore it.

        ``before`` is called when init is there and has not run yet; what it raises is raised.
        Raises InvalidRequest if the program can't be run, SandboxGone with the reason, or what
        the network's set-up raises.  After a failure the sandbox is good for ``destroy`` only, and
        the host's links have the addresses that they had.
        """
        with stage("network"):
            setup = self._set_network(deadline)
        _log.debug("network.set", sandbox=self.id)
        try:
            with stage("start"):
                self._start_init(deadline, before)
                self._await_files(self.id, self._params, deadline)
            _log.debug("init.started", sandbox=self.id)
        except BaseException:
            setup.put_back()
            raise
        setup.keep()

    def _start_init(self, deadline: float, before: Callable[[], None] | None) -> None:
        # Connected before, sent after: an init that ends at once still gives its own code, and
        # a connection that is left idle would hold up the end of the sandbox.  A restore closes
        # those that are open.
        connection = None
        if self.restore is None:
            connection = self._control.connect(_left(deadline))
        # Before, as init may have ended before the call returns.
        self._exits.starting(True)
        if self.restore is not None:
            # Init did its first step long ago.
            root, before = self.restore.root, None
            start = partial(root, self._control, self._settings, self.id, _left(deadline))
        else:
            args = self._params.spec.process.args
            start = partial(self._control.start_root, self.id, _left(deadline), args)
        try:
            stopped_start.start(self._control, self.id, start, before is not None, deadline)
        except BaseException:
            if connection is not None:
                connection.close()
            self._exits.starting(False)
            raise
        if connection is not None:
            try:
                self._control.send_wait(connection, self.id, _left(deadline))
            except RuntimeFault:
                connection.close()
                connection = None
        self._exits.ask_init(connection)
        if before is not None:
            before()
            stopped_start.let_go(self._control, self.id, deadline)

    def _set_network(self, deadline: float) -> NetworkSetup:
        settings = self._settings
        setup = NetworkSetup(argument=loopback_argument())
        if settings.network == "host":
            return setup
        if settings.network == "sandbox" and self._network is not None:
            setup = self._network(self.pid) or setup
            _log.debug("network.read", sandbox=self.id)
            self._sentry.ring.pin(setup.fds)
        setup.hand_over(partial(self._control.set_network, timeout=_left(deadline)))
        self.network_argument = setup.argument
        return setup

    # -- what it is ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The sentry's pid, which stands for the container's init on the host."""
        return self._sentry.child.pid

    @property
    def child(self) -> ProcessHandle:
        """The sentry's process."""
        return self._sentry.child

    @property
    def gofer_pid(self) -> int:
        """The pid of the root container's gofer."""
        return self._gofer.pid

    @property
    def gofer_child(self) -> ProcessHandle | None:
        """The root container's gofer."""
        return self._gofer.child

    @property
    def uid(self) -> int:
        """The user to whom stdio must belong."""
        return self._sentry.credentials.owner[0]

    @property
    def gid(self) -> int:
        """The group to whom stdio must belong."""
        return self._sentry.credentials.owner[1]

    @property
    def control_address(self) -> str:
        """The path of the control socket."""
        return self._sentry.address

    @property
    def filestores(self) -> tuple[str, ...]:
        """The named overlay files that ``destroy`` removes, of all containers."""
        with self._lock:
            subs = list(self._subs.values())
            shared = tuple(self._shared_filestores)
        own = self._gofer.plan.filestores
        return own + tuple(p for sub in subs for p in sub.gofer.plan.filestores) + shared

    @property
    def network(self) -> str:
        """``sandbox``, ``host`` or ``none``: the same for all its containers."""
        return self._settings.network

    @property
    def settings(self) -> Settings:
        """The flags of the sandbox."""
        return self._settings

    def gofer_of(self, cid: str) -> Gofer:
        """The gofer of one of its containers.  Raises NotFound."""
        return self._gofer if cid == self.id else self._sub(cid).gofer

    @property
    def paused(self) -> bool:
        """Whether ``pause`` was the last of pause and resume that succeeded."""
        with self._lock:
            return self._paused

    @property
    def control(self) -> Control:
        """The sentry's calls."""
        return self._control

    @property
    def restoring(self) -> bool:
        """Whether containers are missing without which nothing of the image runs."""
        return self.restore is not None and self.restore.waiting

    def members(self) -> list[BootParams]:
        """What its containers were made of, in the order of their creation."""
        with self._lock:
            return [self._params, *(sub.params for sub in self._subs.values())]

    # -- exits -----------------------------------------------------------------------------

    def on_init_exit(self, callback: Callable[[ExitInfo], None]) -> None:
        """Call back once when the root container's init has ended, or is known to have.

        The sentry's own word counts; where it dies without one, its exit status is judged.
        """
        self._exits.on_init(callback)

    def on_death(self, callback: Callable[[int], None]) -> None:
        """Call back once, with its raw wait status, when the sentry has ended."""
        self._exits.on_death(callback)

    def wait_pid(self, cid: str, pid: int, callback: Callable[[ExitInfo], None]) -> None:
        """Call back once when an exec has ended; to be asked once for each exec.

        An exec that the sentry doesn't know of any more counts as killed.
        """
        self._exits.ask(cid, pid, callback)

    def wait_container(self, cid: str, callback: Callable[[ExitInfo], None]) -> None:
        """Call back once when the init of a subcontainer has ended."""
        self._exits.ask(cid, 0, callback)

    def leave(self) -> None:
        """Ask for no exit any more: an idle connection of ours would hold up its end."""
        self._exits.abandon()
        self._sentry.ring.close()

    def _autopsy(self) -> SandboxGone | Unreachable:
        """Why a connection broke: the sentry has ended, or it lives."""
        try:
            raw: int | None = self._sentry.child.wait(_AUTOPSY_TIMEOUT)
        except DeadlineExceeded:
            return Unreachable(f"sandbox {self.id!r} lives, but doesn't answer")
        except ValueError:
            raw = self._exits.raw  # its handle is closed, once it has been reaped
        words = self._sentry.log.message() if raw else ""
        detail = f"sandbox {self.id!r} is gone"
        return SandboxGone(self.pid, raw, f"{detail}: {words}" if words else detail)

    # -- calls -----------------------------------------------------------------------------

    def execute(
        self,
        cid: str,
        process: ProcessSpec,
        fds: tuple[int, int, int],
        tty: bool,
        deadline: float,
    ) -> int:
        """Run another process; returns its pid inside the container.

        ``fds`` stay the caller's; for a terminal, all three are the pty's slave.  Raises
        InvalidRequest if the program or the working directory isn't there, InvalidState if the
        container doesn't run, NotFound.
        """
        own_stdio(fds, self.uid, self.gid)
        process = process.replace(capabilities=self._exec_capabilities(cid, process))
        return self._control.execute(cid, process, fds, tty, _left(deadline))

    def _exec_capabilities(self, cid: str, process: ProcessSpec) -> Capabilities | None:
        settings = self._settings if cid == self.id else self._sub(cid).settings
        flags = {"net-raw": "true" if settings.net_raw else "false"}
        return exec_capabilities(process.capabilities, self._params_of(cid).spec, flags)

    def signal(
        self,
        cid: str,
        signo: int,
        *,
        pid: int = 0,
        mode: SignalMode = SignalMode.PROCESS,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Signal init, an exec by its pid, or several.  Raises NotFound if it has ended."""
        if mode is SignalMode.ALL and self._old_id:
            mode = SignalMode.PROCESS  # its only container: the end of init is everybody's
        self._control.signal(cid, signo, pid, mode, timeout)

    def processes(self, cid: str, timeout: float = DEFAULT_TIMEOUT) -> list[SandboxProcess]:
        """The processes of a container; of all if ``cid`` is empty."""
        return self._control.processes("" if self._old_id else cid, timeout)

    @property
    def _old_id(self) -> bool:
        """Whether the sentry knows processes by the id that they were saved with."""
        return self.restore is not None and not self._driver.generation.restores_under_new_id

    def event(self, cid: str, timeout: float = DEFAULT_TIMEOUT) -> SentryStats:
        """Usage, as the sentry counts it."""
        with self._lock:
            others = [other for other in (self.id, *self._subs) if other != cid]
        return self._params_of(cid).judge(self._control.event(cid, timeout, others))

    def memory(self, cid: str, timeout: float = DEFAULT_TIMEOUT) -> MemoryUse:
        """A container's memory, as the sentry counts it."""
        found = self._params_of(cid).judge(self._control.usage(cid, timeout))
        return MemoryUse(bytes=found.memory_usage, exact=found.owns_memory)

    def show_limits(self, cid: str, resources: Mapping[str, Any]) -> None:
        """See :func:`runtime.sandbox.inner_limits.show`."""
        inner_limits.show(self._control, self._params_of(cid), resources)

    def state(self, cid: str, timeout: float = DEFAULT_TIMEOUT) -> ContainerState:
        """What the sentry thinks of a container."""
        started = self._exits.started if cid == self.id else self._sub(cid).started
        return self._control.state(cid, timeout).known(started)

    def pause(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Freeze all containers.  Calls still work."""
        self._control.pause(timeout)
        with self._lock:
            self._paused = True

    def resume(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let all containers run again."""
        self._control.resume(timeout)
        with self._lock:
            self._paused = False

    # -- subcontainers ---------------------------------------------------------------------

    def create_subcontainer(self, params: BootParams) -> None:
        """Register another container and start its gofer, which works until the start.

        Stdio is duplicated.  Raises AlreadyExists, Failed, SandboxGone; then nothing is left.
        """
        sub = self._prepare(params)
        try:
            self._register(params)
        except BaseException:
            self._drop(sub)
            raise

    def _register(self, params: BootParams) -> None:
        """Tell the sentry of a container."""
        terminal = (params.stdio[0],) if params.tty else ()
        self._control.create_subcontainer(params.id, terminal)

    def _prepare(self, params: BootParams) -> Subcontainer:
        """Start the gofer of a container and keep what its start takes."""
        params = params.replace(spec=self._in_user_namespace(params.spec))
        settings = self._driver.settings(params.config, params.spec)
        with self._lock:
            if params.id in self._subs or params.id == self.id:
                raise AlreadyExists("container", params.id)
        own_stdio(params.stdio, self.uid, self.gid)
        gofer = Gofer.prepare(params, settings, self.id, self._params.spec.annotations)
        try:
            with stage("gofer"):
                gofer.launch()
            sub = Subcontainer(params, settings, gofer)
        except BaseException:
            # It is in no register yet, so nobody else would end it.
            gofer.stop(_REAP_TIMEOUT)
            remove_filestores(gofer.plan.shared_filestores)
            raise
        with self._lock:
            self._subs[params.id] = sub
            self._shared_filestores += gofer.plan.shared_filestores
        return sub

    def _drop(self, sub: Subcontainer) -> None:
        self._remove(sub.params.id)
        sub.stop(time.monotonic() + DEFAULT_TIMEOUT)

    def _in_user_namespace(self, spec: Spec) -> Spec:
        """The pod's user namespace is the root gofer's, as a sentry may have one of its own."""
        if spec.namespaces.get("user") != f"/proc/{self.pid}/ns/user":
            return spec
        path = f"/proc/{self.gofer_pid}/ns/user"
        return spec.replace(namespaces={**spec.namespaces, "user": path})

    def start_subcontainer(
        self, cid: str, deadline: float, before: Callable[[], None] | None = None
    ) -> None:
        """Run a subcontainer's init.  Raises as ``start_root`` does, and the gofer's failure."""
        restore = self.restore if self.restore is not None and self.restore.waiting else None
        if restore is not None:
            before = None

        def start(argument: Mapping[str, Any], fds: tuple[int, ...]) -> None:
            left = _left(deadline)
            if restore is not None:
                call = partial(restore.member, self._control, self.kill, argument, fds, left)
            else:
                call = partial(self._control.start_subcontainer, argument, fds, left)
            stopped_start.start(self._control, cid, call, before is not None, deadline)

        with stage("start"):
            self._sub(cid).start(self._driver, self.pid, start, deadline)
        if before is not None:
            before()
            stopped_start.let_go(self._control, cid, deadline)
        try:
            self._await_files(cid, self._sub(cid).params, deadline)
        except RuntimeFault:
            self._control.destroy_subcontainer(cid, _left(deadline))
            raise

    def _await_files(self, cid: str, params: BootParams, deadline: float) -> None:
        """Wait until a container's files are there, if the sandbox's are restored.

        Until then its programs wait for what they read.  Raises Failed where they can't be had, or
        where a sandbox of one container has none in the image.
        """
        if not self._params.restored_files:
            return
        spec = params.spec
        if self._control.wait_files_restored(cid, _left(deadline)):
            return
        if spec.container_type:
            _log.info("files.none_restored", container=cid, name=spec.container_name)
            return
        raise Failed(f"the checkpoint has no files for container {spec.container_name!r}")

    def abandon(self, cid: str) -> None:
        """Close the stdio of a subcontainer that will never be started, as its end would."""
        self._sub(cid).close_stdio()

    def destroy_subcontainer(self, cid: str, deadline: float) -> None:
        """Kill everything in a subcontainer, forget it, and reap its gofer.  Idempotent.
        Does every step; raises the first failure with all of them named."""
        with self._lock:
            sub = self._subs.get(cid)
        if sub is None:
            return
        steps = Steps()
        steps.run("destroy container", sub.destroy, self._control, deadline)
        steps.run("stop gofer", sub.stop, deadline)
        steps.finish()
        self._remove(cid)

    def _remove(self, cid: str) -> None:
        with self._lock:
            self._subs.pop(cid, None)

    def _sub(self, cid: str) -> Subcontainer:
        with self._lock:
            sub = self._subs.get(cid)
        if sub is None:
            raise NotFound("container", cid)
        return sub

    def _params_of(self, cid: str) -> BootParams:
        return self._params if cid == self.id else self._sub(cid).params

    # -- the end ---------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL the sentry now, and with it everything inside.  No error if it is dead."""
        self._exits.killing()
        self._sentry.kill()
        self._watchdog.killed()

    def _children(self) -> list[ProcessHandle]:
        with self._lock:
            gofers = [self._gofer, *(sub.gofer for sub in self._subs.values())]
        return [self.child, *(each.child for each in gofers if each.child is not None)]

    def kill_gofer(self, cid: str) -> None:
        """SIGKILL a container's gofer, which is the end of the container; no error without one."""
        try:
            self.gofer_of(cid).kill()
        except NotFound:
            return

    def destroy(self, timeout: float) -> None:
        """End the sandbox and remove all that it has on the host; idempotent.

        Does every step whatever fails, and raises the first failure with all of them named.
        All exits are told when it returns, unless the reactor is stopped.
        """
        deadline = time.monotonic() + timeout
        with self._destroying:
            steps = Steps()
            if self._exits.told:
                self._sentry.let_finish()
            steps.run("kill sentry", self.kill)
            steps.run("reap sentry", self._reap, deadline)
            with self._lock:
                subs, shared = dict(self._subs), list(self._shared_filestores)
            for cid, sub in subs.items():
                # What fails is there for the next try.
                if steps.run(f"stop gofer {sub.gofer.pid}", sub.stop, deadline):
                    self._remove(cid)
            left = max(_left(deadline), _REAP_TIMEOUT)
            steps.run(f"stop gofer {self._gofer.pid}", self._gofer.stop, left)
            steps.run("remove control socket", self._sentry.remove_socket)
            steps.run("remove filestores", remove_filestores, shared)
            steps.finish()

    def _reap(self, deadline: float) -> None:
        self._sentry.child.wait(_left(deadline))
        self._exits.settle(_left(deadline))
        self._sentry.child.close()
        self._sentry.log.close()


def _left(deadline: float) -> float:
    """Seconds until the deadline; a little at least, so that the call fails and not this."""
    return max(deadline - time.monotonic(), 0.001)
