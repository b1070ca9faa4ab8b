"""A checkpoint of a sandbox that another process made, from what its files and its sentry tell.

Owns finding out what a shim knows of its own sandboxes: what the sentry was told of its network,
which containers live, and whether execs run.  Synchronous, without a reactor.
"""

from __future__ import annotations

from runtime.base.errors import NotFound
from runtime.runsc.urpc import DEFAULT_TIMEOUT
from runtime.sandbox import checkpoint
from runtime.sandbox.files import image as files_image
from runtime.state import writer
from runtime.state.loaded_state import PAUSED, RUNNING, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from runtime.runsc.control import SandboxProcess
    from runtime.runsc.release import Generation
    from runtime.state.loaded import StoredContainer
    from runtime.state.shim_record import ContainerRecord


def save(
    container: StoredContainer,
    path: str,
    *,
    generation: Generation,
    leave_running: bool,
    compression: str = "",
    timeout: float = checkpoint.TIMEOUT,
) -> None:
    """Save the container's whole sandbox in directory ``path``; it ends then, or runs on.

    ``generation`` is that of the sentry's binary.  The sentry forgets the members that have
    stopped, which would make an image that no pod restores.  Raises InvalidState unless the
    container and all others that haven't stopped are running or paused, and what
    :func:`runtime.sandbox.checkpoint.save` raises.
    """
    status = container.require("checkpoint", RUNNING, PAUSED)
    family, _ = container.load_sandbox(container.root, container.sandbox_id)
    family.sort(key=lambda each: (not each.is_root, each.created_at))
    live: list[StoredContainer] = []
    stopped: list[StoredContainer] = []
    for each in family:
        # The sentry would wait for one that was never started when the pod is restored.
        found = each.require("checkpoint", RUNNING, PAUSED, *(() if each.is_root else (STOPPED,)))
        (stopped if found == STOPPED else live).append(each)
    control = container.control()
    # Before anything is changed.  Where nobody can tell, nothing is saved: the call raises.
    execs = sum(count_execs(control.processes(each.id, DEFAULT_TIMEOUT)) for each in live)
    for each in stopped:
        _forget(each)
    checkpoint.save(
        checkpoint.Original(
            id=container.sandbox_id,
            control=control,
            generation=generation,
            containers=tuple(
                checkpoint.describe(each.spec, each.spec.process.terminal) for each in live
            ),
            execs=execs,
            paused=status == PAUSED,
            network=network_of(live),
        ),
        path,
        leave_running=leave_running,
        compression=compression,
        timeout=timeout,
    )


def save_files(
    container: StoredContainer,
    path: str,
    paths: Sequence[tuple[str, str]],
    *,
    generation: Generation,
    leave_running: bool,
    timeout: float = checkpoint.TIMEOUT,
) -> None:
    """Save file systems of the container's sandbox alone in directory ``path``.

    ``paths`` are container names and paths of mounts.  It ends then, with status 0, or runs on.
    Raises as :func:`runtime.sandbox.files.image.save` does, and goes on then; InvalidState.
    """
    files_image.require(generation)
    status = container.require("checkpoint", RUNNING, PAUSED)
    control = container.control()
    freeze = not leave_running and status != PAUSED
    if freeze:
        control.pause(timeout)  # what runs on would write what is lost then
    try:
        files_image.save(control, generation, path, paths, timeout=timeout)
    except BaseException:
        if freeze:
            checkpoint.resume(control)
        raise
    if not leave_running:
        checkpoint.end_frozen(control, container.sandbox_id, timeout)


def count_execs(processes: Iterable[SandboxProcess]) -> int:
    """How many of a live container's processes were brought in beside its init.  Pure.

    These have no parent in the sandbox, whatever pid namespace they are in, and nor has init;
    what loses its parent later is given to the namespace's init (gVisor's
    ``pkg/sentry/kernel/task_exit.go``).  So what an exec left behind isn't told from init's own.
    """
    return max(len([each for each in processes if each.ppid == 0]) - 1, 0)


def network_of(members: Sequence[StoredContainer]) -> Mapping[str, Any] | None:
    """What the sentry was told of a network that it took over; None if it took none, or if runsc
    started it, which writes nothing down."""
    for each in members:
        if each.is_root and each.record is not None:
            return each.record.network
    return None


def _record_exit(member: StoredContainer, record: ContainerRecord) -> None:
    status = member.wait(DEFAULT_TIMEOUT)
    writer.record(member.root, record.replace(exit_status=status))


def _forget(member: StoredContainer) -> None:
    """Have the sentry forget a container whose init has ended."""
    record = member.record
    if record is not None and not record.shim_pid and record.exit_status is None:
        # Its exit is with the sentry alone; a shim's was written down by the shim.
        writer.attempt("exit", member.id, lambda: _record_exit(member, record))
    try:
        member.control().destroy_subcontainer(member.id, DEFAULT_TIMEOUT)
    except NotFound:
        return  # it had forgotten
