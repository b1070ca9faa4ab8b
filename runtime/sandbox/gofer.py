"""A gofer: the process that serves one container's files to the sentry.

Owns its start, the connections to it until they are handed on, and its end.  A gofer ends by
itself once the sentry has closed all connections, and still has to be reaped.
"""

from __future__ import annotations

import _socket
import os
import select
import threading
import time

from runtime.base import fastjson
from runtime.base.errors import DeadlineExceeded, Failed, reason
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.bundle.masked_paths import special_files
from runtime.bundle.mount_points import missing
from runtime.host import forward_program
from runtime.host.child_log import ChildLog
from runtime.host.children import Child, describe_status
from runtime.host.fds import FdSet, open_namespace
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import IdMap, SpawnSpec
from runtime.runsc.donated_files import open_files
from runtime.runsc.driver import CLONE_NEWNS, CLONE_NEWUSER, GoferCommand, MountConf, user_maps
from runtime.sandbox.accelerators import needs_device_gofer
from runtime.sandbox.gofer_mounts import (
    MountPlan,
    is_gofer_mount,
    plan_mounts,
    remove_filestores,
    require_sources,
    shared_sources,
)
from runtime.sandbox.spec_file import spec_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bundle.spec import Mount, Spec
    from runtime.host.pids import ProcessHandle
    from runtime.host.reactor import Reactor, Watch
    from runtime.runsc.flags import Settings
    from runtime.sandbox.boot_params import BootParams

_log = get_logger("gofer")
_MAX_MOUNTS = 16 << 20
#: Seconds that a gofer whose sentry has closed its connections has to write its profiles.
_LAST_FILES_TIMEOUT = 1.0
# Of all gofers' watches; a leaf but for the reactor's.
_watching = threading.Lock()


