"""Messages of protos/process.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

UNKNOWN = 0
CREATED = 1
RUNNING = 2
STOPPED = 3
PAUSED = 4
PAUSING = 5

__getattr__ = _pool.module(
    globals(),
    file="protos/process.proto",
    package="containerd.v1.types",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "ProcessInfo",
    ),
    descriptor=(
        b'\n\x14protos/process.proto\x12\x13containerd.v1.types\x1a\x10pro'
        b'tos/wkt.proto">\n\x0bProcessInfo\x12\x0b\n\x03pid\x18\x01 \x01(\r\x12"\n\x04inf'
        b'o\x18\x02 \x01(\x0b2\x14.google.protobuf.Any*U\n\x06Status\x12\x0b\n\x07UNKNO'
        b'WN\x10\x00\x12\x0b\n\x07CREATED\x10\x01\x12\x0b\n\x07RUNNING\x10\x02\x12\x0b\n\x07STOPPED\x10\x03\x12\n\n\x06P'
        b'AUSED\x10\x04\x12\x0b\n\x07PAUSING\x10\x05b\x06proto3'
    ),
)
