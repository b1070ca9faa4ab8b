"""Creates a container: acquires what it needs, in order, and gives it all back if a step fails.

Owns the order of acquisition.  ``task/acquired.py`` gives back, and ``container.py`` is what a
container does once it exists.
"""

from __future__ import annotations

import os
import time
from functools import partial

from runtime.base.errors import Failed, InvalidRequest, InvalidState, RuntimeFault, Unsupported
from runtime.base.log import get_logger
from runtime.base.stages import stage
from runtime.bundle import executable, spec_defaults, volumes
from runtime.bundle.rootfs import mount_rootfs
from runtime.bundle.spec import load_spec
from runtime.cgroups import factory, oom_score, placement
from runtime.cgroups.pod_limits import PodLimits, create_own
from runtime.cgroups.resources import parse
from runtime.network import setup as network
from runtime.runsc import donated_files, release
from runtime.runsc.control_address import control_address
from runtime.sandbox import accelerators, cgroup_mounts, forward_mount, prepare_spec
from runtime.sandbox.sandbox import BootParams, Sandbox
from runtime.task import hook_stages
from runtime.task.acquired import Holdings
from runtime.task.events import TaskCreated
from runtime.task.lifecycle import Op
from runtime.task.pod_memory import PodMemory
from runtime.task.process import IORequest, size_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bundle.spec import Spec
    from runtime.cgroups.factory import Cgroup, CgroupRoot
    from runtime.host.children import Child
    from runtime.network.setup import NetworkSetup
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.driver import Driver
    from runtime.task.container import Container
    from runtime.task.context import Context, CreateRequest

#: Seconds in which a sandbox must be up, on a host that boots many at once.
BOOT_TIMEOUT = 60.0
#: The steps of a creation, in their order; what is taken at one is given back if a later one
#: fails.
STEPS_OF_SANDBOX = (
    "spec",
    "id",
    "runsc",
    "rootfs",
    "program",
    "restrictions",
    "stdio",
    "record",
    "cgroup",
    "own cgroup",
    "network",
    "boot",
    "memory",
    "hooks",
    "full record",
    "state",
    "oom scores",
)
STEPS_OF_MEMBER = (
    "spec",
    "id",
    "runsc",
    "rootfs",
    "program",
    "restrictions",
    "stdio",
    "record",
    "gofer",
    "own cgroup",
    "memory",
    "hooks",
    "full record",
    "state",
    "oom scores",
)
#: What lets a container make and use sockets of the host's, in all that it mounts.  (FIFOs can't be
#: made: gVisor runsc/fsgofer, Mknod.)
_SOCKET_FLAG = "host-uds"
#: An annotation; see ``sandbox/files/image.py``.
_RESTORED_FILES = "dev.gvisor.internal.fscheckpoint.restore-path"
#: Seconds for reading the network namespace and taking over its addresses.
NETWORK_TIMEOUT = 20.0

_log = get_logger("creation")


def create(
    container: Container,
    request: CreateRequest,
    context: Context,
    find_root: Callable[[Spec], Container | None],
) -> int:
    """Bring the container up to CREATED; returns the pid that stands for it on the host.

    ``find_root`` names the container whose sandbox this one goes into, or None for a sandbox of
    its own.  Blocks until the sentry is ready.  Raises a RuntimeFault, and then nothing is left.
    """
    holdings = container.holdings = Holdings(
        request.id, request.bundle, context.namespace, context.shim_address
    )
    try:
        sandbox = _acquire(container, request, context, holdings, find_root)
    except BaseException as fault:
        attached = container.init.detach()
        if attached is not None:
            attached.close()
        try:
            holdings.release()
        except RuntimeFault as another:
            _log.error("create.cleanup_failed", container=request.id, error=str(another))
        hook_stages.after_delete(container)
        container.init.commit(Op.CREATE_FAILED)
        if isinstance(fault, RuntimeFault):
            _go_on(container)
        raise
    container.init.commit(
        Op.CREATED,
        TaskCreated(
            container_id=request.id,
            bundle=request.bundle,
            pid=sandbox.pid,
            rootfs=request.rootfs,
            stdin=request.io.stdin,
            stdout=request.io.stdout,
            stderr=request.io.stderr,
            terminal=request.io.terminal,
            checkpoint=request.checkpoint,
        ),
        sandbox.pid,
    )
    if container.is_root:
        sandbox.on_init_exit(container.init_exited)
    return sandbox.pid


