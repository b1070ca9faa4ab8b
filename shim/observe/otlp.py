"""Sends spans to an OTLP receiver over HTTP, in batches, from one thread that nobody waits for.

The environment is OpenTelemetry's, read as containerd reads it (pkg/tracing/plugin/otlp.go).  What
can't be sent is dropped: a receiver that hangs, refuses or is gone costs the shim a bounded queue.
"""

from __future__ import annotations

import _socket
import threading
import time
from collections import deque

from protos import otlp_pb2 as pb
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.base.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from shim.observe.tracing import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Spans that wait, and that are sent at once.
MAX_QUEUE, MAX_BATCH = 2048, 512
#: Seconds for which a span waits for others, and that the receiver has to take a batch.
DELAY, TIMEOUT = 5.0, 10.0
#: Seconds that a batch under way has for its answer when all is to be held still.
ANSWER = 0.5
#: Seconds between two tries, and how often a batch is tried.
PAUSES = (1.0, 2.0, 4.0)
#: Answers after which a batch is tried again (OTLP's specification, "Failures").
RETRIED = (429, 502, 503, 504)
_MAX_ANSWER = 64 << 10
_log = get_logger("tracing")


class Receiver(Record):
    """Where spans go.  ``headers`` may hold secrets: they are never logged."""

    scheme: str
    host: str
    port: int
    path: str
    headers: Mapping[str, str] = {}
    timeout: float = TIMEOUT
    delay: float = DELAY
    gzip: bool = False
    certificate: str = ""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are asked for at all: the same question as containerd's."""
    return any(environment.get(name) for name in ENDPOINTS)


def from_environment(environment: Mapping[str, str]) -> Receiver | None:
    """The receiver; None if there is none, or tracing is switched off.

    What can't be done as it is asked for is logged, and there is no receiver then.
    """

    def setting(name: str) -> str:
        specific = environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "")
        return specific or environment.get(f"OTEL_EXPORTER_OTLP_{name}", "")

    if environment.get("OTEL_SDK_DISABLED", "").lower() in ("1", "t", "true"):
        return None
    why = ""
    if environment.get("OTEL_TRACES_EXPORTER", "") not in ("", "otlp"):
        why = "OTEL_TRACES_EXPORTER is not otlp"
    elif setting("PROTOCOL") not in ("", "http/protobuf"):
        why = "of the protocols of OTLP there is http/protobuf"
    elif setting("COMPRESSION") not in ("", "none", "gzip"):
        why = "of the compressions there is gzip"
    url = environment.get(ENDPOINTS[0], "")
    if not url and (base := environment.get(ENDPOINTS[1], "")):
        url = base.rstrip("/") + "/v1/traces"
    found = None if why else _parse(url)
    if found is None:
        _log.warning("tracing.impossible", error=why or "the endpoint is no http(s) URL")
        return None
    return found.replace(
        headers=_headers(setting("HEADERS")),
        timeout=_milliseconds(setting("TIMEOUT"), TIMEOUT),
        delay=_milliseconds(environment.get("OTEL_BSP_SCHEDULE_DELAY", ""), DELAY),
        gzip=setting("COMPRESSION") == "gzip",
        certificate=setting("CERTIFICATE"),
    )


def _parse(url: str) -> Receiver | None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or not path.isprintable() or " " in path:
        return None
    default = 443 if parts.scheme == "https" else 80
    return Receiver(scheme=parts.scheme, host=parts.hostname, port=port or default, path=path)


def _headers(text: str) -> dict[str, str]:
    from urllib.parse import unquote

    found: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        name, value = unquote(name).strip(), unquote(value).strip()
        plain = name.replace("-", "").replace("_", "")
        if (
            equals
            and plain.isascii()
            and plain.isalnum()
            and value.isascii()
            and value.isprintable()
        ):
            found[name] = value
    return found


def _milliseconds(text: str, default: float) -> float:
    return min(int(text), 600_000) / 1000 if text.isdecimal() and int(text) > 0 else default


