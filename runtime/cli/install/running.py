"""``upgrade --running``: the shims of running pods take over the version that is installed by now.

Each shim does it by itself (``shim/handover``); here it is asked to, and what became of it is told.
"""

from __future__ import annotations

import time

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.cli import find, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from typing import Any

    Ask = Callable[[str, str, Mapping[str, Any], float], Mapping[str, Any]]

#: Seconds for an answer, which a shim that is becoming another version doesn't give at once.
_ANSWER = 10.0
#: Seconds for all of it, which waits for calls that are under way; and between two looks.
_PATIENCE = 60.0
_INTERVAL = 0.1


def upgrade_running(args: argparse.Namespace) -> int:
    """One line per pod; 1 if a shim runs on as it was."""
    if args.ask_debug is None:
        raise Unsupported("this gvctl can't ask a shim")
    shims, failed = _shims(args)
    for pod, address in sorted(shims.items()):
        try:
            before, now = _upgrade(args.ask_debug, address, args.program)
            text = f"handed over from {before} to {now}"
        except Unsupported:
            failed, text = True, "refused: this shim is of a version that can't hand over"
        except RuntimeFault as fault:
            failed, text = True, f"refused: {fault}"
        output.write(output.plain(f"{pod}: {text}\n"))
    if not shims and not failed:
        output.write("no pod runs\n")
    return int(failed)


def _shims(args: argparse.Namespace) -> tuple[dict[str, str], bool]:
    """The addresses of the shims by their pods, and whether some can't be found."""
    if args.ids:
        containers = [find.find(args, ident) for ident in args.ids]
        problems: list[str] = []
    else:
        containers, problems = find.every(args)
    found = {}
    for each in containers:
        address = each.record.shim_address if each.record is not None else ""
        if address:
            found[address] = each.sandbox_id
        elif args.ids:
            raise InvalidRequest("id", f"{each.subject} has no shim")
    for problem in problems:
        output.warn(problem)
    return {pod: address for address, pod in found.items()}, bool(problems)


def _upgrade(ask: Ask, address: str, program: str) -> tuple[str, str]:
    """The versions before and after.  Raises Failed with the reason for a refusal."""
    before = str(ask(address, "Info", {}, _ANSWER).get("version"))[:40]
    number = ask(address, "Upgrade", {"program": program}, _ANSWER).get("number")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        told = ask(address, "Info", {}, _ANSWER)
        upgrade = told.get("upgrade")
        if not isinstance(upgrade, dict) or not isinstance(number, int):
            raise Unsupported("it doesn't tell of upgrades")
        if upgrade.get("done", 0) >= number:
            why = str(upgrade.get("last", {}).get("refused", ""))
            if why:
                raise Failed(why)
            return before, str(told.get("version"))[:40]
        time.sleep(_INTERVAL)
    raise DeadlineExceeded("the upgrade", _PATIENCE)
