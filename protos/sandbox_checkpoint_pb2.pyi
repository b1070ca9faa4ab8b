# Types of protos/sandbox_checkpoint.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable, Mapping, MutableMapping

from protos import _types as _t
from protos import wkt_pb2

class CheckpointContainer(_t.Message):
    id: str
    name: str
    @property
    def config(self) -> wkt_pb2.Any: ...
    @property
    def status(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        name: str | None = ...,
        config: wkt_pb2.Any | None = ...,
        status: wkt_pb2.Any | None = ...,
    ) -> None: ...

class CheckpointRequest(_t.Message):
    sandbox_id: str
    output_path: str
    @property
    def sandbox_config(self) -> wkt_pb2.Any: ...
    @property
    def containers(self) -> _t.Messages[CheckpointContainer]: ...
    @property
    def options(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        output_path: str | None = ...,
        sandbox_config: wkt_pb2.Any | None = ...,
        containers: Iterable[CheckpointContainer] | None = ...,
        options: Mapping[str, str] | None = ...,
    ) -> None: ...

class CheckpointResponse(_t.Message):
    def __init__(self) -> None: ...

class RestoreContainer(_t.Message):
    id: str
    name: str
    @property
    def config(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        name: str | None = ...,
        config: wkt_pb2.Any | None = ...,
    ) -> None: ...

class RestoreRequest(_t.Message):
    sandbox_id: str
    checkpoint_path: str
    @property
    def sandbox_config(self) -> wkt_pb2.Any: ...
    @property
    def containers(self) -> _t.Messages[RestoreContainer]: ...
    @property
    def options(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        sandbox_id: str | None = ...,
        checkpoint_path: str | None = ...,
        sandbox_config: wkt_pb2.Any | None = ...,
        containers: Iterable[RestoreContainer] | None = ...,
        options: Mapping[str, str] | None = ...,
    ) -> None: ...

class RestoredContainer(_t.Message):
    name: str
    task_checkpoint_image: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        task_checkpoint_image: str | None = ...,
    ) -> None: ...

class RestoreResponse(_t.Message):
    @property
    def containers(self) -> _t.Messages[RestoredContainer]: ...
    def __init__(
        self,
        *,
        containers: Iterable[RestoredContainer] | None = ...,
    ) -> None: ...