class Exporter:
    """The queue and its thread, which is made with the first span.  ``put`` never blocks."""

    def __init__(self, receiver: Receiver, resource: Mapping[str, str | int]) -> None:
        self._receiver, self._resource = receiver, resource
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._spans: deque[Span] = deque()  # guarded by _lock
        self._dropped = 0  # guarded by _lock
        self._sending = False  # guarded by _lock
        self._closing = False  # guarded by _lock
        self._frozen = False  # guarded by _lock
        self._socket: socket.socket | None = None  # guarded by _lock; what a batch goes through
        self._thread: threading.Thread | None = None  # guarded by _lock

    def put(self, span: Span) -> None:
        """Queue a span that has ended, or drop it if the queue is full."""
        with self._lock:
            if len(self._spans) >= MAX_QUEUE or self._closing:
                self._dropped += 1
                return
            self._spans.append(span)
            if self._thread is None:
                self._start_locked()
            elif len(self._spans) in (1, MAX_BATCH):
                self._changed.notify_all()

    def _start_locked(self) -> None:
        if self._frozen:
            return
        thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            return  # the next span tries again
        self._thread = thread

    def freeze(self) -> bool:
        """End the thread and keep what is queued for :meth:`thaw`; is it so?

        A batch under way has a moment to be answered.  Then its connection is cut off, and it is
        sent again: so a receiver that is slow may get a span twice, and never not at all.
        """
        with self._changed:
            self._frozen = True
            self._changed.notify_all()
            thread = self._thread
            self._changed.wait_for(lambda: not self._sending, ANSWER)
            self._cut_locked()
        if thread is not None:
            thread.join(ANSWER)
            if thread.is_alive():
                return False  # it looks the receiver's name up
        with self._lock:
            self._thread = None
        return True

    def _cut_locked(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process; idempotent."""
        with self._lock:
            self._frozen = False
            if self._spans and self._thread is None:
                self._start_locked()

    @property
    def dropped(self) -> int:
        """How many spans were lost."""
        with self._lock:
            return self._dropped

    def close(self, timeout: float) -> None:
        """Send what there is, in ``timeout`` seconds at most; then nothing is taken any more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._thread is not None and (self._spans or self._sending):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            lost = self._dropped + len(self._spans)
        if lost:
            _log.warning("tracing.spans_lost", count=lost)

    def _run(self) -> None:
        send = self._sender()
        while True:
            with self._changed:
                while not (self._spans or self._closing or self._frozen):
                    self._changed.wait()
                due = time.monotonic() + self._receiver.delay
                while len(self._spans) < MAX_BATCH and not (self._closing or self._frozen):
                    left = due - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                if self._frozen or not self._spans:
                    self._thread = None
                    return
                batch = [self._spans.popleft() for _ in range(min(len(self._spans), MAX_BATCH))]
                self._sending = True
            try:
                sent = self._deliver(send, encode(self._resource, batch))
            except Exception as error:
                _log.warning("tracing.failed", error=repr(error)[:300])
                sent = False
            with self._changed:
                self._sending = False
                if not sent and self._frozen:
                    self._spans.extendleft(reversed(batch))
                elif not sent:
                    self._dropped += len(batch)
                self._changed.notify_all()

    def _deliver(self, send: Callable[[bytes], int], data: bytes) -> bool:
        """Try until it is taken, refused for good, or has been tried often enough."""
        for pause in (*PAUSES, None):
            error = ""
            try:
                answer = send(data)
            except Exception as fault:  # of http.client, ssl, the socket
                answer, error = 0, f"{type(fault).__name__}: {fault}"[:300]
            if 200 <= answer < 300:
                return True
            if answer and answer not in RETRIED:
                _log.warning("tracing.refused", status=answer)
                return False
            with self._changed:
                if self._frozen:
                    return False  # it is kept
                if pause is None or self._closing:
                    break
                self._changed.wait(pause)
        _log.warning("tracing.unsent", status=answer, error=error)
        return False

    def _sender(self) -> Callable[[bytes], int]:
        """Sends a batch and returns the answer's status.  Loads what that takes."""
        from http.client import HTTPConnection, HTTPSConnection

        to = self._receiver
        headers = {**to.headers, "Content-Type": "application/x-protobuf"}
        compress: Callable[[bytes], bytes] = bytes
        if to.gzip:
            import gzip

            compress, headers["Content-Encoding"] = gzip.compress, "gzip"
        context = None
        if to.scheme == "https":
            import ssl

            context = ssl.create_default_context(cafile=to.certificate or None)

        def send(data: bytes) -> int:
            if context is not None:
                connection: HTTPConnection = HTTPSConnection(
                    to.host, to.port, timeout=to.timeout, context=context
                )
            else:
                connection = HTTPConnection(to.host, to.port, timeout=to.timeout)
            try:
                connection.sock = self._connected(context)
                connection.request("POST", to.path, compress(data), headers)
                with connection.getresponse() as reply:
                    reply.read(_MAX_ANSWER)
                    return reply.status
            finally:
                with self._lock:
                    self._socket = None
                connection.close()

        return send

    def _connected(self, context: ssl.SSLContext | None) -> socket.socket:
        """A connection to the receiver, which :meth:`freeze` can cut off from its beginning on."""
        import socket

        to, error = self._receiver, OSError("the receiver's name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            to.host, to.port, type=socket.SOCK_STREAM
        ):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(to.timeout)
                self._may_be_cut(made)
                made.connect(address)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is not None:
                    made = context.wrap_socket(
                        made, server_hostname=to.host, do_handshake_on_connect=False
                    )
                    self._may_be_cut(made)
                    made.do_handshake()
                return made
            except OSError as fault:
                error = fault
                made.close()
        raise error

    def _may_be_cut(self, made: socket.socket) -> None:
        with self._lock:
            self._socket = made
            if self._frozen:
                raise OSError("all is held still")


def encode(resource: Mapping[str, str | int], spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest."""

    def pairs(values: Mapping[str, str | int]) -> list[pb.KeyValue]:
        return [
            pb.KeyValue(
                key=key,
                value=pb.AnyValue(int_value=value)
                if isinstance(value, int)
                else pb.AnyValue(string_value=value.encode("utf-8", "replace").decode()),
            )
            for key, value in values.items()
        ]

    def text(value: str) -> str:
        return value.encode("utf-8", "replace").decode()

    return pb.ExportTraceServiceRequest(
        resource_spans=[
            pb.ResourceSpans(
                resource=pb.Resource(attributes=pairs(resource)),
                scope_spans=[
                    pb.ScopeSpans(
                        scope=pb.InstrumentationScope(
                            name="containerd-shim-gvisor", version=VERSION
                        ),
                        spans=[
                            pb.Span(
                                trace_id=each.trace,
                                span_id=each.id,
                                trace_state=text(each.state),
                                parent_span_id=each.parent,
                                name=text(each.name),
                                kind=each.kind,
                                start_time_unix_nano=each.start,
                                end_time_unix_nano=each.end,
                                attributes=pairs(each.attributes),
                                status=pb.Status(code=each.code, message=text(each.message)),
                                flags=each.flags | 0x100 | (0x200 if each.remote else 0),
                            )
                            for each in spans
                        ],
                    )
                ],
            )
        ]
    ).SerializeToString()


def resource(environment: Mapping[str, str], namespace: str, ident: str) -> dict[str, str | int]:
    """What all spans are told to come from."""
    from urllib.parse import unquote

    given: dict[str, str | int] = {}
    for pair in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")[:64]:
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            given[name.strip()[:200]] = unquote(value.strip())[:1000]
    # The environment has containerd's own name in it; runc's shim calls itself like this, too.
    return {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "containerd-shim-gvisor",
        "telemetry.sdk.version": VERSION,
        **given,
        "service.name": f"containerd-shim-{ident}",
        "service.version": VERSION,
        "containerd.namespace": namespace,
        "gvisor.sandbox.id": ident,
    }
