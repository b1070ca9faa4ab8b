"""FUSE file systems whose daemon has stopped answering, and so keep processes from dying.

A process that waits for a FUSE daemon's answer can't be killed before the daemon ends or the
connection is aborted.  A CSI driver that hangs would keep a pod from being removed.

Owns the abortion of connections, and the rule that they must be the pod's alone.  Reads the table
of mounts only: to look at a path in such a file system would hang as well.
"""

from __future__ import annotations

import os

from runtime.base import fastjson, files
from runtime.base.errors import InvalidRequest
from runtime.base.log import get_logger
from runtime.host import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from runtime.host.mountinfo import Mounted


_UID = "io.kubernetes.cri.sandbox-uid"
_LOG_DIRECTORY = "io.kubernetes.cri.sandbox-log-directory"
_CONTROL = "/sys/fs/fuse/connections"
_FUSECTL_MAGIC = 0x65735543
_MAX_NUMBER = 32
_MAX_SPEC = 10 << 20

_log = get_logger("fuse")


def pod_directories(specs: Iterable[Mapping[str, Any]]) -> set[str]:
    """The kubelet's directory of a pod, as its containers' mounts tell it; or nothing.

    That is ``<kubelet's root>/pods/<uid>``, of which only the uid is known.  ``specs`` are the
    containers' config.json; what isn't as it should be in them is left out.
    """
    specs = list(specs)
    uids = {uid for spec in specs if (uid := _uid(spec))}
    found = set()
    for source in (source for spec in specs for source in _sources(spec)):
        for uid in uids:
            head, separator, _ = source.partition(f"/pods/{uid}/")
            if separator and ".." not in source.split("/"):
                found.add(f"{head}/pods/{uid}")
    return found


def _uid(spec: Mapping[str, Any]) -> str:
    annotations = spec.get("annotations")
    if not isinstance(annotations, dict):
        return ""
    # The directory of its logs is NAMESPACE_NAME_UID.
    logs = str(annotations.get(_LOG_DIRECTORY, "")).rstrip("/").rpartition("/")[2]
    uid = annotations.get(_UID) or logs.rpartition("_")[2]
    return uid if isinstance(uid, str) and "/" not in uid and uid not in (".", "..") else ""


def _sources(spec: Mapping[str, Any]) -> list[str]:
    mounts = spec.get("mounts")
    entries = [m for m in mounts if isinstance(m, dict)] if isinstance(mounts, list) else []
    return [s for m in entries if isinstance(s := m.get("source"), str) and s.startswith("/")]


def own_connections(mounted: Iterable[Mounted], directories: Iterable[str]) -> dict[str, str]:
    """The numbers of the FUSE connections that are the pod's alone, each with a place of it. Pure.

    Those with a mount below the pod's ``directories`` and with none that anybody else could use:
    in another pod's directory, in a container's file system, or anywhere else on the host.  The
    kubelet's own ``plugins`` don't count: there drivers mount what they then bind to pods.
    """
    own = [directory.rstrip("/") + "/" for directory in directories]
    staged = [os.path.dirname(os.path.dirname(each.rstrip("/"))) + "/plugins/" for each in own]
    found: dict[str, str] = {}
    shared = set()
    for each in mounted:
        if not (each.kind == "fuse" or each.kind.startswith("fuse.")):
            continue
        if any(each.place.startswith(prefix) for prefix in own):
            found.setdefault(each.device, each.place)
        elif not any(each.place.startswith(prefix) for prefix in staged):
            shared.add(each.device)
    return {
        device.partition(":")[2]: place
        for device, place in found.items()
        if device.startswith("0:") and device not in shared
    }


def abort_hanging(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Abort the pod's own FUSE connections on which somebody waits; the mounts that it concerned.

    For a pod whose processes survive SIGKILL.  What is aborted answers every call with an error
    from then on, so nothing is aborted that others may use.  Never raises; blocks for as long as
    reading the table of mounts takes.
    """
    try:
        directories = pod_directories(specs)
        connections = own_connections(mountinfo.read(), directories) if directories else {}
        if not connections:
            return []
        control = _open_control()
        try:
            aborted = [place for n, place in connections.items() if _abort_if_awaited(control, n)]
        finally:
            os.close(control)
    except OSError as error:
        _log.warning("fuse.not_aborted", error=str(error))
        return []
    for place in aborted:
        _log.warning("fuse.aborted", mount=place, why="a process waits in it that was killed")
    return aborted


def read_specs(bundles: Iterable[str]) -> list[Mapping[str, Any]]:
    """The config.json of these bundles, as far as they can be read."""
    found: list[Mapping[str, Any]] = []
    for bundle in bundles:
        try:
            data = files.read_bounded(os.path.join(bundle, "config.json"), _MAX_SPEC)
            spec = fastjson.loads(data) if data is not None else None
        except (OSError, ValueError, InvalidRequest):
            continue
        if isinstance(spec, dict):
            found.append(spec)
    return found


def _open_control() -> int:
    """The kernel's directory of FUSE connections, mounted somewhere or nowhere."""
    from runtime.host import linux

    if linux.fs_type(_CONTROL) == _FUSECTL_MAGIC:
        return os.open(_CONTROL, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    file_system = linux.fsopen("fusectl")
    try:
        linux.fsconfig_create(file_system)
        return linux.fsmount(file_system)
    finally:
        os.close(file_system)


def _abort_if_awaited(control: int, number: str) -> bool:
    where = f"/proc/self/fd/{control}/{number}"
    try:
        waiting = files.read_bounded(f"{where}/waiting", _MAX_NUMBER)
    except InvalidRequest:
        waiting = None
    if waiting is None or waiting.strip() in (b"", b"0"):
        return False
    try:
        descriptor = os.open(f"{where}/abort", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # it has ended by itself
    try:
        os.write(descriptor, b"1")
    finally:
        os.close(descriptor)
    return True
