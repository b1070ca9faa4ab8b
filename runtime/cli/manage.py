"""Verbs that act on a container: kill, pause, resume, wait, reduce, delete."""

from __future__ import annotations

from runtime.base.errors import InvalidRequest, NotFound
from runtime.cli import find, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_MAX_SIGNAL = 64
#: Seconds, where the caller sets no limit to a wait.
_NO_TIMEOUT = 1e8


def signal_number(text: str) -> int:
    """A signal by its number, its name or its name without SIG.  Raises InvalidRequest."""
    import signal

    if text.isascii() and text.isdigit():
        number = int(text)
        if number <= _MAX_SIGNAL:
            return number
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        found = getattr(signal.Signals, name, None)
        if found is not None:
            return int(found)
        for base, start in (("SIGRTMIN+", signal.SIGRTMIN), ("SIGRTMAX-", signal.SIGRTMAX)):
            offset = name.removeprefix(base)
            if name.startswith(base) and offset.isdigit() and int(offset) <= 30:
                return int(start) + int(offset) * (1 if base.endswith("+") else -1)
    raise InvalidRequest("signal", f"unknown signal {text!r}")


def kill_verb(args: argparse.Namespace) -> None:
    signo = signal_number(args.signal)
    if args.pid < 0 or (args.pid and args.all):
        raise InvalidRequest("--pid", "is one process, not all")
    container = find.find(args)
    if args.pid:
        container.signal_process(args.pid, signo)
    else:
        container.signal(signo, everyone=args.all)


def pause_verb(args: argparse.Namespace) -> None:
    find.find(args).pause()


def resume_verb(args: argparse.Namespace) -> None:
    find.find(args).resume()


def wait_verb(args: argparse.Namespace) -> None:
    container = find.find(args)
    for wanted, method in (
        (args.restore, "WaitRestore"),
        (args.checkpoint, "WaitCheckpoint"),
        (args.fscheckpoint, "WaitFSCheckpoint"),
    ):
        if wanted:
            container.control().wait_for(method, args.timeout or _NO_TIMEOUT)
            return
    if args.fsrestore:
        control = container.control()
        if not control.wait_files_restored(container.id, args.timeout or _NO_TIMEOUT):
            raise NotFound("files", container.id, "no files of it were restored")
        return
    if args.pid:
        status = container.wait_pid(args.pid, args.timeout)
    else:
        status = container.wait(args.timeout)
    output.write(f"{status}\n")


def reduce_verb(args: argparse.Namespace) -> None:
    find.find(args).reduce(args.wait)


def delete_verb(args: argparse.Namespace) -> None:
    """``delete``: with --force no error for what isn't there, as runc's."""
    try:
        container = find.find(args)
    except NotFound:
        if args.force:
            return
        raise
    container.destroy(force=args.force)
