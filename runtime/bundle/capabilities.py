"""Linux capabilities: names to bit masks.  Pure.

The numbers are those of ``include/uapi/linux/capability.h``.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Index = the capability's number.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

NET_RAW = 1 << 13
SETPCAP = 1 << 8
SYS_CHROOT = 1 << 18
SYS_PTRACE = 1 << 19
SYS_ADMIN = 1 << 21
#: What makes a user root over files: owners, modes, FIFOs.
FILES = 0b11111 | 1 << 27


class Capabilities(Record):
    """The five sets of a process, as masks of ``1 << number``."""

    bounding: int = 0
    effective: int = 0
    inheritable: int = 0
    permitted: int = 0
    ambient: int = 0

    def without(self, mask: int) -> Capabilities:
        """The sets less the bits of ``mask``."""
        return Capabilities(
            bounding=self.bounding & ~mask,
            effective=self.effective & ~mask,
            inheritable=self.inheritable & ~mask,
            permitted=self.permitted & ~mask,
            ambient=self.ambient & ~mask,
        )


def all_sets(mask: int) -> Capabilities:
    """A process that has these now, and can have no others."""
    return Capabilities(bounding=mask, effective=mask, permitted=mask)


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are capabilities."""
    return tuple(name for name in names if name in NAMES)


def mask_of(names: Iterable[str], where: str) -> int:
    """The mask of the named capabilities.  Raises InvalidRequest naming an unknown one."""
    mask = 0
    for name in names:
        try:
            mask |= 1 << NAMES.index(name)
        except ValueError:
            raise InvalidRequest(where, f"unknown capability {name!r}") from None
    return mask
