"""The operator's configuration of runsc as typed values, and where its binary is.

The caller decides where the values come from: options of a request, files, annotations.
"""

from __future__ import annotations

import os
import stat

from runtime.base.errors import Failed, reason
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Where what runsc binaries can do is remembered.
CACHE_DIR = "/run/containerd-shim-gvisor"
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RunscConfig(Record):
    """What the operator said.  ``flags`` are runsc's global flags without their dashes."""

    binary: str = "runsc"
    #: Directory of the control sockets; the caller chooses one per namespace.
    root: str
    flags: Mapping[str, str] = {}
    log_path: str = ""
    log_level: str = ""
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    systemd_cgroup: bool = False
    grouping: bool = True
    #: Whether sandboxes of releases that know no other place for a control socket listen under a
    #: name that every local user can connect to, for the sake of runsc's own commands.
    abstract_control_socket: bool = False
    #: Whether a pod's author may name any cgroup of the host for its sandbox.
    allow_cgroup_parent: bool = False
    #: Patterns of the annotations that a pod's author may set where no pause container is used:
    #: with one, containerd has a list of its own.
    pod_annotations: tuple[str, ...] = ()
    #: Whether what is dialled on the loopback of a pod's network namespace reaches the sandbox.
    port_forward: bool = True
    #: Whether checkpoints of whole pods are made and restored by containerd's proposed service.
    pod_checkpoint: bool = False
    #: A folder below which a pod's author may have file systems saved and restored; empty: nowhere.
    fs_checkpoints: str = ""
    #: How checkpoints are compressed; empty for the default.
    checkpoint_compression: str = ""
    #: Which emptyDirs without annotations a sandbox keeps: ``memory``, ``all`` or ``none``.
    share_volumes: str = "memory"
    #: Whether the sockets in volumes are the host's, for containers that mount nothing but their
    #: pod's own ones.
    volume_sockets: bool = False

    def flag(self, name: str, default: str = "") -> str:
        """The flag's value, as given."""
        return self.flags.get(name, default)

    @property
    def state_dir(self) -> str:
        """``root``, unless the operator gave runsc's own ``root`` flag."""
        return self.flags.get("root", "") or self.root


def find_binary(name: str, search_path: str | None = None) -> str:
    """The absolute path of the runsc binary: ``name`` itself if it has a slash, else by $PATH.

    Raises Failed, naming it, if there is none or it can't be executed.
    """
    if "/" in name:
        why = _unusable(name)
        if why:
            raise Failed(f"runsc binary {name}: {why}")
        return os.path.abspath(name)
    refused = ""
    path = search_path if search_path is not None else os.environ.get("PATH") or _DEFAULT_PATH
    for directory in path.split(":"):
        # Relative entries would mean the bundle, which is shim's working directory.
        if not directory.startswith("/"):
            continue
        candidate = os.path.join(directory, name)
        why = _unusable(candidate)
        if not why:
            return candidate
        if why != _MISSING:
            refused = refused or f"runsc binary {candidate}: {why}"
    raise Failed(refused or f"runsc binary {name!r} not found in $PATH")


_MISSING = "no such file or directory"


def _unusable(path: str) -> str:
    """Why ``path`` can't be executed; empty if it can."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return reason(error)
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if not os.access(path, os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return "not executable: permission denied"
    return ""
