# Types of protos/events.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t
from protos import mount_pb2
from protos import wkt_pb2
from protos.forward_pb2 import Envelope as Envelope
from protos.forward_pb2 import ForwardRequest as ForwardRequest
from protos.mount_pb2 import Mount as Mount

class TaskCreate(_t.Message):
    container_id: str
    bundle: str
    @property
    def rootfs(self) -> _t.Messages[mount_pb2.Mount]: ...
    @property
    def io(self) -> TaskIO: ...
    checkpoint: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        bundle: str | None = ...,
        rootfs: Iterable[mount_pb2.Mount] | None = ...,
        io: TaskIO | None = ...,
        checkpoint: str | None = ...,
        pid: int | None = ...,
    ) -> None: ...

class TaskIO(_t.Message):
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    def __init__(
        self,
        *,
        stdin: str | None = ...,
        stdout: str | None = ...,
        stderr: str | None = ...,
        terminal: bool | None = ...,
    ) -> None: ...

class TaskStart(_t.Message):
    container_id: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        pid: int | None = ...,
    ) -> None: ...

class TaskDelete(_t.Message):
    container_id: str
    pid: int
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    id: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        pid: int | None = ...,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
        id: str | None = ...,
    ) -> None: ...

class TaskExit(_t.Message):
    container_id: str
    id: str
    pid: int
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        id: str | None = ...,
        pid: int | None = ...,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
    ) -> None: ...

class TaskOOM(_t.Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
    ) -> None: ...

class TaskExecAdded(_t.Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        exec_id: str | None = ...,
    ) -> None: ...

class TaskExecStarted(_t.Message):
    container_id: str
    exec_id: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        exec_id: str | None = ...,
        pid: int | None = ...,
    ) -> None: ...

class TaskPaused(_t.Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
    ) -> None: ...

class TaskResumed(_t.Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
    ) -> None: ...

class TaskCheckpointed(_t.Message):
    container_id: str
    checkpoint: str
    def __init__(
        self,
        *,
        container_id: str | None = ...,
        checkpoint: str | None = ...,
    ) -> None: ...
