"""New limits for a container that another process made, all of them or none.

Owns who makes the change.  A container that a shim serves is left to the shim, which knows the old
limits and acts by them.  Any other container's cgroups are in its record, and so are the limits of
an earlier update, since no process remembers them.  ``cgroups/pod_limits.py`` and the cgroup write
the limits.
"""

from __future__ import annotations

from runtime.base.errors import InvalidState, NotFound, RuntimeFault, Unsupported
from runtime.base.log import get_logger
from runtime.cgroups import factory, placement
from runtime.cgroups.pod_limits import PodLimits, merged, shifted
from runtime.cgroups.resources import parse
from runtime.sandbox import inner_limits
from runtime.state import writer
from runtime.state.loaded_state import CREATED, PAUSED, RUNNING
from runtime.state.lock import StateLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.cgroups.factory import Cgroup
    from runtime.state.loaded import StoredContainer
    from runtime.state.shim_record import ContainerRecord

    #: Asks a container's shim for an update.
    AskShim = Callable[[ContainerRecord, Mapping[str, Any]], None]

_log = get_logger("update")


def update(
    container: StoredContainer, resources: Mapping[str, Any], ask_shim: AskShim | None = None
) -> None:
    """Change the limits that ``resources`` (``linux.resources``) names.

    The first container of a sandbox has that one's cgroup.  Another's go to its own, empty
    cgroup, where they can be seen, and the limits of a pod that are its containers' sums follow.
    Raises InvalidState unless it is created, running or paused, or if it has no cgroup;
    Unsupported for a container of runsc's or where there is no way to its shim; and what
    :meth:`runtime.cgroups.factory.Cgroup.update` and ``ask_shim`` do.
    """
    parse(resources)
    container.require("update", CREATED, RUNNING, PAUSED)
    record = container.record
    if record is None:
        raise Unsupported(f"{container.subject} was made by runsc, which changes no limits")
    if record.shim_address:
        if ask_shim is None:
            raise Unsupported(f"the limits of {container.subject} are its shim's to change")
        ask_shim(record, resources)
        return
    # What follows from the sandbox's limits is told by them, so that lock comes first.
    with StateLock(container.root, container.sandbox_id, container.sandbox_id).acquire():
        if container.is_root:
            _update_root(container.reload(), resources)
            _show(container, resources)
            return
        with StateLock(container.root, container.id, container.sandbox_id).acquire():
            _update_member(container.reload(), resources)
            _show(container, resources)


def _show(container: StoredContainer, resources: Mapping[str, Any]) -> None:
    """Have the container see them, if it has its cgroups mounted.  Never raises."""
    wanted = inner_limits.files(resources)
    if not wanted or not any(mount.type == "cgroup" for mount in container.spec.mounts):
        return
    try:
        inner_limits.write(container.control(), container.id, wanted)
    except RuntimeFault as fault:
        _log.info("limits.not_shown", container=container.id, error=str(fault))


def _update_root(root: StoredContainer, resources: Mapping[str, Any]) -> None:
    old = _sums(root)
    new = merged(old, resources)
    parse(new)
    _cgroup(root).update(resources)
    _note(root, new)


def _update_member(member: StoredContainer, resources: Mapping[str, Any]) -> None:
    record = member.record
    old = record.resources if record is not None else None
    old = member.spec.resources if old is None else old
    new = merged(old, resources)
    parse(new)
    own = _cgroup(member)
    root = member.load_exact(member.root, member.sandbox_id, member.sandbox_id)
    if root.spec.container_type != "sandbox":
        own.update(resources)
    else:
        sums = _sums(root)
        PodLimits(_cgroup(root), sums).update(lambda now: shifted(now, old, new), own, resources)
        _note(root, merged(sums, shifted(sums, old, new)))
    _note(member, new)


def _sums(root: StoredContainer) -> Mapping[str, Any]:
    """The limits of a sandbox as they are."""
    if root.record is not None and root.record.resources is not None:
        return root.record.resources
    mode = factory.host_mode()
    return placement.place(root.spec, root.id, mode, limits_of=factory.limits_of).resources


def _cgroup(container: StoredContainer) -> Cgroup:
    """The one with its limits: a root container's own, empty one is before the sandbox's."""
    record = container.record
    if record is None:
        raise NotFound("container", container.id)
    if not record.cgroups:
        raise InvalidState("update", container.subject, "running without a cgroup")
    return factory.from_json(record.cgroups[-1])


def _note(container: StoredContainer, resources: Mapping[str, Any]) -> None:
    if container.record is not None:
        writer.record(container.root, container.record.replace(resources=resources))
