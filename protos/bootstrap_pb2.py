"""Messages of protos/bootstrap.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

LOG_LEVEL_INFO = 0
LOG_LEVEL_TRACE = -8
LOG_LEVEL_DEBUG = -4
LOG_LEVEL_WARN = 4
LOG_LEVEL_ERROR = 8
LOG_LEVEL_FATAL = 10
LOG_LEVEL_PANIC = 12

CAPABILITY_UNSPECIFIED = 0

__getattr__ = _pool.module(
    globals(),
    file="protos/bootstrap.proto",
    package="containerd.runtime.bootstrap.v1",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "BootstrapParams",
        "Extension",
        "BootstrapResult",
    ),
    descriptor=(
        b'\n\x16protos/bootstrap.proto\x12\x1fcontainerd.runtime.boo'
        b'tstrap.v1\x1a\x10protos/wkt.proto"\xd9\x02\n\x0fBootstrapParams\x12'
        b'\x13\n\x0binstance_id\x18\x01 \x01(\t\x12\x11\n\tnamespace\x18\x02 \x01(\t\x12<\n\tlog_l'
        b'evel\x18\x03 \x01(\x0e2).containerd.runtime.bootstrap.v1.Log'
        b'Level\x12\x1a\n\x12containerd_version\x18\x04 \x01(\t\x12 \n\x18containerd_'
        b'ttrpc_address\x18\x05 \x01(\t\x12\x1f\n\x17containerd_grpc_address\x18\x06'
        b' \x01(\t\x12\x19\n\x11containerd_binary\x18\x07 \x01(\t\x12>\n\nextensions\x18\x08 '
        b'\x03(\x0b2*.containerd.runtime.bootstrap.v1.Extension\x12'
        b'\x17\n\nsocket_dir\x18\t \x01(\tH\x00\x88\x01\x01B\r\n\x0b_socket_dir"0\n\tExten'
        b'sion\x12#\n\x05value\x18\x01 \x01(\x0b2\x14.google.protobuf.Any"\x8b\x02\n\x0fBo'
        b'otstrapResult\x12\x0f\n\x07version\x18\x01 \x01(\x05\x12\x0f\n\x07address\x18\x02 \x01(\t\x12'
        b'\x10\n\x08protocol\x18\x03 \x01(\t\x12A\n\x0ccapabilities\x18\x04 \x03(\x0e2+.contai'
        b'nerd.runtime.bootstrap.v1.Capability\x12P\n\x08metadata'
        b'\x18\x05 \x03(\x0b2>.containerd.runtime.bootstrap.v1.Bootstr'
        b'apResult.MetadataEntry\x1a/\n\rMetadataEntry\x12\x0b\n\x03key\x18\x01'
        b' \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01*\xad\x01\n\x08LogLevel\x12\x12\n\x0eLOG_LEVE'
        b'L_INFO\x10\x00\x12\x1c\n\x0fLOG_LEVEL_TRACE\x10\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01\x12\x1c\n\x0fLOG_LE'
        b'VEL_DEBUG\x10\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01\x12\x12\n\x0eLOG_LEVEL_WARN\x10\x04\x12\x13\n\x0fLOG_'
        b'LEVEL_ERROR\x10\x08\x12\x13\n\x0fLOG_LEVEL_FATAL\x10\n\x12\x13\n\x0fLOG_LEVEL_'
        b'PANIC\x10\x0c*(\n\nCapability\x12\x1a\n\x16CAPABILITY_UNSPECIFIED\x10'
        b'\x00b\x06proto3'
    ),
)
