"""Files that runsc's flags name.  They are opened here, as sentry and gofer can't reach them.

One table for logs, profiles, traces and metrics.  Names and patterns are those of gVisor's
``runsc/specutils`` (DebugLogFile) and ``runsc/profile``.
"""

from __future__ import annotations

import os
import time

from runtime.base.errors import Failed, InvalidRequest, Unsupported, reason
from runtime.base.golang import parse_bool
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.host.fds import FdSet
    from runtime.runsc.release import Generation

_STDOUT = "-"
_LOG_DIRECTORY = "io.kubernetes.cri.sandbox-log-directory"


class _Kind(Record):
    """A flag that names a file."""

    flag: str
    #: The flag of the command line that says which descriptor it is.
    donated_as: str
    #: Of all commands, before the command's name, or of ``boot`` and ``gofer`` alone.
    of_command: bool = True
    #: Whether gofers write such a file, too.
    of_gofers: bool = False
    #: Added to, or else written anew.
    grows: bool = False
    #: What the file is called in a directory, if the flag may name one.
    name: str = ""
    #: %COMMAND%; empty for the command that writes it.
    command: str = ""
    #: A plain path, without variables.
    plain: bool = False
    #: Written when the process ends, so that it must not be killed meanwhile.
    at_end: bool = False


def _profile(flag: str, name: str) -> _Kind:
    return _Kind(
        flag=flag,
        donated_as=f"{flag}-fd",
        of_gofers=True,
        name=f"runsc-profile.{name}",
        at_end=True,
    )


_KINDS = (
    _Kind(
        flag="log", donated_as="log-fd", of_command=False, of_gofers=True, grows=True, plain=True
    ),
    _Kind(
        flag="debug-log",
        donated_as="debug-log-fd",
        of_command=False,
        of_gofers=True,
        grows=True,
        name="runsc.log.%TIMESTAMP%.%COMMAND%.txt",
    ),
    _Kind(
        flag="panic-log",
        donated_as="panic-log-fd",
        of_command=False,
        grows=True,
        name="runsc.log.%TIMESTAMP%.%COMMAND%.txt",
        command="panic",
    ),
    _profile("profile-block", "block.pprof"),
    _profile("profile-cpu", "cpu.pprof"),
    _profile("profile-heap", "heap.pprof"),
    _profile("profile-mutex", "mutex.pprof"),
    _profile("trace", "trace"),
    _Kind(flag="final-metrics-log", donated_as="final-metrics-log-fd", at_end=True),
    _Kind(
        flag="profiling-metrics-log",
        donated_as="profiling-metrics-fd",
        grows=True,
        name="runsc.log.%TIMESTAMP%.%COMMAND%.txt",
        command="metrics",
        at_end=True,
    ),
)
FLAGS = tuple(kind.flag for kind in _KINDS)
_SAMPLES = "profiling-metrics-log"


class Donated(Record):
    """The descriptors of the files by the flag that donates them."""

    #: For the command line before the command's name.
    everywhere: Mapping[str, int] = {}
    #: Behind it.
    of_command: Mapping[str, int] = {}
    #: Whether the process has something to write when it ends.
    at_end: bool = False
    #: Whether the sentry samples metrics to the container's standard output.
    samples_to_stdout: bool = False


def check(flags: Mapping[str, str], generation: Generation) -> None:
    """Raise InvalidRequest or Unsupported for a file that nothing would be written to."""
    for kind in _KINDS:
        if not flags.get(kind.flag) or not kind.of_command:
            continue
        if kind.donated_as not in generation.boot_flags:
            raise Unsupported(
                f"runsc flag {kind.flag!r} is not supported by runsc {generation.version}:"
                f" its boot has no --{kind.donated_as}"
            )
        if kind.flag.startswith("profile-") and not parse_bool(flags.get("profile", "")):
            raise InvalidRequest("runsc_config", f"flag {kind.flag!r} needs profile = true")
    if flags.get(_SAMPLES) and not flags.get("profiling-metrics"):
        raise InvalidRequest("runsc_config", f"flag {_SAMPLES!r} needs profiling-metrics")


def user_log(flags: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    """The file for what a pod's user is to see of the sentry's log; empty where none is wanted.

    It is gVisor's own shim's (pkg/shim/v1/utils, UserLogPath).  Raises Unsupported where the flag
    has nowhere to write to.
    """
    if not parse_bool(flags.get("debug-to-user-log", "")):
        return ""
    folder = annotations.get(_LOG_DIRECTORY, "")
    if not folder.startswith("/"):
        raise Unsupported(
            f"runsc flag 'debug-to-user-log' needs the annotation {_LOG_DIRECTORY}, as pods have it"
        )
    return os.path.join(folder, "gvisor.log")


def open_files(
    flags: Mapping[str, str],
    command: str,
    sandbox_id: str,
    container_id: str,
    taken: frozenset[str],
    fds: FdSet,
) -> Donated:
    """Open the files that the flags ask for.

    ``command`` is ``gofer`` or ``boot``, ``taken`` what its command line may have.  Never waits
    for a FIFO's reader.  Raises Failed naming the file.
    """
    everywhere: dict[str, int] = {}
    of_command: dict[str, int] = {}
    at_end = False
    for kind in _KINDS:
        pattern = flags.get(kind.flag, "")
        if not pattern or (command == "gofer" and not kind.of_gofers):
            continue
        if kind.flag == "debug-log" and not _wanted(flags.get("debug-command", ""), command):
            continue
        if kind.of_command and kind.donated_as not in taken:
            continue
        if kind.flag == _SAMPLES and pattern == _STDOUT:
            continue
        path = _path(kind, pattern, command, sandbox_id, container_id)
        (of_command if kind.of_command else everywhere)[kind.donated_as] = _open(kind, path, fds)
        at_end = at_end or kind.at_end
    samples = command == "boot" and flags.get(_SAMPLES) == _STDOUT
    return Donated(
        everywhere=everywhere, of_command=of_command, at_end=at_end, samples_to_stdout=samples
    )


def _wanted(selection: str, command: str) -> bool:
    """Whether ``debug-command``, a list that ``!`` negates, has the command in it."""
    if not selection:
        return True
    negated = selection.startswith("!")
    return (command in selection.removeprefix("!").split(",")) is not negated


def _path(kind: _Kind, pattern: str, command: str, sandbox_id: str, container_id: str) -> str:
    if kind.plain:
        return pattern
    path = pattern + kind.name if pattern.endswith("/") else pattern
    if command == "gofer" and kind.of_command:
        # Beside the sentry's, and one for each container.
        path += ".gofer" if "%CID%" in path else ".gofer.%CID%"
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
    values = {
        "TIMESTAMP": stamp,
        "COMMAND": kind.command or command,
        "TEST": "",
        "ID": sandbox_id,
        "CID": container_id,
    }
    for name, value in values.items():
        path = path.replace(f"%{name}%", value)
    return path


def _open(kind: _Kind, path: str, fds: FdSet) -> int:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if kind.grows else os.O_TRUNC)
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        os.makedirs(os.path.dirname(path) or "/", mode=0o775, exist_ok=True)
        fd = fds.add(os.open(path, flags, 0o664))
        os.set_blocking(fd, True)
        return fd
    except OSError as error:
        raise Failed(f"open {kind.flag} file {path}: {reason(error)}") from None