def _acquire(
    container: Container,
    request: CreateRequest,
    context: Context,
    holdings: Holdings,
    find_root: Callable[[Spec], Container | None],
) -> Sandbox:
    started = time.monotonic()
    deadline = started + BOOT_TIMEOUT

    def step(name: str) -> None:
        _go_on(container)
        if context.observe is not None:
            context.observe(request.id, name)

    step("spec")
    spec = container.spec = load_spec(request.bundle)
    root = find_root(spec)
    container.is_root = holdings.owns_sandbox = root is None
    if root is not None and request.pass_fds:
        raise Unsupported("files can be passed on to the first container of a sandbox only")
    config = request.config
    step("id")
    # Here, and not in a directory of our own: runsc's commands are told of this one.
    holdings.reserve(config.state_dir, root.id if root is not None else request.id)
    step("runsc")
    if root is not None and root.made_with is not None:
        # The sandbox was made with these, whatever is configured by now; they don't fit others.
        driver, flags = root.made_with
        config = config.replace(flags=flags)
    else:
        driver = context.find_driver(config, context.cache_dir)
    container.made_with = driver, config.flags
    if request.checkpoint:
        _open_image(request, holdings, driver, root, lambda: _go_on(container))
    if root is None:
        _open_files_image(container, request, holdings, driver)
    step("rootfs")
    if request.rootfs:
        holdings.rootfs = os.path.join(request.bundle, "rootfs")
        with stage("rootfs"):
            mount_rootfs(request.rootfs, holdings.rootfs)
    if not os.path.isdir(spec.root_path):
        raise InvalidRequest("config.json: root.path", f"no directory {spec.root_path}")
    step("program")
    executable.find_executable(spec.root_path, spec)
    step("restrictions")
    if root is None and config.port_forward and context.shim_address:
        spec, holdings.forward_program = forward_mount.add(spec, holdings.image)
    spec, config = _prepare(container, spec, config, driver, root)
    holdings.binary, holdings.flags = driver.generation.binary, config.flags
    owner = container.io_owner = _io_owner(config, driver.credentials(spec, config))
    step("stdio")
    io = context.open_io(container.init.stdio(owner, deadline, guest=root is not None))
    size_terminal(io, spec.process)
    # Whoever cleans up after a failure closes it.
    container.init.attach(io)
    _fit_image(container, request.io, root)
    params = BootParams(
        id=request.id,
        bundle=request.bundle,
        spec=spec,
        config=config,
        driver=driver,
        stdio=io.sentry_fds,
        tty=request.io.terminal,
        image=holdings.image,
        restored_files=holdings.files_image.fds if holdings.files_image is not None else (),
        attached=request.attached,
        user_log=request.user_log or (_user_log(spec, config, driver) if root is None else ""),
        pass_fds=request.pass_fds,
    )
    container.limits.set(spec.resources)
    step("record")
    if root is None:
        sandbox = _boot(container, params, context, holdings, step, deadline)
    else:
        sandbox = _join(container, params, context, holdings, step, root)
    if holdings.files_image is not None:
        holdings.files_image.close()  # the sentry has them
    step("hooks")
    hook_stages.while_creating(container, sandbox, deadline)
    step("full record")
    io.release_sentry_fds()
    holdings.record()
    host = root.holdings if root is not None else None
    step("state")
    holdings.record_state(params, host)
    step("oom scores")
    _set_oom_scores(container, spec, holdings, sandbox)
    _log.debug(
        "container.created",
        container=request.id,
        sandbox=sandbox.id,
        pid=sandbox.pid,
        ms=round((time.monotonic() - started) * 1000, 1),
    )
    return sandbox


def _user_log(spec: Spec, config: RunscConfig, driver: Driver) -> str:
    """Where the sandbox tells its user what it does, if a flag asks for that."""
    return donated_files.user_log(driver.settings(config, spec).effective, spec.annotations)


