"""Tracing as a whole: what the environment asks for, the tracer, and the thread that sends."""

from __future__ import annotations

from shim.observe.otlp import Exporter, from_environment, resource
from shim.observe.tracing import Sampler, Tracer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.base.stages import Observer
    from shim.ttrpc.call import Call


class Tracing:
    """A tracer and its exporter."""

    def __init__(self, tracer: Tracer, exporter: Exporter) -> None:
        self.tracer, self._exporter = tracer, exporter

    def traced(self, handle: Callable[[Call], bytes | None]) -> Callable[[Call], bytes | None]:
        """See :meth:`Tracer.traced`."""
        return self.tracer.traced(handle)

    def freeze(self) -> bool:
        """See :meth:`Exporter.freeze`."""
        return self._exporter.freeze()

    def thaw(self) -> None:
        """See :meth:`Exporter.thaw`."""
        self._exporter.thaw()

    def close(self, timeout: float) -> None:
        """See :meth:`Exporter.close`."""
        self._exporter.close(timeout)


def start(
    environment: Mapping[str, str], namespace: str, ident: str, inner: Observer
) -> Tracing | None:
    """Tracing as ``environment`` asks for it; None if it doesn't, or in a way that isn't known."""
    receiver = from_environment(environment)
    if receiver is None:
        return None
    exporter = Exporter(receiver, resource(environment, namespace, ident))
    sampler = Sampler(
        environment.get("OTEL_TRACES_SAMPLER", ""), environment.get("OTEL_TRACES_SAMPLER_ARG", "")
    )
    return Tracing(Tracer(exporter.put, inner, sampler), exporter)
