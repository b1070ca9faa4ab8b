"""Somebody who listens on the loopback of a pod's network namespace, for those who dial there.

A sandbox's loopback is inside its sentry, so in the namespace on the host nobody listens.  CRI's
PortForward enters it nevertheless and dials 127.0.0.1, or ::1 where that is refused (containerd's
sandbox_portforward_linux.go).  One socket here gets all such connections, whatever their port.
"""

from __future__ import annotations

import _socket
import os
import threading

from runtime.base.errors import Unsupported, reason
from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BACKLOG = 512


class LoopbackListener:
    """The listening socket, and what leads connections to it.  Non-blocking; ``close`` it."""

    def __init__(self, socket: _socket.socket, link: int) -> None:
        self._socket = socket
        self._link = link

    @classmethod
    def open(cls, namespace: str) -> LoopbackListener:
        """In the network namespace at that path.

        Raises Unsupported where the kernel or our privileges don't allow it.
        """
        fd = -1
        socket = None
        try:
            fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            socket = _inside(fd, _listen)
            return cls(socket, linux.lead_loopback(fd, socket.fileno()))
        except OSError as error:
            if socket is not None:
                socket.close()
            raise Unsupported(f"listening on a pod's loopback: {reason(error)}") from None
        finally:
            if fd >= 0:
                os.close(fd)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> _socket.socket:
        """The next connection, non-blocking; its own address is the one that was dialled.

        Raises OSError: BlockingIOError if there is none.
        """
        fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=fd)
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """From now on connections are refused.  Idempotent."""
        link, self._link = self._link, -1
        if link >= 0:
            os.close(link)
        self._socket.close()


def check() -> None:
    """Raises Unsupported if this host can't have such a listener."""
    faults: list[OSError] = []

    def attempt() -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            socket = _any_family()
            fd = -1
            try:
                socket.listen(1)
                fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                os.close(linux.lead_loopback(fd, socket.fileno()))
            finally:
                socket.close()
                if fd >= 0:
                    os.close(fd)
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=attempt, name="netns")
    thread.start()
    thread.join()
    if faults:
        raise Unsupported(reason(faults[0]))


def _listen() -> _socket.socket:
    socket = _any_family()
    try:
        # So that it is of no use to anybody from elsewhere.  It can't be bound to ::1, as the
        # kernel then refuses what comes by IPv4.
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_BINDTODEVICE, b"lo")
        socket.listen(_BACKLOG)
        socket.setblocking(False)
    except OSError:
        socket.close()
        raise
    return socket


def _any_family() -> _socket.socket:
    """A socket for IPv6 and IPv4, or for IPv4 alone where there is nothing else."""
    try:
        socket = _socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM)
    except OSError:
        return _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
    except OSError:
        socket.close()
        raise
    return socket


def _inside(namespace: int, make: Callable[[], _socket.socket]) -> _socket.socket:
    """Call ``make`` in a network namespace: in a thread that ends there, as it can't fail to
    come back.  Raises what that raises."""
    made: list[_socket.socket] = []
    faults: list[OSError] = []

    def run() -> None:
        try:
            linux.setns(namespace, linux.CLONE_NEWNET)
            made.append(make())
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return made[0]