def _go_on(container: Container) -> None:
    """Give the creation up if a delete waits for its end."""
    if container.abandoned.is_set():
        raise Failed(f"container {container.id!r} was deleted while it was being created")


def _open_image(
    request: CreateRequest,
    holdings: Holdings,
    driver: Driver,
    root: Container | None,
    go_on: Callable[[], None],
) -> None:
    """Find and check what the container is to be restored from.  Raises NotFound, InvalidRequest.

    Opened now, as the caller may remove it as soon as the container exists.  A sandbox is
    restored as a whole, from the image of its root container; the others' are not looked at.
    """
    from runtime.sandbox import checkpoint

    if root is None:
        holdings.image = request.image or checkpoint.load(
            request.checkpoint, driver.generation, go_on
        )
        return
    sandbox = root.holdings.sandbox if root.holdings is not None else None
    if sandbox is None or sandbox.restore is None or sandbox.restore.complete:
        raise InvalidRequest(
            "checkpoint",
            f"container {request.id!r} can't be restored by itself: its sandbox {root.id!r} was "
            "not created from a checkpoint, or is complete",
        )


def _open_files_image(
    container: Container, request: CreateRequest, holdings: Holdings, driver: Driver
) -> None:
    """Find and check what a sandbox's file systems are to be restored from, if there is anything.

    A caller's own choice, or that of a pod's author as far as the operator permits it.  Raises
    NotFound, InvalidRequest, Unsupported.
    """
    annotations = container.spec.annotations if container.spec is not None else {}
    if not request.files_checkpoint and _RESTORED_FILES not in annotations:
        return
    from runtime.sandbox.files import image as files_image

    path, folder = request.files_checkpoint, request.config.fs_checkpoints
    if not path:
        path = files_image.wanted(annotations, _RESTORED_FILES, folder)
        files_image.check_links(folder, path)
    if request.checkpoint:
        raise InvalidRequest("checkpoint", "is of the whole sandbox, with its file systems")
    holdings.files_image = files_image.FilesImage(
        files_image.load(path, driver.generation, lambda: _go_on(container))
    )


def _fit_image(container: Container, io: IORequest, root: Container | None) -> None:
    """Have the container fit the image that its sandbox is restored from, if it is.

    Whether its creation names the image or not.  Raises InvalidRequest.
    """
    spec = container.spec
    holdings = root.holdings if root is not None else container.holdings
    assert spec is not None
    assert holdings is not None
    image = holdings.image
    if root is not None:
        restore = holdings.sandbox.restore if holdings.sandbox is not None else None
        image = restore.image if restore is not None and not restore.complete else None
    if image is None:
        return
    from runtime.sandbox import checkpoint

    checkpoint.check_fit(image, checkpoint.describe(spec, io.terminal), root is None)
    sandbox_id = root.id if root is not None else container.id
    checkpoint.remove_leftovers(image, sandbox_id, spec.root_path)


def _prepare(
    container: Container,
    spec: Spec,
    config: RunscConfig,
    driver: Driver,
    root: Container | None,
) -> tuple[Spec, RunscConfig]:
    """Spec and configuration in which what the sentry doesn't do by itself is spelled out."""
    host = root.holdings.sandbox if root is not None and root.holdings is not None else None
    hints = root.spec.annotations if root is not None and root.spec is not None else None
    spec = spec_defaults.fill(
        spec,
        own_sandbox=root is None,
        makes_cwd=not driver.generation.makes_no_cwd_in_readonly_root,
    )
    spec = volumes.prepare(
        spec,
        driver.generation.knows_volume_options,
        hints,
        share=config.share_volumes,
        used=root.holdings.volume_uses if root is not None and root.holdings is not None else None,
    )
    known = _SOCKET_FLAG in driver.generation.global_flags
    if config.volume_sockets and known and volumes.are_own(spec, hints or spec.annotations):
        config = config.replace(flags={_SOCKET_FLAG: "all", **config.flags})
    spec = cgroup_mounts.prepare(spec, driver.generation)
    joined = host.settings if host is not None else None
    prepared = prepare_spec.prepare(spec, config, driver.generation, joined)
    if prepared.notes:
        _log.warning("spec.partly_honoured", container=container.id, missing=prepared.notes)
    if prepared.left_writable:
        _log.debug("paths.left_writable", container=container.id, paths=prepared.left_writable)
    container.spec = prepared.spec
    return prepared.spec, prepared.config


