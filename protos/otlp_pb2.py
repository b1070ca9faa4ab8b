"""Messages of protos/otlp.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/otlp.proto",
    package="opentelemetry.proto",
    dependencies=(),
    public=(),
    messages=(
        "ExportTraceServiceRequest",
        "ResourceSpans",
        "Resource",
        "ScopeSpans",
        "InstrumentationScope",
        "Span",
        "Status",
        "KeyValue",
        "AnyValue",
    ),
    descriptor=(
        b'\n\x11protos/otlp.proto\x12\x13opentelemetry.proto"W\n\x19Expo'
        b'rtTraceServiceRequest\x12:\n\x0eresource_spans\x18\x01 \x03(\x0b2".'
        b'opentelemetry.proto.ResourceSpans"v\n\rResourceSpa'
        b'ns\x12/\n\x08resource\x18\x01 \x01(\x0b2\x1d.opentelemetry.proto.Resou'
        b'rce\x124\n\x0bscope_spans\x18\x02 \x03(\x0b2\x1f.opentelemetry.proto.S'
        b'copeSpans"=\n\x08Resource\x121\n\nattributes\x18\x01 \x03(\x0b2\x1d.open'
        b'telemetry.proto.KeyValue"p\n\nScopeSpans\x128\n\x05scope\x18'
        b'\x01 \x01(\x0b2).opentelemetry.proto.InstrumentationScope'
        b'\x12(\n\x05spans\x18\x02 \x03(\x0b2\x19.opentelemetry.proto.Span"5\n\x14In'
        b'strumentationScope\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\x0f\n\x07version\x18\x02 \x01('
        b'\t"\x9b\x02\n\x04Span\x12\x10\n\x08trace_id\x18\x01 \x01(\x0c\x12\x0f\n\x07span_id\x18\x02 \x01(\x0c\x12\x13\n'
        b'\x0btrace_state\x18\x03 \x01(\t\x12\x16\n\x0eparent_span_id\x18\x04 \x01(\x0c\x12\x0c\n\x04na'
        b'me\x18\x05 \x01(\t\x12\x0c\n\x04kind\x18\x06 \x01(\r\x12\x1c\n\x14start_time_unix_nano\x18\x07'
        b' \x01(\x06\x12\x1a\n\x12end_time_unix_nano\x18\x08 \x01(\x06\x121\n\nattributes\x18\t'
        b' \x03(\x0b2\x1d.opentelemetry.proto.KeyValue\x12+\n\x06status\x18\x0f '
        b'\x01(\x0b2\x1b.opentelemetry.proto.Status\x12\r\n\x05flags\x18\x10 \x01(\x07"'
        b'\'\n\x06Status\x12\x0f\n\x07message\x18\x02 \x01(\t\x12\x0c\n\x04code\x18\x03 \x01(\r"E\n\x08KeyV'
        b'alue\x12\x0b\n\x03key\x18\x01 \x01(\t\x12,\n\x05value\x18\x02 \x01(\x0b2\x1d.opentelemetry'
        b'.proto.AnyValue"n\n\x08AnyValue\x12\x16\n\x0cstring_value\x18\x01 \x01('
        b'\tH\x00\x12\x14\n\nbool_value\x18\x02 \x01(\x08H\x00\x12\x13\n\tint_value\x18\x03 \x01(\x03H\x00\x12\x16'
        b'\n\x0cdouble_value\x18\x04 \x01(\x01H\x00B\x07\n\x05valueb\x06proto3'
    ),
)
