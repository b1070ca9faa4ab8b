# Types of protos/wkt.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t

class Any(_t.Message):
    type_url: str
    value: bytes
    def __init__(
        self,
        *,
        type_url: str | None = ...,
        value: bytes | None = ...,
    ) -> None: ...

class Timestamp(_t.Message):
    seconds: int
    nanos: int
    def __init__(
        self,
        *,
        seconds: int | None = ...,
        nanos: int | None = ...,
    ) -> None: ...

class Empty(_t.Message):
    def __init__(self) -> None: ...