class Gofer:
    """A running gofer.  One thread at a time."""

    def __init__(
        self,
        plan: MountPlan,
        fds: FdSet,
        log: ChildLog | None = None,
        child: ProcessHandle | None = None,
    ) -> None:
        self.plan = plan
        #: Its process; None before it is started, or if another process started it and it is gone.
        self.child = child
        self._log = log
        self._fds = fds
        #: Whether it writes files when it ends by itself.
        self.writes_at_end = False
        self._watch: Watch | None = None  # guarded by _watching; cancelled, once it has ended
        # What is still to be started, and what only that needs; None once it is.
        self._wanted: SpawnSpec | None = None
        self._own = FdSet()
        #: The sentry's ends of the connections, root first.  Valid until ``release``.
        self.io_fds: tuple[int, ...] = ()
        #: That for device files, or -1.  Valid until ``release``.
        self.device_io_fd = -1
        #: Where the gofer writes the mounts with their links resolved.  Valid until ``release``.
        self.mounts_fd = -1

    @classmethod
    def prepare(
        cls,
        params: BootParams,
        settings: Settings,
        sandbox_id: str,
        hints: Mapping[str, str],
    ) -> Gofer:
        """A gofer for a container, all but started: the sentry may be given its ends already.

        ``hints`` are the annotations of the sandbox's root container.  Raises Failed; then
        nothing is left.  Otherwise ``stop`` is to be called in the end, started or not.
        """
        spec, driver = params.spec, params.driver
        with FdSet() as ours:
            sentrys = FdSet()
            plan = MountPlan(confs=())
            log = None
            try:
                plan = plan_mounts(spec, settings, driver.generation, sandbox_id, hints, sentrys)
                if plan.serves_itself:
                    if not needs_device_gofer(spec, settings):
                        return cls._none(spec, plan, sentrys)
                    plan = plan.replace(confs=(MountConf(), *plan.confs[1:]))
                log = ChildLog("gofer-log")
                if driver.generation.gofer_rpc:
                    require_sources(spec, plan.confs)
                special = special_files(spec, driver.generation.has_newer_proc_files)
                given = spec
                spec, attach = _reachable(spec, plan, hints, params.config.state_dir, ours)
                if special:
                    from runtime.sandbox.idmapped_mounts import covering

                    attach = covering(special, given, spec, attach)
                if points := missing(given.root_path, _served(given, plan)):
                    from runtime.sandbox.idmapped_mounts import with_points

                    attach = with_points(points, attach)
                pairs = [_pair(sentrys, ours) for _ in range(plan.sockets)]
                devices = _pair(sentrys, ours) if needs_device_gofer(spec, settings) else (-1, -1)
                mounts_read, mounts_write = os.pipe2(os.O_CLOEXEC)
                sentrys.add(mounts_read)
                ours.add(mounts_write)
                rpc_fd = -1
                if driver.generation.gofer_rpc:
                    # Insisted on, but only for sources that it can't reach: nobody serves it.
                    rpc_fd, _ = ours.socketpair()
                files = open_files(
                    settings.effective,
                    "gofer",
                    sandbox_id,
                    params.id,
                    driver.generation.gofer_flags,
                    ours,
                )
                command = driver.gofer_command(
                    params.config.state_dir,
                    settings,
                    GoferCommand(
                        container_id=params.id,
                        bundle=spec.bundle,
                        spec_fd=spec_file(spec, params.tty, ours),
                        mounts_fd=mounts_write,
                        io_fds=tuple(theirs for _, theirs in pairs),
                        device_io_fd=devices[1],
                        confs=plan.confs,
                        rpc_fd=rpc_fd,
                        files=files,
                    ),
                )
                credentials = driver.gofer_credentials(settings, spec)
                join = []
                if attach is not None:
                    from runtime.sandbox.idmapped_mounts import mount_namespace

                    # Before any user namespace: see there.
                    join.append((mount_namespace(attach, ours), CLONE_NEWNS))
                program, keep = driver.gofer_program
                wanted = SpawnSpec(
                    path=program,
                    keep=keep,
                    argv=command.argv,
                    # Nothing of ours is the business of what serves a container's files.
                    env={},
                    drop_groups=True,
                    fds={1: log.fd, 2: log.fd, **command.fds},
                    namespaces=driver.gofer_namespaces(),
                    join=tuple(join),
                    uid=credentials.uid,
                    gid=credentials.gid,
                    cgroup_procs=params.cgroup_procs,
                    cgroup_fd=params.cgroup_fd,
                    setsid=driver.gofer_session,
                    oom_score_adj=spec.process.oom_score_adj,
                    pdeathsig=SIGKILL if params.attached else 0,
                    # It shares no memory that would need one.
                    no_membarrier=True,
                )
                wanted = in_user_namespace(wanted, credentials.user_namespace, spec, ours)
            except BaseException:
                sentrys.close()
                if log is not None:
                    log.close()
                remove_filestores(plan.filestores)
                raise
            gofer = cls(plan, sentrys, log)
            gofer.io_fds = tuple(end for end, _ in pairs)
            gofer.device_io_fd = devices[0]
            gofer.mounts_fd = mounts_read
            gofer._wanted = wanted
            gofer.writes_at_end = files.at_end
            gofer._own.take(ours)
        return gofer

    @classmethod
    def _none(cls, spec: Spec, plan: MountPlan, fds: FdSet) -> Gofer:
        """In the place of one where the sentry mounts all by itself.  Raises Failed."""
        path = spec.root_path + forward_program.IMAGE
        try:
            image = fds.add(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError as error:
            raise Failed(f"{path}: {reason(error)}") from None
        gofer = cls(plan, fds)
        gofer.io_fds = (image,)
        return gofer

    def launch(self) -> None:
        """Start it; doesn't wait for it to be ready.  Raises Failed; then nothing is left.

        Does nothing where none is needed.
        """
        wanted, self._wanted = self._wanted, None
        if wanted is None:
            return
        try:
            self.child = spawn(wanted)
        except BaseException:
            self.stop(0)
            remove_filestores(self.plan.shared_filestores)
            raise
        finally:
            self._own.close()

    @property
    def pid(self) -> int:
        """0 without a process."""
        return self.child.pid if self.child is not None else 0

    def kill(self) -> None:
        """SIGKILL.  Thread-safe, no error if it is dead."""
        if self.child is not None:
            self.child.kill(SIGKILL)

    @property
    def killed(self) -> bool:
        """Whether it was ended by a SIGKILL; with its sentry it ends by itself."""
        raw = self.child.poll() if self.child is not None else None
        return raw is not None and raw & 0x7F == SIGKILL

    def on_loss(self, reactor: Reactor, callback: Callable[[int], None]) -> None:
        """Have the reactor call back once, with the wait status, if it is killed or fails.

        Not for one that ends by itself, nor after ``stop``.  Only the first call counts; without a
        process, or with one of another process's, none does, as nobody learns how such a one ended.
        Thread-safe.  Raises what :meth:`Reactor.watch` raises.
        """
        child = self.child
        if not isinstance(child, Child):
            return

        def look(_: int) -> None:
            raw = child.poll()
            if raw is None:
                return
            with _watching:
                watch = self._watch
                if watch is None:
                    return
                watch.cancel()
            if raw:
                callback(raw)

        with _watching:
            if self._watch is None and child.pidfd >= 0:
                # Also where it has ended already: its pidfd says so.
                self._watch = reactor.watch(child.pidfd, select.EPOLLIN, look)

    def _unwatch(self) -> None:
        with _watching:
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.cancel()

    def release(self) -> None:
        """Close what was for the sentry, once it has its own.  Idempotent."""
        self._fds.close()
        self.io_fds, self.device_io_fd, self.mounts_fd = (), -1, -1

    def read_mounts(self, deadline: float) -> list[Any]:
        """The mounts as the gofer has resolved them, once it is ready.

        Raises Failed with the gofer's own words if it dies first, DeadlineExceeded.
        """
        data = bytearray()
        poll = select.poll()
        poll.register(self.mounts_fd, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise DeadlineExceeded("gofer: list of mounts", max(left, 0.0))
            chunk = os.read(self.mounts_fd, 65536)
            if not chunk:
                break
            data += chunk
            if len(data) > _MAX_MOUNTS:
                raise Failed(f"gofer: list of mounts is larger than {_MAX_MOUNTS} bytes")
        try:
            mounts = fastjson.loads(data)
        except ValueError:
            mounts = None
        if not isinstance(mounts, list):
            raise Failed(f"gofer: {self.message(deadline) or 'no list of mounts'}")
        return mounts

    def message(self, deadline: float) -> str:
        """The gofer's last words if it has ended, or ends by ``deadline``."""
        if self.child is None or self._log is None:
            return ""
        try:
            raw = self.child.wait(max(deadline - time.monotonic(), 0.0))
        except DeadlineExceeded:
            return ""
        if not raw:
            return ""
        return self._log.message() or f"gofer ended: {describe_status(raw)}"

    def let_finish(self) -> None:
        """Let one that nobody is connected to any more write what it writes at its end.

        Returns in any case.
        """
        if self.writes_at_end and self.child is not None:
            try:
                self.child.wait(_LAST_FILES_TIMEOUT)
            except DeadlineExceeded as fault:
                _log.warning("gofer.files_unfinished", pid=self.child.pid, error=str(fault))

    def stop(self, timeout: float) -> None:
        """Kill and reap it and remove its filestores.  Idempotent, does every step.

        Raises Failed naming what did not work, DeadlineExceeded if it can't be reaped in time.
        """
        self._unwatch()
        self.release()
        self._own.close()
        self.let_finish()
        child = self.child
        try:
            if child is not None:
                if child.poll() is None:
                    child.kill(SIGKILL)
                    child.wait(timeout)
                child.close()
        finally:
            if self._log is not None:
                self._log.close()
            remove_filestores(self.plan.filestores)


def _served(spec: Spec, plan: MountPlan) -> list[Mount]:
    """The bind mounts that the gofer itself mounts, and not the sentry."""
    bound = [mount for mount in spec.mounts if is_gofer_mount(mount)]
    confs = plan.confs[1:]
    return [m for m, conf in zip(bound, confs, strict=True) if conf.lower == "lisafs"]


def _reachable(
    spec: Spec, plan: MountPlan, hints: Mapping[str, str], directory: str, fds: FdSet
) -> tuple[Spec, Callable[[], None] | None]:
    """The spec with sources that the gofer can reach, and what has to be done for it."""
    if "user" not in spec.namespaces and not any(mount.id_mapped for mount in spec.mounts):
        return spec, None
    # The sentry finds those that containers share by their sources.
    kept = shared_sources(hints)
    served = [mount for mount in _served(spec, plan) if mount.source not in kept]
    if not served:
        return spec, None
    from runtime.sandbox.idmapped_mounts import lend

    return lend(spec, served, directory, fds)


def _pair(sentrys: FdSet, gofers: FdSet) -> tuple[int, int]:
    one, other = _socket.socketpair()
    return sentrys.add(one.detach()), gofers.add(other.detach())


def in_user_namespace(wanted: SpawnSpec, kind: str, spec: Spec, fds: FdSet) -> SpawnSpec:
    """``wanted`` in the user namespace that its credentials ask for; "" for ours.

    The spec's own is entered last, as the other namespaces take the shim's rights.  Raises Failed.
    """
    if not kind:
        return wanted
    if kind == "spec" and (path := spec.namespaces.get("user", "")):
        return wanted.replace(join=(*wanted.join, (open_namespace(path, fds), CLONE_NEWUSER)))
    uids, gids = (
        tuple(IdMap(container_id=a, host_id=b, size=n) for a, b, n in maps)
        for maps in user_maps(kind, spec)
    )
    namespaces = wanted.namespaces | CLONE_NEWUSER
    return wanted.replace(namespaces=namespaces, uid_maps=uids, gid_maps=gids)
