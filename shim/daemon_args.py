"""What ``start`` tells the daemon that it forks."""

from __future__ import annotations

from runtime.base.record import Record


class DaemonArgs(Record):
    """All that a daemon is told.  Its working directory is ``bundle`` when it begins."""

    namespace: str
    #: The group's first container: for a pod, its sandbox.
    id: str
    bundle: str
    #: containerd's gRPC and ttrpc sockets; either may be empty.
    address: str
    ttrpc_address: str
    publish_binary: str
    #: Owned by the daemon from here on; blocking, bound and listening.
    listener_fd: int
    #: ``unix://`` and the listener's path.
    socket_address: str
    #: A name of logrus' levels: containerd's own, as far as it tells.
    log_level: str = "info"
    #: Type URL and value of the runtime options that came on stdin.
    options: tuple[str, bytes] = ("", b"")
