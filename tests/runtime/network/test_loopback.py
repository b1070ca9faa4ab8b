"""Whatever is dialled on a namespace's loopback comes to one listener.  Real namespaces."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from runtime.base.errors import Unsupported
from runtime.host import linux
from runtime.network import loopback
from runtime.network.loopback import LoopbackListener

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
T = TypeVar("T")


class _Namespace:
    """A network namespace that a thread keeps, and in which it calls functions."""

    def __init__(self) -> None:
        self.path = ""
        self._end = threading.Event()
        ready = threading.Event()

        def keep() -> None:
            linux.unshare(linux.CLONE_NEWNET)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
                fcntl.ioctl(query, 0x8914, struct.pack("16sH22x", b"lo", 0x1 | 0x40))
            self.path = f"/proc/self/task/{threading.get_native_id()}/ns/net"
            ready.set()
            self._end.wait()

        self._thread = threading.Thread(target=keep)
        self._thread.start()
        assert ready.wait(10)

    def call(self, function: Callable[[], T]) -> T:
        made: list[T] = []

        def enter() -> None:
            fd = os.open(self.path, os.O_RDONLY)
            linux.setns(fd, linux.CLONE_NEWNET)
            os.close(fd)
            made.append(function())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(20)
        return made[0]

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def namespace() -> Iterator[_Namespace]:
    made = _Namespace()
    yield made
    made.close()


@pytest.fixture
def listener(namespace: _Namespace) -> Iterator[LoopbackListener]:
    loopback.check()
    made = LoopbackListener.open(namespace.path)
    yield made
    made.close()


def _dial(address: str, port: int) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        return socket.create_connection((address, port), 10)

    return connect


def _code(address: str, port: int) -> Callable[[], int]:
    def connect() -> int:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
            return one.connect_ex((address, port))

    return connect


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1"])
def test_every_port_of_loopback(
    namespace: _Namespace, listener: LoopbackListener, address: str
) -> None:
    for port in (1, 80, 65535):
        with namespace.call(_dial(address, port)) as client:
            connection = listener.accept()
            host, dialled = connection.getsockname()[:2]
            assert (host.removeprefix("::ffff:"), dialled) == (address, port)
            client.sendall(b"hello")
            connection.setblocking(True)
            assert connection.recv(10) == b"hello"
            connection.close()
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_only_that_namespace_and_only_until_it_is_closed(
    namespace: _Namespace, listener: LoopbackListener
) -> None:
    other = _Namespace()
    assert other.call(_code("127.0.0.1", 80)) == 111
    other.close()
    assert namespace.call(_code("127.0.0.1", 80)) == 0
    before = len(os.listdir("/proc/self/fd"))
    listener.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    for address in ("127.0.0.1", "::1"):
        assert namespace.call(_code(address, 80)) == 111


def test_where_there_is_no_network_namespace() -> None:
    with pytest.raises(Unsupported, match="no such file"):
        LoopbackListener.open("/nonexistent")
    with pytest.raises(Unsupported, match="invalid argument"):
        LoopbackListener.open("/proc/self/ns/uts")
