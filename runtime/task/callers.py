"""The programs that create containers, where they differ in what they expect."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.bundle.spec import Spec

#: containerd's namespace of dockerd, unless it is configured otherwise.
_MOBY = "moby"
#: A file that dockerd writes for each container, below its data directory.
_MOBY_FILE = "/containers/{}/hostname"
_NERDCTL = "nerdctl/namespace"


def looks_pids_up(namespace: str, container_id: str, spec: Spec | None) -> bool:
    """Whether who made a container looks its pids up on the host, and shows what is there.

    So do dockerd (``docker top``: daemon/top_unix.go) and nerdctl (pkg/cmd/container/top_unix.go).
    ctr shows what it is told, containerd itself only wants to know that there are some, and its
    CRI plugin asks for none.
    """
    if namespace == _MOBY:
        return True
    if spec is None:
        return False
    file = _MOBY_FILE.format(container_id)
    return _NERDCTL in spec.annotations or any(m.source.endswith(file) for m in spec.mounts)
