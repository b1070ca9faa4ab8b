# Types of protos/introspection.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Mapping, MutableMapping

from protos import _types as _t
from protos import wkt_pb2

class RuntimeVersion(_t.Message):
    version: str
    revision: str
    def __init__(
        self,
        *,
        version: str | None = ...,
        revision: str | None = ...,
    ) -> None: ...

class RuntimeInfo(_t.Message):
    name: str
    @property
    def version(self) -> RuntimeVersion: ...
    @property
    def options(self) -> wkt_pb2.Any: ...
    @property
    def features(self) -> wkt_pb2.Any: ...
    @property
    def annotations(self) -> MutableMapping[str, str]: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        version: RuntimeVersion | None = ...,
        options: wkt_pb2.Any | None = ...,
        features: wkt_pb2.Any | None = ...,
        annotations: Mapping[str, str] | None = ...,
    ) -> None: ...
