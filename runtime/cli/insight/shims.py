"""The shims of the sandboxes that run: where they listen, and of which version each is.

Owns the comparison with the version that is installed, which is this program's own.
"""

from __future__ import annotations

import os

from runtime.base.errors import RuntimeFault
from runtime.base.record import Record
from runtime.base.version import VERSION
from runtime.cli import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from runtime.state.loaded import StoredContainer

    Ask = Callable[[str, str, Mapping[str, Any], float], Mapping[str, Any]]

#: Seconds for an answer from memory.
_ANSWER = 2.0
#: Shims that are asked at the same time.
_AT_ONCE = 8
_MOST_WORD, _MOST_PATH = 40, 4096
CURRENT, OLDER, NEWER, ELSEWHERE, UNKNOWN = "current", "older", "newer", "elsewhere", "unknown"


class Shim(Record):
    """One that is recorded for a sandbox."""

    sandbox: str
    namespace: str
    address: str


class Told(Record):
    """A shim's version, and the folder of its packages; ``fault`` says why it isn't known."""

    sandbox: str
    namespace: str
    version: str = ""
    package: str = ""
    fault: str = ""

    @property
    def age(self) -> str:
        """How it compares with this program."""
        if not self.version:
            return UNKNOWN
        if self.version == VERSION:
            return CURRENT if self.package in ("", own_package()) else ELSEWHERE
        return OLDER if numbers(self.version) < numbers(VERSION) else NEWER


def own_package() -> str:
    """The folder of this program's packages."""
    return os.path.realpath(__file__).rsplit("/runtime/cli/", 1)[0]


def numbers(version: str) -> tuple[int, ...]:
    """A version's numbers, by which versions are in order."""
    words = "".join(c if c.isdigit() else " " for c in version[:_MOST_WORD]).split()
    return tuple(map(int, words))


def of(containers: Iterable[StoredContainer]) -> list[Shim]:
    """The shims of containers, each once, in the order of sandboxes and namespaces."""
    found: dict[str, Shim] = {}
    for each in containers:
        record = each.record
        if record is not None and record.shim_address:
            found[record.shim_address] = Shim(
                sandbox=each.sandbox_id, namespace=record.namespace, address=record.shim_address
            )
    return sorted(found.values(), key=lambda shim: (shim.sandbox, shim.namespace))


def versions(args: argparse.Namespace) -> list[Told]:
    """What the shims of all sandboxes of this host say.  Raises nothing on account of a shim."""
    ask = getattr(args, "ask_debug", None)
    try:
        containers, _ = find.every(args)
    except RuntimeFault:
        return []  # the options that name the root are at fault, which is said elsewhere
    shims = of(containers)
    if ask is None or not shims:
        return []
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda shim: tell(ask, shim), shims))


def tell(ask: Ask, shim: Shim) -> Told:
    """What one says."""
    told = Told(sandbox=shim.sandbox, namespace=shim.namespace)
    try:
        found = ask(shim.address, "Info", {}, _ANSWER)
    except RuntimeFault as fault:
        return told.replace(fault=str(fault))
    version, package = found.get("version"), found.get("package")
    if not isinstance(version, str) or not numbers(version):
        return told.replace(fault="it doesn't tell its version")
    return told.replace(
        version=version[:_MOST_WORD],
        package=package[:_MOST_PATH] if isinstance(package, str) else "",
    )
