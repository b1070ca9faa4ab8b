"""Messages of protos/task.proto.  Made by protos/generate.py; do not edit."""

import protos.mount_pb2
import protos.process_pb2
import protos.wkt_pb2
from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/task.proto",
    package="containerd.task.v2",
    dependencies=("protos/mount.proto", "protos/process.proto", "protos/wkt.proto",),
    public=("protos.mount_pb2", "protos.process_pb2",),
    messages=(
        "CreateTaskRequest",
        "CreateTaskResponse",
        "StartRequest",
        "StartResponse",
        "DeleteRequest",
        "DeleteResponse",
        "ExecProcessRequest",
        "ResizePtyRequest",
        "StateRequest",
        "StateResponse",
        "KillRequest",
        "CloseIORequest",
        "PidsRequest",
        "PidsResponse",
        "PauseRequest",
        "ResumeRequest",
        "CheckpointTaskRequest",
        "UpdateTaskRequest",
        "WaitRequest",
        "WaitResponse",
        "StatsRequest",
        "StatsResponse",
        "ConnectRequest",
        "ConnectResponse",
        "ShutdownRequest",
    ),
    descriptor=(
        b'\n\x11protos/task.proto\x12\x12containerd.task.v2\x1a\x12protos/'
        b'mount.proto\x1a\x14protos/process.proto\x1a\x10protos/wkt.pr'
        b'oto"\xef\x01\n\x11CreateTaskRequest\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0e\n\x06bundle\x18'
        b"\x02 \x01(\t\x12'\n\x06rootfs\x18\x03 \x03(\x0b2\x17.containerd.types.Mount\x12\x10"
        b'\n\x08terminal\x18\x04 \x01(\x08\x12\r\n\x05stdin\x18\x05 \x01(\t\x12\x0e\n\x06stdout\x18\x06 \x01(\t\x12'
        b'\x0e\n\x06stderr\x18\x07 \x01(\t\x12\x12\n\ncheckpoint\x18\x08 \x01(\t\x12\x19\n\x11parent_ch'
        b'eckpoint\x18\t \x01(\t\x12%\n\x07options\x18\n \x01(\x0b2\x14.google.protobu'
        b'f.Any"!\n\x12CreateTaskResponse\x12\x0b\n\x03pid\x18\x01 \x01(\r"+\n\x0cStar'
        b'tRequest\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t"\x1c\n\rStartRe'
        b'sponse\x12\x0b\n\x03pid\x18\x01 \x01(\r",\n\rDeleteRequest\x12\n\n\x02id\x18\x01 \x01(\t'
        b'\x12\x0f\n\x07exec_id\x18\x02 \x01(\t"a\n\x0eDeleteResponse\x12\x0b\n\x03pid\x18\x01 \x01(\r'
        b'\x12\x13\n\x0bexit_status\x18\x02 \x01(\r\x12-\n\texited_at\x18\x03 \x01(\x0b2\x1a.googl'
        b'e.protobuf.Timestamp"\x96\x01\n\x12ExecProcessRequest\x12\n\n\x02i'
        b'd\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t\x12\x10\n\x08terminal\x18\x03 \x01(\x08\x12\r\n\x05st'
        b'din\x18\x04 \x01(\t\x12\x0e\n\x06stdout\x18\x05 \x01(\t\x12\x0e\n\x06stderr\x18\x06 \x01(\t\x12"\n\x04spe'
        b'c\x18\x07 \x01(\x0b2\x14.google.protobuf.Any"N\n\x10ResizePtyReques'
        b't\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t\x12\r\n\x05width\x18\x03 \x01(\r\x12\x0e\n'
        b'\x06height\x18\x04 \x01(\r"+\n\x0cStateRequest\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0f\n\x07exe'
        b'c_id\x18\x02 \x01(\t"\xfb\x01\n\rStateResponse\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0e\n\x06bund'
        b'le\x18\x02 \x01(\t\x12\x0b\n\x03pid\x18\x03 \x01(\r\x12+\n\x06status\x18\x04 \x01(\x0e2\x1b.containe'
        b'rd.v1.types.Status\x12\r\n\x05stdin\x18\x05 \x01(\t\x12\x0e\n\x06stdout\x18\x06 \x01('
        b'\t\x12\x0e\n\x06stderr\x18\x07 \x01(\t\x12\x10\n\x08terminal\x18\x08 \x01(\x08\x12\x13\n\x0bexit_stat'
        b'us\x18\t \x01(\r\x12-\n\texited_at\x18\n \x01(\x0b2\x1a.google.protobuf.Ti'
        b'mestamp\x12\x0f\n\x07exec_id\x18\x0b \x01(\t"G\n\x0bKillRequest\x12\n\n\x02id\x18\x01 '
        b'\x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t\x12\x0e\n\x06signal\x18\x03 \x01(\r\x12\x0b\n\x03all\x18\x04 \x01('
        b'\x08"<\n\x0eCloseIORequest\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t'
        b'\x12\r\n\x05stdin\x18\x03 \x01(\x08"\x19\n\x0bPidsRequest\x12\n\n\x02id\x18\x01 \x01(\t"C\n\x0cPi'
        b'dsResponse\x123\n\tprocesses\x18\x01 \x03(\x0b2 .containerd.v1.ty'
        b'pes.ProcessInfo"\x1a\n\x0cPauseRequest\x12\n\n\x02id\x18\x01 \x01(\t"\x1b\n\rR'
        b'esumeRequest\x12\n\n\x02id\x18\x01 \x01(\t"X\n\x15CheckpointTaskReques'
        b't\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0c\n\x04path\x18\x02 \x01(\t\x12%\n\x07options\x18\x03 \x01(\x0b2\x14.g'
        b'oogle.protobuf.Any"\xc9\x01\n\x11UpdateTaskRequest\x12\n\n\x02id\x18\x01'
        b" \x01(\t\x12'\n\tresources\x18\x02 \x01(\x0b2\x14.google.protobuf.Any\x12K\n"
        b'\x0bannotations\x18\x03 \x03(\x0b26.containerd.task.v2.UpdateTa'
        b'skRequest.AnnotationsEntry\x1a2\n\x10AnnotationsEntry\x12\x0b'
        b'\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"*\n\x0bWaitRequest\x12\n\n'
        b'\x02id\x18\x01 \x01(\t\x12\x0f\n\x07exec_id\x18\x02 \x01(\t"R\n\x0cWaitResponse\x12\x13\n\x0bex'
        b'it_status\x18\x01 \x01(\r\x12-\n\texited_at\x18\x02 \x01(\x0b2\x1a.google.prot'
        b'obuf.Timestamp"\x1a\n\x0cStatsRequest\x12\n\n\x02id\x18\x01 \x01(\t"4\n\rSt'
        b'atsResponse\x12#\n\x05stats\x18\x01 \x01(\x0b2\x14.google.protobuf.Any'
        b'"\x1c\n\x0eConnectRequest\x12\n\n\x02id\x18\x01 \x01(\t"F\n\x0fConnectRespons'
        b'e\x12\x10\n\x08shim_pid\x18\x01 \x01(\r\x12\x10\n\x08task_pid\x18\x02 \x01(\r\x12\x0f\n\x07version'
        b'\x18\x03 \x01(\t"*\n\x0fShutdownRequest\x12\n\n\x02id\x18\x01 \x01(\t\x12\x0b\n\x03now\x18\x02 \x01'
        b'(\x08P\x00P\x01b\x06proto3'
    ),
)
