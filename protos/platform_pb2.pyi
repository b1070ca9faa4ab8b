# Types of protos/platform.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t
from protos import wkt_pb2

class Platform(_t.Message):
    os: str
    architecture: str
    variant: str
    os_version: str
    def __init__(
        self,
        *,
        os: str | None = ...,
        architecture: str | None = ...,
        variant: str | None = ...,
        os_version: str | None = ...,
    ) -> None: ...

class Metric(_t.Message):
    @property
    def timestamp(self) -> wkt_pb2.Timestamp: ...
    id: str
    @property
    def data(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        timestamp: wkt_pb2.Timestamp | None = ...,
        id: str | None = ...,
        data: wkt_pb2.Any | None = ...,
    ) -> None: ...
