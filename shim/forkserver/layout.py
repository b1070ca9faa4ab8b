"""Arranges the server's memory so that a fork makes few of its pages private.

The interpreter writes to what it uses: it counts references in the objects themselves, and learns
about classes as it goes.  A page with one such write is the fork's own from then on.  So what each
fork would learn anew is learned before, and what it makes comes to lie side by side, on pages of
its own, and not in the gaps between what it shares.  Nothing here changes what a program does.
"""

from __future__ import annotations

import _io
import gc
import os
import sys
from _thread import RLock, allocate_lock
from opcode import EXTENDED_ARG, opmap
from types import CodeType, FunctionType

from runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OURS = ("shim", "runtime", "protos")
_STORE, _WORD = opmap["STORE_ATTR"], 2
#: Instances of a class until the interpreter (3.11) stops to count the room in their common keys.
_INSTANCES = 34
#: Of the interpreter's allocator for small objects (Objects/obmalloc.c).
_ALIGNMENT, _LARGEST_SMALL, _POOL = 16, 512, 16384
_BYTES_HEAD = 33
_MOST_FILLED = 100_000
_ARENA = 1 << 20
#: Of a code object: where its calls are counted and by how many bytes, and how many are counted.
_WARMUP, _FIRST_CALLS = (52, 2), 8
#: Of code, which doesn't tell the garbage collector what it refers to.
_OF_CODE = (
    *("co_consts", "co_names", "co_varnames", "co_cellvars", "co_freevars", "co_filename"),
    *("co_name", "co_qualname", "co_linetable", "co_exceptiontable"),
)
#: More references than there are to anything that isn't immortal.
_IMMORTAL = 1 << 40


def settle() -> list[object]:
    """Arrange all that has been imported; to be kept is what comes back.

    What is made after it is made on new pages.  The process has one thread, and forks only later.
    """
    for cls in classes():
        learn_keys(cls)
    known = is_known()
    if known:
        calm_all()
    gc.collect()  # empties the lists of free objects, which are anywhere, as well
    clear = getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()  # else each name in it is written to when another takes its place
    for found in gc.get_objects():
        if isinstance(found, type):
            getattr(found, "__init__", None)  # which gives the class a version, for all later uses
    written = keep_all() if known else []
    filled = _fill_pools()
    linux.trim_memory()
    linux.fill_heap()
    gc.freeze()
    if known:
        _share(written)
    return [*written, filled]


# -- what the interpreter writes to code -------------------------------------------------------


def is_known() -> bool:
    """Whether the interpreter is one whose objects are laid out as this module knows them."""
    if sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython":
        return False
    nothing = (lambda: None).__code__.replace()  # as if it were compiled just now
    found = [_calls_left(nothing)]
    FunctionType(nothing, {})()
    found.append(_calls_left(nothing))
    return found == [_FIRST_CALLS, _FIRST_CALLS - 1]


def _calls_left(code: CodeType) -> int:
    """The calls until the interpreter begins to rewrite a function's code for its arguments."""
    return -int.from_bytes(linux.memory_of(code, *_WARMUP), sys.byteorder, signed=True)


def calm_all() -> None:
    """Have the interpreter rewrite no code, neither for what it is called with nor to count calls.

    Code that was rewritten is what it was compiled to again.
    """
    seen = set()
    for found in gc.get_objects():
        left = [found.__code__] if isinstance(found, FunctionType) else []
        while left:
            code = left.pop()
            if id(code) not in seen:
                seen.add(id(code))
                calm(code)
                left += (each for each in code.co_consts if isinstance(each, CodeType))


def calm(code: CodeType) -> None:
    """The same for one function's code."""
    if not _calls_left(code):
        compiled = code.co_code
        linux.memory_of(code, CodeType.__basicsize__, len(compiled))[:] = compiled
    linux.memory_of(code, *_WARMUP)[:] = bytes(_WARMUP[1])


# -- what forks share --------------------------------------------------------------------------


def keep_all() -> list[object]:
    """Make all objects immortal but those of which the memory is written to by system calls.

    Gives these.  Hashes of strings, which are kept in them, are found as well.
    """
    buffers = _buffer_types()
    written: list[object] = []
    left = gc.get_objects()
    count, keep, referents = sys.getrefcount, linux.keep_object, gc.get_referents
    while left:
        one = left.pop()
        if count(one) > _IMMORTAL:
            continue
        kind = type(one)
        if kind is str:
            keep(one)
            hash(one)
        elif kind is CodeType:
            keep(one)
            left += (getattr(one, name) for name in _OF_CODE)
        elif issubclass(kind, buffers):
            written.append(one)
        else:
            keep(one)
            left += referents(one)
    return written


def _buffer_types() -> tuple[type, ...]:
    """Those of which the memory is written to without the interpreter's lock: locks as well."""
    found: list[type] = [bytearray, memoryview, type(allocate_lock()), RLock, _io._BufferedIOBase]
    for module, name in (("array", "array"), ("mmap", "mmap"), ("_cffi_backend", "_CDataBase")):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            found.append(kind)
    return tuple(found)


def _share(written: list[object]) -> None:
    """Have forks give back the pages that they have written to and that are what they were."""
    try:
        linux.share_pages(list(_ranges()))
    except OSError:
        return  # then they are theirs for good
    for one in written:
        linux.exclude_pages(one, one.__sizeof__() & -8)


def _ranges() -> Iterator[tuple[int, int]]:
    """Where objects are: the heap, and what the allocators have mapped."""
    shown = _shown()
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            words = line.split()
            start, end = (int(each, 16) for each in words[0].split("-"))
            name = words[5] if len(words) > 5 else ""
            if words[1] == "rw-p" and (name == "[heap]" or (not name and end - start >= _ARENA)):
                for first, last in shown:
                    if start <= first < end:
                        if start < first:
                            yield start, first
                        start = min(last, end)
                if start < end:
                    yield start, end


def _shown() -> list[tuple[int, int]]:
    """The pages of our command line and environment, by their addresses.

    The kernel merges them with what is mapped beside them, and shows them in /proc only as long as
    they are no file's (get_mm_cmdline in fs/proc/base.c).
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    arguments, their_end, environment, its_end = (int(fields[n - 3]) for n in (48, 49, 50, 51))
    page = os.sysconf("SC_PAGE_SIZE")
    found: list[tuple[int, int]] = []
    for start, end in sorted([(arguments, their_end), (environment, its_end)]):
        first, last = start // page * page, -(-end // page) * page
        if found:
            first = max(first, found[-1][1])  # usually they have a page in common
        if first < last:
            found.append((first, last))
    return found


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
    # The other is kept by each code object that was asked for it.
    words = code._co_code_adaptive if hasattr(code, "_co_code_adaptive") else code.co_code
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
