"""Makes the objects that another version of the program has written down (``pack.py``).

All is checked before anything counts: the format, each class's shape, each function's place.  With
``dry`` descriptors are left alone, which only the process itself has.
"""

from __future__ import annotations

import _socket
import _thread
import copy
import select
import threading
import weakref
from collections import deque
from types import CellType, FunctionType, MappingProxyType, MethodType

from runtime.base import fastjson
from runtime.base.record import Record
from shim.handover import names, shapes
from shim.handover.names import NotHandedOver
from shim.handover.pack import GLOBALS, VALUES, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Unpacked:
    """What was handed over, before it is put into place."""

    def __init__(self, root: Any, version: str, values: Mapping[str, Any]) -> None:
        self.root = root
        #: Of the program that handed it over.
        self.version = version
        self._values = values

    def put_into_place(self) -> None:
        """Give the modules what they keep."""
        for name, value in self._values.items():
            module, path = split(name)
            setattr(names.module_of(module), path, value)


def unpack(data: bytes, *, dry: bool = False) -> Unpacked:
    """Raises NotHandedOver for what this version can't take over, and then has changed nothing but
    the content of the modules' own objects."""
    try:
        graph = fastjson.loads(data)
        if graph["format"] != shapes.FORMAT:
            theirs = f"{graph['format']} of version {graph['version']}"
            raise NotHandedOver(f"format {theirs} is not {shapes.FORMAT}, this version's")
        return _Unpacker(graph, dry).unpack()
    except NotHandedOver:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotHandedOver(f"what was handed over can't be read: {error!r}") from None


class _Gone:
    """What a reference led to that leads nowhere."""


