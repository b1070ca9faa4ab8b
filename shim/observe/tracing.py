"""Spans of calls and of the stages below them, where the environment asks for OpenTelemetry.

Loaded only then.  A call's parent is its ``traceparent`` (W3C Trace Context) in the ttrpc
metadata, and events carry the trace that they came of.  Nothing here waits: spans that end go
into a queue.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base.log import get_logger
from runtime.base.record import Record
from shim.ttrpc.errors import CANCELLED, OK, UNKNOWN, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.base.stages import Observer
    from shim.ttrpc.call import Call

INTERNAL, SERVER = 1, 2
_SAMPLED = 1
#: Characters of names, of messages, and of what is passed on.
_MAX_NAME, _MAX_MESSAGE, _MAX_STATE, _MAX_BAGGAGE = 200, 500, 512, 8192
_HEX = frozenset("0123456789abcdef")
_log = get_logger("tracing")


class Span:
    """What goes on in one thread from here to there.  Belongs to the thread that began it."""

    __slots__ = (
        *("attributes", "baggage", "code", "end", "flags", "id", "kind", "message", "name"),
        *("outer", "parent", "remote", "start", "state", "trace"),
    )

    def __init__(self, name: str, kind: int, trace: bytes, parent: bytes, flags: int) -> None:
        self.name, self.kind, self.trace, self.parent, self.flags = name, kind, trace, parent, flags
        self.id = os.urandom(8)
        self.start = time.time_ns()
        self.end = 0
        self.code = 0  # 2: it failed
        self.message = self.state = self.baggage = ""
        self.remote = False
        self.attributes: dict[str, str | int] = {}
        #: The one that goes on when this one ends.
        self.outer: Span | None = None

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)


class Parent(Record):
    """What a caller said of its own span."""

    trace: bytes
    span: bytes
    flags: int
    state: str = ""
    baggage: str = ""


def parse_parent(metadata: Mapping[str, tuple[str, ...]]) -> Parent | None:
    """The caller's span in a call's metadata; None if there is none that is well-formed."""
    values = metadata.get("traceparent", ())
    if len(values) != 1 or len(values[0]) > 200:
        return None
    parts = values[0].strip().split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    version, trace, span, flags = parts[:4]
    if not _HEX.issuperset("".join(parts[:4])) or version == "ff":
        return None
    if (version == "00" and len(parts) > 4) or not trace.strip("0") or not span.strip("0"):
        return None
    return Parent(
        trace=bytes.fromhex(trace),
        span=bytes.fromhex(span),
        flags=int(flags, 16) & _SAMPLED,
        state=",".join(metadata.get("tracestate", ()))[:_MAX_STATE],
        baggage=",".join(metadata.get("baggage", ()))[:_MAX_BAGGAGE],
    )


class Sampler:
    """Which traces are recorded, by the name and argument that OTEL_TRACES_SAMPLER gives it."""

    def __init__(self, name: str = "", argument: str = "") -> None:
        self._by_parent = not name or name.startswith("parentbased_")
        root = name.removeprefix("parentbased_") or "always_on"
        self._ratio = {"always_on": 1.0, "always_off": 0.0}.get(root, 1.0)
        if root == "traceidratio":
            try:
                self._ratio = min(max(float(argument or 1.0), 0.0), 1.0)
            except ValueError:
                _log.warning("tracing.sampler_malformed", argument=argument[:100])
        elif root not in ("always_on", "always_off"):
            _log.warning("tracing.sampler_unknown", sampler=name[:100])

    def flags(self, trace: bytes, parent: Parent | None) -> int:
        """The flags of a span in this trace."""
        if self._by_parent and parent is not None:
            return parent.flags
        # As the SDKs do, so that all take the same of the traces.
        taken = int.from_bytes(trace[8:], "big") >> 1 < self._ratio * (1 << 63)
        return _SAMPLED if taken else 0


class Tracer:
    """Makes spans and hands those that have ended to ``export``.  Thread-safe.

    Is the stages' observer, in front of ``inner``: a stage in a thread that serves a call becomes
    a span below it.
    """

    def __init__(
        self, export: Callable[[Span], None], inner: Observer, sampler: Sampler | None = None
    ) -> None:
        self._export, self._inner = export, inner
        self._sampler = sampler or Sampler()
        self._local = threading.local()

    @property
    def _current(self) -> Span | None:
        current: Span | None = getattr(self._local, "span", None)
        return current

    # -- calls ----------------------------------------------------------------------------

    def traced(self, handle: Callable[[Call], bytes | None]) -> Callable[[Call], bytes | None]:
        """``handle`` with a span around each call, which lasts until the answer is given."""

        def call_traced(call: Call) -> bytes | None:
            span = self._begin_call(call)
            try:
                answer = handle(call)
            except BaseException as error:
                self._leave(span)
                if isinstance(error, StatusError):
                    self._end_call(span, error.code, error.message)
                else:
                    self._end_call(span, UNKNOWN, type(error).__name__)
                raise
            self._leave(span)
            if answer is None:
                call.on_answer(lambda code: self._end_call(span, code, ""))
                call.on_cancel(lambda: self._end_call(span, CANCELLED, "the client has gone"))
            else:
                self._end_call(span, OK, "")
            return answer

        return call_traced

    def _begin_call(self, call: Call) -> Span:
        parent = parse_parent(call.metadata)
        trace = parent.trace if parent is not None else os.urandom(16)
        flags = self._sampler.flags(trace, parent)
        service, method = call.service[:_MAX_NAME], call.method[:_MAX_NAME]
        span = Span(
            f"{service}/{method}", SERVER, trace, parent.span if parent is not None else b"", flags
        )
        if parent is not None:
            span.remote, span.state, span.baggage = True, parent.state, parent.baggage
        span.attributes = {"rpc.system": "ttrpc", "rpc.service": service, "rpc.method": method}
        self._local.span = span
        return span

    def _end_call(self, span: Span, code: int, message: str) -> None:
        if span.end:
            return
        span.attributes["rpc.ttrpc.status_code"] = code
        if code != OK:
            span.code, span.message = 2, message[:_MAX_MESSAGE]
        self._finish(span)

    def _leave(self, span: Span) -> None:
        self._local.span = span.outer

    def _finish(self, span: Span) -> None:
        span.end = time.time_ns()
        if span.sampled:
            self._export(span)

    def context(self) -> dict[str, tuple[str, ...]]:
        """Metadata by which whatever this thread calls becomes a part of its trace."""
        span = self._current
        if span is None:
            return {}
        told: dict[str, tuple[str, ...]] = {
            "traceparent": (f"00-{span.trace.hex()}-{span.id.hex()}-{span.flags:02x}",)
        }
        if span.state:
            told["tracestate"] = (span.state,)
        if span.baggage:
            told["baggage"] = (span.baggage,)
        return told

    # -- stages.Observer ------------------------------------------------------------------

    def begin(self, name: str) -> tuple[object, Span | None]:
        outer = self._current
        span = None
        if outer is not None:
            span = Span(name, INTERNAL, outer.trace, outer.id, outer.flags)
            span.outer, span.state, span.baggage = outer, outer.state, outer.baggage
            self._local.span = span
        return self._inner.begin(name), span

    def end(self, begun: Any, error: BaseException | None) -> None:
        inner, span = begun
        self._inner.end(inner, error)
        if span is None:
            return
        self._leave(span)
        if error is not None:
            span.code, span.message = 2, f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
        self._finish(span)
