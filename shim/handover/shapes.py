"""Shapes of classes: which attributes an instance has, as two versions' must be the same.

A class's shape is the names that its ``__init__``, and those of its bases, give to attributes, its
slots, or a record's fields.  Two versions whose shapes differ don't mean the same by an instance.
What a later version adds and can do without is in :data:`ADDED`, what it has given up in
:data:`DROPPED`, and what it has renamed in :data:`MOVED`.  Classes are called there by the names
that this version has for them.
"""

from __future__ import annotations

from runtime.base.record import Record
from shim.handover import names
from shim.handover.names import NotHandedOver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

#: Counted up by whoever changes what an attribute means, and not its name.
FORMAT: Final = 1
#: For each class, by module and name, the attributes that later versions have and what they are in
#: an instance that comes from an earlier one.
ADDED: Final[Mapping[str, Mapping[str, Any]]] = {
    "runtime.sandbox.gofer:Gofer": {"_watch": None},
}
#: For each class, the attributes that earlier versions have and nothing is lost without.
DROPPED: Final[Mapping[str, Sequence[str]]] = {}
#: Where classes and functions have gone that earlier versions have elsewhere.
MOVED: Final[Mapping[str, str]] = {}
#: What isn't handed over as the new process makes it by itself.
OMITTED: Final[Mapping[str, Mapping[str, Any]]] = {
    "runtime.base.log:Sink": {"_render": None},
}


def key(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def slots(cls: type) -> list[str]:
    """The slots of a class and its bases."""
    found: list[str] = []
    for base in cls.__mro__:
        own = vars(base).get("__slots__", ())
        found += [own] if isinstance(own, str) else own
    return found


def shape(cls: type) -> list[str]:
    """The sorted names of what its instances are made with; a record's fields instead."""
    if issubclass(cls, Record):
        return sorted(cls._fields)
    import dis

    found = set(slots(cls))
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        code = getattr(init, "__code__", None)
        if code is not None and names.is_ours(base.__module__):
            found.update(
                step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"
            )
    return sorted(found)


def check(name: str, cls: type, theirs: Sequence[str]) -> None:
    """Raises NotHandedOver unless an instance with shape ``theirs`` can be one of ``cls``."""
    ours = set(shape(cls))
    wanted = set(cls._required) if issubclass(cls, Record) else ours
    missing = wanted.difference(theirs, ADDED.get(key(cls), ()))
    unknown = set(theirs) - ours - set(DROPPED.get(key(cls), ()))
    for what, differing in (("lacks", missing), ("has unknown", unknown)):
        if differing:
            listed = ", ".join(sorted(differing)[:5])
            raise NotHandedOver(f"{name} of the other version {what} {listed}")
