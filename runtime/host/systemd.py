"""systemd's scopes: asks its manager over D-Bus to start, change and stop them.

Owns the names of methods and properties, and waits for a job's end.  ``cgroups/systemd.py`` knows
what a cgroup is.  Loaded only where systemd is used.
"""

from __future__ import annotations

import os
import time

from runtime.base.errors import Failed
from runtime.host.dbus import Bus, RemoteFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, Self

    from runtime.host.dbus import Message

    #: A property's name, its type, its value.
    Property = tuple[str, tuple[str, Any]]

_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_PRIVATE = "/run/systemd/private"
_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_BUS: Final = "org.freedesktop.DBus"
_MATCH: Final = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
_UNIT_EXISTS: Final = f"{_NAME}.UnitExists"
_GONE: Final = (f"{_NAME}.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject")
_INFINITY: Final = (1 << 64) - 1


class UnitExists(Failed):
    """There is a unit of that name."""


class Manager:
    """A connection to systemd.  For one thread; close it."""

    def __init__(self, bus: Bus, deadline: float, *, private: bool = False) -> None:
        """``private``: systemd itself is the peer, and sends every signal."""
        self._bus = bus
        self._name = "" if private else _NAME
        self._deadline = deadline
        #: The name that signals of systemd's bear; a match doesn't keep away what any local user
        #: sends to us by name.
        self._sender = ""
        self._private = private
        bus.heed(self._is_job_end)
        if not private:
            self._ask(_BUS, "/org/freedesktop/DBus", _BUS, "Hello")
            self._ask(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", (_MATCH,))
            # First a call to systemd: the bus keeps it until systemd is there, early in a boot.
            # Until then the name has no owner.
            self._ask(_NAME, _PATH, _MANAGER, "Subscribe")
            owner = self._ask(_BUS, "/org/freedesktop/DBus", _BUS, "GetNameOwner", "s", (_NAME,))
            self._sender = str(owner[0]) if owner else _NAME

    @classmethod
    def connect(cls, timeout: float, *, private: str = _PRIVATE, bus: str = "") -> Manager:
        """By way of the system's bus, or else of systemd's own socket; their paths may be named.

        All that follows has to end within ``timeout`` seconds.  Raises Failed, DeadlineExceeded.
        """
        deadline = time.monotonic() + timeout
        faults = []
        for path, direct in ((bus or _bus_path(), False), (private, True)):
            try:
                connection = Bus.connect(path, deadline)
            except OSError as error:
                faults.append(f"{path}: {error.strerror or error}")
                continue
            try:
                return cls(connection, deadline, private=direct)
            except BaseException:
                connection.close()
                raise
        raise Failed(f"systemd can't be reached: {'; '.join(faults)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._bus.close()

    def start_scope(self, unit: str, properties: Sequence[Property]) -> None:
        """Start a transient scope and wait until it runs.

        Raises UnitExists, Failed with systemd's words, DeadlineExceeded.
        """
        try:
            job = self._manager(
                "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", list(properties), [])
            )
        except RemoteFault as fault:
            if fault.name == _UNIT_EXISTS:
                raise UnitExists(str(fault)) from None
            raise Failed(f"systemd: start {unit}: {fault}") from None
        result = self._finished(job)
        if result != "done":
            self.reset_failed(unit)
            raise Failed(f"systemd: start {unit}: the job's result is {result!r}")

    def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change a unit until it ends.  Raises Failed."""
        try:
            self._manager("SetUnitProperties", "sba(sv)", (unit, True, list(properties)))
        except RemoteFault as fault:
            raise Failed(f"systemd: set properties of {unit}: {fault}") from None

    def stop(self, unit: str) -> None:
        """End a unit and all its processes, and wait for that.  No error if it is gone."""
        try:
            job = self._manager("StopUnit", "ss", (unit, "replace"))
        except RemoteFault as fault:
            if fault.name in _GONE:
                return
            raise Failed(f"systemd: stop {unit}: {fault}") from None
        self._finished(job)
        self.reset_failed(unit)

    def is_active(self, unit: str) -> bool:
        """Whether a unit runs, or is about to."""
        try:
            path = self._manager("GetUnit", "s", (unit,))[0]
            words = (f"{_NAME}.Unit", "ActiveState")
            properties = "org.freedesktop.DBus.Properties"
            found = self._ask(self._name, path, properties, "Get", "ss", words)[0]
        except RemoteFault as fault:
            if fault.name in _GONE:
                return False
            raise Failed(f"systemd: look at {unit}: {fault}") from None
        return found in (("s", "active"), ("s", "activating"), ("s", "reloading"))

    def restart(self, unit: str) -> None:
        """Restart a unit and wait until it runs again.  Raises Failed, DeadlineExceeded."""
        try:
            job = self._manager("RestartUnit", "ss", (unit, "replace"))
        except RemoteFault as fault:
            raise Failed(f"systemd: restart {unit}: {fault}") from None
        result = self._finished(job)
        if result != "done":
            raise Failed(f"systemd: restart {unit}: the job's result is {result!r}")

    def kill(self, unit: str, signo: int) -> None:
        """Signal all processes of a unit.  No error if it is gone."""
        try:
            self._manager("KillUnit", "ssi", (unit, "all", signo))
        except RemoteFault as fault:
            if fault.name not in _GONE:
                raise Failed(f"systemd: kill {unit}: {fault}") from None

    def reset_failed(self, unit: str) -> None:
        """Have systemd forget that a unit failed, which keeps its name taken."""
        try:
            self._manager("ResetFailedUnit", "s", (unit,))
        except RemoteFault:
            return  # it isn't failed, or gone

    def _finished(self, job: tuple[Any, ...]) -> str:
        """Wait for a job's end: ``done``, ``failed``, ``canceled``, ``timeout``, ..."""
        path = job[0] if job else ""

        def ours(signal: Message) -> bool:
            return bool(signal.body[1] == path)

        return str(self._bus.wait_signal(ours, self._deadline).body[3])

    def _is_job_end(self, signal: Message) -> bool:
        return (
            signal.member == "JobRemoved"
            and (self._private or signal.sender == self._sender)
            and signal.signature == "uoss"
        )

    def _manager(self, member: str, signature: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._ask(self._name, _PATH, _MANAGER, member, signature, values)

    def _ask(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: tuple[Any, ...] = (),
    ) -> tuple[Any, ...]:
        return self._bus.call(name, path, interface, member, signature, values, self._deadline)


def _bus_path() -> str:
    """Where the system's bus listens (DBUS_SYSTEM_BUS_ADDRESS, of its forms ``unix:path=``)."""
    for address in os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "").split(";"):
        if address.startswith("unix:path="):
            return address.removeprefix("unix:path=").partition(",")[0]
    return _SYSTEM_BUS


def scope_properties(unit: str, slice_name: str, pid: int) -> list[Property]:
    """What every scope of ours has: a first process, its slice, and its inside left to us."""
    return [
        ("Description", ("s", f"gVisor container {unit.removesuffix('.scope')}")),
        ("Slice", ("s", slice_name)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        ("CollectMode", ("s", "inactive-or-failed")),
        *((f"{kind}Accounting", ("b", True)) for kind in ("CPU", "Memory", "IO", "Tasks")),
    ]
