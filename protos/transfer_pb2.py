"""Messages of protos/transfer.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/transfer.proto",
    package="containerd.types.transfer",
    dependencies=(),
    public=(),
    messages=(
        "Data",
        "WindowUpdate",
    ),
    descriptor=(
        b'\n\x15protos/transfer.proto\x12\x19containerd.types.transf'
        b'er"\x14\n\x04Data\x12\x0c\n\x04data\x18\x01 \x01(\x0c"\x1e\n\x0cWindowUpdate\x12\x0e\n\x06upda'
        b'te\x18\x01 \x01(\x05b\x06proto3'
    ),
)
