"""Messages of protos/events.proto.  Made by protos/generate.py; do not edit."""

import protos.forward_pb2
import protos.mount_pb2
import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/events.proto",
    package="containerd.events",
    dependencies=("protos/forward.proto", "protos/mount.proto", "protos/wkt.proto",),
    public=("protos.forward_pb2", "protos.mount_pb2",),
    messages=(
        "TaskCreate",
        "TaskIO",
        "TaskStart",
        "TaskDelete",
        "TaskExit",
        "TaskOOM",
        "TaskExecAdded",
        "TaskExecStarted",
        "TaskPaused",
        "TaskResumed",
        "TaskCheckpointed",
    ),
    descriptor=(
        b'\n\x13protos/events.proto\x12\x11containerd.events\x1a\x14protos'
        b'/forward.proto\x1a\x12protos/mount.proto\x1a\x10protos/wkt.p'
        b'roto"\xa3\x01\n\nTaskCreate\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12\x0e\n\x06bun'
        b"dle\x18\x02 \x01(\t\x12'\n\x06rootfs\x18\x03 \x03(\x0b2\x17.containerd.types.Mou"
        b'nt\x12%\n\x02io\x18\x04 \x01(\x0b2\x19.containerd.events.TaskIO\x12\x12\n\nche'
        b'ckpoint\x18\x05 \x01(\t\x12\x0b\n\x03pid\x18\x06 \x01(\r"I\n\x06TaskIO\x12\r\n\x05stdin\x18\x01 '
        b'\x01(\t\x12\x0e\n\x06stdout\x18\x02 \x01(\t\x12\x0e\n\x06stderr\x18\x03 \x01(\t\x12\x10\n\x08terminal\x18'
        b'\x04 \x01(\x08".\n\tTaskStart\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12\x0b\n\x03pid\x18'
        b'\x02 \x01(\r"\x7f\n\nTaskDelete\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12\x0b\n\x03pid'
        b'\x18\x02 \x01(\r\x12\x13\n\x0bexit_status\x18\x03 \x01(\r\x12-\n\texited_at\x18\x04 \x01(\x0b2\x1a'
        b'.google.protobuf.Timestamp\x12\n\n\x02id\x18\x05 \x01(\t"}\n\x08TaskEx'
        b'it\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12\n\n\x02id\x18\x02 \x01(\t\x12\x0b\n\x03pid\x18\x03 \x01('
        b'\r\x12\x13\n\x0bexit_status\x18\x04 \x01(\r\x12-\n\texited_at\x18\x05 \x01(\x0b2\x1a.goog'
        b'le.protobuf.Timestamp"\x1f\n\x07TaskOOM\x12\x14\n\x0ccontainer_id'
        b'\x18\x01 \x01(\t"6\n\rTaskExecAdded\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t\x12\x0f\n'
        b'\x07exec_id\x18\x02 \x01(\t"E\n\x0fTaskExecStarted\x12\x14\n\x0ccontainer_i'
        b'd\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t\x12\x0b\n\x03pid\x18\x03 \x01(\r""\n\nTaskPau'
        b'sed\x12\x14\n\x0ccontainer_id\x18\x01 \x01(\t"#\n\x0bTaskResumed\x12\x14\n\x0ccont'
        b'ainer_id\x18\x01 \x01(\t"<\n\x10TaskCheckpointed\x12\x14\n\x0ccontainer_'
        b'id\x18\x01 \x01(\t\x12\x12\n\ncheckpoint\x18\x02 \x01(\tP\x00P\x01b\x06proto3'
    ),
)
