"""The attributes of all classes whose instances a shim may hand over, as a committed list.

So that nobody changes one without a thought of the shims that run: they are of the version before,
and hand over what it had.  ``python -m tests.shim.handover.pinned --write`` writes the list anew,
once the change is one that an older shim's instances can take part in, or the format's number says
that they can't.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.base.record import Record
from shim.forkserver import preload
from shim.handover import shapes

LIST = Path(__file__).with_name("pinned_shapes.txt")
#: Of a shim that is to trace.
_TRACING = ("shim.observe.tracing", "shim.observe.tracing_setup", "shim.observe.otlp")
Shapes = Mapping[str, Sequence[str]]


def now() -> dict[str, list[str]]:
    """As the source has them."""
    found = {}
    for name in {*preload.of_a_shim(), *_TRACING}:
        if name.startswith("protos"):
            continue
        for cls in vars(importlib.import_module(name)).values():
            if isinstance(cls, type) and cls.__module__ == name and shapes.shape(cls):
                found[shapes.key(cls)] = shapes.shape(cls)
    return dict(sorted(found.items()))


def pinned() -> tuple[int, dict[str, list[str]]]:
    """The format's number and the shapes in the list."""
    first, *lines = LIST.read_text().splitlines()
    return int(first.split()[1]), {name: words for name, *words in map(str.split, lines)}


def _optional(name: str) -> set[str]:
    """The fields of a record that an instance can be made without."""
    module, _, path = name.partition(":")
    cls = getattr(importlib.import_module(module), path, None)
    if cls is None or not issubclass(cls, Record):
        return set()
    return set(cls._fields) - set(cls._required)


def problems(before: Shapes, after: Shapes) -> list[str]:
    """What an instance of before could not be taken over for; nothing if all is thought of."""
    found = []
    for name, old in before.items():
        name_now = shapes.MOVED.get(name, name)
        if name_now not in after:
            found.append(f"{name} is gone: if it has another name or place now, put it into MOVED")
            continue
        new = after[name_now]
        known = {*shapes.ADDED.get(name_now, ()), *_optional(name_now)}
        for each in sorted(set(new) - set(old) - known):
            found.append(
                f"{name_now} has {each}: put into ADDED what it is in an instance that comes from"
                " an earlier version"
            )
        for each in sorted(set(old) - set(new) - set(shapes.DROPPED.get(name_now, ()))):
            found.append(
                f"{name_now} has no {each} any more: put it into DROPPED if nothing is lost"
            )
    return found


def text(number: int, found: Shapes) -> str:
    lines = [f"format {number}", *(" ".join((name, *words)) for name, words in found.items())]
    return "\n".join(lines) + "\n"


def judged() -> tuple[list[str], bool]:
    """What stands against writing the list anew, and whether it is as the source has it."""
    number, before = pinned()
    after = now()
    against = [] if number < shapes.FORMAT else problems(before, after)
    return against, text(shapes.FORMAT, after) == LIST.read_text()


def main() -> int:
    if LIST.exists() and "--write" in sys.argv:
        against, _ = judged()
        for each in against:
            print(each, file=sys.stderr)
        if against:
            print("or count FORMAT up: then older shims refuse to hand over", file=sys.stderr)
            return 1
    LIST.write_text(text(shapes.FORMAT, now()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
