"""Messages of protos/streaming.proto.  Made by protos/generate.py; do not edit."""

import protos.transfer_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/streaming.proto",
    package="containerd.services.streaming.v1",
    dependencies=("protos/transfer.proto",),
    public=("protos.transfer_pb2",),
    messages=(
        "StreamInit",
    ),
    descriptor=(
        b'\n\x16protos/streaming.proto\x12 containerd.services.st'
        b'reaming.v1\x1a\x15protos/transfer.proto"\x18\n\nStreamInit\x12'
        b'\n\n\x02id\x18\x01 \x01(\tP\x00b\x06proto3'
    ),
)
