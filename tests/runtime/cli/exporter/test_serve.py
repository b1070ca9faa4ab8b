"""The HTTP server: where it listens, and clients that behave badly."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cli.exporter import serve
from runtime.cli.exporter.pages import Pages
from runtime.cli.exporter.serve import _Handler, _listen, _loopback

WAIT = 20.0


class Served:
    """A server on a socket of its own, whose page a test makes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.make: Callable[[], str] = lambda: "up 1\n"
        self.pages = Pages(lambda _: self.make().encode())
        handler = type("H", (_Handler,), {"pages": self.pages})
        self.server = _listen(f"unix:{path}", handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT)
        sock.connect(self.path)
        return sock

    def get(self, path: str = "/metrics", method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("node")
        with self.connect() as sock:
            connection.sock = sock
            connection.request(method, path)
            reply = connection.getresponse()
            return reply.status, reply.headers["Content-Type"], reply.read()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.pages.close()
        self.server.server_close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(str(tmp_path / "m"))
    yield served
    served.close()


def test_a_page(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "text/plain; version=0.0.4; charset=utf-8"
    status, told, body = served.get()
    assert (status, told) == (200, kind) and body.startswith(b"up 1\n# HELP gvisor_scrape_age")
    assert 0 <= float(body.split()[-1]) < WAIT and body.endswith(b"\n")
    assert served.get("/metrics?name[]=x")[0] == 200
    assert served.get(method="HEAD") == (200, kind, b"")
    assert served.get("/")[0] == 200 and served.get("/etc/passwd")[0] == 404
    assert served.get(method="POST")[0] == 501
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


def test_a_look_that_fails_is_an_error_and_not_the_end(served: Served) -> None:
    def fail() -> str:
        raise ValueError("no such luck")

    served.make = fail
    status, _, body = served.get()
    assert status == 500 and b"no such luck" in body
    served.make = lambda: "up 1\n"
    assert served.get()[0] == 200


def test_scrapes_at_the_same_time_share_a_look(served: Served) -> None:
    looks: list[int] = []
    go_on = threading.Event()

    def make() -> str:
        looks.append(1)
        go_on.wait(WAIT)
        return "up 1\n"

    served.make = make
    threads = [threading.Thread(target=served.get) for _ in range(5)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert len(looks) == 1


def test_who_says_nothing_keeps_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [served.connect() for _ in range(serve.MAX_CONNECTIONS)]
    try:
        # One more is turned away, and the first of them is let go.
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            with served.connect() as late:
                try:
                    late.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                    if not late.recv(1):
                        break
                except (ConnectionResetError, BrokenPipeError):
                    break
        else:
            raise AssertionError("all were let in")
        silent.pop().close()
        while served_is_full(served):
            assert time.monotonic() < deadline
    finally:
        for sock in silent:
            sock.close()


def served_is_full(served: Served) -> bool:
    try:
        return served.get()[0] != 200
    except (OSError, http.client.HTTPException):
        return True


def test_a_slow_one_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CONNECTION_TIMEOUT", 0.1)
    served = Served(str(tmp_path / "m"))
    try:
        with served.connect() as slow:
            try:
                while True:  # a byte at a time is no silence
                    slow.sendall(b"G")
                    time.sleep(0.01)
            except OSError:
                pass
        assert served.get()[0] == 200
    finally:
        served.close()


@pytest.mark.parametrize("lacking", ["http", "Thread-"])  # a connection's own, and its timer's
def test_a_host_without_threads_loses_no_room(
    served: Served, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused = threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(lacking) and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with served.connect() as sock:
        try:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert sock.recv(100) == b""
        except ConnectionError:
            pass  # it was closed with the request unread
    assert refused.is_set()
    deadline = time.monotonic() + WAIT
    while served.server._room._value < serve.MAX_CONNECTIONS:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
    assert served.get()[0] == 200


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(Failed, match="is no socket"):
        _listen(f"unix:{path}", _Handler)
    assert path.read_text() == "x"


def test_rubbish_is_answered_or_dropped(served: Served) -> None:
    for data in (b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics HTTP/9\r\n\r\n", b"x" * 100_000):
        with served.connect() as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
            except OSError:
                pass
    assert served.get()[0] == 200


def test_a_socket_that_nobody_serves_is_replaced_and_a_served_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "m")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    served = Served(path)
    try:
        with pytest.raises(Failed, match="somebody serves there"):
            _listen(f"unix:{path}", _Handler)
        assert served.get()[0] == 200
    finally:
        served.close()


@pytest.mark.parametrize(
    ("where", "why"),
    [
        *(("0.0.0.0:9410", "loopback"), ("10.0.0.1:9410", "loopback"), ("[::]:9410", "loopback")),
        *(("localhost:9410", "neither"), (":9410", "neither"), ("127.0.0.1", "neither")),
        *(("127.0.0.1:", "neither"), ("127.0.0.1:99999", "neither"), ("unix:relative", "absolute")),
    ],
)
def test_nobody_else_can_listen_to_it(where: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        _listen(where, _Handler)


def test_loopback_addresses() -> None:
    assert _loopback("127.0.0.1:9410") == ("127.0.0.1", 9410)
    assert _loopback("[::1]:0") == ("::1", 0)
    with _listen("127.0.0.1:0", _Handler) as server:
        port = server.server_address[1]
        with pytest.raises(Failed, match="in use"):
            _listen(f"127.0.0.1:{port}", _Handler)
