"""Message classes from serialized file descriptors, with as little of protobuf as possible.

``google.protobuf.internal.builder``, on which protoc's own Python output stands, loads much Python
code around protobuf's C core (``google._upb._message``), which can be asked for classes directly.
The C core is not a public API, so it is tried once against a known encoding.  On any difference
the public API (``descriptor_pool`` and ``message_factory``) takes its place, dearer but equal.

Everything lives in a descriptor pool of its own; protobuf's default pool stays untouched.  This
module must not know any message but ``google.protobuf.Any``, which serves as the trial.
"""

from __future__ import annotations

import sys
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_TRIAL_FILE = "protos/wkt.proto"
_TRIAL_NAME = "google.protobuf.Any"
_MIXINS = "google.protobuf.internal.well_known_types"

_lock = RLock()
_names: dict[str, frozenset[str]] = {}  # of each module; only added to
_files: dict[str, tuple[bytes, tuple[str, ...]]] = {}  # guarded by _lock; not yet in the pool
_backend: _Upb | _Public | None = None  # guarded by _lock


class _Upb:
    """Classes straight from protobuf's C core.

    Raises whatever a C core of another shape raises; the caller takes any exception as a no.
    """

    def __init__(self) -> None:
        from google._upb import _message  # type: ignore[import-untyped, unused-ignore]

        self._metaclass: Any = _message.MessageMeta
        # Imported by the C core itself: its classes must derive from this very class.
        self._base: Any = sys.modules["google.protobuf.message"].Message
        self._pool: Any = _message.DescriptorPool()
        self.add = self._pool.AddSerializedFile

    def create(self, full_name: str, module: str) -> type:
        """The class of a message whose file was added; the same one each time."""
        descriptor = self._pool.FindMessageTypeByName(full_name)
        members = {"DESCRIPTOR": descriptor, "__module__": module}
        new: type = self._metaclass(descriptor.name, (self._base,), members)
        return new


class _Public:
    """The same through protobuf's public API, with whichever implementation that selects."""

    def __init__(self) -> None:
        from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
            descriptor_pool,
            message_factory,
        )

        self._pool: Any = descriptor_pool.DescriptorPool()
        self._get_class: Any = message_factory.GetMessageClass
        self.add = self._pool.AddSerializedFile

    def create(self, full_name: str, module: str) -> type:
        """The class of a message whose file was added; the same one each time."""
        new: type = self._get_class(self._pool.FindMessageTypeByName(full_name))
        return new


def module(
    namespace: dict[str, Any],
    file: str,
    package: str,
    descriptor: bytes,
    dependencies: tuple[str, ...],
    messages: tuple[str, ...],
    public: tuple[str, ...] = (),
) -> Callable[[str], Any]:
    """Register a generated module; what it returns becomes the module's ``__getattr__``.

    ``namespace`` is the module's globals, ``file`` the .proto file's name and ``descriptor`` its
    FileDescriptorProto; ``dependencies`` are the files that it imports, whose modules must be
    loaded before the first class is asked for; names of the ``public`` modules (full module
    names) are found through this one too.  Lookups are thread-safe and happen once per name.
    """
    with _lock:
        _files[file] = (descriptor, dependencies)
    own = str(namespace["__name__"])
    names = _names[own] = frozenset(messages)

    def lookup(name: str) -> Any:
        if name in names:
            value: Any = _create(file, f"{package}.{name}", own)
        elif name.startswith("_"):
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        else:
            for other in public:
                value = getattr(sys.modules[other], name, None)
                if value is not None:
                    break
            else:
                raise AttributeError(f"module {own!r} has no attribute {name!r}")
        namespace[name] = value
        return value

    return lookup


def build_all() -> None:
    """Make the classes of all modules that are loaded, and not when their names are looked up."""
    for module_name, names in list(_names.items()):
        for name in names:
            getattr(sys.modules[module_name], name)


def _create(file: str, full_name: str, module: str) -> type:
    global _backend
    with _lock:
        if _backend is None:
            _backend = _choose()
        _add(_backend, file)
        return _backend.create(full_name, module)


def _add(backend: _Upb | _Public, file: str) -> None:
    entry = _files.pop(file, None)
    if entry is None:
        return
    descriptor, dependencies = entry
    for dependency in dependencies:
        _add(backend, dependency)
    backend.add(descriptor)


def _choose() -> _Upb | _Public:
    """The C core if it works as expected, else the public API."""
    if _TRIAL_FILE not in _files:
        import protos.wkt_pb2  # noqa: F401  # which nothing has needed so far
    trial = _files.pop(_TRIAL_FILE)
    backend: _Upb | _Public
    try:
        backend = _Upb()
        backend.add(trial[0])
        _try(backend)
    except Exception:  # a private interface may differ in any way; protobuf's public one must work
        backend = _Public()
        backend.add(trial[0])
    return backend


def _try(backend: _Upb) -> None:
    """Create the first class and compare its encoding; raises on any difference.

    While making its first class, the C core imports the Python mixins of the well-known types
    (``Timestamp.ToDatetime`` and the like) and with them ``typing`` and ``datetime``, for
    methods that we don't call.  An empty table in that module's place keeps them out; the core
    remembers the table, and the module itself can still be imported by others later.
    """
    absent = _MIXINS not in sys.modules
    if absent:
        stand_in: Any = type(sys)(_MIXINS)
        stand_in.WKTBASES = {}
        sys.modules[_MIXINS] = stand_in
    try:
        trial: Any = backend.create(_TRIAL_NAME, "protos.wkt_pb2")
    finally:
        if absent:
            del sys.modules[_MIXINS]
    encoded = trial(type_url="a", value=b"\xff").SerializeToString()
    if encoded != b"\n\x01a\x12\x01\xff" or trial.FromString(encoded).value != b"\xff":
        raise ValueError("the C core encodes in an unexpected way")
