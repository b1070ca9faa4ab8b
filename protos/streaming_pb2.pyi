# Types of protos/streaming.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t
from protos.transfer_pb2 import Data as Data
from protos.transfer_pb2 import WindowUpdate as WindowUpdate

class StreamInit(_t.Message):
    id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
    ) -> None: ...
