"""Trace sessions: their configuration, the handshake with a sink, and the sentry's answers."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.runsc import trace_session
from runtime.runsc.trace_session import Connected, parse, sessions

SESSION = {
    "name": "Default",
    "points": [{"name": "container/start", "context_fields": ["time"], "optional_fields": []}],
    "sinks": [{"name": "null"}],
}


def parsed(**changes: object) -> trace_session.Session:
    return parse(json.dumps({**SESSION, **changes}).encode(), "s.json")


def test_a_session_and_the_file_for_a_pods_start() -> None:
    session = parsed()
    assert session.name == "Default" and session.value["points"] == SESSION["points"]
    again = parse(json.dumps({"trace_session": SESSION}).encode(), "s.json")
    assert again == session
    assert parse(b"{}", "s.json").name == "Default"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"colour": 1}, "s.json: colour: is not known"),
        ({"points": [{}]}, "points[0].name: is wanted"),
        ({"points": [{"name": "a", "fields": []}]}, "fields: is not known"),
        ({"points": "all"}, "points"),
        ({"sinks": [{"name": "file"}]}, "'file' is neither remote nor null"),
        ({"sinks": [{"name": "remote"}]}, "endpoint: is wanted"),
        ({"sinks": [{"name": "remote", "config": {"endpoint": 5}}]}, "endpoint"),
        ({"ignore_missing": "yes"}, "ignore_missing"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**changes)
    assert text in str(caught.value)


class Server:
    """A sink's other end, which answers a handshake with ``answer``."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.path, self.answer = path, answer
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.seen = b""
        self.peer: socket.socket | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            peer, _ = self.listener.accept()
        except OSError:
            return
        self.peer = peer
        self.seen = peer.recv(100)
        if self.answer:
            peer.send(self.answer)
        else:
            peer.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        if self.peer is not None:
            self.peer.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[bytes], Server]]:
    servers: list[Server] = []

    def make(answer: bytes) -> Server:
        servers.append(Server(tmp_path / f"s{len(servers)}", answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def remote(path: Path, **more: object) -> dict[str, object]:
    return {"name": "remote", "config": {"endpoint": str(path), "retries": 3}, **more}


def test_a_sink_is_connected(serve: Callable[[bytes], Server]) -> None:
    server = serve(b"\x08\x01")
    with Connected(parsed(sinks=[{"name": "null"}, remote(server.path)])) as connected:
        assert connected.config["sinks"][1]["config"]["retries"] == 3
        null, socket_fd = connected.fds
        assert os.fstat(null).st_rdev == os.stat("/dev/null").st_rdev
        os.write(socket_fd, b"event")
        server.thread.join()
        assert server.peer is not None
        assert server.seen == b"\x08\x01" and server.peer.recv(100) == b"event"
        assert not os.get_blocking(socket_fd)


@pytest.mark.parametrize("answer", [b"\x08\x00", b"", b"\x10\x01", b"\x08" + b"\xff" * 20])
def test_a_sink_of_another_protocol_is_refused(
    serve: Callable[[bytes], Server], answer: bytes
) -> None:
    server = serve(answer)
    with pytest.raises(Failed, match="speaks no version"):
        Connected(parsed(sinks=[remote(server.path)]))


def test_a_sink_that_is_not_there(tmp_path: Path) -> None:
    none = tmp_path / "none"
    with pytest.raises(Failed, match="none: no such file"):
        Connected(parsed(sinks=[remote(none)]))
    with Connected(parsed(sinks=[remote(none, ignore_setup_error=True)])) as connected:
        assert connected.config["sinks"] == [] and connected.fds == []
        assert "no such file" in connected.left_out[0]


def test_a_sink_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_session, "HANDSHAKE_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(Failed, match="no answer"):
            Connected(parsed(sinks=[remote(tmp_path / "s")]))


def test_the_sentrys_list() -> None:
    assert sessions(None) == []
    found = [{"name": "Default", "sinks": [{"name": "remote", "status": {"dropped_count": 4}}]}]
    assert sessions(found) == [("Default", [("remote", 4)])]
    for bad in ("x", ["x"], [{"sinks": 5}], [{"sinks": ["x"]}], [{"sinks": [{"status": 1}]}]):
        with pytest.raises(Failed, match="malformed"):
            sessions(bad)
