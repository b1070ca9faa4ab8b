"""Writes the objects of a process down, for another version of the same program to have them.

What is written is the graph of all that can be reached: containers with their pending calls, timers
with their callbacks, closures with what they hold.  Descriptors are plain numbers and stay what
they are, as the process goes on; so do pids, and moments of the monotonic clock.  Whatever isn't
known here by its kind is refused by name: nothing is left out silently.

The form is JSON: a list of nodes, each of which names its kind.  A list of one number stands for a
node, everything else that isn't a list for itself.
"""

from __future__ import annotations

import _socket
import _thread
import select
import sys
import threading
import weakref
from collections import deque
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)

from runtime.base import fastjson
from runtime.base.constant import Constant
from runtime.base.version import VERSION
from shim.handover import names, shapes
from shim.handover.names import NotHandedOver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

#: What is one object in a process, by module and name; its content is handed over.
GLOBALS: Final = (
    "runtime.base.log:_sink",
    "runtime.host.children:_children",
    "runtime.host.children:_lock",
)
#: What modules keep besides, and is assigned.
VALUES: Final = (
    "runtime.base.stages:_observer",
    "runtime.host.children:_reaping_due",
    "runtime.host.open_files:inherited",
)
_ATOMS = (type(None), bool, int, str)
_MOST_NODES = 2_000_000


def pack(root: object, about: Mapping[str, Any]) -> bytes:
    """``root`` and all that it leads to, with what modules keep, as JSON.

    ``about`` is JSON that is told besides.

    No other thread may change any of it meanwhile.  Raises NotHandedOver, naming what can't be
    handed over and where it is.
    """
    return _Packer().pack(root, about)


def split(name: str) -> tuple[str, str]:
    module, _, path = name.partition(":")
    return module, path


