"""Messages of protos/rpc.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/rpc.proto",
    package="google.rpc",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "Status",
    ),
    descriptor=(
        b'\n\x10protos/rpc.proto\x12\ngoogle.rpc\x1a\x10protos/wkt.proto'
        b'"N\n\x06Status\x12\x0c\n\x04code\x18\x01 \x01(\x05\x12\x0f\n\x07message\x18\x02 \x01(\t\x12%\n\x07det'
        b'ails\x18\x03 \x03(\x0b2\x14.google.protobuf.Anyb\x06proto3'
    ),
)
