"""What one container has acquired, and how it is given back.

Owns the order of release, and what the record on disk says, from which a later process can clean
up after a shim that died.  ``task/create.py`` acquires.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base import fastjson
from runtime.base.cleanup_steps import Steps
from runtime.base.errors import AlreadyExists, Failed, RuntimeFault, reason
from runtime.base.log import get_logger
from runtime.bundle.rootfs import unmount_all
from runtime.host.pids import Foreign
from runtime.runsc import control_results
from runtime.state import shim_record, writer
from runtime.state.writer import StateKeeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from runtime.cgroups.factory import Cgroup
    from runtime.cgroups.oom_score import SentryScore
    from runtime.cgroups.pod_limits import PodLimits
    from runtime.host.pids import ProcessHandle
    from runtime.network.setup import PendingScrape
    from runtime.sandbox.boot_params import BootParams
    from runtime.sandbox.checkpoint_image import Image
    from runtime.sandbox.files.image import FilesImage
    from runtime.sandbox.port_forward import PortForward
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.pod_memory import PodMemory

#: Seconds that ending a sandbox and removing its cgroup may take.
RELEASE_TIMEOUT = 8.0
#: Seconds for a cgroup at least, in which processes are still vanishing.
CGROUP_TIMEOUT = 0.5
_MAX_NETWORK = 1 << 19

_log = get_logger("holdings")


class Holdings:
    """What was acquired for one container.  ``release`` is idempotent and does every step."""

    def __init__(self, container_id: str, bundle: str, namespace: str, shim_address: str) -> None:
        self.container_id = container_id
        self.bundle = bundle
        self.namespace = namespace
        self.shim_address = shim_address
        #: The directory of the records.
        self.root = ""
        self.rootfs = ""
        #: Where the sentry runs; only the sandbox's first container holds it.
        self.cgroup: Cgroup | None = None
        #: That of the sandbox that this container is a guest in; not ours to remove.
        self.sandbox_cgroup: Cgroup | None = None
        #: Empty, and named after the container, for those who look for it there.
        self.own_cgroup: Cgroup | None = None
        #: What the containers of the sandbox share, and the first of them owns.
        self.memory: PodMemory | None = None
        self.pod_limits: PodLimits | None = None
        self.score: SentryScore | None = None
        self.sandbox: Sandbox | None = None
        #: Whether ``sandbox`` is this container's own, and not one that it is a guest in.
        self.owns_sandbox = True
        #: Where the control socket of a sandbox that is yet to boot will be.
        self.control_socket = ""
        self.scrape: PendingScrape | None = None
        self.port_forward: PortForward | None = None
        #: The program for it, as the sandbox's first container has it; empty if it hasn't.
        self.forward_program = ""
        #: The checkpoint that the container is to be restored from.
        self.image: Image | None = None
        #: What its sandbox's file systems are to be restored from.
        self.files_image: FilesImage | None = None
        #: Cgroups that are about to be made, in the form of their JSON.
        self.planned: tuple[Mapping[str, Any], ...] = ()
        #: With what the container is made.
        self.binary = ""
        self.flags: Mapping[str, str] = {}
        self.recorded = False
        #: The state file that runsc reads, too; None before the id is taken.
        self.keeper: StateKeeper | None = None
        #: How init ended, and when, once that is known.
        self._exit: tuple[int, float] | None = None
        #: How the sandbox's containers use the volumes that they share; see ``bundle/volumes.py``.
        self.volume_uses: dict[str, str] = {}
        self._lock = threading.Lock()

    def release(self, guests: Iterable[Holdings] = ()) -> None:
        """Free everything in reverse.  Continues past failures and raises one that names all.

        ``guests`` are what others hold whose sandbox is this container's: they end with it, and
        what they have on the host is freed as well, whether anybody ever deletes them or not.
        """
        steps = Steps()
        deadline = time.monotonic() + RELEASE_TIMEOUT

        def patience() -> float:
            return max(deadline - time.monotonic(), CGROUP_TIMEOUT)

        with self._lock:
            memory, score = self.memory, self.score
            if memory is not None and self.owns_sandbox:
                steps.run("stop watching its memory", memory.close)
            elif memory is not None:
                steps.run("forget its memory", memory.remove, self.container_id)
            if score is not None and not self.owns_sandbox:
                steps.run("adjust the oom score", score.remove, self.container_id)
            image, scrape = self.image, self.scrape
            if image is not None and steps.run("close the checkpoint", image.close):
                self.image = None
            files = self.files_image
            if files is not None and steps.run("close the saved files", files.close):
                self.files_image = None
            if scrape is not None and steps.run("end the network helper", scrape.cancel):
                self.scrape = None
            forward = self.port_forward
            if forward is not None and steps.run("end port forwarding", forward.close):
                self.port_forward = None
            sandbox = self.sandbox
            if sandbox is not None and self.owns_sandbox:
                steps.run("end the sandbox", sandbox.destroy, RELEASE_TIMEOUT)
            elif sandbox is not None:
                steps.run(
                    "end the container",
                    sandbox.destroy_subcontainer,
                    self.container_id,
                    deadline,
                )
            if self.rootfs:
                rootfs = self.rootfs
                if steps.run("unmount the rootfs", unmount_all, rootfs):
                    self.rootfs = ""
            for guest in guests:
                # Now, as their cgroups may be below ours.
                guest.release_for_host()
            own, cgroup = self.own_cgroup, self.cgroup
            if own is not None and steps.run("remove its cgroup", own.remove, patience()):
                self.own_cgroup = None
                if self.pod_limits is not None and not self.owns_sandbox:
                    self.pod_limits.cpus.leave(own)
            if cgroup is not None and steps.run("remove the cgroup", cgroup.remove, patience()):
                self.cgroup = None
            lock = self.keeper.lock if self.keeper is not None else None
            if not steps.faults and (self.recorded or (lock is not None and lock.held)):
                self.recorded = not steps.run(
                    "remove the record",
                    shim_record.remove,
                    self.root,
                    self.container_id,
                    lock,
                )
            if lock is not None:
                lock.release()
        for fault in steps.faults:
            _log.warning("release.step_failed", container=self.container_id, error=fault)
        steps.finish()

    def release_for_host(self) -> None:
        """Free what a guest holds, as its sandbox ends.  Never raises: its own delete is to come.

        That will try again what failed.
        """
        try:
            self.release()
        except RuntimeFault as fault:
            _log.warning("guest.not_freed", container=self.container_id, error=str(fault))

    def reserve(self, root: str, sandbox_id: str) -> None:
        """Take the id in the directory of the state files, from other processes as well.

        Raises AlreadyExists, DeadlineExceeded, Failed.
        """
        self.root = root
        keeper = StateKeeper(root, self.container_id, sandbox_id)
        try:
            keeper.reserve()
            if self.shim_address:
                # From now on there is something that a clean-up has to find.
                shim_record.write_locator(root, self.bundle)
        except OSError as error:
            keeper.lock.release()
            raise Failed(f"{keeper.lock.path}: {reason(error)}") from None
        self.keeper = keeper
        # One that an earlier release of ours made has no state file.
        older = shim_record.load_exact(root, self.container_id, sandbox_id)
        if older is not None and _runs(older):
            keeper.lock.release()
            self.keeper = None
            raise AlreadyExists("container", self.container_id)

    def record_state(self, params: BootParams, host: Holdings | None) -> None:
        """Write the container down as created in the file that runsc reads, and free its id's lock.

        ``host`` is what the container holds whose sandbox this one is in.  Raises Failed, and what
        the sentry's call raises where a metric server is configured.
        """
        keeper, sandbox = self.keeper, self.sandbox
        assert keeper is not None and sandbox is not None
        now = time.time_ns()
        if host is not None and host.keeper is not None:
            described = host.keeper.sandbox
        else:
            described = writer.describe_sandbox(
                params,
                sandbox,
                cgroup=self.cgroup,
                registered=_registered_metrics(sandbox),
                started=now,
            )
        body = writer.describe(
            params,
            self.root,
            sandbox=described,
            gofer=sandbox.gofer_of(self.container_id),
            own_cgroup=self.own_cgroup,
            created=now,
        )
        try:
            keeper.created(body)
        except OSError as error:
            raise Failed(f"state file: {reason(error)}") from None

    def status_changed(self, status: str, **members: Any) -> None:
        """Write down that the container runs, or is paused, and what else has changed.

        Never raises.
        """
        if self.keeper is not None:
            self.keeper.changed(status, **members)

    def record_exit(self, status: int, at: float) -> None:
        """Write down how init ended, unless all is given back already.  Never raises."""
        with self._lock:
            if not self.recorded or self._exit is not None:
                return
            self._exit = (status, at)
            writer.attempt("exit", self.container_id, self.record)

    def record(self) -> None:
        """Write down what a clean-up needs that can't ask us.  Raises Failed."""
        sandbox = self.sandbox
        boot, gofer = None, None
        if sandbox is not None and self.owns_sandbox:
            boot, gofer = _pinned(sandbox.child), sandbox.gofer_child
        writer.record(
            self.root,
            shim_record.ContainerRecord(
                id=self.container_id,
                sandbox_id=sandbox.id if sandbox is not None else self.container_id,
                is_root=self.owns_sandbox,
                namespace=self.namespace,
                bundle=self.bundle,
                rootfs=self.rootfs,
                owns_rootfs=bool(self.rootfs),
                boot=boot,
                gofers=(_pinned(gofer),) if gofer is not None else (),
                cgroups=self._cgroups(),
                control_socket=(
                    sandbox.control_address if sandbox is not None else self.control_socket
                ),
                filestores=sandbox.filestores if boot is not None and sandbox is not None else (),
                shim_address=self.shim_address,
                # Others than a shim are gone soon, and nobody waits for them.
                shim_pid=os.getpid() if self.shim_address else 0,
                pid=sandbox.pid if sandbox is not None else 0,
                exit_status=self._exit[0] if self._exit is not None else None,
                exited_at=self._exit[1] if self._exit is not None else None,
                binary=self.binary,
                flags=self.flags,
                network=taken_over(sandbox) if boot is not None else None,
            ),
            locator=bool(self.shim_address),
        )
        self.recorded = True

    def record_network(self) -> None:
        """Write down what the sentry was told of its network, where it took one over.

        Never raises: without it there is one restore less that works.
        """
        with self._lock:
            if not self.recorded or taken_over(self.sandbox) is None:
                return
            writer.attempt("network", self.container_id, self.record)

    def _cgroups(self) -> tuple[Mapping[str, Any], ...]:
        made = tuple(c.to_json() for c in (self.own_cgroup, self.cgroup) if c is not None)
        return made or self.planned


