"""Messages of protos/mount.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/mount.proto",
    package="containerd.types",
    dependencies=(),
    public=(),
    messages=(
        "Mount",
    ),
    descriptor=(
        b'\n\x12protos/mount.proto\x12\x10containerd.types"F\n\x05Mount\x12'
        b'\x0c\n\x04type\x18\x01 \x01(\t\x12\x0e\n\x06source\x18\x02 \x01(\t\x12\x0e\n\x06target\x18\x03 \x01(\t\x12\x0f\n'
        b'\x07options\x18\x04 \x03(\tb\x06proto3'
    ),
)