class _Unpacker:
    def __init__(self, graph: Mapping[str, Any], dry: bool) -> None:
        self._graph = graph
        self._nodes: list[list[Any]] = graph["nodes"]
        self._dry = dry
        self._made: dict[int, Any] = {}
        #: What is still to be filled in, and what only then, as it needs hashes.
        self._fill: list[Callable[[], None]] = []
        self._last: list[Callable[[], None]] = []
        self._classes: dict[str, Any] = {}

    def unpack(self) -> Unpacked:
        graph = self._graph
        for name, theirs in graph["shapes"].items():
            cls = names.find(*split(shapes.MOVED.get(name, name)))
            shapes.check(name, cls, theirs)
            self._classes[name] = cls
        if set(graph["values"]) - set(VALUES):
            raise NotHandedOver("the other version keeps more in its modules")
        root = self._get(graph["roots"]["root"])
        values = {name: self._get(value) for name, value in graph["values"].items()}
        # Those that nothing leads to.
        for number, node in enumerate(self._nodes):
            if node[0] == "global":
                self._get([number])
        while self._fill:
            self._fill.pop()()
        while self._last:
            self._last.pop()()
        return Unpacked(root, graph["version"], values)

    def _get(self, value: Any) -> Any:
        """What stands for ``value``, which may have to be filled in still."""
        if not isinstance(value, list):
            return value
        [number] = value
        if number not in self._made:
            node = self._nodes[number]
            existing = None
            if node[0] == "global":
                if node[1] not in GLOBALS:
                    raise NotHandedOver(f"{node[1]} is unknown")
                existing = getattr(names.module_of(split(node[1])[0]), split(node[1])[1])
                node = node[2]
            self._made[number] = self._make(node, existing)
        return self._made[number]

    def _all(self, values: list[Any]) -> list[Any]:
        return [self._get(value) for value in values]

    def _make(self, node: list[Any], existing: Any) -> Any:
        kind = node[0]
        make = getattr(self, f"_make_{kind}", None)
        if make is None:
            raise NotHandedOver(f"kind {kind!r} is unknown")
        return make(*node[1:]) if existing is None else make(*node[1:], existing=existing)

    # -- plain values ------------------------------------------------------------------------

    def _make_float(self, text: str) -> float:
        return float.fromhex(text)

    def _make_bytes(self, text: str) -> bytes:
        return text.encode("latin-1")

    def _make_bytearray(self, text: str) -> bytearray:
        return bytearray(text.encode("latin-1"))

    def _make_memoryview(self, text: str) -> memoryview:
        return memoryview(text.encode("latin-1"))

    def _make_list(self, values: list[Any]) -> list[Any]:
        made: list[Any] = []
        self._fill.append(lambda: made.extend(self._all(values)))
        return made

    def _make_tuple(self, values: list[Any]) -> tuple[Any, ...]:
        return tuple(self._all(values))

    def _make_deque(self, values: list[Any], most: int | None) -> deque[Any]:
        made: deque[Any] = deque(maxlen=most)
        self._fill.append(lambda: made.extend(self._all(values)))
        return made

    def _make_set(self, values: list[Any]) -> set[Any]:
        made: set[Any] = set()
        found = self._later(values)
        self._last.append(lambda: made.update(found))
        return made

    def _make_frozenset(self, values: list[Any]) -> frozenset[Any]:
        return frozenset(self._all(values))

    def _make_dict(self, items: list[Any], existing: Any = None) -> dict[Any, Any]:
        made: dict[Any, Any] = {} if existing is None else existing
        keys = self._later([key for key, _ in items])
        values = self._later([value for _, value in items])
        self._last.append(lambda: made.update(zip(keys, values, strict=True)))
        return made

    def _later(self, values: list[Any]) -> list[Any]:
        """The values, once all is made."""
        found: list[Any] = []
        self._fill.append(lambda: found.extend(self._all(values)))
        return found

    def _make_proxy(self, value: Any) -> Mapping[Any, Any]:
        return MappingProxyType(self._get(value))

    # -- code --------------------------------------------------------------------------------

    def _make_name(self, module: str, path: str) -> Any:
        moved = shapes.MOVED.get(f"{module}:{path}")
        return names.find(*(split(moved) if moved else (module, path)))

    def _make_module(self, name: str) -> Any:
        return names.module_of(name)

    def _make_cell(self, *content: Any) -> CellType:
        cell = CellType()
        if content:

            def fill() -> None:
                cell.cell_contents = self._get(content[0])

            self._fill.append(fill)
        return cell

    def _make_function(
        self,
        module: str,
        path: str,
        index: int,
        count: int,
        arguments: int,
        cells: list[Any],
        defaults: Any,
        named: Any,
    ) -> FunctionType:
        moved = shapes.MOVED.get(f"{module}:{path}")
        module, path = split(moved) if moved else (module, path)
        if not names.is_ours(module):
            raise NotHandedOver(f"function {module}.{path} isn't ours")
        found = names.codes(module, path)
        if len(found) != count:
            raise NotHandedOver(f"of {module}.{path} there are {len(found)} and not {count}")
        code = found[index]
        if code.co_freevars != tuple(name for name, _ in cells) or code.co_argcount != arguments:
            raise NotHandedOver(f"function {module}.{path} is another one in this version")
        held = tuple(self._get(cell) for _, cell in cells)
        made = FunctionType(
            code, vars(names.module_of(module)), code.co_name, self._get(defaults), held
        )
        made.__qualname__ = path
        self._fill.append(lambda: setattr(made, "__kwdefaults__", self._get(named)))
        return made

    def _make_method(self, owner: Any, name: str) -> Any:
        found = self._get(owner)
        cls = found if isinstance(found, type) else type(found)
        function = getattr(cls, name, None)
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType):
            raise NotHandedOver(f"{cls.__module__}.{cls.__qualname__} has no method {name}")
        return MethodType(function, found)

    def _make_builtin(self, owner: Any, name: str) -> Any:
        return getattr(self._get(owner), name)

    def _make_partial(self, function: Any, values: list[Any], named: list[Any]) -> Any:
        from functools import partial

        keywords = {self._get(key): self._get(value) for key, value in named}
        return partial(self._get(function), *self._all(values), **keywords)

    # -- objects -----------------------------------------------------------------------------

    def _make_object(self, name: str, state: Mapping[str, Any], existing: Any = None) -> Any:
        cls = self._classes[name]
        made = cls.__new__(cls) if existing is None else existing

        def fill() -> None:
            name = shapes.key(cls)
            dropped = shapes.DROPPED.get(name, ())
            values = {k: self._get(value) for k, value in state.items() if k not in dropped}
            # Each instance has its own.
            added = copy.deepcopy(dict(shapes.ADDED.get(name, {})))
            values = {**added, **values}
            if issubclass(cls, Record):
                made.__dict__.update(values)
                return
            for key, value in values.items():
                object.__setattr__(made, key, value)

        self._fill.append(fill)
        return made

    def _make_weakref(self, value: Any) -> Any:
        found = self._get(value)
        return weakref.ref(_Gone() if found is None else found)

    def _make_constant(self, cls: Any, name: str) -> Any:
        found = getattr(self._get(cls), name, None)
        if found is None:
            raise NotHandedOver(f"{self._get(cls).__qualname__} has no {name}")
        return found

    def _make_exception(self, cls: Any, args: list[Any], state: Mapping[str, Any]) -> Any:
        kind = self._get(cls)
        made = kind.__new__(kind)

        def fill() -> None:
            made.args = tuple(self._all(args))
            for key, value in state.items():
                setattr(made, key, self._get(value))

        self._fill.append(fill)
        return made

    # -- what threads and the kernel have ----------------------------------------------------

    def _make_lock(self, existing: Any = None) -> Any:
        return _thread.allocate_lock() if existing is None else existing

    def _make_local(self) -> threading.local:
        return threading.local()

    def _make_condition(self, lock: Any) -> Any:
        return threading.Condition(self._get(lock))

    def _make_event(self, is_set: bool) -> Any:
        made = threading.Event()
        if is_set:
            made.set()
        return made

    def _make_socket(self, fd: int, timeout: Any) -> Any:
        if fd < 0 or self._dry:
            made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            made.close()
            return made
        made = _socket.socket(fileno=fd)
        seconds = self._get(timeout)
        if seconds is not None:
            made.settimeout(seconds)
        return made

    def _make_epoll(self, fd: int) -> Any:
        if fd < 0 or self._dry:
            made = select.epoll()
            made.close()
            return made
        return select.epoll.fromfd(fd)
