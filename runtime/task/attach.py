"""Takes over a container that another process created, and goes on where that one ended.

Owns rebuilding a Container and its Sandbox from what is on disk, so that creating in a sandbox,
starting and restoring are the same steps for every program.  The sentry and its gofers are not our
children then: their end can be seen, but not their exit status.
"""

from __future__ import annotations

from runtime.base.errors import InvalidState, NotFound, SandboxGone
from runtime.cgroups import factory
from runtime.host.child_log import ChildLog
from runtime.host.fds import FdSet
from runtime.runsc.control import ContainerState
from runtime.runsc.driver import Credentials, find_driver
from runtime.sandbox import subcontainer
from runtime.sandbox.gofer import Gofer
from runtime.sandbox.gofer_mounts import MountPlan
from runtime.sandbox.sandbox import BootParams, Sandbox
from runtime.sandbox.sentry import Sentry
from runtime.state import writer
from runtime.state.loaded_state import CREATED, CREATING, STOPPED
from runtime.task.acquired import Holdings, taken_over
from runtime.task.container import Container
from runtime.task.create import attach_network
from runtime.task.lifecycle import Op
from runtime.task.process import IORequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.host.reactor import Reactor
    from runtime.network.setup import NetworkSetup
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.flags import Settings
    from runtime.state.loaded import StoredContainer
    from runtime.state.lock import StateLock
    from runtime.task.context import Context


class AdoptedSandbox(Sandbox):
    """A sandbox that another process booted.

    A container's gofer is started with its init, and not when it is created: its connections
    would end with the process that creates.
    """

    @classmethod
    def adopt(cls, root: StoredContainer, params: BootParams, context: Context) -> AdoptedSandbox:
        """The sandbox whose root container is ``root``.  Raises SandboxGone."""
        process = root.sandbox_process()
        if process is None or process.wait_gone(0):
            if process is not None:
                process.close()
            raise SandboxGone(0, None, f'sandbox "{root.id}" is not running')
        uid, gid = root.sandbox_owner()
        owner = Credentials(uid=uid, gid=gid)
        # What it prints goes elsewhere.
        sentry = Sentry(process, root.control_socket, owner, ChildLog("no-log"))
        gofer = Gofer(MountPlan(confs=()), FdSet(), child=root.gofer_process())
        settings = params.driver.settings(params.config, root.spec)
        return cls(params, settings, sentry, gofer, context.reactor)

    def __init__(
        self,
        params: BootParams,
        settings: Settings,
        sentry: Sentry,
        gofer: Gofer,
        reactor: Reactor,
    ) -> None:
        super().__init__(params, settings, sentry, gofer, reactor)
        self._made: dict[str, BootParams] = {}

    @property
    def has_mount_confs(self) -> bool:
        """Whether its release's state files say how gofer mounts are made up."""
        return self._driver.generation.mount_confs

    def attach_network(self, network: Callable[[int], NetworkSetup | None]) -> None:
        """Whom to ask for the interfaces when init is started."""
        self._network = network

    @property
    def kept_network(self) -> Mapping[str, Any] | None:
        """What the sandbox was told of its network that is to be restored in this one."""
        about = self.restore.image.about if self.restore is not None else None
        return about.network if about is not None else None

    def restore_from(self, path: str) -> None:
        """Have the root container's start be a restore.  Raises NotFound, InvalidRequest."""
        from runtime.sandbox import checkpoint
        from runtime.sandbox.restore import Restore

        self.restore = Restore(checkpoint.load(path, self._driver.generation))

    def go_on_restoring(self, path: str) -> None:
        """Another process has restored the root container from that image; others are missing.

        Raises InvalidState if the sandbox isn't being restored: it would die of the attempt.
        """
        if self._control.state(self.id) is ContainerState.RUNNING:
            raise InvalidState("restore a container in", f'sandbox "{self.id}"', "running")
        self.restore_from(path)
        assert self.restore is not None
        self.restore.go_on()

    def create_subcontainer(self, params: BootParams) -> None:
        """Register another container; its stdio is that of its start unless it is a terminal."""
        self._register(params)
        self._made[params.id] = params

    def expect(self, params: BootParams) -> None:
        """A container that another process has registered is to be started."""
        self._made[params.id] = params

    def start_subcontainer(
        self, cid: str, deadline: float, before: Callable[[], None] | None = None
    ) -> None:
        """See :class:`Sandbox`."""
        params = self._made.get(cid)
        if params is None:
            raise NotFound("container", cid)
        sub = self._prepare(params)
        try:
            super().start_subcontainer(cid, deadline, before)
        except BaseException:
            self._drop(sub)
            raise

    def destroy_subcontainer(self, cid: str, deadline: float) -> None:
        """See :class:`Sandbox`; also for one that has no gofer yet."""
        if self._made.pop(cid, None) is not None:
            subcontainer.destroy(self._control, cid, deadline, lambda: None)
        super().destroy_subcontainer(cid, deadline)

    def gofer_of(self, cid: str) -> Gofer:
        """See :class:`Sandbox`; one that is yet to be started has pid 0."""
        try:
            return super().gofer_of(cid)
        except NotFound:
            return Gofer(MountPlan(confs=()), FdSet())

    def close(self) -> None:
        """Let go of the processes; all goes on."""
        self.leave()
        if self.restore is not None:
            self.restore.image.close()
        self._sentry.child.close()
        self._sentry.log.close()
        if self._gofer.child is not None:
            self._gofer.child.close()


