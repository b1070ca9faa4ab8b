"""Ends a container that another process started, and frees all that it holds, whatever fails.

Owns the rules of which container may be destroyed, and the list of what there is to free according
to runsc's state file.  ``teardown.py`` frees it, as it does for a dead shim's containers.
"""

from __future__ import annotations

import os
import time

from runtime.base.cleanup_steps import Steps
from runtime.base.errors import (
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unreachable,
)
from runtime.base.log import get_logger
from runtime.bundle.hook_spec import POSTSTOP
from runtime.cgroups import oom_score
from runtime.host import children
from runtime.sandbox.gofer_mounts import is_gofer_mount
from runtime.state import shim_record as state
from runtime.state import teardown
from runtime.state.loaded_state import CREATED, STOPPED
from runtime.state.lock import StateLock
from runtime.state.runsc_state import own_cgroup_json
from runtime.state.shim_record import ContainerRecord, Pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.pids import Foreign
    from runtime.state.loaded_state import StoredState
    from runtime.state.runsc_state import RunscState

_log = get_logger("destroy")
_FILESTORE = ".gvisor.filestore."
#: Go's number of an overlay whose changes go to a file in the file system itself.
_UPPER_SELF = 2


def destroy(container: StoredState, force: bool, timeout: float) -> None:
    """See :meth:`runtime.state.loaded.StoredContainer.destroy`."""
    deadline = time.monotonic() + timeout
    if not container.is_stored():
        return
    status = container.status()
    if not force and status not in (CREATED, STOPPED):
        raise InvalidState("delete", container.subject, status)
    steps = Steps()
    lock = StateLock(container.root, container.id, container.sandbox_id)
    steps.run("lock", lock.acquire, min(timeout, 5.0))
    try:
        if not container.is_root:
            steps.run(f"end {container.subject}", _leave_sandbox, container, deadline)
        left = max(deadline - time.monotonic(), 1.0)
        record = describe(container)
        # Two containers may be made of one bundle: only a creation that was cut short, whose
        # processes nobody wrote down, leaves some to be looked for.
        strays = record.boot is None and not record.gofers and container.stored is None
        outcome = teardown.destroy(container.root, (record,), left, lock=lock, strays=strays)
    finally:
        lock.release()
    # They may be of our own making.
    children.collect()
    steps.faults += (*outcome.failures, *outcome.leftovers)
    if not container.is_root:
        # The end of the first container is the end of the sandbox.
        steps.run("adjust the oom score", adjust_score, container)
    steps.run("poststop hooks", _run_poststop, container)
    steps.finish(f"destroy {container.subject}: ")


def adjust_score(container: StoredState) -> None:
    """Give the sentry the oom_score_adj that its containers make of it, as far as they are known.

    With the last one that asked for a score gone, the original is back.  A sandbox that has ended
    needs none.  Raises Failed as :func:`runtime.cgroups.oom_score.set_score` does.
    """
    siblings, problems = container.load_sandbox(container.root, container.sandbox_id)
    root = next((each for each in siblings if each.is_root), None)
    process = root.sandbox_process() if root is not None else None
    if root is None or process is None:
        return
    with process:
        asked = [(each.spec.container_type, each.spec.process.oom_score_adj) for each in siblings]
        if root.stored is None or problems:
            return  # a score that leaves somebody out would be wrong
        score = oom_score.sandbox_score(asked, root.stored.original_oom_score_adj)
        # It may end at any moment, and neither of the two minds.
        if oom_score.get_score(process.pid) not in (None, score):
            oom_score.set_score(process.pid, score)


def _run_poststop(container: StoredState) -> None:
    """Once: the files are gone, so nobody can load the container any more.

    A hook's failure is a warning, as the OCI has it.
    """
    try:
        spec = container.spec
    except RuntimeFault as fault:
        _log.warning("hooks.unknown", container=container.id, error=str(fault))
        return
    if POSTSTOP not in spec.hooks:
        return
    from runtime.bundle import hooks

    if container.record is not None:
        hooks.settle_poststop(spec, container.id)
    else:
        # Whoever made it wrote down nowhere that they are owed.
        state = hooks.state_of(spec, container.id, "stopped")
        hooks.run_all(spec, POSTSTOP, state, time.monotonic() + hooks.POSTSTOP_TIMEOUT)


def _leave_sandbox(container: StoredState, deadline: float) -> None:
    """Have the sentry end one container of several."""

    def ask() -> None:
        left = max(deadline - time.monotonic(), 1.0)
        container.control().destroy_subcontainer(container.id, left)

    try:
        try:
            ask()
        except Unreachable:
            ask()  # once more, as it may run on
    except (NotFound, SandboxGone):
        return


def describe(container: StoredState) -> ContainerRecord:
    """All that there is to free, in the form of our own record."""
    stored, record = container.stored, container.record
    gofers = tuple(p for p in (_pin(container.gofer_process()),) if p is not None)
    if record is not None:
        # What its start added is in the state file alone.
        more = _filestores(container, stored) if stored is not None else ()
        filestores = tuple(dict.fromkeys(record.filestores + more))
        return record.replace(gofers=record.gofers or gofers, filestores=filestores)
    assert stored is not None
    cgroups = [own_cgroup_json(stored.compat_cgroup)]
    if container.is_root:
        # Their removal is in this order.
        cgroups.append(own_cgroup_json(stored.cgroup))
    return ContainerRecord(
        id=container.id,
        sandbox_id=container.sandbox_id,
        is_root=container.is_root,
        bundle=container.bundle,
        # Whoever called runsc made its root file system.
        owns_rootfs=False,
        boot=_pin(container.sandbox_process()) if container.is_root else None,
        gofers=gofers,
        cgroups=tuple(each for each in cgroups if each is not None),
        control_socket=stored.control_socket if container.is_root else "",
        filestores=_filestores(container, stored),
        boot_id=state.boot_id(),
    )


def _pin(process: Foreign | None) -> Pinned | None:
    if process is None:
        return None
    with process:
        return Pinned(pid=process.pid, start_time=process.start_time)


def _filestores(container: StoredState, stored: RunscState) -> tuple[str, ...]:
    """The files that hold what was changed in overlaid file systems."""
    try:
        spec = container.spec
    except RuntimeFault as fault:
        _log.warning("filestores.unknown", container=container.id, error=str(fault))
        return ()
    sources = [spec.root_path, *(m.source for m in spec.mounts if is_gofer_mount(m))]
    found = [
        source
        for source, (_, upper) in zip(sources, stored.mount_confs, strict=False)
        if upper == _UPPER_SELF and source not in stored.shared_sources
    ]
    if container.is_root:
        # Shared ones go with the sandbox.
        found += stored.shared_sources
    return tuple(os.path.join(source, _FILESTORE + container.sandbox_id) for source in found)
