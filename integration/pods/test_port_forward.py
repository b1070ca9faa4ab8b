"""`kubectl port-forward`: CRI dials on the loopback of the pod's network namespace."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.gvctl import Gvctl
from integration.harness.nodes.pods import Pod, PodNode
from runtime.host.linux import CLONE_NEWNET, setns

#: As many bytes go to a pod, and come back from it.
_SIZE = int(os.environ.get("FORWARDED_BYTES", 8 << 20))
_BLOCK = os.urandom(1 << 18)
_SERVERS = f"""
    nc -ll -p 7001 -e echo hello &
    nc -ll -p 7002 -e cat &
    nc -ll -p 7003 -e sh -c 'head -c {_SIZE} | sha256sum' &
    httpd -p 8080 -h /etc
    echo ready
    sleep 1000
"""


@pytest.fixture
def pod(pods: PodNode) -> Pod:
    pod = pods.pod()
    container = pod.start("sh", "-c", _SERVERS, name="servers")
    pod.wait_log(container, "ready")
    listening = ("7001", "7002", "7003", "8080")

    def listens() -> bool:
        seen = pods.exec(container, "netstat", "-tln").out
        return all(f":{port} " in seen for port in listening)

    until(listens, 20, "all servers listen")
    return pod


@pytest.mark.without_pause
@pytest.mark.core
def test_a_server_of_every_kind(pods: PodNode, pod: Pod) -> None:
    """HTTP, one that speaks first, one that is sent much, and a closed port."""
    with pods.forward(pod, 8080) as stream:
        stream.write_bytes(b"GET /notice HTTP/1.0\r\n\r\n")
        stream.wait()
        assert stream.answer.endswith(b"made for the tests\n") and not stream.err
    with pods.forward(pod, 7001) as stream:
        stream.wait()
        assert stream.answer == b"hello\n"
    with pods.forward(pod, 7003) as stream:
        for _ in range(_SIZE // len(_BLOCK)):
            stream.write_bytes(_BLOCK)
        stream.wait(120)
        assert stream.answer.split()[0].decode() == _digest()
    with pods.forward(pod, 9) as stream:
        stream.wait()
        assert not stream.answer
        assert b"error forwarding port 9" in stream.err


def _digest() -> str:
    return hashlib.sha256(_BLOCK * (_SIZE // len(_BLOCK))).hexdigest()


def test_much_both_ways(pods: PodNode, pod: Pod) -> None:
    with pods.forward(pod, 7002) as stream:
        count = _SIZE // len(_BLOCK)
        writer = threading.Thread(
            target=lambda: [stream.write_bytes(_BLOCK) for _ in range(count)], daemon=True
        )
        writer.start()
        data = stream.take(count * len(_BLOCK), 120)
        writer.join()
        assert hashlib.sha256(data).hexdigest() == _digest()


@pytest.mark.gvisor
def test_many_at_once(pods: PodNode, pod: Pod) -> None:
    """Each gets its own answer, and afterwards nothing is left of them, here or in the pod."""
    shim = f"/proc/{pod.shim}/fd"
    with pods.forward(pod, 7001) as stream:
        stream.wait()
    before = len(os.listdir(shim))
    streams = [pods.forward(pod, 7002) for _ in range(50)]
    for number, stream in enumerate(streams):
        stream.write_bytes(b"%d" % number)
    for number, stream in enumerate(streams):
        assert stream.take(len(str(number)), 60) == b"%d" % number
    for stream in streams:
        stream.__exit__()
    until(lambda: len(os.listdir(shim)) <= before, 20, "all connections are over")


@pytest.mark.gvisor
def test_in_the_namespace(pods: PodNode, pod: Pod) -> None:
    """By IPv6 as well; an end of the client's own doesn't cut the answer off."""
    for address in ("127.0.0.1", "::1"):
        with dial(pod, address, 8080) as connection:
            connection.sendall(b"GET /notice HTTP/1.0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            data = b""
            while chunk := connection.recv(4096):
                data += chunk
            assert data.endswith(b"made for the tests\n")
        # While it connects or just after.
        with pytest.raises(ConnectionError), dial(pod, address, 9) as connection:
            connection.recv(1)


@pytest.mark.without_pause
@pytest.mark.gvisor
def test_by_gvctl(pods: PodNode, pod: Pod) -> None:
    """As much as by CRI, whichever of the pod's containers is named."""
    gvctl = Gvctl("--root", str(pods.daemon.folder / "runsc" / "k8s.io"))
    ports = (7002, 7003, 9)
    with gvctl.begin("port-forward", pod.id, *(f":{port}" for port in ports)) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in ports]
        local = [int(line.split()[0].rpartition(":")[2]) for line in lines]
        with socket.create_connection(("127.0.0.1", local[0]), 20) as connection:
            writer = threading.Thread(target=_write_all, args=(connection,), daemon=True)
            writer.start()
            with connection.makefile("rb") as echo:
                assert hashlib.sha256(echo.read(_SIZE)).hexdigest() == _digest()
            writer.join()
        with socket.create_connection(("127.0.0.1", local[1]), 20) as connection:
            _write_all(connection)
            assert connection.makefile("rb").read().split()[0].decode() == _digest()
        with (
            socket.create_connection(("127.0.0.1", local[2]), 20) as connection,
            pytest.raises(ConnectionResetError),
        ):
            connection.recv(1)
        assert process.stderr.readline() == "gvctl: port 9: connection refused\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def _write_all(connection: socket.socket) -> None:
    for _ in range(_SIZE // len(_BLOCK)):
        connection.sendall(_BLOCK)


@pytest.mark.without_pause
@pytest.mark.gvisor
def test_pods_without(pods: PodNode) -> None:
    """On the host's network, and where the operator says so."""
    host = {"security_context": {"namespace_options": {"network": cri.NODE}}}
    if not pods.without_pause or pods.daemon.release >= (2, 3):  # which panics, else
        assert not _led(pods.pod(linux=host).shim)
    assert not _led(pods.pod(variant="closed").shim)
    assert _led(pods.pod().shim)


def _led(pid: int) -> bool:
    return any("bpf" in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())


def dial(pod: Pod, address: str, port: int) -> socket.socket:
    path = next(
        each["path"]
        for each in pod.info["runtimeSpec"]["linux"]["namespaces"]
        if each["type"] == "network"
    )

    def enter() -> socket.socket:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        setns(fd, CLONE_NEWNET)
        os.close(fd)
        return socket.create_connection((address, port), 20)

    with ThreadPoolExecutor(1) as thread:  # which ends in that namespace
        return thread.submit(enter).result(30)