def configure(container: StoredContainer, config: RunscConfig) -> RunscConfig:
    """``config`` with what the container was made with, where that is known.

    Its sentry got those flags; another gofer or start must not be told others.
    """
    record = container.record
    if record is None or not record.binary:
        return config
    return config.replace(binary=record.binary, flags=record.flags, root=container.root)


def adopt_host(
    root: StoredContainer, context: Context, config: RunscConfig
) -> tuple[Container, AdoptedSandbox]:
    """The root container of a running sandbox, for another to join it.

    Raises InvalidState if it doesn't live.
    """
    status = root.status()
    if status in (CREATING, STOPPED):
        raise InvalidState("create a container in", root.subject, status)
    config = configure(root, config)
    params = _params(root, config, context, (-1,) * 3)
    sandbox = AdoptedSandbox.adopt(root, params, context)
    container = _container(root, context, sandbox)
    container.made_with = params.driver, config.flags
    holdings = container.holdings
    assert holdings is not None
    holdings.cgroup = factory.of_process(sandbox.pid) if root.cgroup_paths else None
    holdings.keeper = _keeper(root)
    if status != CREATED:
        container.init.reserve(Op.START)
        container.init.commit(Op.STARTED)
    return container, sandbox


def adopt_created(
    container: StoredContainer,
    root: StoredContainer,
    context: Context,
    config: RunscConfig,
    stdio: tuple[int, int, int],
    lock: StateLock,
) -> tuple[Container, AdoptedSandbox]:
    """A created container, to be started, under the lock that the caller holds.

    ``stdio`` is for one that isn't its sandbox's first and has no terminal.  Raises SandboxGone.
    """
    config = configure(container, config)
    params = _params(container, config, context, stdio, root)
    if container.is_root:
        sandbox = AdoptedSandbox.adopt(container, params, context)
    else:
        host_params = _params(root, configure(root, config), context, (-1,) * 3)
        sandbox = AdoptedSandbox.adopt(root, host_params, context)
        shared = factory.of_process(sandbox.pid)
        params = params.replace(cgroup_procs=shared.join_files, cgroup_fd=shared.open_dir_fd())
        sandbox.expect(params)
    adopted = _container(container, context, sandbox)
    holdings = adopted.holdings
    assert holdings is not None
    holdings.keeper = keeper = _keeper(container)
    keeper.lock = lock
    settings = params.driver.settings(params.config, params.spec)
    sorts = params.driver.generation.sorts_routes
    sandbox.attach_network(
        lambda pid: attach_network(
            holdings, pid, settings.effective, sandbox.kept_network, sorts=sorts
        )
    )
    return adopted, sandbox


def restore_from(container: Container, sandbox: AdoptedSandbox, path: str) -> None:
    """Have the container's start be a restore from the image in directory ``path``.

    Raises NotFound and InvalidRequest for an image that can't be restored here.
    """
    from runtime.sandbox import checkpoint

    spec = container.spec
    assert spec is not None
    if not container.is_root:
        sandbox.go_on_restoring(path)
    else:
        sandbox.restore_from(path)
    assert sandbox.restore is not None
    terminal = spec.process.terminal
    checkpoint.check_fit(
        sandbox.restore.image, checkpoint.describe(spec, terminal), container.is_root
    )


def note_gofer(container: Container, sandbox: AdoptedSandbox) -> None:
    """Write the gofer down that a start has brought with it."""
    gofer = sandbox.gofer_of(container.id)
    assert container.holdings is not None
    members: dict[str, Any] = {"goferPid": gofer.pid}
    if sandbox.has_mount_confs:
        members["goferMountConfs"] = writer.confs_json(gofer)
    container.holdings.status_changed("running", **members)


def note_network(container: StoredContainer, sandbox: AdoptedSandbox) -> None:
    """Write down what the start has told the sentry of its network, for a checkpoint.

    Never raises: without it there is one restore less that works.
    """
    argument, record = taken_over(sandbox), container.record
    if argument is None or record is None:
        return
    changed = record.replace(network=argument)
    writer.attempt("network", container.id, lambda: writer.record(container.root, changed))


def _params(
    container: StoredContainer,
    config: RunscConfig,
    context: Context,
    stdio: tuple[int, int, int],
    root: StoredContainer | None = None,
) -> BootParams:
    """``root`` is the first container of its sandbox, if that is another."""
    # The sandbox was made with its program, which may have been replaced since.
    process = (root or container).gofer_process()
    running = 0
    if process is not None:
        with process:
            running = process.pid
    return BootParams(
        id=container.id,
        bundle=container.bundle,
        spec=container.spec,
        config=config,
        driver=find_driver(config, context.cache_dir, running),
        stdio=stdio,
        tty=container.spec.process.terminal,
    )


def _container(stored: StoredContainer, context: Context, sandbox: AdoptedSandbox) -> Container:
    """In state CREATED; its stdio has no reader left."""
    terminal = stored.spec.process.terminal
    container = Container(context, stored.id, stored.bundle, IORequest(terminal=terminal))
    container.is_root = stored.is_root
    container.spec = stored.spec
    holdings = Holdings(stored.id, stored.bundle, context.namespace, context.shim_address)
    holdings.root, holdings.owns_sandbox = stored.root, stored.is_root
    holdings.sandbox = sandbox
    container.holdings = holdings
    container.init.commit(Op.CREATED, None, sandbox.pid)
    return container


def _keeper(stored: StoredContainer) -> writer.StateKeeper:
    keeper = writer.StateKeeper(stored.root, stored.id, stored.sandbox_id)
    if stored.stored is not None:
        keeper.resume(stored.stored.raw)
    return keeper
