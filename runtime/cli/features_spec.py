"""Verbs about gvctl itself and what it can run: features, spec, completion."""

from __future__ import annotations

import os

from runtime.base.errors import AlreadyExists, Failed, reason
from runtime.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def features_verb(args: argparse.Namespace) -> None:
    from runtime.bundle.features import features
    from runtime.cgroups.factory import host_mode
    from runtime.cli import settings

    flags = settings.config(args, "/").flags
    output.write(output.dumps(features(flags, host_mode()), indent=2))


def completion_verb(args: argparse.Namespace) -> None:
    from runtime.cli import completion

    output.write(completion.script(args.shell))


def spec_verb(args: argparse.Namespace) -> None:
    """``spec``: refuses to replace a file, as runc's does."""
    path = os.path.join(args.bundle, "config.json")
    text = output.dumps(starter_spec(), indent=2)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists("file", path) from None
    except OSError as error:
        raise Failed(f"{path}: {reason(error)}") from None
    with open(fd, "w", encoding="ascii") as file:
        file.write(text)


def starter_spec() -> dict[str, Any]:
    """A spec that runs a shell in ``rootfs``, with a terminal, as ``runc spec`` makes one."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "gvisor",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {"namespaces": [{"type": n} for n in ("pid", "network", "ipc", "uts", "mount")]},
    }
