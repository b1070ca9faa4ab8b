"""OCI's ``linux.resources`` as a checked, typed record.

Pure.  It owns types, ranges and the names in error messages; it must not know cgroup files.
Unknown keys are ignored and null counts as absent, as in Go's decoder.  ``devices`` is read by
nobody: the sentry needs host devices, and runsc allows all of them too.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.json_fields import Fields
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


def _child(of: Fields, name: str) -> Fields:
    """A nested object, an empty one if it is absent."""
    return of.fields(name) or Fields({}, "", of.where(name))


def _items(of: Fields, name: str) -> list[Fields]:
    if len(of.array(name)) > MAX_ITEMS:
        raise of.error(name, f"has more than {MAX_ITEMS} items")
    return of.all_fields(name)


def _required(of: Fields, name: str, bounds: tuple[int, int]) -> int:
    value = of.integer(name, *bounds)
    if value is None:
        raise of.error(name, "is missing")
    return value


def _text(of: Fields, name: str) -> str:
    value = of.text(name)
    if len(value) > MAX_TEXT or any(c < " " for c in value):
        raise of.error(name, "is too long, or holds control characters")
    return value


def _word(of: Fields, name: str) -> str:
    """A name that becomes part of a line: not empty, no blanks."""
    value = _text(of, name)
    if not value or " " in value:
        raise of.error(name, "is not a name")
    return value


def _names(of: Fields) -> list[str]:
    if len(of.value) > MAX_ITEMS:
        raise of.error("", f"has more than {MAX_ITEMS} items")
    return list(of.value)


def parse(resources: Mapping[str, Any] | None) -> Resources:
    """Check ``linux.resources``; raises InvalidRequest that names the field."""
    if resources is not None and not hasattr(resources, "keys"):
        raise InvalidRequest(PREFIX, "must be an object")
    top = Fields(dict(resources or {}), "", PREFIX)
    cpu, memory = _child(top, "cpu"), _child(top, "memory")
    io, network = _child(top, "blockIO"), _child(top, "network")
    return Resources(
        cpu_shares=cpu.integer("shares", *_UINT64),
        cpu_quota=cpu.integer("quota", *_INT64),
        cpu_period=cpu.integer("period", *_UINT64),
        cpu_burst=cpu.integer("burst", *_UINT64),
        cpu_idle=cpu.integer("idle", 0, 1),
        realtime_runtime=cpu.integer("realtimeRuntime", *_INT64),
        realtime_period=cpu.integer("realtimePeriod", *_UINT64),
        cpus=_cpu_list(cpu, "cpus"),
        mems=_cpu_list(cpu, "mems"),
        memory_limit=_memory(memory, "limit"),
        memory_reservation=_memory(memory, "reservation"),
        memory_swap=_memory(memory, "swap"),
        memory_kernel=_memory(memory, "kernel"),
        memory_kernel_tcp=_memory(memory, "kernelTCP"),
        swappiness=memory.integer("swappiness", 0, 200),
        disable_oom_killer=(
            None
            if memory.value.get("disableOOMKiller") is None
            else memory.boolean("disableOOMKiller")
        ),
        check_before_update=memory.boolean("checkBeforeUpdate"),
        pids_limit=_child(top, "pids").integer("limit", *_INT64),
        hugepages=tuple(_hugepage(item) for item in _items(top, "hugepageLimits")),
        io_weight=io.integer("weight", *_UINT16),
        io_leaf_weight=io.integer("leafWeight", *_UINT16),
        weight_devices=tuple(_weight_device(item) for item in _items(io, "weightDevice")),
        throttles=tuple(
            ThrottleDevice(
                kind=kind,
                major=_required(item, "major", _UINT32),
                minor=_required(item, "minor", _UINT32),
                rate=_required(item, "rate", _UINT64),
            )
            for key, kind in _THROTTLES
            for item in _items(io, key)
        ),
        class_id=network.integer("classID", *_UINT32),
        priorities=tuple(
            (_word(item, "name"), _required(item, "priority", _UINT32))
            for item in _items(network, "priorities")
        ),
        rdma=_rdma(_child(top, "rdma")),
        unified=_unified(_child(top, "unified")),
    )


_THROTTLES = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def _memory(memory: Fields, key: str) -> int | None:
    # -1 is "unlimited" and other negative numbers mean nothing.
    return memory.integer(key, -1, _INT64[1])


def _cpu_list(cpu: Fields, key: str) -> str:
    value = _text(cpu, key)
    if any(c not in "0123456789-, " for c in value):
        raise cpu.error(key, f"{value!r} is not a list of numbers")
    return value


def _hugepage(item: Fields) -> tuple[str, int]:
    size = _text(item, "pageSize")
    stem = size.removesuffix("B")
    stem = stem[:-1] if stem[-1:] in ("K", "M", "G", "T") else stem
    # The size becomes part of a file name.
    if not (stem.isascii() and stem.isdigit() and len(size) <= 16):
        raise item.error("pageSize", f"{size!r} is not a page size")
    return size, _required(item, "limit", _UINT64)


def _weight_device(item: Fields) -> WeightDevice:
    return WeightDevice(
        major=_required(item, "major", _UINT32),
        minor=_required(item, "minor", _UINT32),
        weight=item.integer("weight", *_UINT16),
        leaf_weight=item.integer("leafWeight", *_UINT16),
    )


def _rdma(devices: Fields) -> tuple[RdmaLimit, ...]:
    found = []
    for name in _names(devices):
        if not name.isprintable() or " " in name or len(name) > 64:
            raise devices.error("", f"{name!r} is not a device")
        item = _child(devices, name)
        found.append(
            RdmaLimit(
                device=name,
                hca_handles=item.integer("hcaHandles", *_UINT32),
                hca_objects=item.integer("hcaObjects", *_UINT32),
            )
        )
    return tuple(found)


def _unified(values: Fields) -> tuple[tuple[str, str], ...]:
    found = []
    for name in _names(values):
        controller, dot, parameter = name.partition(".")
        if (
            not (controller and dot and parameter)
            or "/" in name
            or not name.isprintable()
            or len(name) > 128
        ):
            raise values.error("", f"{name!r} is not of the form controller.parameter")
        if name in _FORBIDDEN_UNIFIED:
            raise values.error("", f"{name} may not be set")
        found.append((name, _text(values, name)))
    return tuple(found)
