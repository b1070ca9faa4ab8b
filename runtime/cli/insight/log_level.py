"""``log-level``: how much a shim and a sentry log, while they run."""

from __future__ import annotations

from runtime.base.errors import InvalidRequest, NotFound, RuntimeFault
from runtime.cli import find, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.state.loaded import StoredContainer

#: logrus' names, as the shim's options have them, and the sentry's number for each.
LEVELS = {
    "trace": 2, "debug": 2, "info": 1, "warn": 0, "warning": 0, "error": 0, "fatal": 0, "panic": 0,
}  # fmt: skip
_TIMEOUT = 2.0


def log_level_verb(args: argparse.Namespace) -> int:
    """``log-level``: 1 if one that was asked for couldn't be set."""
    container = find.find(args)
    wanted = (args.only,) if args.only else ("shim", "sentry")
    failed = False
    for name in wanted:
        try:
            text = {"shim": _shim, "sentry": _sentry}[name](args, container)
        except RuntimeFault as fault:
            # A container of gvctl's or runsc's has no shim, which is no failure.
            if not args.only and isinstance(fault, NotFound):
                text = "none"
            else:
                failed, text = True, f"failed: {fault}"
        output.write(output.plain(f"{name}: {text}\n"))
    return int(failed)


def _shim(args: argparse.Namespace, container: StoredContainer) -> str:
    address = container.record.shim_address if container.record is not None else ""
    if not address or args.ask_debug is None:
        raise NotFound("shim", container.id, f"{container.subject} has no shim")
    found = args.ask_debug(address, "LogLevel", {"level": args.level}, _TIMEOUT)
    before, level = str(found.get("before"))[:20], str(found.get("level"))[:20]
    return f"{before}, now {level}" if args.level else level


def _sentry(args: argparse.Namespace, container: StoredContainer) -> str:
    from runtime.cli import logs

    if not args.level:
        if args.only:
            raise InvalidRequest("log-level", "the sentry doesn't tell its level; name one")
        return "doesn't tell its level"
    container.set_log_level(LEVELS[args.level])
    files = [f for f in logs.find(container, {}) if f.writer == "boot" and f.kind == "debug"]
    now = f"now {args.level}"
    return now if files else f"{now}, which nothing is written of: its options have no debug-log"