def _registered_metrics(sandbox: Sandbox) -> Mapping[str, Any] | None:
    """The sentry's metrics, where a metric server is to have them, in the form of the state file.

    Asked before any process runs, as whoever scrapes them checks them by it.  Raises what the call
    raises.
    """
    if not sandbox.settings.metric_server:
        return None
    return control_results.registered_metrics(
        sandbox.control.call("Metrics.GetRegisteredMetrics", {})
    )


def _runs(record: shim_record.ContainerRecord) -> bool:
    process = record.boot
    if process is None or record.boot_id != shim_record.boot_id():
        return False
    handle = Foreign.open(process.pid, process.start_time)
    if handle is None:
        return False
    with handle:
        return not handle.wait_gone(0)


def taken_over(sandbox: Sandbox | None) -> Mapping[str, Any] | None:
    """What the sentry was told of links whose addresses the host has no more; None if of none."""
    argument = sandbox.network_argument if sandbox is not None else None
    if argument is None or not argument.get("FDBasedLinks"):
        return None
    if len(fastjson.dumps(argument)) > _MAX_NETWORK:
        # The record must stay readable, as what cleans up hangs on it.
        _log.warning("network.not_recorded", container=sandbox.id if sandbox is not None else "")
        return None
    return argument


def _pinned(child: ProcessHandle) -> shim_record.Pinned:
    return shim_record.Pinned(pid=child.pid, start_time=child.start_time)
