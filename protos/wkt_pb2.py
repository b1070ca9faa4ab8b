"""Messages of protos/wkt.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/wkt.proto",
    package="google.protobuf",
    dependencies=(),
    public=(),
    messages=(
        "Any",
        "Timestamp",
        "Empty",
    ),
    descriptor=(
        b'\n\x10protos/wkt.proto\x12\x0fgoogle.protobuf"&\n\x03Any\x12\x10\n\x08ty'
        b'pe_url\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\x0c"+\n\tTimestamp\x12\x0f\n\x07seco'
        b'nds\x18\x01 \x01(\x03\x12\r\n\x05nanos\x18\x02 \x01(\x05"\x07\n\x05Emptyb\x06proto3'
    ),
)
