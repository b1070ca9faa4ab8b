# Types of protos/process.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t
from protos import wkt_pb2

UNKNOWN: int
CREATED: int
RUNNING: int
STOPPED: int
PAUSED: int
PAUSING: int

class ProcessInfo(_t.Message):
    pid: int
    @property
    def info(self) -> wkt_pb2.Any: ...
    def __init__(
        self,
        *,
        pid: int | None = ...,
        info: wkt_pb2.Any | None = ...,
    ) -> None: ...
