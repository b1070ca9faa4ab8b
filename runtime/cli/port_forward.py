"""``port-forward``: connections that come here go to a port in the sandbox.

In a pod of the shim's by the program that CRI's port forwarding uses as well, in others by the
sentry's own call.  That takes no TCP socket of the host's, only an end of a Unix pair, so each
connection is copied here to such a pair, by two threads; the sentry copies between the pair and
the port.
"""

from __future__ import annotations

import _socket
import select
import signal
import socket
import threading

from runtime.base.errors import (
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unsupported,
)
from runtime.cli import find, output
from runtime.host.pump import Pump
from runtime.sandbox.port_forward import refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.state.loaded import StoredContainer

_BACKLOG = 128
_CHUNK = 65536


def port_forward_verb(args: argparse.Namespace) -> int:
    """Listen until a signal comes, or the container has ended."""
    container = find.find(args)
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
    program = container.forward_program()
    pump = Pump()
    process = container.sandbox_process()
    if process is not None:
        poller.register(process.pidfd, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == ending.fileno():
                return 0
            if fd not in by_fd:
                raise SandboxGone(0, None, f"{container.subject} has ended")
            listener, remote = by_fd[fd]
            if program:
                _dial(container, program, pump, listener, remote)
            else:
                _pass_on(container, listener, remote)


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


def _dial(
    container: StoredContainer, program: str, pump: Pump, listener: socket.socket, remote: int
) -> None:
    """Bring the connection that waits into the sandbox, in a thread, as it may take a while."""
    try:
        accepted, _ = listener.accept()
    except OSError:
        return  # it was given up before we came
    connection = _socket.socket(fileno=accepted.detach())
    connection.setblocking(False)

    def bring() -> None:
        try:
            into, out = container.dial(program, remote)
        except (RuntimeFault, OSError) as fault:
            # Nobody listens there yet, perhaps: the next connection may have more luck.
            output.warn(str(fault))
            refuse(connection)
            return
        pump.add(connection, into, out)

    threading.Thread(target=bring, daemon=True).start()


def _pass_on(container: StoredContainer, listener: socket.socket, remote: int) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return  # it was given up before we came
    connection.setblocking(True)
    ours, theirs = socket.socketpair()
    try:
        container.port_forward(remote, theirs.fileno())
    except (SandboxGone, NotFound, InvalidState):
        raise
    except Unsupported:
        text = f"{container.subject}: its runsc can't forward ports, being older than 20230206"
        raise Unsupported(text) from None
    except RuntimeFault as fault:
        # Nobody listens there yet, perhaps: the next connection may have more luck.
        output.warn(f"port {remote}: {fault}")
        ours.close()
        connection.close()
        return
    finally:
        theirs.close()
    threading.Thread(target=_serve, args=(connection, ours), daemon=True).start()


def _serve(connection: socket.socket, inside: socket.socket) -> None:
    """Copy both ways until both sides have ended."""
    with connection, inside:
        back = threading.Thread(target=_copy, args=(inside, connection), daemon=True)
        back.start()
        _copy(connection, inside)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy one way, and hand the end on: the other way may go on."""
    try:
        while data := source.recv(_CHUNK):
            target.sendall(data)
    except OSError:
        pass  # either side is gone: the other way ends, too
    for each, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            each.shutdown(how)
        except OSError:
            continue