def _boot(
    container: Container,
    params: BootParams,
    context: Context,
    holdings: Holdings,
    step: Callable[[str], None],
    deadline: float,
) -> Sandbox:
    """A sandbox of the container's own."""
    spec, config = params.spec, params.config
    base = context.cgroup_root
    mode, hands_down = factory.host_mode(base), partial(factory.hands_down, root=base)
    wanted = placement.place(
        spec,
        params.id,
        mode,
        hands_down,
        anywhere=config.allow_cgroup_parent,
        limits_of=partial(factory.limits_of, root=base),
    )
    settings = params.driver.settings(config, spec)
    if settings.boolean("ignore-cgroups"):
        _log.warning("cgroups.ignored", container=params.id)
        wanted = wanted.replace(path="", own="")
    if wanted.refused:
        _log.warning("cgroup.parent_refused", container=params.id, parent=wanted.refused[:200])
    systemd = config.systemd_cgroup
    # Members first: that is the order in which they can be removed.
    paths = [path for path in (wanted.own, wanted.path) if path]
    # An annotation may name a directory whoever makes the scopes.
    named = systemd and not wanted.named
    holdings.planned = tuple(
        factory.plan(path, systemd=named if path == wanted.path else systemd, root=base)
        for path in paths
    )
    holdings.control_socket = control_address(config.state_dir, params.id)
    holdings.record()
    step("cgroup")
    cgroup = None
    if wanted.path:
        with stage("cgroup"):
            cgroup = holdings.cgroup = factory.create_if_allowed(
                wanted.path, wanted.resources, systemd=named, root=base
            )
    step("own cgroup")
    if wanted.own:
        holdings.own_cgroup = _create_own(wanted.own, spec, systemd=systemd, root=base)
    step("network")
    helped = settings.network == "sandbox" and spec.netns_path and context.starts
    sorts = params.driver.generation.sorts_routes
    if helped:
        network.check(spec.netns_path)

    def started(child: Child) -> None:
        container.booting(child)
        if helped:
            # It has time until init's start, before which it changes nothing.
            about = params.image.about if params.image is not None else None
            holdings.scrape = network.begin(
                spec.netns_path,
                flags=settings.effective,
                kept=about.network if about is not None else None,
                sorts=sorts,
            )

    params = params.replace(
        nvidia_driver=accelerators.driver_version(
            settings,
            params.driver.generation,
            partial(release.supported_drivers, params.driver.generation.binary),
        )
    )
    if cgroup is not None:
        quota, period = cgroup.cpu_quota() or (None, None)
        params = params.replace(
            cgroup_procs=cgroup.join_files,
            cpu_count=cgroup.cpu_count(),
            cpu_quota=quota,
            cpu_period=period,
            memory_limit=cgroup.memory_limit(),
        )
    step("boot")
    original = oom_score.own_score()
    v2 = cgroup.open_dir_fd() if cgroup is not None else None
    try:
        with stage("boot"):
            sandbox = holdings.sandbox = context.boot(
                params.replace(cgroup_fd=v2),
                reactor=context.reactor,
                network=lambda pid: attach_network(holdings, pid, settings.effective, sorts=sorts),
                started=started,
                deadline=deadline,
            )
    except Failed as fault:
        if cgroup is None or not cgroup.oom_kills():
            raise
        # What is left of the processes says other things, or nothing.
        limit = cgroup.memory_limit()
        which = "" if limit is None else f", whose limit is {limit} bytes"
        raise Failed(f"start sandbox: out of memory in cgroup {cgroup.path!r}{which}") from fault
    finally:
        container.booting(None)
        if v2 is not None:
            os.close(v2)
    step("memory")
    child = sandbox.child
    holdings.score = oom_score.SentryScore(child.pid, original, lambda: child.poll() is None)
    if cgroup is not None:
        holdings.memory = _watch_memory(container, sandbox, cgroup, context)
        if spec.container_type == "sandbox":
            holdings.pod_limits = PodLimits(cgroup, wanted.resources, holdings.own_cgroup)
    return sandbox


