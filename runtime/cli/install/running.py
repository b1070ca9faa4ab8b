"""``upgrade --running``: the shims of running pods take over the version that is installed by now.

Each shim does it by itself (``shim/handover``); here it is asked to, and what became of it is told.
"""

from __future__ import annotations

import time

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.cli import find, output
from runtime.cli.insight import shims

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.cli.insight.shims import Ask, Shim

#: Seconds for an answer, which a shim that is becoming another version doesn't give at once.
_ANSWER = 10.0
#: Seconds for all of it, which waits for calls that are under way; and between two looks.
_PATIENCE = 90.0
_INTERVAL = 0.1


def upgrade_running(args: argparse.Namespace) -> int:
    """One line per pod; 1 if a shim runs on as it was."""
    if args.ask_debug is None:
        raise Unsupported("this gvctl can't ask a shim")
    found, failed = _shims(args)
    names = [each.sandbox for each in found]
    for each in found:
        before = ""
        try:
            before = _version(args.ask_debug, each.address)
            now = _upgrade(args.ask_debug, each.address, args.program)
            text = f"handed over from {before} to {now}"
        except Unsupported:
            failed, text = True, "refused: this shim is of a version that can't hand over"
        except DeadlineExceeded as fault:
            # It may become the other version yet.
            failed, text = True, f"not known: {fault}"
        except RuntimeFault as fault:
            failed, text = True, f"refused: {fault}"
            if before:
                text += f" (it runs on as {before})"
        twice = names.count(each.sandbox) > 1
        name = f"{each.namespace}/{each.sandbox}" if twice else each.sandbox
        output.write(output.plain(f"{name}: {text}\n"))
    if not found and not failed:
        output.write("no pod runs\n")
    return int(failed)


def _shims(args: argparse.Namespace) -> tuple[list[Shim], bool]:
    """The shims of the pods that are named, or of all, and whether some can't be found."""
    if args.ids:
        containers = [find.find(args, ident) for ident in args.ids]
        problems: list[str] = []
        for each in containers:
            if each.record is None or not each.record.shim_address:
                raise InvalidRequest("id", f"{each.subject} has no shim")
    else:
        containers, problems = find.every(args)
    for problem in problems:
        output.warn(problem)
    return shims.of(containers), bool(problems)


def _version(ask: Ask, address: str) -> str:
    return str(ask(address, "Info", {}, _ANSWER).get("version"))[:40]


def _upgrade(ask: Ask, address: str, program: str) -> str:
    """The version afterwards.  Raises Failed with the reason for a refusal."""
    number = ask(address, "Upgrade", {"program": program}, _ANSWER).get("number")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            told = ask(address, "Info", {}, _ANSWER)
        except DeadlineExceeded:
            continue  # all stands still while the other version is asked
        upgrade = told.get("upgrade")
        if not isinstance(upgrade, dict) or not isinstance(number, int):
            raise Unsupported("it doesn't tell of upgrades")
        if upgrade.get("done", 0) >= number:
            why = str(upgrade.get("last", {}).get("refused", ""))
            if why:
                raise Failed(why)
            return str(told.get("version"))[:40]
        time.sleep(_INTERVAL)
    raise DeadlineExceeded("the upgrade", _PATIENCE)
