# Types of protos/task.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable, Mapping, MutableMapping

from protos import _types as _t
from protos import mount_pb2
from protos import process_pb2
from protos import wkt_pb2
from protos.mount_pb2 import Mount as Mount
from protos.process_pb2 import CREATED as CREATED
from protos.process_pb2 import PAUSED as PAUSED
from protos.process_pb2 import PAUSING as PAUSING
from protos.process_pb2 import ProcessInfo as ProcessInfo
from protos.process_pb2 import RUNNING as RUNNING
from protos.process_pb2 import STOPPED as STOPPED
from protos.process_pb2 import UNKNOWN as UNKNOWN

class CreateTaskRequest(_t.Message):
    id: str
    bundle: str
    @property
    def rootfs(self) -> _t.Messages[mount_pb2.Mount]: ...
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    checkpoint: str
    parent_checkpoint: str
    @property
    def options(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        bundle: str | None = ...,
        rootfs: Iterable[mount_pb2.Mount] | None = ...,
        terminal: bool | None = ...,
        stdin: str | None = ...,
        stdout: str | None = ...,
        stderr: str | None = ...,
        checkpoint: str | None = ...,
        parent_checkpoint: str | None = ...,
        options: wkt_pb2.Any | None = ...,
    ) -> None: ...

class CreateTaskResponse(_t.Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int | None = ...,
    ) -> None: ...

class StartRequest(_t.Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class StartResponse(_t.Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int | None = ...,
    ) -> None: ...

class DeleteRequest(_t.Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class DeleteResponse(_t.Message):
    pid: int
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    def __init__(
        self,
        *,
        pid: int | None = ...,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
    ) -> None: ...

class ExecProcessRequest(_t.Message):
    id: str
    exec_id: str
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    @property
    def spec(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
        terminal: bool | None = ...,
        stdin: str | None = ...,
        stdout: str | None = ...,
        stderr: str | None = ...,
        spec: wkt_pb2.Any | None = ...,
    ) -> None: ...

class ResizePtyRequest(_t.Message):
    id: str
    exec_id: str
    width: int
    height: int
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
        width: int | None = ...,
        height: int | None = ...,
    ) -> None: ...

class StateRequest(_t.Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class StateResponse(_t.Message):
    id: str
    bundle: str
    pid: int
    status: int
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    exec_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        bundle: str | None = ...,
        pid: int | None = ...,
        status: int | None = ...,
        stdin: str | None = ...,
        stdout: str | None = ...,
        stderr: str | None = ...,
        terminal: bool | None = ...,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class KillRequest(_t.Message):
    id: str
    exec_id: str
    signal: int
    all: bool
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
        signal: int | None = ...,
        all: bool | None = ...,
    ) -> None: ...

class CloseIORequest(_t.Message):
    id: str
    exec_id: str
    stdin: bool
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
        stdin: bool | None = ...,
    ) -> None: ...

class PidsRequest(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...

class PidsResponse(_t.Message):
    @property
    def processes(self) -> _t.Messages[process_pb2.ProcessInfo]: ...
    def __init__(
        self,
        *,
        processes: Iterable[process_pb2.ProcessInfo] | None = ...,
    ) -> None: ...

class PauseRequest(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...

class ResumeRequest(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...

class CheckpointTaskRequest(_t.Message):
    id: str
    path: str
    @property
    def options(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        path: str | None = ...,
        options: wkt_pb2.Any | None = ...,
    ) -> None: ...

class UpdateTaskRequest(_t.Message):
    id: str
    @property
    def resources(self) -> wkt_pb2.Any: ...
    @property
    def annotations(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        resources: wkt_pb2.Any | None = ...,
        annotations: Mapping[str, str] | None = ...,
    ) -> None: ...

class WaitRequest(_t.Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class WaitResponse(_t.Message):
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    def __init__(
        self,
        *,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
    ) -> None: ...

class StatsRequest(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...

class StatsResponse(_t.Message):
    @property
    def stats(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        stats: wkt_pb2.Any | None = ...,
    ) -> None: ...

class ConnectRequest(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...

class ConnectResponse(_t.Message):
    shim_pid: int
    task_pid: int
    version: str
    def __init__(
        self,
        *,
        shim_pid: int | None = ...,
        task_pid: int | None = ...,
        version: str | None = ...,
    ) -> None: ...

class ShutdownRequest(_t.Message):
    id: str
    now: bool
    def __init__(
        self,
        *,
        id: str | None = ...,
        now: bool | None = ...,
    ) -> None: ...
