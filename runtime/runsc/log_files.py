"""runsc's log files, as its flags name them: opened here, because its processes can't any more
once they are locked in.

Names and patterns are those of gVisor's ``runsc/specutils`` DebugLogFile.
"""

from __future__ import annotations

import os
import time

from runtime.base.errors import Failed, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.fds import FdSet
    from runtime.runsc.flags import Settings


def open_logs(settings: Settings, command: str, sandbox_id: str, fds: FdSet) -> dict[str, int]:
    """The descriptors of the log files that the flags ask for, by the flag that donates them.

    ``command`` is ``gofer`` or ``boot``.  Raises Failed naming the file.
    """
    flags = settings.effective
    logs: dict[str, int] = {}
    if flags.get("log"):
        logs["log-fd"] = _open(flags["log"], "", sandbox_id, fds)
    if flags.get("debug-log") and _wanted(flags.get("debug-command", ""), command):
        logs["debug-log-fd"] = _open(flags["debug-log"], command, sandbox_id, fds)
    if flags.get("panic-log") and command == "boot":
        logs["panic-log-fd"] = _open(flags["panic-log"], "panic", sandbox_id, fds)
    return logs


def _wanted(selection: str, command: str) -> bool:
    """Whether ``debug-command``, a list that ``!`` negates, has the command in it."""
    if not selection:
        return True
    negated = selection.startswith("!")
    return (command in selection.removeprefix("!").split(",")) is not negated


def _open(pattern: str, command: str, sandbox_id: str, fds: FdSet) -> int:
    path = pattern
    if command:
        if path.endswith("/"):
            path += "runsc.log.%TIMESTAMP%.%COMMAND%.txt"
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
        path = path.replace("%TIMESTAMP%", stamp).replace("%COMMAND%", command)
        path = path.replace("%TEST%", "").replace("%ID%", sandbox_id)
    try:
        os.makedirs(os.path.dirname(path) or "/", mode=0o775, exist_ok=True)
        return fds.add(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o664))
    except OSError as error:
        raise Failed(f"open log file {path}: {reason(error)}") from None
