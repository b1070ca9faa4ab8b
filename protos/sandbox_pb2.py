"""Messages of protos/sandbox.proto.  Made by protos/generate.py; do not edit."""

import protos.mount_pb2
import protos.platform_pb2
import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/sandbox.proto",
    package="containerd.runtime.sandbox.v1",
    dependencies=("protos/mount.proto", "protos/platform.proto", "protos/wkt.proto",),
    public=("protos.mount_pb2", "protos.platform_pb2",),
    messages=(
        "CreateSandboxRequest",
        "CreateSandboxResponse",
        "StartSandboxRequest",
        "StartSandboxResponse",
        "PlatformRequest",
        "PlatformResponse",
        "StopSandboxRequest",
        "StopSandboxResponse",
        "WaitSandboxRequest",
        "WaitSandboxResponse",
        "SandboxStatusRequest",
        "SandboxStatusResponse",
        "PingRequest",
        "PingResponse",
        "ShutdownSandboxRequest",
        "ShutdownSandboxResponse",
        "SandboxMetricsRequest",
        "SandboxMetricsResponse",
    ),
    descriptor=(
        b'\n\x14protos/sandbox.proto\x12\x1dcontainerd.runtime.sandb'
        b'ox.v1\x1a\x12protos/mount.proto\x1a\x15protos/platform.proto'
        b'\x1a\x10protos/wkt.proto"\xb2\x02\n\x14CreateSandboxRequest\x12\x12\n\ns'
        b"andbox_id\x18\x01 \x01(\t\x12\x13\n\x0bbundle_path\x18\x02 \x01(\t\x12'\n\x06rootfs\x18\x03"
        b' \x03(\x0b2\x17.containerd.types.Mount\x12%\n\x07options\x18\x04 \x01(\x0b2\x14'
        b'.google.protobuf.Any\x12\x12\n\nnetns_path\x18\x05 \x01(\t\x12Y\n\x0banno'
        b'tations\x18\x06 \x03(\x0b2D.containerd.runtime.sandbox.v1.Cr'
        b'eateSandboxRequest.AnnotationsEntry\x1a2\n\x10Annotatio'
        b'nsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\x17\n\x15Creat'
        b'eSandboxResponse")\n\x13StartSandboxRequest\x12\x12\n\nsandb'
        b'ox_id\x18\x01 \x01(\t"w\n\x14StartSandboxResponse\x12\x0b\n\x03pid\x18\x01 \x01(\r'
        b'\x12.\n\ncreated_at\x18\x02 \x01(\x0b2\x1a.google.protobuf.Timestamp'
        b'\x12"\n\x04spec\x18\x03 \x01(\x0b2\x14.google.protobuf.Any"%\n\x0fPlatform'
        b'Request\x12\x12\n\nsandbox_id\x18\x01 \x01(\t"@\n\x10PlatformResponse\x12'
        b',\n\x08platform\x18\x01 \x01(\x0b2\x1a.containerd.types.Platform">\n'
        b'\x12StopSandboxRequest\x12\x12\n\nsandbox_id\x18\x01 \x01(\t\x12\x14\n\x0ctimeo'
        b'ut_secs\x18\x02 \x01(\r"\x15\n\x13StopSandboxResponse"(\n\x12WaitSand'
        b'boxRequest\x12\x12\n\nsandbox_id\x18\x01 \x01(\t"Y\n\x13WaitSandboxRes'
        b'ponse\x12\x13\n\x0bexit_status\x18\x01 \x01(\r\x12-\n\texited_at\x18\x02 \x01(\x0b2\x1a.'
        b'google.protobuf.Timestamp";\n\x14SandboxStatusReques'
        b't\x12\x12\n\nsandbox_id\x18\x01 \x01(\t\x12\x0f\n\x07verbose\x18\x02 \x01(\x08"\xc6\x02\n\x15Sandb'
        b'oxStatusResponse\x12\x12\n\nsandbox_id\x18\x01 \x01(\t\x12\x0b\n\x03pid\x18\x02 \x01('
        b'\r\x12\r\n\x05state\x18\x03 \x01(\t\x12L\n\x04info\x18\x04 \x03(\x0b2>.containerd.runt'
        b'ime.sandbox.v1.SandboxStatusResponse.InfoEntry\x12.'
        b'\n\ncreated_at\x18\x05 \x01(\x0b2\x1a.google.protobuf.Timestamp\x12-'
        b'\n\texited_at\x18\x06 \x01(\x0b2\x1a.google.protobuf.Timestamp\x12#\n'
        b'\x05extra\x18\x07 \x01(\x0b2\x14.google.protobuf.Any\x1a+\n\tInfoEntry\x12'
        b'\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"!\n\x0bPingRequest\x12\x12'
        b'\n\nsandbox_id\x18\x01 \x01(\t"\x0e\n\x0cPingResponse",\n\x16ShutdownSa'
        b'ndboxRequest\x12\x12\n\nsandbox_id\x18\x01 \x01(\t"\x19\n\x17ShutdownSand'
        b'boxResponse"+\n\x15SandboxMetricsRequest\x12\x12\n\nsandbox_'
        b'id\x18\x01 \x01(\t"C\n\x16SandboxMetricsResponse\x12)\n\x07metrics\x18\x01 '
        b'\x01(\x0b2\x18.containerd.types.MetricP\x00P\x01b\x06proto3'
    ),
)
