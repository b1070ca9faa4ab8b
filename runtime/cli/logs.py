"""``logs``: the log files of a sandbox, found by what its sentry and gofer have open.

runsc's flags hold patterns with times and names in them; a living process tells which file it
really writes to.  For a sandbox that is gone, the patterns have to do.
"""

from __future__ import annotations

import glob
import os
import select
import stat

from runtime.base.errors import NotFound, RuntimeFault
from runtime.base.record import Record
from runtime.cli import find as where
from runtime.cli import output, settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from runtime.state.loaded import StoredContainer

#: runsc's flags by the kind of log; a process has each with ``-fd`` and the descriptor's number.
KINDS = {"log": "log", "debug": "debug-log", "panic": "panic-log", "user": "user-log"}
_MAX_COMMAND = 1 << 17
_CHUNK = 1 << 16


class LogFile(Record):
    """A file, and what it is: of which kind, written by whom."""

    kind: str
    writer: str
    path: str


def logs_verb(args: argparse.Namespace) -> None:
    container = where.find(args)
    found = [f for f in find(container, patterns(args)) if args.kind in ("all", f.kind)]
    if not found:
        raise NotFound(
            "log",
            container.id,
            f"{container.subject} has no such log; set debug-log, panic-log or user-log in the "
            "options' runsc_config to have one written",
        )
    if args.list:
        rows = ((f.kind, f.writer, f.path) for f in found)
        output.write(output.table(("KIND", "WRITER", "FILE"), rows))
        return
    positions: dict[str, int] = {}
    for file in found:
        if len(found) > 1:
            output.write(f"==> {output.printable(file.path)} <==\n")
        positions[file.path] = _print(file.path, args.tail)
    if args.follow:
        _follow(container, positions)


def patterns(args: argparse.Namespace) -> Mapping[str, str]:
    """The flags that name logs, as configured."""
    return settings.config(args, where.new_root(args)).flags


def find(container: StoredContainer, flags: Mapping[str, str]) -> list[LogFile]:
    """The container's log files, without any twice."""
    files: dict[str, LogFile] = {}
    for writer, process in (
        ("boot", container.sandbox_process()),
        ("gofer", container.gofer_process()),
    ):
        if process is None:
            continue
        with process:
            for file in open_logs(process.pid, writer):
                files.setdefault(file.path, file)
    if not files:
        for file in matching(flags, container.sandbox_id):
            files.setdefault(file.path, file)
    return list(files.values())


def open_logs(pid: int, writer: str, proc: str = "/proc") -> Iterator[LogFile]:
    """What a runsc process was given to write its logs to."""
    try:
        with open(f"{proc}/{pid}/cmdline", "rb") as file:
            words = file.read(_MAX_COMMAND).decode("utf-8", "replace").split("\0")
    except OSError:
        return
    for kind, flag in KINDS.items():
        for word in words:
            name, equals, number = word.lstrip("-").partition("=")
            if name != f"{flag}-fd" or not equals or not number.isdigit():
                continue
            try:
                path = os.readlink(f"{proc}/{pid}/fd/{int(number)}")
            except OSError:
                continue
            if path.startswith("/") and not path.endswith(" (deleted)"):
                yield LogFile(kind=kind, writer=writer, path=path)


def matching(flags: Mapping[str, str], sandbox_id: str) -> Iterator[LogFile]:
    """What the patterns in runsc's flags may have become."""
    for kind, flag in KINDS.items():
        pattern = flags.get(flag, "")
        if not pattern.startswith("/"):
            continue
        if kind == "debug" and pattern.endswith("/"):
            pattern += "runsc.log.%TIMESTAMP%.%COMMAND%.txt"
        parts = pattern.split("%")
        names = {"ID": glob.escape(sandbox_id), "TIMESTAMP": "*", "COMMAND": "*", "TEST": ""}
        text = "".join(
            names.get(part, f"%{glob.escape(part)}%") if i % 2 else glob.escape(part)
            for i, part in enumerate(parts)
        )
        for path in sorted(glob.glob(text)):
            yield LogFile(kind=kind, writer="?", path=path)


def _open(path: str) -> int:
    """A regular file to read.  Raises RuntimeFault, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFound("log", path, f"{path}: not a regular file")
    return fd


def _print(path: str, tail: int) -> int:
    """Print a file, or its last lines; where its end was."""
    fd = _open(path)
    try:
        end = os.fstat(fd).st_size
        start = 0 if tail < 0 else tail_start(fd, end, tail)
        return _copy(fd, start)
    finally:
        os.close(fd)


def tail_start(fd: int, end: int, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin, read from its end."""
    if lines == 0:
        return end
    position, wanted = end, lines
    first = True
    while position > 0:
        size = min(_CHUNK, position)
        position -= size
        data = os.pread(fd, size, position)
        at = len(data)
        if first and data.endswith(b"\n"):
            at -= 1  # that ends the last line and begins none
        first = False
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if not wanted:
                return position + at + 1
    return 0


def _copy(fd: int, position: int) -> int:
    while data := os.pread(fd, _CHUNK, position):
        output.write(output.plain(data.decode("utf-8", "replace")))
        position += len(data)
    return position


def _follow(container: StoredContainer, positions: dict[str, int]) -> None:
    """Print what comes, until the sandbox has ended."""
    process = container.sandbox_process()
    poller = select.poll()
    if process is not None:
        poller.register(process.pidfd, select.POLLIN)
    while process is not None:
        ended = bool(poller.poll(250))
        for path, position in positions.items():
            try:
                fd = _open(path)
            except (RuntimeFault, OSError):
                continue  # removed or rotated
            try:
                positions[path] = _copy(fd, position)
            finally:
                os.close(fd)
        if ended:
            return
