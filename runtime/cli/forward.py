"""``port-forward``: connections that come here go to a port in the sandbox.

Each connection's descriptor is given to the sentry, which copies by itself: no byte passes here.
"""

from __future__ import annotations

import select
import signal
import socket

from runtime.cli import output, where
from runtime.errors import InvalidRequest, InvalidState, NotFound, RuntimeFault, SandboxGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.stored import StoredContainer

_BACKLOG = 128


def port_forward_verb(args: argparse.Namespace) -> int:
    """Listen until a signal comes, or the container has ended."""
    container = where.find(args)
    container.require("port forward", "running")
    listeners = [(_listen(args.address, local), remote) for local, remote in args.ports]
    ending, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    for listener, remote in listeners:
        host, local = listener.getsockname()[:2]
        output.write(f"{host}:{local} -> {remote}\n")
    poller = select.poll()
    poller.register(ending, select.POLLIN)
    by_fd = {listener.fileno(): (listener, remote) for listener, remote in listeners}
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    process = container.sandbox_process()
    if process is not None:
        poller.register(process.pidfd, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == ending.fileno():
                return 0
            if fd not in by_fd:
                raise SandboxGone(0, None, f"{container.subject} has ended")
            _pass_on(container, *by_fd[fd])


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        raise InvalidRequest(f"{address}:{port}", (error.strerror or str(error)).lower()) from None
    return listener


def _pass_on(container: StoredContainer, listener: socket.socket, remote: int) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return  # it was given up before we came
    with connection:
        connection.setblocking(True)
        try:
            container.port_forward(remote, connection.fileno())
        except (SandboxGone, NotFound, InvalidState):
            raise
        except RuntimeFault as fault:
            # Nobody listens there yet, perhaps: the next connection may have more luck.
            output.warn(f"port {remote}: {fault}")
