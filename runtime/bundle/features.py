"""What this runtime can do, in the terms of the OCI's features document.

Owns the claims, in one table: a feature is listed once it works, as containerd refuses or admits
containers by them.
"""

from __future__ import annotations

import os

from runtime.base import fastjson
from runtime.bundle.hook_spec import STAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SYSTEMD = "/run/systemd/system"

#: Those of runtime-spec's features.md.  ``rro`` among the mount options would make CRI grant
#: recursive read-only mounts, and idmap with the user namespace pods with ``hostUsers: false``.
CLAIMS: Mapping[str, object] = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "hooks": list(STAGES),
    "mountOptions": [
        "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "noatime",
        "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "private",
        "ratime", "rbind", "relatime", "rexec", "rnoatime", "rnoexec", "ro", "rprivate", "rro",
        "rrw", "rslave", "rw", "slave", "strictatime", "suid", "sync",
    ],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "cgroup": {
            "v1": True,
            "v2": True,
            "systemd": False,  # see features()
            "systemdUser": False,
            "rdma": False,
        },
        # Unless the operator has set runsc's flag oci-seccomp to false.
        "seccomp": {
            "enabled": True,
            "actions": [
                "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD",
                "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
            ],
            "operators": [
                "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
            ],
            "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_X86_64"],
        },
        "apparmor": {"enabled": False},
        "selinux": {"enabled": False},
        "intelRdt": {"enabled": False},
        "mountExtensions": {"idmap": {"enabled": True}},
    },
}  # fmt: skip


def features(flags: Mapping[str, str], cgroup_mode: str) -> dict[str, object]:
    """The claims, ready for JSON.

    They depend on runsc's flags, on the host's ``cgroup_mode`` and on whether systemd runs it.
    """
    from runtime.base.golang import parse_bool
    from runtime.bundle.capabilities import NAMES

    body: dict[str, object] = fastjson.loads(fastjson.dumps(CLAIMS).encode())
    linux = body["linux"]
    assert isinstance(linux, dict)
    linux["capabilities"] = list(NAMES)
    # Scopes are asked for on v2 alone, and of a systemd that is the host's init (sd_booted(3)).
    linux["cgroup"]["systemd"] = cgroup_mode == "v2" and os.path.isdir(_SYSTEMD)
    linux["seccomp"]["enabled"] = parse_bool(flags.get("oci-seccomp", "")) is not False
    return body
