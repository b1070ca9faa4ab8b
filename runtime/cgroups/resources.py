"""OCI's ``linux.resources`` as a checked, typed record.

Pure.  It owns types, ranges and the names in error messages; it must not know cgroup files.
Unknown keys are ignored and null counts as absent, as in Go's decoder.  ``devices`` is read by
nobody: the sentry needs host devices, and runsc allows all of them too.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PREFIX = "linux.resources"
MAX_ITEMS = 1024
MAX_TEXT = 4096

_INT64 = (-(1 << 63), (1 << 63) - 1)
_UINT64 = (0, (1 << 64) - 1)
_UINT32 = (0, (1 << 32) - 1)
_UINT16 = (0, (1 << 16) - 1)

# Keys of `unified` that would move or stop processes, or change the tree's shape under us.
_FORBIDDEN_UNIFIED = frozenset(
    f"cgroup.{name}" for name in ("procs", "threads", "subtree_control", "type", "kill", "freeze")
)


class WeightDevice(Record):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(Record):
    """``kind`` is one of rbps, wbps, riops, wiops: the keys of v2's io.max."""

    kind: str
    major: int
    minor: int
    rate: int


class RdmaLimit(Record):
    device: str
    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(Record):
    """Limits as asked for.  None means that nothing is said; 0 mostly means the same (see use)."""

    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_burst: int | None = None
    cpu_idle: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""
    memory_limit: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None
    memory_kernel: int | None = None
    memory_kernel_tcp: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    check_before_update: bool = False
    pids_limit: int | None = None
    hugepages: tuple[tuple[str, int], ...] = ()
    io_weight: int | None = None
    io_leaf_weight: int | None = None
    weight_devices: tuple[WeightDevice, ...] = ()
    throttles: tuple[ThrottleDevice, ...] = ()
    class_id: int | None = None
    priorities: tuple[tuple[str, int], ...] = ()
    rdma: tuple[RdmaLimit, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


class _Object:
    """A JSON object and its place in the document."""

    def __init__(self, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, dict) and not hasattr(value, "keys"):
            raise InvalidRequest(name, "not an object")
        self.name = name
        self._values: Mapping[str, Any] = value or {}

    def _get(self, key: str) -> Any:
        return self._values.get(key)

    def integer(self, key: str, bounds: tuple[int, int]) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{self.name}.{key}", "not an integer")
        if not bounds[0] <= value <= bounds[1]:
            raise InvalidRequest(f"{self.name}.{key}", f"{value} is out of range")
        return value

    def required(self, key: str, bounds: tuple[int, int]) -> int:
        value = self.integer(key, bounds)
        if value is None:
            raise InvalidRequest(f"{self.name}.{key}", "missing")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            raise InvalidRequest(f"{self.name}.{key}", "not a boolean")
        return value

    def text(self, key: str) -> str:
        value = self._get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InvalidRequest(f"{self.name}.{key}", "not a string")
        if len(value) > MAX_TEXT or any(c < " " for c in value):
            raise InvalidRequest(f"{self.name}.{key}", "too long, or holds control characters")
        return value

    def word(self, key: str) -> str:
        """A name that becomes part of a line: not empty, no blanks."""
        value = self.text(key)
        if not value or " " in value:
            raise InvalidRequest(f"{self.name}.{key}", "not a name")
        return value

    def child(self, key: str) -> _Object:
        return _Object(f"{self.name}.{key}", self._get(key))

    def children(self, key: str) -> list[_Object]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise InvalidRequest(f"{self.name}.{key}", "not a list")
        if len(value) > MAX_ITEMS:
            raise InvalidRequest(f"{self.name}.{key}", f"more than {MAX_ITEMS} items")
        return [_Object(f"{self.name}.{key}[{i}]", item) for i, item in enumerate(value)]

    def keys(self) -> list[str]:
        keys = list(self._values)
        if len(keys) > MAX_ITEMS:
            raise InvalidRequest(self.name, f"more than {MAX_ITEMS} items")
        return keys


def parse(resources: Mapping[str, Any] | None) -> Resources:
    """Check ``linux.resources``; raises InvalidRequest that names the field."""
    top = _Object(PREFIX, resources)
    cpu, memory = top.child("cpu"), top.child("memory")
    io, network = top.child("blockIO"), top.child("network")
    return Resources(
        cpu_shares=cpu.integer("shares", _UINT64),
        cpu_quota=cpu.integer("quota", _INT64),
        cpu_period=cpu.integer("period", _UINT64),
        cpu_burst=cpu.integer("burst", _UINT64),
        cpu_idle=cpu.integer("idle", (0, 1)),
        realtime_runtime=cpu.integer("realtimeRuntime", _INT64),
        realtime_period=cpu.integer("realtimePeriod", _UINT64),
        cpus=_cpu_list(cpu, "cpus"),
        mems=_cpu_list(cpu, "mems"),
        memory_limit=_memory(memory, "limit"),
        memory_reservation=_memory(memory, "reservation"),
        memory_swap=_memory(memory, "swap"),
        memory_kernel=_memory(memory, "kernel"),
        memory_kernel_tcp=_memory(memory, "kernelTCP"),
        swappiness=memory.integer("swappiness", (0, 200)),
        disable_oom_killer=memory.flag("disableOOMKiller"),
        check_before_update=bool(memory.flag("checkBeforeUpdate")),
        pids_limit=top.child("pids").integer("limit", _INT64),
        hugepages=tuple(_hugepage(item) for item in top.children("hugepageLimits")),
        io_weight=io.integer("weight", _UINT16),
        io_leaf_weight=io.integer("leafWeight", _UINT16),
        weight_devices=tuple(_weight_device(item) for item in io.children("weightDevice")),
        throttles=tuple(
            ThrottleDevice(
                kind=kind,
                major=item.required("major", _UINT32),
                minor=item.required("minor", _UINT32),
                rate=item.required("rate", _UINT64),
            )
            for key, kind in _THROTTLES
            for item in io.children(key)
        ),
        class_id=network.integer("classID", _UINT32),
        priorities=tuple(
            (item.word("name"), item.required("priority", _UINT32))
            for item in network.children("priorities")
        ),
        rdma=_rdma(top.child("rdma")),
        unified=_unified(top.child("unified")),
    )


_THROTTLES = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def _memory(memory: _Object, key: str) -> int | None:
    # -1 is "unlimited" and other negative numbers mean nothing.
    return memory.integer(key, (-1, _INT64[1]))


def _cpu_list(cpu: _Object, key: str) -> str:
    value = cpu.text(key)
    if any(c not in "0123456789-, " for c in value):
        raise InvalidRequest(f"{cpu.name}.{key}", f"{value!r} is not a list of numbers")
    return value


def _hugepage(item: _Object) -> tuple[str, int]:
    size = item.text("pageSize")
    stem = size.removesuffix("B")
    stem = stem[:-1] if stem[-1:] in ("K", "M", "G", "T") else stem
    # The size becomes part of a file name.
    if not (stem.isascii() and stem.isdigit() and len(size) <= 16):
        raise InvalidRequest(f"{item.name}.pageSize", f"{size!r} is not a page size")
    return size, item.required("limit", _UINT64)


def _weight_device(item: _Object) -> WeightDevice:
    return WeightDevice(
        major=item.required("major", _UINT32),
        minor=item.required("minor", _UINT32),
        weight=item.integer("weight", _UINT16),
        leaf_weight=item.integer("leafWeight", _UINT16),
    )


def _rdma(devices: _Object) -> tuple[RdmaLimit, ...]:
    found = []
    for name in devices.keys():  # noqa: SIM118 - not a mapping
        if not isinstance(name, str) or not name.isprintable() or " " in name or len(name) > 64:
            raise InvalidRequest(devices.name, f"{name!r} is not a device")
        item = devices.child(name)
        found.append(
            RdmaLimit(
                device=name,
                hca_handles=item.integer("hcaHandles", _UINT32),
                hca_objects=item.integer("hcaObjects", _UINT32),
            )
        )
    return tuple(found)


def _unified(values: _Object) -> tuple[tuple[str, str], ...]:
    found = []
    for name in values.keys():  # noqa: SIM118 - not a mapping
        controller, dot, parameter = name.partition(".") if isinstance(name, str) else ("", "", "")
        if (
            not (controller and dot and parameter)
            or "/" in name
            or not name.isprintable()
            or len(name) > 128
        ):
            raise InvalidRequest(values.name, f"{name!r} is not of the form controller.parameter")
        if name in _FORBIDDEN_UNIFIED:
            raise InvalidRequest(values.name, f"{name} may not be set")
        found.append((name, values.text(name)))
    return tuple(found)
