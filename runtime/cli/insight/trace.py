"""``trace``: a sentry's trace sessions, which tell a program of what runs in the sandbox."""

from __future__ import annotations

from runtime.base import files
from runtime.base.errors import InvalidRequest, reason
from runtime.cli import find, output
from runtime.runsc import trace_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.state.loaded import StoredContainer


def trace_verb(args: argparse.Namespace) -> None:
    """``trace``: one of several things to do with the sessions of a sandbox."""
    container = find.find(args)
    {"create": _create, "delete": _delete, "list": _list, "procfs": _procfs}[args.action](
        args, container
    )


def _create(args: argparse.Namespace, container: StoredContainer) -> None:
    if not args.session:
        raise InvalidRequest("--session", "a file is wanted that says what to trace")
    try:
        data = files.read_bounded(args.session, trace_session.MAX_CONFIG, follow=True)
    except OSError as error:
        raise InvalidRequest("--session", f"{args.session}: {reason(error)}") from None
    if data is None:
        raise InvalidRequest("--session", f"{args.session}: no such file or directory")
    session = trace_session.parse(data, args.session)
    for each in container.create_trace(session, args.force):
        output.warn(f"{each}; left out")
    output.write(f"session {session.name} created\n")


def _delete(args: argparse.Namespace, container: StoredContainer) -> None:
    container.delete_trace(args.name)
    output.write(f"session {args.name} deleted\n")


def _list(args: argparse.Namespace, container: StoredContainer) -> None:
    sessions = container.traces()
    if args.format == "json":
        found = [
            {"name": name, "sinks": [{"name": sink, "dropped": lost} for sink, lost in sinks]}
            for name, sinks in sessions
        ]
        output.write(output.dumps(found))
        return
    rows = [(name, sink, lost) for name, sinks in sessions for sink, lost in sinks or [("-", 0)]]
    output.write(output.table(("SESSION", "SINK", "DROPPED"), rows))


def _procfs(args: argparse.Namespace, container: StoredContainer) -> None:
    """A line of JSON for each process, as the sentry tells it, but for what may be secret."""
    for process in container.procfs():
        if not args.environment:
            process.pop("env", None)
        output.write(output.dumps(process))
