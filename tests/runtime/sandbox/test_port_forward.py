"""Connections brought to a sentry that is a fake; the sockets and the reactor are real."""

from __future__ import annotations

import _socket
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from runtime.base.errors import Failed
from runtime.bundle.process_spec import ProcessSpec
from runtime.host import forward_program
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.sandbox import port_forward
from runtime.sandbox.port_forward import PortForward


class _Listener:
    """Listens on one port in place of all."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.socket.setblocking(False)
        self.fault: OSError | None = None

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> _socket.socket:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        fd, _ = self.socket._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=fd)
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        self.socket.close()


class _Sentry:
    """Answers each connection with its port's number, and then with what it is sent."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.dialled: list[int] = []

    def dial(self, port: int) -> tuple[int, int]:
        self.dialled.append(port)
        if self.fault is not None:
            raise self.fault
        reads, into = os.pipe()
        out, writes = os.pipe()
        for fd in (into, out):
            os.set_blocking(fd, False)
        threading.Thread(target=self._serve, args=(reads, writes, port), daemon=True).start()
        return into, out

    def _serve(self, reads: int, writes: int, port: int) -> None:
        with open(reads, "rb", 0) as source, open(writes, "wb", 0) as target:
            target.write(b"%d\n" % port)
            while data := source.read(1000):
                target.write(data)


class _Scene:
    def __init__(self) -> None:
        self.listener, self.sentry = _Listener(), _Sentry()
        self.port = self.listener.socket.getsockname()[1]
        self.reactor, self.workers = Reactor(), Workers()
        self.reactor.start()
        self.forward = PortForward(
            "pod",
            self.listener,  # type: ignore[arg-type]
            self.sentry.dial,
            self.reactor,
            self.workers,
        )

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def talk(self) -> None:
        with self.dial() as client, client.makefile("rwb", buffering=0) as lines:
            assert lines.readline() == b"%d\n" % self.port
            lines.write(b"hello\n")
            assert lines.readline() == b"hello\n"

    @property
    def threads(self) -> int:
        return sum(thread.name == "pump" for thread in threading.enumerate())


@pytest.fixture
def scene() -> Iterator[_Scene]:
    made = _Scene()
    yield made
    made.forward.close()
    made.workers.drain(10)
    made.workers.stop()
    made.reactor.stop()
    until(lambda: made.threads == 0, 10, "the pump has ended")


