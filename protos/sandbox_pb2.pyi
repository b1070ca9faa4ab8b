# Types of protos/sandbox.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable, Mapping, MutableMapping

from protos import _types as _t
from protos import mount_pb2
from protos import platform_pb2
from protos import wkt_pb2
from protos.mount_pb2 import Mount as Mount
from protos.platform_pb2 import Metric as Metric
from protos.platform_pb2 import Platform as Platform

class CreateSandboxRequest(_t.Message):
    sandbox_id: str
    bundle_path: str
    @property
    def rootfs(self) -> _t.Messages[mount_pb2.Mount]: ...
    @property
    def options(self) -> wkt_pb2.Any: ...
    netns_path: str
    @property
    def annotations(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        bundle_path: str | None = ...,
        rootfs: Iterable[mount_pb2.Mount] | None = ...,
        options: wkt_pb2.Any | None = ...,
        netns_path: str | None = ...,
        annotations: Mapping[str, str] | None = ...,
    ) -> None: ...

class CreateSandboxResponse(_t.Message):
    def __init__(self) -> None: ...

class StartSandboxRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class StartSandboxResponse(_t.Message):
    pid: int
    @property
    def created_at(self) -> wkt_pb2.Timestamp: ...
    @property
    def spec(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        pid: int | None = ...,
        created_at: wkt_pb2.Timestamp | None = ...,
        spec: wkt_pb2.Any | None = ...,
    ) -> None: ...

class PlatformRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class PlatformResponse(_t.Message):
    @property
    def platform(self) -> platform_pb2.Platform: ...
    def __init__(
        self,
        *,
        platform: platform_pb2.Platform | None = ...,
    ) -> None: ...

class StopSandboxRequest(_t.Message):
    sandbox_id: str
    timeout_secs: int
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        timeout_secs: int | None = ...,
    ) -> None: ...

class StopSandboxResponse(_t.Message):
    def __init__(self) -> None: ...

class WaitSandboxRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class WaitSandboxResponse(_t.Message):
    exit_status: int
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    def __init__(
        self,
        *,
        exit_status: int | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
    ) -> None: ...

class SandboxStatusRequest(_t.Message):
    sandbox_id: str
    verbose: bool
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        verbose: bool | None = ...,
    ) -> None: ...

class SandboxStatusResponse(_t.Message):
    sandbox_id: str
    pid: int
    state: str
    @property
    def info(self) -> MutableMapping[str, str]: ...
    @property
    def created_at(self) -> wkt_pb2.Timestamp: ...
    @property
    def exited_at(self) -> wkt_pb2.Timestamp: ...
    @property
    def extra(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        pid: int | None = ...,
        state: str | None = ...,
        info: Mapping[str, str] | None = ...,
        created_at: wkt_pb2.Timestamp | None = ...,
        exited_at: wkt_pb2.Timestamp | None = ...,
        extra: wkt_pb2.Any | None = ...,
    ) -> None: ...

class PingRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class PingResponse(_t.Message):
    def __init__(self) -> None: ...

class ShutdownSandboxRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class ShutdownSandboxResponse(_t.Message):
    def __init__(self) -> None: ...

class SandboxMetricsRequest(_t.Message):
    sandbox_id: str
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
    ) -> None: ...

class SandboxMetricsResponse(_t.Message):
    @property
    def metrics(self) -> platform_pb2.Metric: ...
    def __init__(
        self,
        *,
        metrics: platform_pb2.Metric | None = ...,
    ) -> None: ...
