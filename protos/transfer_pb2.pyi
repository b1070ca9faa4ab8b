# Types of protos/transfer.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t

class Data(_t.Message):
    data: bytes
    def __init__(
        self,
        *,
        data: bytes | None = ...,
    ) -> None: ...

class WindowUpdate(_t.Message):
    update: int
    def __init__(
        self,
        *,
        update: int | None = ...,
    ) -> None: ...