def test_each_connection_gets_its_own(scene: _Scene) -> None:
    clients = [scene.dial() for _ in range(30)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        wanted = b"%d\n%d" % (scene.port, number)
        data = b""
        while len(data) < len(wanted):
            data += client.recv(100)
        assert data == wanted
        client.close()
    assert scene.sentry.dialled == [scene.port] * 30
    assert not scene.forward._diallers
    until(lambda: scene.threads == 0, 10, "the pump has ended")


def test_connections_are_held_still_with_the_reactor(scene: _Scene) -> None:
    """Some under way, one that comes meanwhile, one that goes meanwhile; again and again."""
    block = b"0123456789abcdef" * 50_000
    with scene.dial() as client, scene.dial() as leaving:
        for each in (client, leaving):
            assert each.recv(100) == b"%d\n" % scene.port
        sending = threading.Thread(target=client.sendall, args=(block,))
        sending.start()
        found = b""
        for turn in range(50):
            assert scene.reactor.freeze() == ""
            assert scene.threads == 0
            if turn == 20:
                leaving.close()
                late = scene.dial()
            scene.reactor.thaw()
            if len(found) < len(block):
                found += client.recv(20_000)
        assert late.recv(100) == b"%d\n" % scene.port
        late.close()
        while len(found) < len(block):
            found += client.recv(1 << 20)
        sending.join()
        assert found == block
    until(lambda: scene.threads == 0, 10, "the pump has ended")
    until(lambda: scene.forward._count == 0, 10, "all are over")


def test_an_end_while_all_is_held_still(scene: _Scene) -> None:
    with scene.dial() as client:
        assert client.recv(100)
        scene.reactor.freeze()
        scene.forward.close()
        assert client.recv(100) == b""
        scene.reactor.thaw()
    assert scene.forward._count == 0


def test_refused_is_reset(scene: _Scene) -> None:
    scene.sentry.fault = Failed("connection was refused")
    with pytest.raises(ConnectionError), scene.dial() as client:
        client.recv(1)  # unless it was reset while it connected
    scene.sentry.fault = None
    scene.talk()


def test_more_than_are_allowed_wait(scene: _Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_forward, "MAX_CONNECTIONS", 2)
    first, second, third = scene.dial(), scene.dial(), scene.dial()
    for client in (first, second):
        assert client.recv(100)
    third.settimeout(0.2)
    with pytest.raises(TimeoutError):
        third.recv(1)
    first.close()
    third.settimeout(20)
    assert third.recv(100) == b"%d\n" % scene.port
    second.close()
    third.close()


def test_where_descriptors_run_out_a_connection_waits(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_forward, "_RETRY", 0.05)
    scene.listener.fault = OSError(24, "Too many open files")
    scene.talk()
    scene.listener.fault = OSError(103, "Software caused connection abort")
    scene.talk()


def test_close_cuts_off_and_is_idempotent(scene: _Scene) -> None:
    client = scene.dial()
    assert client.recv(100)
    scene.forward.close()
    scene.forward.close()
    assert client.recv(1) == b""
    client.close()
    with pytest.raises(ConnectionRefusedError):
        scene.dial()


class _Sandbox:
    """Runs the program on the host, whose loopback stands for the sandbox's."""

    id = "pod"

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def execute(
        self, cid: str, process: ProcessSpec, fds: tuple[int, int, int], tty: bool, deadline: float
    ) -> int:
        assert (cid, tty) == (self.id, False)
        program, port = process.args
        assert program == "/the/program"
        words = [os.path.join(self.folder, "forward"), port]
        stdin, stdout, stderr = fds
        self.processes.append(
            subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, cwd="/")
        )
        return self.processes[-1].pid

    def wait_pid(self, cid: str, pid: int, callback: object) -> None:
        assert pid == self.processes[-1].pid


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_program(tmp_path: Path, address: str) -> None:
    """It connects by IPv4 or IPv6, hands each end on, and ends; a closed port is told."""
    sandbox = _Sandbox(forward_program.install((str(tmp_path / "inside"),)))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        into, out = port_forward.dial(sandbox, "/the/program", port)  # type: ignore[arg-type]
        connection, _ = server.accept()
    with connection, open(into, "wb", 0) as source, open(out, "rb", 0) as target:
        os.set_blocking(target.fileno(), True)
        source.write(b"question")
        source.close()
        assert connection.recv(100) == b"question"
        assert connection.recv(100) == b""
        connection.sendall(b"answer")
        connection.close()
        assert target.read() == b"answer"
    assert sandbox.processes[-1].wait(10) == 0
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Failed, match=f"port {port}: connection refused"):
        port_forward.dial(sandbox, "/the/program", port)  # type: ignore[arg-type]
    assert sandbox.processes[-1].wait(10) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_program_without_a_port_waits(tmp_path: Path) -> None:
    """As a pod's first process, which reaps what others leave."""
    program = os.path.join(forward_program.install((str(tmp_path / "inside"),)), "forward")
    with subprocess.Popen([program], cwd="/") as process:
        status = Path(f"/proc/{process.pid}/status")

        def ignored() -> int:
            line = next(x for x in status.read_text().splitlines() if x.startswith("SigIgn"))
            return int(line.split()[1], 16)

        until(lambda: ignored() & 1 << 16, 10, "SIGCHLD is ignored")
        assert process.poll() is None
        process.kill()
        assert process.wait(10) == -9
