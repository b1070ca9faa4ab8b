"""Messages of protos/pod.proto.  Made by protos/generate.py; do not edit."""

from protos import _pool

__getattr__ = _pool.module(
    globals(),
    file="protos/pod.proto",
    package="runtime.v1",
    dependencies=(),
    public=(),
    messages=(
        "PodSandboxMetadata",
        "DNSConfig",
        "IDMapping",
        "UserNamespace",
        "NamespaceOption",
        "LinuxSandboxSecurityContext",
        "LinuxContainerResources",
        "LinuxPodSandboxConfig",
        "PodSandboxConfig",
    ),
    descriptor=(
        b'\n\x10protos/pod.proto\x12\nruntime.v1"S\n\x12PodSandboxMeta'
        b'data\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\x0b\n\x03uid\x18\x02 \x01(\t\x12\x11\n\tnamespace\x18\x03 \x01'
        b'(\t\x12\x0f\n\x07attempt\x18\x04 \x01(\r"?\n\tDNSConfig\x12\x0f\n\x07servers\x18\x01 \x03('
        b'\t\x12\x10\n\x08searches\x18\x02 \x03(\t\x12\x0f\n\x07options\x18\x03 \x03(\t"B\n\tIDMappin'
        b'g\x12\x0f\n\x07host_id\x18\x01 \x01(\r\x12\x14\n\x0ccontainer_id\x18\x02 \x01(\r\x12\x0e\n\x06leng'
        b'th\x18\x03 \x01(\r"g\n\rUserNamespace\x12\x0c\n\x04mode\x18\x01 \x01(\x05\x12#\n\x04uids\x18'
        b'\x02 \x03(\x0b2\x15.runtime.v1.IDMapping\x12#\n\x04gids\x18\x03 \x03(\x0b2\x15.run'
        b'time.v1.IDMapping"\x82\x01\n\x0fNamespaceOption\x12\x0f\n\x07network'
        b'\x18\x01 \x01(\x05\x12\x0b\n\x03pid\x18\x02 \x01(\x05\x12\x0b\n\x03ipc\x18\x03 \x01(\x05\x12\x11\n\ttarget_id\x18\x04 '
        b'\x01(\t\x121\n\x0euserns_options\x18\x05 \x01(\x0b2\x19.runtime.v1.UserNam'
        b'espace"U\n\x1bLinuxSandboxSecurityContext\x126\n\x11namespa'
        b'ce_options\x18\x01 \x01(\x0b2\x1b.runtime.v1.NamespaceOption"s\n'
        b'\x17LinuxContainerResources\x12\x12\n\ncpu_period\x18\x01 \x01(\x03\x12\x11\n\t'
        b'cpu_quota\x18\x02 \x01(\x03\x12\x12\n\ncpu_shares\x18\x03 \x01(\x03\x12\x1d\n\x15memory_li'
        b'mit_in_bytes\x18\x04 \x01(\x03"\xd1\x02\n\x15LinuxPodSandboxConfig\x12\x15\n\r'
        b"cgroup_parent\x18\x01 \x01(\t\x12A\n\x10security_context\x18\x02 \x01(\x0b2'."
        b'runtime.v1.LinuxSandboxSecurityContext\x12?\n\x07sysctl'
        b's\x18\x03 \x03(\x0b2..runtime.v1.LinuxPodSandboxConfig.Sysct'
        b'lsEntry\x125\n\x08overhead\x18\x04 \x01(\x0b2#.runtime.v1.LinuxCont'
        b'ainerResources\x126\n\tresources\x18\x05 \x01(\x0b2#.runtime.v1.L'
        b'inuxContainerResources\x1a.\n\x0cSysctlsEntry\x12\x0b\n\x03key\x18\x01 '
        b'\x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\xab\x03\n\x10PodSandboxConfig\x120\n\x08m'
        b'etadata\x18\x01 \x01(\x0b2\x1e.runtime.v1.PodSandboxMetadata\x12\x10\n'
        b'\x08hostname\x18\x02 \x01(\t\x12\x15\n\rlog_directory\x18\x03 \x01(\t\x12)\n\ndns_co'
        b'nfig\x18\x04 \x01(\x0b2\x15.runtime.v1.DNSConfig\x128\n\x06labels\x18\x06 \x03('
        b'\x0b2(.runtime.v1.PodSandboxConfig.LabelsEntry\x12B\n\x0ba'
        b'nnotations\x18\x07 \x03(\x0b2-.runtime.v1.PodSandboxConfig.A'
        b'nnotationsEntry\x120\n\x05linux\x18\x08 \x01(\x0b2!.runtime.v1.Linu'
        b'xPodSandboxConfig\x1a-\n\x0bLabelsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n'
        b'\x05value\x18\x02 \x01(\t:\x028\x01\x1a2\n\x10AnnotationsEntry\x12\x0b\n\x03key\x18\x01 \x01('
        b'\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01b\x06proto3'
    ),
)