def _create_own(path: str, spec: Spec, *, systemd: bool, root: CgroupRoot | None) -> Cgroup | None:
    make = partial(factory.create_if_allowed, path, systemd=systemd, root=root)
    with stage("cgroup"):
        return create_own(make, spec.resources)


def _watch_memory(
    container: Container, sandbox: Sandbox, cgroup: Cgroup, context: Context
) -> PodMemory | None:
    memory = PodMemory(
        sandbox.id,
        cgroup,
        sandbox,
        context.reactor,
        context.workers,
    )
    try:
        memory.open()
    except Unsupported as fault:
        _log.warning("oom.unwatched", container=container.id, error=str(fault))
        return None
    memory.add(container)
    return memory


def _set_oom_scores(container: Container, spec: Spec, holdings: Holdings, sandbox: Sandbox) -> None:
    """The gofer gets its container's score, the sentry what all its containers make of it."""
    wanted = spec.process.oom_score_adj
    gofer = sandbox.gofer_of(container.id).pid
    if wanted is not None and gofer:
        oom_score.set_score(gofer, wanted)
    if holdings.score is not None:
        holdings.score.add(container.id, spec.container_type, wanted)


def _join(
    container: Container,
    params: BootParams,
    context: Context,
    holdings: Holdings,
    step: Callable[[str], None],
    root: Container,
) -> Sandbox:
    """A place in the sandbox of ``root``, whose cgroup the gofer joins.

    The container's own cgroup stays empty: cAdvisor finds containers by their cgroups.
    """
    host = root.holdings
    if host is None or host.sandbox is None or not root.init.alive:
        raise InvalidState("create a container in", root.init.subject, root.init.state.value)
    holdings.sandbox = sandbox = host.sandbox
    path, systemd = params.spec.cgroups_path, params.config.systemd_cgroup
    if params.driver.settings(params.config, params.spec).boolean("ignore-cgroups"):
        path = ""
    if path:
        base = context.cgroup_root
        holdings.planned = (factory.plan(path, systemd=systemd, root=base),)
        holdings.record()
    step("gofer")
    shared = holdings.sandbox_cgroup = host.cgroup
    v2 = shared.open_dir_fd() if shared is not None else None
    try:
        sandbox.create_subcontainer(
            params.replace(
                cgroup_procs=shared.join_files if shared is not None else (), cgroup_fd=v2
            )
        )
    finally:
        if v2 is not None:
            os.close(v2)
    if path:
        step("own cgroup")
        # Empty, so that it can be made while the gofer gets up.
        holdings.own_cgroup = _create_own(path, params.spec, systemd=systemd, root=base)
    step("memory")
    holdings.score, holdings.pod_limits, holdings.memory = host.score, host.pod_limits, host.memory
    if holdings.pod_limits is not None and holdings.own_cgroup is not None:
        cpus = parse(params.spec.resources).cpus
        holdings.pod_limits.cpus.set(holdings.own_cgroup, cpus)
    if holdings.memory is not None:
        holdings.memory.add(container)
    return sandbox


def _io_owner(config: RunscConfig, sentry: tuple[int, int]) -> tuple[int, int]:
    """Who gets the container's FIFOs: the sentry's user, unless the operator names another."""
    if config.io_uid or config.io_gid:
        return config.io_uid, config.io_gid
    return sentry


def attach_network(
    holdings: Holdings,
    pid: int,
    flags: Mapping[str, str],
    kept: Mapping[str, Any] | None = None,
    *,
    sorts: bool,
) -> NetworkSetup:
    """What the sentry is told of its network; called when init is started.

    ``kept`` is what the sandbox was told that is restored in this one, ``sorts`` as for
    :func:`runtime.network.setup.begin`.
    """
    deadline = time.monotonic() + NETWORK_TIMEOUT
    scrape, holdings.scrape = holdings.scrape, None
    if scrape is not None:
        return scrape.result(deadline)
    return network.scrape(pid, flags=flags, deadline=deadline, kept=kept, sorts=sorts)
