"""Messages of protos/forward.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/forward.proto",
    package="containerd.services.events.ttrpc.v1",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "ForwardRequest",
        "Envelope",
    ),
    descriptor=(
        b'\n\x14protos/forward.proto\x12#containerd.services.even'
        b'ts.ttrpc.v1\x1a\x10protos/wkt.proto"Q\n\x0eForwardRequest\x12'
        b'?\n\x08envelope\x18\x01 \x01(\x0b2-.containerd.services.events.t'
        b'trpc.v1.Envelope"\x80\x01\n\x08Envelope\x12-\n\ttimestamp\x18\x01 \x01(\x0b'
        b'2\x1a.google.protobuf.Timestamp\x12\x11\n\tnamespace\x18\x02 \x01(\t\x12'
        b'\r\n\x05topic\x18\x03 \x01(\t\x12#\n\x05event\x18\x04 \x01(\x0b2\x14.google.protobuf.'
        b'Anyb\x06proto3'
    ),
)