class _Packer:
    def __init__(self) -> None:
        self._nodes: list[Any] = []
        #: By identity: the number, and the value itself, so that the identity stays its own.
        self._known: dict[int, tuple[int, object]] = {}
        #: Where each node is: its holder's number, and what it is called there.
        self._from: list[tuple[int, str]] = []
        self._todo: deque[object] = deque()
        self._shapes: dict[str, list[str]] = {}
        self._now = (-1, "")
        self._kinds: Mapping[type, Callable[[Any], list[Any]]] = {
            float: lambda v: ["float", v.hex()],
            bytes: lambda v: ["bytes", v.decode("latin-1")],
            bytearray: lambda v: ["bytearray", v.decode("latin-1")],
            memoryview: lambda v: ["memoryview", bytes(v).decode("latin-1")],
            list: lambda v: ["list", self._all(v)],
            tuple: lambda v: ["tuple", self._all(v)],
            set: lambda v: ["set", self._all(v)],
            frozenset: lambda v: ["frozenset", self._all(v)],
            deque: lambda v: ["deque", self._all(v), v.maxlen],
            dict: self._dict,
            MappingProxyType: lambda v: ["proxy", self._ref(dict(v), "")],
            FunctionType: self._function,
            MethodType: self._method,
            BuiltinFunctionType: self._builtin,
            ModuleType: lambda v: ["module", v.__name__],
            CellType: self._cell,
            _thread.LockType: self._lock,
            threading.local: self._local,
            threading.Condition: self._condition,
            threading.Event: self._event,
            _socket.socket: self._socket,
            weakref.ref: lambda v: ["weakref", self._ref(v(), "")],
            select.epoll: lambda v: ["epoll", -1 if v.closed else v.fileno()],
        }

    def pack(self, root: object, about: Mapping[str, Any]) -> bytes:
        for name in GLOBALS:
            found = _value(name)
            number = self._number(found, name)
            assert self._nodes[number] is None
            self._nodes[number] = name  # until its content is there
        roots = {"root": self._ref(root, "shim")}
        values = {name: self._ref(_value(name), name) for name in VALUES}
        while self._todo:
            value = self._todo.popleft()
            number = self._known[id(value)][0]
            self._now = (number, "")
            kept = self._nodes[number]
            node = self._node(value)
            self._nodes[number] = ["global", kept, node] if isinstance(kept, str) else node
            if len(self._nodes) > _MOST_NODES:
                raise NotHandedOver(f"there are more than {_MOST_NODES} objects")
        text = fastjson.dumps(
            {
                **about,
                "format": shapes.FORMAT,
                "version": VERSION,
                "python": sys.version.split()[0],
                "shapes": self._shapes,
                "roots": roots,
                "values": values,
                "nodes": self._nodes,
            }
        )
        return text.encode("ascii")

    # -- numbers -----------------------------------------------------------------------------

    def _number(self, value: object, label: str) -> int:
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (len(self._nodes), value)
            self._nodes.append(None)
            self._from.append((self._now[0], label))
            self._todo.append(value)
        return known[0]

    def _ref(self, value: object, label: str) -> Any:
        if type(value) in _ATOMS:
            return value
        return [self._number(value, label)]

    def _all(self, values: Any) -> list[Any]:
        return [self._ref(value, "[]") for value in values]

    def _where(self) -> str:
        """The way from the root to what is being written."""
        parts: list[str] = []
        number = self._now[0]
        while number >= 0 and len(parts) < 12:
            number, label = self._from[number]
            parts.append(label)
        return ".".join(part for part in reversed(parts) if part)

    def _refuse(self, what: str) -> NotHandedOver:
        return NotHandedOver(f"{what}, at {self._where()}")

    # -- kinds -------------------------------------------------------------------------------

    def _node(self, value: Any) -> list[Any]:
        kind = self._kinds.get(type(value))
        if kind is not None:
            return kind(value)
        if isinstance(value, type):
            return self._named(value)
        if isinstance(value, Constant):
            return ["constant", self._ref(type(value), "class"), value.name]
        if isinstance(value, BaseException):
            return self._exception(value)
        cls = type(value)
        if (cls.__module__, cls.__qualname__) == ("functools", "partial"):
            return [
                "partial",
                self._ref(value.func, "func"),
                self._all(value.args),
                self._dict(value.keywords)[1],
            ]
        return self._object(value)

    def _named(self, value: Any) -> list[Any]:
        module, path = value.__module__, value.__qualname__
        if "<" in path or names.find(module, path) is not value:
            raise self._refuse(f"{module}.{path} can't be found by its name")
        return ["name", module, path]

    def _dict(self, value: Mapping[Any, Any]) -> list[Any]:
        return [
            "dict",
            [
                [self._ref(k, "{}"), self._ref(v, k if type(k) is str else "{}")]
                for k, v in value.items()
            ],
        ]

    def _object(self, value: Any) -> list[Any]:
        cls = type(value)
        module = cls.__module__
        if any(base is not object and not names.is_ours(base.__module__) for base in cls.__mro__):
            raise self._refuse(f"{module}.{cls.__qualname__} can't be handed over")
        name = shapes.key(cls)
        if name not in self._shapes:
            self._named(cls)
            self._shapes[name] = shapes.shape(cls)
        state = dict(getattr(value, "__dict__", {}))
        for slot in shapes.slots(cls):
            if slot != "__dict__" and hasattr(value, slot):
                state[slot] = getattr(value, slot)
        state.update(shapes.OMITTED.get(name, {}))
        return ["object", name, {k: self._ref(v, k) for k, v in state.items()}]

    def _exception(self, value: BaseException) -> list[Any]:
        cls = type(value)
        if cls.__module__ != "builtins" and not names.is_ours(cls.__module__):
            raise self._refuse(f"{cls.__module__}.{cls.__qualname__} can't be handed over")
        state = {k: self._ref(v, k) for k, v in vars(value).items()}
        return ["exception", self._ref(cls, "class"), self._all(value.args), state]

    def _function(self, value: FunctionType) -> list[Any]:
        module, path = value.__module__, value.__qualname__
        if not names.is_ours(module):
            raise self._refuse(f"function {module}.{path} can't be handed over")
        if "<" not in path and names.find(module, path) is value:
            return ["name", module, path]
        found = names.codes(module, path)
        code = value.__code__
        if code not in found:
            raise self._refuse(f"function {module}.{path} can't be found by its name")
        cells = value.__closure__ or ()
        return [
            "function",
            module,
            path,
            found.index(code),
            len(found),
            code.co_argcount,
            [
                [name, self._ref(cell, name)]
                for name, cell in zip(code.co_freevars, cells, strict=True)
            ],
            self._ref(value.__defaults__, "defaults"),
            self._ref(value.__kwdefaults__, "defaults"),
        ]

    def _method(self, value: MethodType) -> list[Any]:
        owner, name = value.__self__, value.__func__.__name__
        found = getattr(owner if isinstance(owner, type) else type(owner), name, None)
        if getattr(found, "__func__", found) is not value.__func__:
            raise self._refuse(f"method {value.__func__.__qualname__} can't be found by its name")
        return ["method", self._ref(owner, "self"), name]

    def _builtin(self, value: Any) -> list[Any]:
        owner, name = value.__self__, str(value.__name__)
        if not isinstance(owner, ModuleType):
            return ["builtin", self._ref(owner, "self"), name]
        found = getattr(owner, name, None)
        if found is not value:
            raise self._refuse(f"{name} can't be found by its name")
        return ["name", owner.__name__, name]

    def _cell(self, value: CellType) -> list[Any]:
        try:
            return ["cell", self._ref(value.cell_contents, "")]
        except ValueError:
            return ["cell"]

    def _lock(self, value: _thread.LockType) -> list[Any]:
        if value.locked():
            raise self._refuse("a lock is held")
        return ["lock"]

    def _local(self, value: threading.local) -> list[Any]:
        """What threads have for themselves ends with them; this one's would be lost."""
        if any(kept is not None for kept in vars(value).values()):
            raise self._refuse("a thread keeps something")
        return ["local"]

    def _condition(self, value: Any) -> list[Any]:
        if value._waiters:
            raise self._refuse("a thread waits")
        return ["condition", self._ref(value._lock, "lock")]

    def _event(self, value: Any) -> list[Any]:
        if value._cond._waiters:
            raise self._refuse("a thread waits")
        return ["event", value.is_set()]

    def _socket(self, value: _socket.socket) -> list[Any]:
        return ["socket", value.fileno(), self._ref(value.gettimeout(), "")]


def _value(name: str) -> Any:
    module, path = split(name)
    return getattr(names.module_of(module), path)
