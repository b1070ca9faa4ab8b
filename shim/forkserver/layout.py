"""Arranges the server's memory so that a fork makes few of its pages private.

The interpreter writes to what it uses: it counts references in the objects themselves, and learns
about classes as it goes.  A page with one such write is the fork's own from then on.  So what each
fork would learn anew is learned before, and what it makes comes to lie side by side, on pages of
its own, and not in the gaps between what it shares.  Nothing here changes what a program does.
"""

from __future__ import annotations

import gc
import sys
from opcode import EXTENDED_ARG, opmap

from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType

_OURS = ("shim", "runtime", "protos")
_STORE, _WORD = opmap["STORE_ATTR"], 2
#: Instances of a class until the interpreter (3.11) stops to count the room in their common keys.
_INSTANCES = 34
#: Of the interpreter's allocator for small objects (Objects/obmalloc.c).
_ALIGNMENT, _LARGEST_SMALL, _POOL = 16, 512, 16384
_BYTES_HEAD = 33
_MOST_FILLED = 100_000


def settle() -> list[bytes]:
    """Arrange all that has been imported; to be kept is what comes back.

    Turns nothing on or off.  What is made after it is made on new pages.
    """
    for cls in classes():
        learn_keys(cls)
    gc.collect()  # empties the lists of free objects, which are anywhere, as well
    clear = getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()  # else each name in it is written to when another takes its place
    for found in gc.get_objects():
        if isinstance(found, type):
            getattr(found, "__init__", None)  # which gives the class a version, for all later uses
    kept = _fill_pools()
    linux.trim_memory()
    linux.fill_heap()
    return kept


def classes() -> Iterator[type]:
    """The classes of our own packages."""
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in _OURS:
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    yield value


def learn_keys(cls: type) -> None:
    """Have the names of a class's attributes known, as by the first instances.

    No code of the class runs.
    """
    if getattr(cls, "__del__", None) is not None:
        return  # it would, at the end of an instance
    try:
        one: object = object.__new__(cls)
    except TypeError:
        return  # one of C's, which is made otherwise; an exception, an abstract class
    for base in reversed(cls.__mro__):
        code = getattr(base.__dict__.get("__init__"), "__code__", None)
        for name in stored_names(code) if code is not None else ():
            try:
                object.__setattr__(one, name, None)
            except (AttributeError, TypeError):
                continue  # of a slot or property, which is no key
    for _ in range(_INSTANCES):
        object.__new__(cls)


def stored_names(code: CodeType) -> Iterable[str]:
    """The names of the attributes that a function sets, in the order of its code."""
    names: dict[str, None] = {}
    argument = 0
    words = code.co_code
    for at in range(0, len(words), _WORD):
        argument = argument << 8 | words[at + 1]
        if words[at] == EXTENDED_ARG:
            continue
        if words[at] == _STORE and argument < len(code.co_names):
            names[code.co_names[argument]] = None
        argument = 0
    return names


def _fill_pools() -> list[bytes]:
    """Small objects for all room between those that are there."""
    kept: list[bytes] = []
    for size in range(_ALIGNMENT * 3, _LARGEST_SMALL + 1, _ALIGNMENT):
        in_a_row, last = 0, 0
        # A pool's worth of neighbours is a new pool.
        while in_a_row < _POOL // size - 2 and len(kept) < _MOST_FILLED:
            made = bytes(size - _BYTES_HEAD)
            in_a_row = in_a_row + 1 if id(made) == last + size else 0
            last = id(made)
            kept.append(made)
    return kept
