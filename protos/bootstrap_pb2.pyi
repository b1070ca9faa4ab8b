# Types of protos/bootstrap.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable, Mapping, MutableMapping

from protos import _types as _t
from protos import wkt_pb2

LOG_LEVEL_INFO: int
LOG_LEVEL_TRACE: int
LOG_LEVEL_DEBUG: int
LOG_LEVEL_WARN: int
LOG_LEVEL_ERROR: int
LOG_LEVEL_FATAL: int
LOG_LEVEL_PANIC: int

CAPABILITY_UNSPECIFIED: int

class BootstrapParams(_t.Message):
    instance_id: str
    namespace: str
    log_level: int
    containerd_version: str
    containerd_ttrpc_address: str
    containerd_grpc_address: str
    containerd_binary: str
    @property
    def extensions(self) -> _t.Messages[Extension]: ...
    socket_dir: str
    def __init__(
        self,
        *,
        instance_id: str | None = ...,
        namespace: str | None = ...,
        log_level: int | None = ...,
        containerd_version: str | None = ...,
        containerd_ttrpc_address: str | None = ...,
        containerd_grpc_address: str | None = ...,
        containerd_binary: str | None = ...,
        extensions: Iterable[Extension] | None = ...,
        socket_dir: str | None = ...,
    ) -> None: ...

class Extension(_t.Message):
    @property
    def value(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        value: wkt_pb2.Any | None = ...,
    ) -> None: ...

class BootstrapResult(_t.Message):
    version: int
    address: str
    protocol: str
    @property
    def capabilities(self) -> _t.Scalars[int]: ...
    @property
    def metadata(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        version: int | None = ...,
        address: str | None = ...,
        protocol: str | None = ...,
        capabilities: Iterable[int] | None = ...,
        metadata: Mapping[str, str] | None = ...,
    ) -> None: ...
