# Types of protos/mount.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t

class Mount(_t.Message):
    type: str
    source: str
    target: str
    @property
    def options(self) -> _t.Scalars[str]: ...
    def __init__(
        self,
        *,
        type: str | None = ...,
        source: str | None = ...,
        target: str | None = ...,
        options: Iterable[str] | None = ...,
    ) -> None: ...
