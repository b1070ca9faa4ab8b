# Types of protos/runtimeoptions.proto.  Made by protos/generate.py; do not edit.

from protos import _types as _t

class Options(_t.Message):
    type_url: str
    config_path: str
    config_body: bytes
    def __init__(
        self,
        *,
        type_url: str | None = ...,
        config_path: str | None = ...,
        config_body: bytes | None = ...,
    ) -> None: ...
