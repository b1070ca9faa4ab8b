# Types of protos/otlp.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t

class ExportTraceServiceRequest(_t.Message):
    @property
    def resource_spans(self) -> _t.Messages[ResourceSpans]: ...
    def __init__(
        self,
        *,
        resource_spans: Iterable[ResourceSpans] | None = ...,
    ) -> None: ...

class ResourceSpans(_t.Message):
    @property
    def resource(self) -> Resource: ...
    @property
    def scope_spans(self) -> _t.Messages[ScopeSpans]: ...
    def __init__(
        self,
        *,
        resource: Resource | None = ...,
        scope_spans: Iterable[ScopeSpans] | None = ...,
    ) -> None: ...

class Resource(_t.Message):
    @property
    def attributes(self) -> _t.Messages[KeyValue]: ...
    def __init__(
        self,
        *,
        attributes: Iterable[KeyValue] | None = ...,
    ) -> None: ...

class ScopeSpans(_t.Message):
    @property
    def scope(self) -> InstrumentationScope: ...
    @property
    def spans(self) -> _t.Messages[Span]: ...
    def __init__(
        self,
        *,
        scope: InstrumentationScope | None = ...,
        spans: Iterable[Span] | None = ...,
    ) -> None: ...

class InstrumentationScope(_t.Message):
    name: str
    version: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        version: str | None = ...,
    ) -> None: ...

class Span(_t.Message):
    trace_id: bytes
    span_id: bytes
    trace_state: str
    parent_span_id: bytes
    name: str
    kind: int
    start_time_unix_nano: int
    end_time_unix_nano: int
    @property
    def attributes(self) -> _t.Messages[KeyValue]: ...
    @property
    def status(self) -> Status: ...
    flags: int
    def __init__(
        self,
        *,
        trace_id: bytes | None = ...,
        span_id: bytes | None = ...,
        trace_state: str | None = ...,
        parent_span_id: bytes | None = ...,
        name: str | None = ...,
        kind: int | None = ...,
        start_time_unix_nano: int | None = ...,
        end_time_unix_nano: int | None = ...,
        attributes: Iterable[KeyValue] | None = ...,
        status: Status | None = ...,
        flags: int | None = ...,
    ) -> None: ...

class Status(_t.Message):
    message: str
    code: int
    def __init__(
        self,
        *,
        message: str | None = ...,
        code: int | None = ...,
    ) -> None: ...

class KeyValue(_t.Message):
    key: str
    @property
    def value(self) -> AnyValue: ...
    def __init__(
        self,
        *,
        key: str | None = ...,
        value: AnyValue | None = ...,
    ) -> None: ...

class AnyValue(_t.Message):
    string_value: str
    bool_value: bool
    int_value: int
    double_value: float
    def __init__(
        self,
        *,
        string_value: str | None = ...,
        bool_value: bool | None = ...,
        int_value: int | None = ...,
        double_value: float | None = ...,
    ) -> None: ...
