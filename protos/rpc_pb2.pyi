# Types of protos/rpc.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t
from protos import wkt_pb2

class Status(_t.Message):
    code: int
    message: str
    @property
    def details(self) -> _t.Messages[wkt_pb2.Any]: ...
    def __init__(
        self,
        *,
        code: int | None = ...,
        message: str | None = ...,
        details: Iterable[wkt_pb2.Any] | None = ...,
    ) -> None: ...
