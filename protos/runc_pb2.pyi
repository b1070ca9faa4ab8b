# Types of protos/runc.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable

from protos import _types as _t

class Options(_t.Message):
    no_pivot_root: bool
    no_new_keyring: bool
    shim_cgroup: str
    io_uid: int
    io_gid: int
    binary_name: str
    root: str
    systemd_cgroup: bool
    criu_image_path: str
    criu_work_path: str
    task_api_address: str
    task_api_version: int
    def __init__(
        self,
        *,
        no_pivot_root: bool | None = ...,
        no_new_keyring: bool | None = ...,
        shim_cgroup: str | None = ...,
        io_uid: int | None = ...,
        io_gid: int | None = ...,
        binary_name: str | None = ...,
        root: str | None = ...,
        systemd_cgroup: bool | None = ...,
        criu_image_path: str | None = ...,
        criu_work_path: str | None = ...,
        task_api_address: str | None = ...,
        task_api_version: int | None = ...,
    ) -> None: ...

class CheckpointOptions(_t.Message):
    exit: bool
    open_tcp: bool
    external_unix_sockets: bool
    terminal: bool
    file_locks: bool
    @property
    def empty_namespaces(self) -> _t.Scalars[str]: ...
    cgroups_mode: str
    image_path: str
    work_path: str
    parent_path: str
    def __init__(
        self,
        *,
        exit: bool | None = ...,
        open_tcp: bool | None = ...,
        external_unix_sockets: bool | None = ...,
        terminal: bool | None = ...,
        file_locks: bool | None = ...,
        empty_namespaces: Iterable[str] | None = ...,
        cgroups_mode: str | None = ...,
        image_path: str | None = ...,
        work_path: str | None = ...,
        parent_path: str | None = ...,
    ) -> None: ...

class ProcessDetails(_t.Message):
    exec_id: str
    def __init__(
        self,
        *,
        exec_id: str | None = ...,
    ) -> None: ...
