"""The debug socket, with its real reactor, and a client that is not always well-behaved."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from select import EPOLLIN
from typing import Any

import pytest

from runtime.host.reactor import Reactor
from shim.events import Publisher
from shim.observe import debug_server
from shim.observe.counters import Counters
from shim.observe.debug_server import DebugServer
from shim.observe.debug_service import SERVICE, DebugService
from shim.ttrpc.client import Client
from shim.ttrpc.errors import ConnectionLost, StatusError
from tests.fakes.sandbox import Bench

WAIT = 20.0


class Debugged:
    """A pod with one container, and its debug socket."""

    def __init__(self, path: str, uid: int) -> None:
        self.path = path
        self.bench = Bench()
        self.bench.container.settled.set()
        self.reactor = Reactor()
        self.reactor.start()
        self.counters = Counters()
        self.publisher = Publisher(None)
        self.level = "info"
        self.wanted: list[str] = []
        self.service = DebugService(
            self,  # type: ignore[arg-type]  # for the pod
            self.publisher.counts,
            self.counters,
            lambda: {"id": "c"},
            clients=lambda: 3,
            set_level=self.set_level,
            upgrade=self.upgrade,
        )
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        self.listener = listener
        self.server = DebugServer(listener, SERVICE, self.service.handle, self.reactor, uid)
        self.server.listen(self.reactor.watch(listener.fileno(), EPOLLIN, self.server.accept))

    def upgrade(self, program: str) -> int:
        self.wanted.append(program)
        return len(self.wanted)

    def all(self) -> list[Any]:
        return [self.bench.container]

    def set_level(self, name: str) -> str:
        before = self.level
        if name:
            self.level = {"debug": "debug", "info": "info"}[name]
        return before

    def ask(self, method: str, request: object = None, service: str = SERVICE) -> Any:
        with Client(self.path) as client:
            payload = b"" if request is None else json.dumps(request).encode()
            return json.loads(client.call(service, method, payload, timeout=WAIT))

    def close(self) -> None:
        self.reactor.stop()
        self.server.close()
        self.listener.close()
        self.bench.workers.stop()


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Debugged]:
    shim = Debugged(str(tmp_path / "s"), os.geteuid())
    yield shim
    shim.close()


def test_it_tells_what_the_shim_is_and_has(shim: Debugged) -> None:
    info = shim.ask("Info")
    assert (info["id"], info["pid"], info["clients"]) == ("c", os.getpid(), 3)
    assert info["events"] == {"queued": 0, "lost": 0, "sent": 0}
    [container] = info["containers"]
    assert container["id"] == "c" and container["state"] == "created"
    assert container["pid"] == shim.bench.sandbox.pid


def test_it_tells_every_threads_stack_and_what_they_do(shim: Debugged) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="hung")
    thread.start()
    try:
        told = {each["name"]: each["stack"] for each in shim.ask("Stacks")["threads"]}
    finally:
        stop.set()
        thread.join()
    assert any("Event.wait" in line for line in told["hung"])
    assert "debug_service.py" in told["reactor"][-1]


def test_the_log_level_is_asked_for_and_set(
    shim: Debugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.base.log.enabled", lambda level: True)
    assert shim.ask("LogLevel") == {"before": "info", "level": "info"}
    assert shim.ask("LogLevel", {"level": "debug"}) == {"before": "info", "level": "debug"}
    for level in ("loud", 3, None):
        with pytest.raises(StatusError) as caught:
            shim.ask("LogLevel", {"level": level})
        assert caught.value.code == 3
    monkeypatch.setattr("runtime.base.log.enabled", lambda level: False)
    with pytest.raises(StatusError, match="no log"):
        shim.ask("LogLevel", {"level": "info"})


def test_counters_come_as_they_are(shim: Debugged) -> None:
    shim.counters.called("State", 0, 0.0001)
    told = shim.ask("Counters")
    assert told["rpcs"]["State"]["codes"] == {"0": 1}
    assert len(told["rpcs"]["State"]["buckets"]) == len(told["bounds"]) + 1


def test_what_is_not_known_or_no_json_is_refused(shim: Debugged) -> None:
    for method, service, code in (("Fly", SERVICE, 12), ("Info", "containerd.task.v2.Task", 12)):
        with pytest.raises(StatusError) as caught:
            shim.ask(method, service=service)
        assert caught.value.code == code
    with Client(shim.path) as client:
        for payload in (b"{", b"[]", b"\xff", b'"' + b"x" * debug_server.MAX_REQUEST + b'"'):
            with pytest.raises(StatusError) as caught:
                client.call(SERVICE, "Info", payload, timeout=WAIT)
            assert caught.value.code == 3
        # It still serves.
        assert client.call(SERVICE, "Info", b"", timeout=WAIT)


def test_rubbish_ends_its_own_connection_only(shim: Debugged) -> None:
    with socket.socket(socket.AF_UNIX) as sock, Client(shim.path) as other:
        sock.settimeout(WAIT)
        sock.connect(shim.path)
        sock.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x02\x01\x00rubb")  # an even stream id
        assert b"odd" in sock.recv(4096)
        sock.sendall(b"\x00")
        sock.shutdown(socket.SHUT_WR)  # within a frame
        assert sock.recv(1) == b""
        assert other.call(SERVICE, "Info", b"", timeout=WAIT)


def test_connections_are_few(shim: Debugged) -> None:
    clients = [Client(shim.path) for _ in range(debug_server.MAX_CONNECTIONS)]
    for client in clients:
        client.call(SERVICE, "Info", b"", timeout=WAIT)
    with Client(shim.path) as late, pytest.raises(ConnectionLost):
        late.call(SERVICE, "Info", b"", timeout=WAIT)
    clients.pop().close()
    for client in clients:
        client.call(SERVICE, "Info", b"", timeout=WAIT)
    # The place is free once the reactor has seen the end, which it saw before these calls.
    with Client(shim.path) as next_one:
        assert next_one.call(SERVICE, "Info", b"", timeout=WAIT)
        for client in clients:
            client.close()


def test_who_says_nothing_is_let_go(shim: Debugged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug_server, "IDLE_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(shim.path)
        assert sock.recv(1) == b""


def test_who_reads_nothing_delays_nobody_and_is_let_go(
    shim: Debugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug_server, "IDLE_TIMEOUT", 0.2)
    with Client(shim.path) as deaf, pytest.raises(ConnectionLost):
        while True:  # until nobody reads it, and then nobody is there
            deaf.stream(SERVICE, "Stacks", remote_open=False).close()
            assert shim.ask("Info")


def test_strangers_are_turned_away(tmp_path: Path) -> None:
    shim = Debugged(str(tmp_path / "s"), os.geteuid() + 1)
    try:
        with pytest.raises(ConnectionLost):
            shim.ask("Info")
    finally:
        shim.close()


def test_nothing_is_left_when_everybody_has_gone(shim: Debugged) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        shim.ask("Info")
    done = threading.Event()
    # Its end comes to the reactor after theirs.
    with Client(shim.path) as last:
        last.call(SERVICE, "Info", b"", timeout=WAIT)
    shim.reactor.call_later(0.05, lambda: shim.reactor.call_soon(done.set))
    assert done.wait(WAIT)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not shim.server._guests
