"""Whether this process has privilege over the host: without it, a refusal is no error.

Imports nothing of the project.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Numbers of capabilities (capabilities(7)).
SYS_ADMIN: Final = 21
SYS_RESOURCE: Final = 24

_WHOLE = ["0", "0", "4294967295"]


def holds_over_host(capability: int, *, proc: str = "/proc") -> bool:
    """Whether we hold a capability over the whole host.

    A user namespace grants it within itself only; cgroups and oom_score_adj are checked against
    the host's.  What can't be found out counts as not held.
    """
    try:
        with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
            status = file.read()
        with open(f"{proc}/self/uid_map", encoding="ascii") as file:
            whole = file.read().split() == _WHOLE
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return whole and bool(int(line.split()[1], 16) >> capability & 1)
    return False
