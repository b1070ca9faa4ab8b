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
        b'\t\x12\x10\n\x08searches\x18\x02 \x03(\t\x12\x0f\n\x07options\x18\x03 \x03(\t"\x1d\n\rUserName'
        b'space\x12\x0c\n\x04mode\x18\x01 \x01(\x05"\x82\x01\n\x0fNamespaceOption\x12\x0f\n\x07netwo'
        b'rk\x18\x01 \x01(\x05\x12\x0b\n\x03pid\x18\x02 \x01(\x05\x12\x0b\n\x03ipc\x18\x03 \x01(\x05\x12\x11\n\ttarget_id\x18'
        b'\x04 \x01(\t\x121\n\x0euserns_options\x18\x05 \x01(\x0b2\x19.runtime.v1.UserN'
        b'amespace"U\n\x1bLinuxSandboxSecurityContext\x126\n\x11names'
        b'pace_options\x18\x01 \x01(\x0b2\x1b.runtime.v1.NamespaceOption"'
        b's\n\x17LinuxContainerResources\x12\x12\n\ncpu_period\x18\x01 \x01(\x03\x12\x11'
        b'\n\tcpu_quota\x18\x02 \x01(\x03\x12\x12\n\ncpu_shares\x18\x03 \x01(\x03\x12\x1d\n\x15memory_'
        b'limit_in_bytes\x18\x04 \x01(\x03"\xd1\x02\n\x15LinuxPodSandboxConfig\x12\x15'
        b'\n\rcgroup_parent\x18\x01 \x01(\t\x12A\n\x10security_context\x18\x02 \x01(\x0b2'
        b"'.runtime.v1.LinuxSandboxSecurityContext\x12?\n\x07sysc"
        b'tls\x18\x03 \x03(\x0b2..runtime.v1.LinuxPodSandboxConfig.Sys'
        b'ctlsEntry\x125\n\x08overhead\x18\x04 \x01(\x0b2#.runtime.v1.LinuxCo'
        b'ntainerResources\x126\n\tresources\x18\x05 \x01(\x0b2#.runtime.v1'
        b'.LinuxContainerResources\x1a.\n\x0cSysctlsEntry\x12\x0b\n\x03key\x18'
        b'\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\xab\x03\n\x10PodSandboxConfig\x120\n'
        b'\x08metadata\x18\x01 \x01(\x0b2\x1e.runtime.v1.PodSandboxMetadata\x12'
        b'\x10\n\x08hostname\x18\x02 \x01(\t\x12\x15\n\rlog_directory\x18\x03 \x01(\t\x12)\n\ndns_'
        b'config\x18\x04 \x01(\x0b2\x15.runtime.v1.DNSConfig\x128\n\x06labels\x18\x06 '
        b'\x03(\x0b2(.runtime.v1.PodSandboxConfig.LabelsEntry\x12B\n'
        b'\x0bannotations\x18\x07 \x03(\x0b2-.runtime.v1.PodSandboxConfig'
        b'.AnnotationsEntry\x120\n\x05linux\x18\x08 \x01(\x0b2!.runtime.v1.Li'
        b'nuxPodSandboxConfig\x1a-\n\x0bLabelsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12'
        b'\r\n\x05value\x18\x02 \x01(\t:\x028\x01\x1a2\n\x10AnnotationsEntry\x12\x0b\n\x03key\x18\x01 '
        b'\x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01b\x06proto3'
    ),
)
