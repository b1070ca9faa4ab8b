"""What the sentry's calls return, checked and typed.  Pure.

The results come from a process that runs hostile code, so every type and size is checked.
"""

from __future__ import annotations

from runtime.base.errors import Failed
from runtime.base.record import Record
from runtime.cgroups.metrics import NetworkStats, SentryStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_MAX_INT = (1 << 63) - 1
_MAX_DIGITS = len(str(_MAX_INT))
_MAX_PROCESSES = 1 << 20


class SandboxProcess(Record):
    """A process inside the sandbox; ``pid`` is a number of the sandbox's root PID namespace."""

    pid: int
    ppid: int
    uid: int
    threads: int
    cpu_percent: int
    tty: str
    start_time: str
    cpu_time: str
    command: str


def integer(value: object, what: str) -> int:
    """A number that isn't negative.  Raises Failed naming ``what`` returned something else."""
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise Failed(f"{what}: malformed result")
    return value


def cgroup_fault(found: object, count: int) -> str:
    """What Cgroups.WriteControlFiles says of ``count`` files; empty if all were written."""
    results = _cgroup_results(found, count)
    if results is None:
        return "malformed result"
    return "; ".join(str(each.get("value"))[:200] for each in results if each.get("is_error"))


def cgroup_numbers(found: object, count: int) -> list[int]:
    """The numbers that Cgroups.ReadControlFiles read from ``count`` files, 0 where it couldn't.

    Raises Failed.
    """
    results = _cgroup_results(found, count)
    if results is None:
        raise Failed("ReadControlFiles: malformed result")
    return [0 if each.get("is_error") else _decimal(each.get("value")) for each in results]


def _decimal(value: object) -> int:
    if not isinstance(value, str) or not value.isdecimal() or len(value) > _MAX_DIGITS:
        raise Failed("ReadControlFiles: malformed result")
    return integer(int(value), "ReadControlFiles")


def _cgroup_results(found: object, count: int) -> list[dict[str, Any]] | None:
    """One object for each file; None if it is something else."""
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) != count:
        return None
    return results if all(isinstance(each, dict) for each in results) else None


def processes(found: object) -> list[SandboxProcess]:
    """What Processes returns.  Raises Failed."""
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > _MAX_PROCESSES:
        raise Failed("Processes: malformed result")
    return [_process(each) for each in found]


def _process(value: object) -> SandboxProcess:
    if not isinstance(value, dict):
        raise Failed("Processes: malformed result")
    threads = value.get("threads") or []

    def number(name: str) -> int:
        return integer(value.get(name) or 0, "Processes")

    def text(name: str) -> str:
        return str(value.get(name) or "")[:4096]

    return SandboxProcess(
        pid=number("pid"),
        ppid=number("ppid"),
        uid=number("uid"),
        threads=len(threads) if isinstance(threads, list) else 0,
        cpu_percent=number("c"),
        tty=text("tty"),
        start_time=text("stime"),
        cpu_time=text("time"),
        command=text("cmd"),
    )


def _member(value: object, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            raise Failed("Event: malformed result")
        value = value.get(name)
        if value is None:
            return None
    return value


def stats(result: object, *, networks: bool = True) -> SentryStats:
    """What Event returns; without ``networks`` the interfaces aren't looked at.  Raises Failed."""
    usage = _member(result, "containerUsage")
    usage = {} if usage is None else usage
    data = _member(result, "event", "data")
    if not isinstance(usage, dict):
        raise Failed("Event: malformed result")
    interfaces = None
    if networks and data is not None:
        interfaces = _member(data, "network_interfaces")
    if interfaces is not None and not isinstance(interfaces, list):
        raise Failed("Event: malformed result")
    return SentryStats(
        cpu_ns={str(cid): integer(ns, "Event") for cid, ns in usage.items()},
        own_cpu_ns=None if usage else counter(data, "cpu", "usage", "total"),
        memory_usage=counter(data, "memory", "usage", "usage"),
        owns_memory=not usage,
        pids=counter(data, "pids", "current"),
        networks=tuple(_interface(each) for each in interfaces or ()),
    )


def counter(data: object, *path: str) -> int:
    """The number at ``path`` in nested objects; 0 where there is none.  Raises Failed."""
    return integer(_member(data, *path) or 0, "Event") if data is not None else 0


def _interface(value: object) -> NetworkStats:
    return NetworkStats(
        name=str(_member(value, "Name") or "")[:64],
        rx_bytes=counter(value, "RxBytes"),
        rx_packets=counter(value, "RxPackets"),
        rx_errors=counter(value, "RxErrors"),
        rx_dropped=counter(value, "RxDropped"),
        tx_bytes=counter(value, "TxBytes"),
        tx_packets=counter(value, "TxPackets"),
        tx_errors=counter(value, "TxErrors"),
        tx_dropped=counter(value, "TxDropped"),
    )


def exported_metrics(found: object) -> Sequence[Any]:
    """What ``Metrics.Export`` answers: the samples, each yet to be looked at.  Raises Failed."""
    snapshot = found.get("snapshot") if isinstance(found, dict) else None
    samples = snapshot.get("data") if isinstance(snapshot, dict) else None
    if samples is None:
        return ()
    if not isinstance(samples, list):
        raise Failed("Metrics.Export: malformed result")
    return samples


def registered_metrics(found: object) -> Mapping[str, Any]:
    """What ``Metrics.GetRegisteredMetrics`` answers.  Raises Failed."""
    registration = found.get("RegisteredMetrics") if isinstance(found, dict) else None
    if not isinstance(registration, dict):
        raise Failed("Metrics.GetRegisteredMetrics: malformed result")
    return registration
