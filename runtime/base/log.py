"""Structured logging that costs nothing until a line is written.

Owns the only import of structlog, and defers it to the first line that passes the level: an
uneventful pod at level info never pays for it.  Lines go to one file descriptor, in the logrus
text form that containerd's own log has (it copies a shim's bytes unparsed), and are written
without blocking: when the pipe is full a line is dropped and counted, and the next line that
gets through says how many were lost.

Values are rendered as given.  Callers never pass environment values or file contents.
"""

from __future__ import annotations

import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}

#: What the renderer's module imports, or the package does, and the renderer has no use for.
_NOT_OF_STRUCTLOG = ("asyncio", "structlog", "structlog.tracebacks")


def _import_structlog() -> Callable[[dict[str, object]], str]:
    """Import structlog's renderer without what the rest of that package would load.

    That is four fifths of it: consoles, loggers and configuration by the package itself, asyncio
    for async loggers, dataclasses and inspect for tracebacks as dictionaries.
    """
    from types import ModuleType

    stubs = {name: ModuleType(name) for name in _NOT_OF_STRUCTLOG if name not in sys.modules}
    package = stubs.get("structlog")
    if package is not None:
        package.__path__ = _folders_of("structlog")
    tracebacks = stubs.get("structlog.tracebacks")
    if tracebacks is not None:
        vars(tracebacks)["ExceptionDictTransformer"] = object
    sys.modules.update(stubs)
    try:
        from structlog.processors import LogfmtRenderer
    except ImportError:
        return _plainly  # its files are gone from below a running process
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]
    render = LogfmtRenderer(key_order=["time", "level", "msg"], sort_keys=False, bool_as_flag=False)
    return lambda event: str(render(None, "", event))


def _folders_of(package: str) -> list[str]:
    """Where a package's modules are, without loading it."""
    for finder in sys.meta_path:
        spec = finder.find_spec(package, None)
        if spec is not None:
            return list(spec.submodule_search_locations or ())
    return []


def _plainly(event: dict[str, object]) -> str:
    """The same form as structlog's, but for values that are quoted always."""
    words = []
    for key, value in event.items():
        text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        words.append(f'{key}="{text}"')
    return " ".join(words)


class Sink:
    """Where lines go.  All loggers share one; threads may write at once."""

    def __init__(self) -> None:
        self.level = ERROR + 1
        self._lock = threading.Lock()
        self._fd = -1  # guarded by _lock
        self._path = ""  # guarded by _lock; of the file that replaced the first descriptor
        self._dropped = 0  # guarded by _lock
        self._render: Callable[[dict[str, object]], str] | None = None  # guarded by _lock

    def configure(self, fd: int, level: int) -> None:
        """Write lines of ``level`` and above to ``fd``, which should be non-blocking."""
        with self._lock:
            self._fd = fd
            self.level = level if fd >= 0 else ERROR + 1

    def set_level(self, level: int) -> None:
        """Write lines of ``level`` and above, if there is somewhere to write to."""
        with self._lock:
            if self._fd >= 0:
                self.level = level

    def level_name(self) -> str:
        """What the level is called; ``off`` where nothing is written."""
        return _NAMES.get(self.level, "off")

    def redirect(self, fd: int, path: str) -> None:
        """Write to ``fd`` from now on, which is the file ``path``; the earlier one is closed."""
        with self._lock:
            old, self._fd, self._path = self._fd, fd, path
            if self.level > ERROR:
                self.level = INFO
        if old >= 0:
            os.close(old)

    def destination(self) -> str:
        """The file that lines were redirected to, or empty."""
        with self._lock:
            return self._path

    def write(self, level: int, event: str, fields: dict[str, object]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        line: dict[str, object] = {"time": stamp, "level": _NAMES[level], "msg": event}
        for key, value in fields.items():
            line[key] = value if isinstance(value, (int, float, str)) else str(value)
        with self._lock:
            if self._fd < 0:
                return
            if self._render is None:
                self._render = _import_structlog()
            if self._dropped:
                line["dropped"] = self._dropped
            data = (self._render(line) + "\n").encode("utf-8", "replace")
            try:
                os.write(self._fd, data[:4096] if len(data) <= 4096 else data[:4093] + b"..\n")
            except OSError:
                self._dropped += 1
            else:
                self._dropped = 0


def preload() -> None:
    """Load what the first line would load."""
    with _sink._lock:
        if _sink._render is None:
            _sink._render = _import_structlog()


_sink = Sink()
configure = _sink.configure
set_level = _sink.set_level
level_name = _sink.level_name
redirect = _sink.redirect
destination = _sink.destination


def enabled(level: int) -> bool:
    """Whether a line of ``level`` would be written; spares the making of its fields."""
    return _sink.level <= level


class Logger:
    """Writes named events (``noun.past_verb``) with fields; safe from any thread."""

    __slots__ = ("_bound",)

    def __init__(self, bound: dict[str, object]) -> None:
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """A logger that adds ``fields`` to each line."""
        return Logger({**self._bound, **fields})

    def debug(self, event: str, **fields: object) -> None:
        if _sink.level <= DEBUG:
            _sink.write(DEBUG, event, {**self._bound, **fields})

    def info(self, event: str, **fields: object) -> None:
        if _sink.level <= INFO:
            _sink.write(INFO, event, {**self._bound, **fields})

    def warning(self, event: str, **fields: object) -> None:
        if _sink.level <= WARNING:
            _sink.write(WARNING, event, {**self._bound, **fields})

    def error(self, event: str, **fields: object) -> None:
        if _sink.level <= ERROR:
            _sink.write(ERROR, event, {**self._bound, **fields})

    def exception(self, event: str, **fields: object) -> None:
        """Like error, with the traceback of the exception that is being handled."""
        if _sink.level <= ERROR:
            import traceback

            trace = traceback.format_exc(limit=-12)[-3000:]
            _sink.write(ERROR, event, {**self._bound, **fields, "traceback": trace})


def get_logger(component: str, **bound: object) -> Logger:
    """A logger whose lines carry ``component``."""
    return Logger({"component": component, **bound})
