"""A receiver of spans: a real HTTP server that answers as a test wants, or not at all."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from protos import otlp_pb2 as pb


class OtlpReceiver:
    """Collects spans at ``url``.

    ``statuses`` are answered first, then 200; ``gate`` holds answers while it is not set.
    """

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.bodies: list[Any] = []
        self.came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._take(self.path, dict(self.headers), data)
                receiver.gate.wait(60)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _take(self, path: str, headers: dict[str, str], data: bytes) -> None:
        if headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        with self.came:
            self.requests.append((path, headers))
            self.bodies.append(pb.ExportTraceServiceRequest.FromString(data))
            self.came.notify_all()

    def wait(self, count: int, timeout: float = 30.0) -> None:
        """Until so many requests have come."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.requests) >= count, timeout)

    def spans(self) -> list[Any]:
        """All that have come, in their order."""
        with self.came:
            return [
                span
                for body in self.bodies
                for resource in body.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
