# Types of protos/pod.proto.  Made by protos/generate.py; do not edit.

from collections.abc import Iterable, Mapping, MutableMapping

from protos import _types as _t

class PodSandboxMetadata(_t.Message):
    name: str
    uid: str
    namespace: str
    attempt: int
    def __init__(
        self,
        *,
        name: str | None = ...,
        uid: str | None = ...,
        namespace: str | None = ...,
        attempt: int | None = ...,
    ) -> None: ...

class DNSConfig(_t.Message):
    @property
    def servers(self) -> _t.Scalars[str]: ...
    @property
    def searches(self) -> _t.Scalars[str]: ...
    @property
    def options(self) -> _t.Scalars[str]: ...
    def __init__(
        self,
        *,
        servers: Iterable[str] | None = ...,
        searches: Iterable[str] | None = ...,
        options: Iterable[str] | None = ...,
    ) -> None: ...

class IDMapping(_t.Message):
    host_id: int
    container_id: int
    length: int
    def __init__(
        self,
        *,
        host_id: int | None = ...,
        container_id: int | None = ...,
        length: int | None = ...,
    ) -> None: ...

class UserNamespace(_t.Message):
    mode: int
    @property
    def uids(self) -> _t.Messages[IDMapping]: ...
    @property
    def gids(self) -> _t.Messages[IDMapping]: ...
    def __init__(
        self,
        *,
        mode: int | None = ...,
        uids: Iterable[IDMapping] | None = ...,
        gids: Iterable[IDMapping] | None = ...,
    ) -> None: ...

class NamespaceOption(_t.Message):
    network: int
    pid: int
    ipc: int
    target_id: str
    @property
    def userns_options(self) -> UserNamespace: ...
    def __init__(
        self,
        *,
        network: int | None = ...,
        pid: int | None = ...,
        ipc: int | None = ...,
        target_id: str | None = ...,
        userns_options: UserNamespace | None = ...,
    ) -> None: ...

class LinuxSandboxSecurityContext(_t.Message):
    @property
    def namespace_options(self) -> NamespaceOption: ...
    def __init__(
        self,
        *,
        namespace_options: NamespaceOption | None = ...,
    ) -> None: ...

class LinuxContainerResources(_t.Message):
    cpu_period: int
    cpu_quota: int
    cpu_shares: int
    memory_limit_in_bytes: int
    def __init__(
        self,
        *,
        cpu_period: int | None = ...,
        cpu_quota: int | None = ...,
        cpu_shares: int | None = ...,
        memory_limit_in_bytes: int | None = ...,
    ) -> None: ...

class LinuxPodSandboxConfig(_t.Message):
    cgroup_parent: str
    @property
    def security_context(self) -> LinuxSandboxSecurityContext: ...
    @property
    def sysctls(self) -> MutableMapping[str, str]: ...
    @property
    def overhead(self) -> LinuxContainerResources: ...
    @property
    def resources(self) -> LinuxContainerResources: ...
    def __init__(
        self,
        *,
        cgroup_parent: str | None = ...,
        security_context: LinuxSandboxSecurityContext | None = ...,
        sysctls: Mapping[str, str] | None = ...,
        overhead: LinuxContainerResources | None = ...,
        resources: LinuxContainerResources | None = ...,
    ) -> None: ...

class PodSandboxConfig(_t.Message):
    @property
    def metadata(self) -> PodSandboxMetadata: ...
    hostname: str
    log_directory: str
    @property
    def dns_config(self) -> DNSConfig: ...
    @property
    def labels(self) -> MutableMapping[str, str]: ...
    @property
    def annotations(self) -> MutableMapping[str, str]: ...
    @property
    def linux(self) -> LinuxPodSandboxConfig: ...
    def __init__(
        self,
        *,
        metadata: PodSandboxMetadata | None = ...,
        hostname: str | None = ...,
        log_directory: str | None = ...,
        dns_config: DNSConfig | None = ...,
        labels: Mapping[str, str] | None = ...,
        annotations: Mapping[str, str] | None = ...,
        linux: LinuxPodSandboxConfig | None = ...,
    ) -> None: ...
