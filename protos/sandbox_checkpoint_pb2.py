"""Messages of protos/sandbox_checkpoint.proto.  Made by protos/generate.py; do not edit."""

import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/sandbox_checkpoint.proto",
    package="containerd.runtime.sandbox.v1",
    dependencies=("protos/wkt.proto",),
    public=(),
    messages=(
        "CheckpointContainer",
        "CheckpointRequest",
        "CheckpointResponse",
        "RestoreContainer",
        "RestoreRequest",
        "RestoredContainer",
        "RestoreResponse",
    ),
    descriptor=(
        b'\n\x1fprotos/sandbox_checkpoint.proto\x12\x1dcontainerd.ru'
        b'ntime.sandbox.v1\x1a\x10protos/wkt.proto"{\n\x13Checkpoint'
        b'Container\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0c\n\x04name\x18\x02 \x01(\t\x12$\n\x06config\x18\x03 '
        b'\x01(\x0b2\x14.google.protobuf.Any\x12$\n\x06status\x18\x04 \x01(\x0b2\x14.goog'
        b'le.protobuf.Any"\xb2\x02\n\x11CheckpointRequest\x12\x12\n\nsandbox'
        b'_id\x18\x01 \x01(\t\x12\x13\n\x0boutput_path\x18\x02 \x01(\t\x12,\n\x0esandbox_config'
        b'\x18\x03 \x01(\x0b2\x14.google.protobuf.Any\x12F\n\ncontainers\x18\x04 \x03(\x0b'
        b'22.containerd.runtime.sandbox.v1.CheckpointConta'
        b'iner\x12N\n\x07options\x18\x05 \x03(\x0b2=.containerd.runtime.sandb'
        b'ox.v1.CheckpointRequest.OptionsEntry\x1a.\n\x0cOptionsE'
        b'ntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\x14\n\x12Checkpoi'
        b'ntResponse"R\n\x10RestoreContainer\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0c\n\x04na'
        b'me\x18\x02 \x01(\t\x12$\n\x06config\x18\x03 \x01(\x0b2\x14.google.protobuf.Any"\xad'
        b'\x02\n\x0eRestoreRequest\x12\x12\n\nsandbox_id\x18\x01 \x01(\t\x12\x17\n\x0fcheckpo'
        b'int_path\x18\x02 \x01(\t\x12,\n\x0esandbox_config\x18\x03 \x01(\x0b2\x14.google.'
        b'protobuf.Any\x12C\n\ncontainers\x18\x04 \x03(\x0b2/.containerd.ru'
        b'ntime.sandbox.v1.RestoreContainer\x12K\n\x07options\x18\x05 \x03'
        b'(\x0b2:.containerd.runtime.sandbox.v1.RestoreReques'
        b't.OptionsEntry\x1a.\n\x0cOptionsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05v'
        b'alue\x18\x02 \x01(\t:\x028\x01"@\n\x11RestoredContainer\x12\x0c\n\x04name\x18\x01 \x01('
        b'\t\x12\x1d\n\x15task_checkpoint_image\x18\x02 \x01(\t"W\n\x0fRestoreRespo'
        b'nse\x12D\n\ncontainers\x18\x01 \x03(\x0b20.containerd.runtime.san'
        b'dbox.v1.RestoredContainerb\x06proto3'
    ),
)
