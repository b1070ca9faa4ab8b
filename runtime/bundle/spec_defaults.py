"""Defaults that Linux has and the sentry lacks.

On Linux a container has the host name of the namespace that it is made in, and the locked-memory
limit of the process that makes it.  A device without a mode can be read and written by all, a
tmpfs is sticky, and a missing working directory is made.  Releases of runsc do some of it.  This
module spells out the rest in the spec.  It reads the host's name, our own limits and the root file
system, and changes nothing.
"""

from __future__ import annotations

import os
import resource
import threading

from runtime.base.errors import Failed, reason
from runtime.base.json_fields import Fields
from runtime.bundle.executable import resolve
from runtime.bundle.process_spec import Rlimit
from runtime.bundle.spec import with_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runtime.bundle.spec import Mount, Spec

#: Whatever may open it; mknod(2)'s umask is the container's own matter.
_DEVICE_MODE = 0o666
_MEMLOCK = "RLIMIT_MEMLOCK"
_UNLIMITED = (1 << 64) - 1
_CWD_OPTIONS = ("ro", "nosuid", "nodev", "mode=0755")


def fill(spec: Spec, *, own_sandbox: bool, makes_cwd: bool) -> Spec:
    """The spec with its defaults spelled out.

    A sandbox has one host name, that of its first container: ``own_sandbox`` says whether this is
    it, ``makes_cwd`` whether this release makes a working directory in a read-only root itself.
    Raises Failed naming a namespace that can't be read, InvalidRequest naming the member.
    """
    if own_sandbox and not spec.hostname:
        name = _host_name(spec.namespaces.get("uts", ""))
        spec = spec.replace(hostname=name, raw={**spec.raw, "hostname": name})
    spec = _locked_memory(_devices(spec))
    mounts = [_mount(mount, raw) for mount, raw in _pairs(spec)]
    if not makes_cwd:
        mounts += _working_directory(spec)
    if mounts != list(spec.raw.get("mounts") or []):
        spec = with_mounts(spec, mounts)
    return spec


def _pairs(spec: Spec) -> Sequence[tuple[Mount, dict[str, Any]]]:
    return list(zip(spec.mounts, spec.raw.get("mounts") or [], strict=True))


# -- names -------------------------------------------------------------------------------------


def _host_name(path: str) -> str:
    """The host name of the UTS namespace at ``path``, or of our own, which a new one inherits."""
    if not path:
        return os.uname().nodename
    from runtime.host import linux

    names: list[str] = []
    faults: list[OSError] = []

    def look() -> None:
        # A thread has a namespace of its own, which ends with it.
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                linux.setns(fd, linux.CLONE_NEWUTS)
            finally:
                os.close(fd)
            names.append(os.uname().nodename)
        except OSError as fault:
            faults.append(fault)

    thread = threading.Thread(target=look, name="hostname")
    thread.start()
    thread.join()
    if faults:
        raise Failed(f"UTS namespace {path}: {reason(faults[0])}")
    return names[0]


# -- limits ------------------------------------------------------------------------------------


def _locked_memory(spec: Spec) -> Spec:
    """How much memory may be locked, as containerd's own limit is; a sentry would make it 64 KiB.

    Operators set it there for databases, as Kubernetes has no field for it.  A sandbox's processes
    share one set of limits, to which each exec applies those of the sandbox's first container
    (runsc, boot/limits.go), so that a pause container, which locks nothing, must not name any.
    """
    limits = spec.process.rlimits
    if spec.container_type == "sandbox" or any(limit.type == _MEMLOCK for limit in limits):
        return spec
    soft, hard = (
        _UNLIMITED if value == resource.RLIM_INFINITY else value
        for value in resource.getrlimit(resource.RLIMIT_MEMLOCK)
    )
    process = dict(spec.raw.get("process") or {})
    named = [*(process.get("rlimits") or []), {"type": _MEMLOCK, "soft": soft, "hard": hard}]
    return spec.replace(
        process=spec.process.replace(
            rlimits=(*limits, Rlimit(type=_MEMLOCK, soft=soft, hard=hard))
        ),
        raw={**spec.raw, "process": {**process, "rlimits": named}},
    )


# -- devices -----------------------------------------------------------------------------------


def _devices(spec: Spec) -> Spec:
    """Devices with a mode; those below a bind mount are left out, as they are the host's files."""
    linux = Fields(dict(spec.raw), "config.json").fields("linux")
    devices = linux.all_fields("devices") if linux is not None else []
    if linux is None or not devices:
        return spec
    kept = []
    for device in devices:
        path = device.text("path")
        if any(m.is_bind and _is_below(path, m.destination) for m in spec.mounts):
            continue
        value = device.value
        if value.get("fileMode") is None:
            value = {**value, "fileMode": _DEVICE_MODE}
        kept.append(value)
    if kept == spec.raw["linux"]["devices"]:
        return spec
    return spec.replace(raw={**spec.raw, "linux": {**spec.raw["linux"], "devices": kept}})


def _is_below(path: str, place: str) -> bool:
    return os.path.normpath(path).startswith(os.path.normpath(place).rstrip("/") + "/")


# -- mounts ------------------------------------------------------------------------------------


def _mount(mount: Mount, raw: dict[str, Any]) -> dict[str, Any]:
    if mount.is_bind and mount.type != "bind":
        # With such options the type is a dummy, says the OCI specification; not all releases know.
        return {**raw, "type": "bind"}
    if mount.type == "tmpfs" and not any(o.startswith("mode=") for o in mount.options):
        return {**raw, "options": [*mount.options, "mode=1777"]}
    return raw


def _working_directory(spec: Spec) -> list[dict[str, Any]]:
    """A directory where the working directory has to be, and can't be made by the sentry."""
    cwd = os.path.normpath(spec.process.cwd)
    if not spec.root_readonly or cwd == "/" or resolve(spec.root_path, cwd)[1]:
        return []
    places = [os.path.normpath(mount.destination) for mount in spec.mounts]
    if any(cwd == place or _is_below(cwd, place) for place in places):
        return []
    options = list(_CWD_OPTIONS)
    return [{"destination": cwd, "type": "tmpfs", "source": "tmpfs", "options": options}]
