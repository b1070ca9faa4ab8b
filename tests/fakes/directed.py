"""A sentry's containers and processes, for a sentry process that a test directs while it runs.

Runs in the process that ``runsc.py`` starts in the sentry's place, when the first word of the
container's program is ``directed``.  What no sentry knows goes over the same control socket:
``Test.Exit`` ends a process, ``Test.Fault`` has the next calls of a method fail.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from tests.fakes.sentry import FakeSentry, SentryError

_SIGKILL = 9
#: Signals that end a process of ours; it ignores the others.
_DEADLY = (_SIGKILL, 15)


class Directed:
    """The handlers.  ``ended`` is set, and ``status`` final, when the root's init has ended."""

    def __init__(self, sentry: FakeSentry, sandbox_id: str) -> None:
        self.ended = threading.Event()
        self.status = 0
        self._root = sandbox_id
        self._changed = threading.Condition()
        #: (container, pid) -> wait status, None while it runs; init's pid is 0.
        self._ends: dict[tuple[str, int], int | None] = {}
        self._made = {sandbox_id}
        self._pids = 10
        self._faults: dict[str, list[str]] = {}
        manager = "containerManager."
        calls: dict[str, Any] = {
            manager + "StartRoot": self._start_root,
            manager + "CreateSubcontainer": self._create,
            manager + "StartSubcontainer": lambda arg: self._start(arg["CID"]),
            manager + "DestroySubcontainer": self._destroy,
            manager + "Wait": lambda cid: self._wait((cid, 0)),
            manager + "WaitPID": lambda arg: self._wait((arg["CID"], arg["PID"])),
            manager + "Signal": self._signal,
            manager + "ExecuteAsync": self._execute,
            manager + "Processes": self._processes,
            manager + "Event": self._event,
            "Network.CreateLinksAndRoutes": lambda _: {},
            "Lifecycle.Pause": lambda _: {},
            "Lifecycle.Resume": lambda _: {},
        }
        self._sentry = sentry
        sentry.handlers = {name: self._faulty(name, call) for name, call in calls.items()}
        sentry.handlers["Test.Exit"] = self._exit
        sentry.handlers["Test.Fault"] = self._fault

    def watch_gofer(self, connection: int) -> None:
        """End the root container with its gofer, as a sentry does that has not missed it."""

        def wait() -> None:
            os.read(connection, 1)
            with self._changed:
                self._end((self._root, 0), _SIGKILL)

        threading.Thread(target=wait, daemon=True).start()

    def _faulty(self, name: str, call: Any) -> Any:
        def handle(argument: Any) -> Any:
            with self._changed:
                kinds = self._faults.get(name)
                kind = kinds.pop(0) if kinds else ""
            if kind == "error":
                raise SentryError("no space left on device")
            if kind == "slow":
                time.sleep(0.3)
            result = call(argument)
            if kind == "drop":
                # What was asked happens, and nobody hears of it.
                raise ConnectionAbortedError
            return result

        return handle

    def _fault(self, argument: dict[str, str]) -> dict[str, object]:
        with self._changed:
            self._faults.setdefault(argument["method"], []).append(argument["kind"])
        return {}

    def _exit(self, argument: dict[str, Any]) -> dict[str, object]:
        with self._changed:
            cid, pid = argument["cid"], argument["pid"]
            if pid < 0:  # some exec of it
                live = [k for k, end in self._ends.items() if k[0] == cid and k[1] and end is None]
                pid = live[0][1] if live else pid
            self._end((cid, pid), argument["status"] << 8)
        return {}

    # The caller holds _changed.
    def _end(self, key: tuple[str, int], status: int) -> None:
        if key not in self._ends or self._ends[key] is not None:
            return
        self._ends[key] = status
        if not key[1]:
            for other in [k for k in self._ends if k[0] == key[0]]:
                self._end(other, _SIGKILL)
        if key == (self._root, 0):
            self.status = status >> 8 if not status & 0x7F else 128 + (status & 0x7F)
            for other in list(self._ends):
                self._end(other, _SIGKILL)
            self.ended.set()
        self._changed.notify_all()

    def _start_root(self, cid: str) -> dict[str, object]:
        return self._start(cid)

    def _create(self, argument: dict[str, str]) -> dict[str, object]:
        with self._changed:
            if argument["CID"] in self._made:
                raise SentryError(f'container "{argument["CID"]}" already exists')
            self._made.add(argument["CID"])
        return {}

    def _start(self, cid: str) -> dict[str, object]:
        with self._changed:
            if cid not in self._made:
                raise SentryError(f'container "{cid}" not found')
            self._ends[cid, 0] = None
        return {}

    def _destroy(self, cid: str) -> dict[str, object]:
        with self._changed:
            if cid not in self._made:
                raise SentryError(f'container "{cid}" not found')
            self._end((cid, 0), _SIGKILL)
            self._made.discard(cid)
            for key in [k for k in self._ends if k[0] == cid]:
                self._end(key, _SIGKILL)
        return {}

    def _wait(self, key: tuple[str, int]) -> int:
        with self._changed:
            if key not in self._ends:
                raise SentryError(f'container "{key[0]}" not found')
            self._changed.wait_for(lambda: self._ends[key] is not None)
            end = self._ends[key]
            assert end is not None
            return end

    def _signal(self, argument: dict[str, Any]) -> dict[str, object]:
        cid, pid, signo = argument["CID"], argument["PID"], argument["Signo"]
        with self._changed:
            if (cid, pid) not in self._ends:
                raise SentryError(f'container "{cid}" is not started')
            if self._ends[cid, pid] is not None:
                raise SentryError("no such process")
            if signo in _DEADLY:
                # Init's end is everybody's, as in a pid namespace.
                self._end((cid, pid), signo)
        return {}

    def _execute(self, argument: dict[str, Any]) -> int:
        cid = argument["CID"] if "CID" in argument else argument["ContainerID"]
        with self._changed:
            if self._ends.get((cid, 0), 0) is not None:
                raise SentryError(f'container "{cid}" has stopped')
            self._pids += 1
            self._ends[cid, self._pids] = None
            return self._pids

    def _processes(self, cid: str) -> list[dict[str, int]]:
        with self._changed:
            return [
                {"pid": pid or 1}
                for (each, pid), end in self._ends.items()
                if each == cid and end is None
            ]

    def _event(self, argument: object) -> dict[str, object]:
        return {"event": {"data": {"pids": {"current": 1}}}, "containerUsage": {self._root: 1}}
