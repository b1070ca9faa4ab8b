# Types of protos/forward.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t
from protos import wkt_pb2

class ForwardRequest(_t.Message):
    @property
    def envelope(self) -> Envelope: ...
    def __init__(
        self,
        *,
        envelope: Envelope | None = ...,
    ) -> None: ...

class Envelope(_t.Message):
    @property
    def timestamp(self) -> wkt_pb2.Timestamp: ...
    namespace: str
    topic: str
    @property
    def event(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        timestamp: wkt_pb2.Timestamp | None = ...,
        namespace: str | None = ...,
        topic: str | None = ...,
        event: wkt_pb2.Any | None = ...,
    ) -> None: ...
