"""What can be asked at a shim's debug socket: service ``gvisor.shim.v1.Debug``.

Requests and replies are JSON objects: a message type of protobuf's would cost each pod memory that
hardly any pod ever needs.  A method that isn't known is UNIMPLEMENTED, a member that isn't known
is passed over, so shim and asker may be of different versions.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from runtime.base import fastjson, log
from runtime.base.version import VERSION
from shim.base import status
from shim.ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any, Final

    from runtime.task.pod import Pod
    from shim.observe.counters import Counters

SERVICE: Final = "gvisor.shim.v1.Debug"
#: Threads whose stacks are told, and frames of each, the innermost.
MAX_THREADS: Final = 256
MAX_FRAMES: Final = 40
#: Bytes of a program's path.
MAX_PATH: Final = 4095
#: Containers that are told of.
MAX_CONTAINERS: Final = 1024


class DebugService:
    """The methods.  They run in the reactor's thread, so none blocks."""

    def __init__(
        self,
        pod: Pod,
        events: Callable[[], tuple[int, int, int]],
        counters: Counters,
        about: Callable[[], Mapping[str, object]],
        *,
        clients: Callable[[], int],
        set_level: Callable[[str], str],
        upgrade: Callable[[str], int],
    ) -> None:
        """``events`` counts those that wait, were lost, and were sent.  ``about`` goes into Info.
        ``upgrade`` begins to become another version, by the path of its program or ""; the
        request's number.

        ``set_level`` sets the log's level by logrus' name for it, and returns the one before;
        with an empty name it changes nothing; it raises KeyError.
        """
        self._pod, self._events, self._counters = pod, events, counters
        self._about = about
        self._clients, self._set_level = clients, set_level
        self._begin_upgrade = upgrade
        self._started = time.time()
        self._methods: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "Info": self._info,
            "Counters": self._tell_counters,
            "Stacks": self._stacks,
            "LogLevel": self._log_level,
            "Upgrade": self._upgrade,
        }

    def handle(self, method: str, payload: bytes) -> bytes:
        """The reply.  Raises StatusError."""
        call = self._methods.get(method)
        if call is None:
            raise StatusError(status.UNIMPLEMENTED, f"method {method[:100]}")
        try:
            request = fastjson.loads(payload) if payload else {}
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise StatusError(status.INVALID_ARGUMENT, "request is not a JSON object")
        return fastjson.dumps(call(request)).encode("ascii")

    def _info(self, _: Mapping[str, Any]) -> dict[str, Any]:
        queued, lost, sent = self._events()
        return {
            **self._about(),
            "version": VERSION,
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "started": self._started,
            "logLevel": self._set_level(""),
            "threads": threading.active_count(),
            "clients": self._clients(),
            "events": {"queued": queued, "lost": lost, "sent": sent},
            "containers": [
                {
                    "id": each.id,
                    "root": each.is_root,
                    "state": each.init.state.value,
                    "pid": each.init.pid,
                    "execs": each.started_execs(),
                }
                for each in self._pod.all()[:MAX_CONTAINERS]
            ],
        }

    def _tell_counters(self, _: Mapping[str, Any]) -> dict[str, Any]:
        queued, lost, sent = self._events()
        return {
            **self._counters.snapshot(),
            "pid": os.getpid(),
            "started": self._started,
            "threads": threading.active_count(),
            "events": {"queued": queued, "lost": lost, "sent": sent},
        }

    def _stacks(self, _: Mapping[str, Any]) -> dict[str, Any]:
        threads = {each.ident: each for each in threading.enumerate()}
        frames = sys._current_frames()
        found = []
        for ident, frame in list(frames.items())[:MAX_THREADS]:
            thread = threads.get(ident)
            found.append({"name": thread.name if thread else str(ident), "stack": _stack(frame)})
        return {"threads": found, "left": max(len(frames) - MAX_THREADS, 0)}

    def _upgrade(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = request.get("program", "")
        if not isinstance(path, str) or len(path) > MAX_PATH or "\0" in path:
            raise StatusError(status.INVALID_ARGUMENT, "program is not a path")
        return {"number": self._begin_upgrade(path)}

    def _log_level(self, request: Mapping[str, Any]) -> dict[str, Any]:
        level = request.get("level", "")
        try:
            if not isinstance(level, str):
                raise KeyError(level)
            before = self._set_level(level)
        except KeyError:
            why = f"level {str(level)[:100]!r} is none of logrus'"
            raise StatusError(status.INVALID_ARGUMENT, why) from None
        if level and not log.enabled(log.ERROR):
            raise StatusError(status.FAILED_PRECONDITION, "the shim has no log to write to")
        return {"before": before, "level": self._set_level("")}


def _stack(frame: FrameType | None) -> list[str]:
    """Where each call is, outermost first; without its source, which would have to be read."""
    lines: list[str] = []
    while frame is not None and len(lines) < MAX_FRAMES:
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    lines.reverse()
    return lines
