"""runsc's own state file: reads it, whoever wrote it, and writes it so that runsc can read it.

Owns the format, which is that of gVisor's ``runsc/container`` and ``runsc/sandbox`` at each
release: the structures as Go's encoding/json has them.  Pure but for reading and replacing the
file.  ``state/loaded_state.py`` judges what a container is from its state.
"""

from __future__ import annotations

import os

from runtime.base import fastjson, files
from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.base.json_fields import Fields, parse_object
from runtime.base.record import Record
from runtime.runsc.control_address import abstract_address
from runtime.state.lock import LOCK, STATE, StateLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_STATE = 16 << 20
#: As runsc: others of the group may read it.
MODE = 0o640
STATUSES = ("creating", "created", "running", "paused", "stopped")
#: The first release with control sockets in the file system.
_NEW_RELEASE = 20230920
#: Seconds for a file that somebody is writing; nothing takes long under its lock but a creation.
_HALF_WRITTEN_TIMEOUT = 2.0
_CGROUP_ROOT = "/sys/fs/cgroup"
_MAX_PID = 1 << 30
_MAX_ID = 0xFFFF_FFFF


class RunscState(Record):
    """What a state file says.  ``raw`` is all of it, so that rewriting it loses nothing."""

    raw: Mapping[str, Any]
    id: str
    sandbox_id: str
    status: str
    bundle: str
    created_at: str
    owner: str
    #: As it stands in the file.
    spec: Mapping[str, Any]
    gofer_pid: int
    sandbox_pid: int
    uid: int
    gid: int
    original_oom_score_adj: int
    #: A path, or an abstract name that begins with NUL.
    control_socket: str
    #: The sandbox's cgroup, and the container's own that is empty, in runsc's form.
    cgroup: Mapping[str, Any]
    compat_cgroup: Mapping[str, Any]
    #: (lower, upper) in Go's numbers: the root file system's, then each gofer mount's.
    mount_confs: tuple[tuple[int, int], ...]
    #: The day of the release, as 20240729; 0 where the file doesn't tell.
    release: int
    #: Sources of volumes that containers of the sandbox share.
    shared_sources: tuple[str, ...]

    @property
    def is_old(self) -> bool:
        """Whether the sandbox is of a release before the calls changed their form.

        That came at about the same time as control sockets in the file system, and as gofer mounts
        that are written down.
        """
        if self.release:
            return self.release < _NEW_RELEASE
        return self.control_socket.startswith("\0") or "goferMountConfs" not in self.raw

    def with_status(self, status: str) -> RunscState:
        """The same in another status."""
        return self.replace(status=status, raw={**self.raw, "status": status})


def decode(data: bytes, where: str) -> RunscState:
    """Read a state file; ``where`` names it in errors.  Raises InvalidRequest."""
    raw = parse_object(data, where, MAX_STATE)
    top = Fields(raw, where)
    sandbox = top.fields("sandbox") or Fields({}, where, "sandbox")
    saver = (top.fields("saver") or Fields({}, where)).fields("id") or Fields({}, where)
    container_id, sandbox_id = top.text("id"), saver.text("sandboxId") or sandbox.text("id")
    if not container_id or not sandbox_id:
        raise top.error("id", "is missing")
    status = top.text("status")
    if status not in STATUSES:
        raise top.error("status", f"{status[:20]!r} is none")
    spec = top.fields("spec")
    if spec is None:
        raise top.error("spec", "is missing")
    hints = (sandbox.fields("mountHints") or Fields({}, where)).fields("mounts")
    return RunscState(
        raw=raw,
        id=container_id,
        sandbox_id=sandbox_id,
        status=status,
        bundle=top.text("bundleDir"),
        created_at=top.text("createdAt"),
        owner=top.text("owner"),
        spec=spec.value,
        gofer_pid=top.integer("goferPid", 0, _MAX_PID) or 0,
        sandbox_pid=sandbox.integer("pid", 0, _MAX_PID) or 0,
        # -1 until the sandbox runs.
        uid=max(sandbox.integer("uid", -1, _MAX_ID) or 0, 0),
        gid=max(sandbox.integer("gid", -1, _MAX_ID) or 0, 0),
        original_oom_score_adj=sandbox.integer("originalOomScoreAdj", -1000, 1000) or 0,
        control_socket=_control_socket(sandbox, sandbox_id),
        cgroup=_cgroup(sandbox, "cgroup"),
        compat_cgroup=_cgroup(top, "compatCgroup"),
        mount_confs=tuple(
            (each.integer("lower", 0, 255) or 0, each.integer("upper", 0, 255) or 0)
            for each in top.all_fields("goferMountConfs")
        ),
        release=_release(sandbox),
        shared_sources=_shared_sources(hints) if hints is not None else (),
    )


