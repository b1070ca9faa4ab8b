"""Messages of protos/platform.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/platform.proto",
    package="containerd.types",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "Platform",
        "Metric",
    ),
    descriptor=(
        b'\n\x15protos/platform.proto\x12\x10containerd.types\x1a\x10proto'
        b's/wkt.proto"Q\n\x08Platform\x12\n\n\x02os\x18\x01 \x01(\t\x12\x14\n\x0carchitect'
        b'ure\x18\x02 \x01(\t\x12\x0f\n\x07variant\x18\x03 \x01(\t\x12\x12\n\nos_version\x18\x04 \x01(\t"g'
        b'\n\x06Metric\x12-\n\ttimestamp\x18\x01 \x01(\x0b2\x1a.google.protobuf.Ti'
        b'mestamp\x12\n\n\x02id\x18\x02 \x01(\t\x12"\n\x04data\x18\x03 \x01(\x0b2\x14.google.proto'
        b'buf.Anyb\x06proto3'
    ),
)
