"""Messages of protos/introspection.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/introspection.proto",
    package="containerd.types",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "RuntimeVersion",
        "RuntimeInfo",
    ),
    descriptor=(
        b'\n\x1aprotos/introspection.proto\x12\x10containerd.types\x1a\x10'
        b'protos/wkt.proto"3\n\x0eRuntimeVersion\x12\x0f\n\x07version\x18\x01 '
        b'\x01(\t\x12\x10\n\x08revision\x18\x02 \x01(\t"\x96\x02\n\x0bRuntimeInfo\x12\x0c\n\x04name\x18\x01 '
        b'\x01(\t\x121\n\x07version\x18\x02 \x01(\x0b2 .containerd.types.RuntimeV'
        b'ersion\x12%\n\x07options\x18\x03 \x01(\x0b2\x14.google.protobuf.Any\x12&\n'
        b'\x08features\x18\x04 \x01(\x0b2\x14.google.protobuf.Any\x12C\n\x0bannotat'
        b'ions\x18\x05 \x03(\x0b2..containerd.types.RuntimeInfo.Annota'
        b'tionsEntry\x1a2\n\x10AnnotationsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05v'
        b'alue\x18\x02 \x01(\t:\x028\x01b\x06proto3'
    ),
)