def _control_socket(sandbox: Fields, sandbox_id: str) -> str:
    if "controlSocketPath" not in sandbox.value:
        return abstract_address(sandbox_id)
    path = sandbox.text("controlSocketPath")
    if path and not path.startswith("/"):
        raise sandbox.error("controlSocketPath", "is not absolute")
    return path


def _release(sandbox: Fields) -> int:
    """The day in a version such as ``0.0~20240729.0`` or ``release-20240729.0-5-gabc``."""
    metadata = sandbox.fields("metricMetadata")
    version = metadata.text("version") if metadata is not None else ""
    digits = "".join(c if c in "0123456789" else " " for c in version).split()
    return next((int(word) for word in digits if len(word) == 8), 0)


def _cgroup(fields: Fields, name: str) -> Mapping[str, Any]:
    found = fields.fields(name)
    return found.value if found is not None else {}


def _shared_sources(hints: Fields) -> tuple[str, ...]:
    """The sources of hinted tmpfs volumes that are one file system for several containers."""
    found = []
    for name in hints.value:
        hint = hints.fields(name)
        mount = hint.fields("mount") if hint is not None else None
        if mount is not None and mount.text("type") == "tmpfs" and mount.text("source"):
            found.append(mount.text("source"))
    return tuple(found)


def load(root: str, container_id: str, sandbox_id: str) -> RunscState | None:
    """The container's state; None if there is no file.  Raises Failed naming a corrupt file."""
    lock = StateLock(root, container_id, sandbox_id)
    path = lock.path.removesuffix(LOCK) + STATE
    try:
        try:
            state = _read(path)
        except InvalidRequest:
            # runsc writes in place: what is half there may be whole once the lock is free.
            with lock.acquire(_HALF_WRITTEN_TIMEOUT):
                state = _read(path)
    except OSError as error:
        raise Failed(f"state file {path}: {reason(error)}") from None
    except InvalidRequest as error:
        why = f"{error.field} {error.why}".strip() if error.field != path else error.why
        raise Failed(f"state file {path}: {why}") from None
    if state is not None and (state.id, state.sandbox_id) != (container_id, sandbox_id):
        raise Failed(f"state file {path}: it is another container's")
    return state


def _read(path: str) -> RunscState | None:
    data = files.read_bounded(path, MAX_STATE, ours=True)
    return None if data is None else decode(data, "")


def save(lock: StateLock, raw: Mapping[str, Any]) -> None:
    """Replace the state file of the container whose lock the caller holds.  Raises OSError.

    For ``state/writer.py`` alone.
    """
    path = lock.path.removesuffix(LOCK) + STATE
    files.replace_file(path, fastjson.dumps(raw).encode("ascii"), MODE)


# -- cgroups --------------------------------------------------------------------------------


def cgroup_json(ours: Mapping[str, Any] | None) -> dict[str, Any]:
    """A cgroup in runsc's form, given what our ``Cgroup.to_json`` says (gVisor runsc/cgroup).

    What runsc takes for its own, it removes: that is what we made.
    """
    if ours is None:
        return {"cgroupunknown": None}
    own = ours["own"]
    if ours["mode"] == "v1":
        made = {name: True for name, paths in own.items() if paths}
        return {"cgroupv1": {"name": ours["path"], "parents": None, "own": made}}
    # A scope is systemd's to remove, and runsc can't say so without its own driver.
    made_paths = [] if ours.get("driver") else list(own.get("", ()))
    return {
        "cgroupv2": {
            "mountpoint": _CGROUP_ROOT,
            "path": ours["path"],
            "controllers": [],
            "own": made_paths,
        }
    }


def own_cgroup_json(theirs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reverse: what runsc had to make, in the form of ours; None if there is no cgroup."""
    old = theirs.get("cgroupv1")
    new = theirs.get("cgroupv2") or theirs.get("cgroupsystemd")
    if isinstance(old, dict):
        own = old.get("own")
        parents = old.get("parents")
        made = {}
        for name, ours in own.items() if isinstance(own, dict) else ():
            parent = parents.get(name, "") if isinstance(parents, dict) else ""
            path = "/".join((_CGROUP_ROOT, name, str(parent), str(old.get("name"))))
            if ours is True:
                made[name] = [os.path.normpath(path)]
        return {"mode": "v1", "own": made}
    if isinstance(new, dict) and isinstance(new.get("own"), list):
        return {"mode": "v2", "own": {"": new["own"]}}
    return None
