"""``gvctl metrics``: prints the page, or serves it by HTTP to the node's own Prometheus.

Served on a socket in the file system or on a loopback address only: the page names pods.  What is
given to whom, ``pages`` decides; connections are few and short.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, UnixStreamServer

from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.cli import output
from runtime.cli.exporter.collect import Collector
from runtime.cli.exporter.figures import Renderer
from runtime.cli.exporter.pages import Pages
from runtime.cli.exporter.text import CONTENT_TYPE
from runtime.host import open_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

#: Connections at a time, and seconds that one may take to ask or to read.
MAX_CONNECTIONS = 16
CONNECTION_TIMEOUT = 10.0
#: What a page ends with.
_AGE = b"""\
# HELP gvisor_scrape_age_seconds How long ago the look began that the other figures are of.
# TYPE gvisor_scrape_age_seconds gauge
gvisor_scrape_age_seconds %.3f
"""
_INDEX = b"<title>gvctl metrics</title><a href='/metrics'>Metrics</a>\n"


def metrics_verb(args: argparse.Namespace) -> None:
    """``metrics``: once, or until a signal comes."""
    if args.listen:
        open_files.raise_limit()  # some files of each sandbox's cgroup are kept open
    collector = Collector(args, args.post_debug, sentry_metrics=args.sentry_metrics)
    if args.listen:
        serve(args.listen, collector)
        return
    look = collector.look()
    for problem in look.problems:
        output.warn(problem)
    output.write(Renderer().render(look))


class _Handler(BaseHTTPRequestHandler):
    """GET /metrics."""

    protocol_version = "HTTP/1.1"
    timeout = CONNECTION_TIMEOUT
    server_version = "gvctl"
    sys_version = ""
    pages: Pages

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, "text/html", _INDEX)
        elif path != "/metrics":
            self._answer(404, "text/plain", b"there is /metrics\n")
        else:
            try:
                page, age = self.pages.get()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                output.warn(why)
                self._answer(500, "text/plain", output.plain(why).encode() + b"\n")
            else:
                self._answer(200, CONTENT_TYPE, page, _AGE % age)

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, *body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(sum(map(len, body))))
        # A scraper comes back after longer than an idle connection is kept.
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for part in body:
                self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Each scrape in the log would be noise."""

    def address_string(self) -> str:
        return "client"  # a Unix socket's has no name


class _Bounded:
    """A thread for each connection, and few of them."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, *args: Any, **options: Any) -> None:
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[attr-defined]
            return
        try:
            threading.Thread(
                target=self._serve, args=(request, client_address), daemon=True, name="http"
            ).start()
        except RuntimeError:  # the host has no thread left
            self._room.release()
            self.shutdown_request(request)  # type: ignore[attr-defined]

    def _serve(self, request: Any, client_address: Any) -> None:
        # However slowly it asks and reads: its time is bounded as a whole.
        timer = threading.Timer(2 * CONNECTION_TIMEOUT, _cut, [request])
        timer.daemon = True
        try:
            timer.start()
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
        except (OSError, RuntimeError):
            pass  # it went away, or the host has no thread left to bound its time
        finally:
            timer.cancel()
            self.shutdown_request(request)  # type: ignore[attr-defined]
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asks badly is let go."""


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class _Tcp(_Bounded, TCPServer):
    allow_reuse_address = True


class _Tcp6(_Tcp):
    address_family = socket.AF_INET6


class _Unix(_Bounded, UnixStreamServer):
    pass


def serve(where: str, collector: Collector) -> None:
    """Serve until a signal ends the process.  Raises InvalidRequest, Failed."""
    renderer = Renderer()

    def make(_waited: bool) -> bytes:
        return renderer.render(collector.look()).encode("utf-8")

    pages = Pages(make)
    server = _listen(where, type("Handler", (_Handler,), {"pages": pages}))
    try:
        # The first look is the slowest; and what is wrong with the command line is said now.
        pages.get()
        # With the port that the kernel has chosen for port 0.
        if not where.startswith("unix:"):
            port = server.socket.getsockname()[1]
            where = f"{where.rpartition(':')[0]}:{port}"
        output.write(f"serving {where}\n")
        sys.stdout.flush()
        server.serve_forever()
    finally:
        pages.close()
        server.server_close()
        if where.startswith("unix:"):
            _unlink(where.removeprefix("unix:"))


def _listen(where: str, handler: type[BaseHTTPRequestHandler]) -> TCPServer:
    try:
        if where.startswith("unix:"):
            return _listen_unix(where.removeprefix("unix:"), handler)
        host, port = _loopback(where)
        return (_Tcp6 if ":" in host else _Tcp)((host, port), handler)
    except OSError as error:
        raise Failed(f"listen on {where}: {reason(error) if error.errno else error}") from None


def _listen_unix(path: str, handler: type[BaseHTTPRequestHandler]) -> TCPServer:
    if not path.startswith("/"):
        raise InvalidRequest("--listen", f"unix:{path}: the path isn't absolute")
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
        raise Failed(f"listen on unix:{path}: somebody serves there")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        # Which connect(2) says of any file.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Failed(f"listen on unix:{path}: the file is no socket") from None
        _unlink(path)  # nobody serves it any more
    finally:
        probe.close()
    # Root's alone; an operator who wants others to read it gives it to them.
    before = os.umask(0o177)
    try:
        return _Unix(path, handler)
    finally:
        os.umask(before)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _loopback(where: str) -> tuple[str, int]:
    """Host and port.  Raises InvalidRequest unless it is a loopback address."""
    import ipaddress

    host, _, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidRequest("--listen", f"{where!r} is neither unix:PATH nor ADDRESS:PORT")
    if not address.is_loopback:
        why = f"{host} is no loopback address: have a proxy that knows its clients stand before it"
        raise InvalidRequest("--listen", why)
    return host, int(port)
