"""Reads a cgroup's counters into :class:`runtime.cgroups.metrics.HostStats`.

Owns the names and formats of the kernel's statistics files of both versions.  Files are opened for
each call, which takes about 10 microseconds a file and holds no descriptors in between.  A missing
or unreadable file counts as zero: which files exist depends on the kernel.
"""

from __future__ import annotations

import os

from runtime.cgroups.hierarchy import read_file
from runtime.cgroups.metrics import (
    Amount,
    DeviceIO,
    HostStats,
    HugePages,
    MemoryEvents,
    Pressure,
    PressureLine,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    #: Gives the contents of the file at a path, or nothing.
    Read = Callable[[str], str]

#: v1's "no limit" is the greatest multiple of the page size; CRI draws the line here too.
_UNLIMITED = 1 << 62
#: Bytes of a file that one read gives.
_KEPT_SIZE = 16 << 10


def read_text(path: str) -> str:
    """A file's contents, or nothing."""
    try:
        return read_file(path)
    except OSError:
        return ""


class KeptFiles:
    """Files of a cgroup that are read again and again, kept open: opening one costs ten reads.

    Keeping them stops nobody from removing the cgroup.  For one thread at a time.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def read(self, path: str) -> str:
        """A file's contents, or nothing."""
        fd = self._files.get(path)
        try:
            if fd is None:
                fd = self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(fd, _KEPT_SIZE, 0)
        except OSError:
            # The cgroup is gone, and maybe another one has its name.
            if (fd := self._files.pop(path, None)) is not None:
                os.close(fd)
            return read_text(path)
        return read_text(path) if len(data) == _KEPT_SIZE else data.decode("utf-8", "replace")

    def close(self) -> None:
        """Idempotent."""
        while self._files:
            os.close(self._files.popitem()[1])


def parse_number(text: str) -> int:
    """A counter; 0 for what isn't one.  Kernel bugs make some negative, which is 0 as well."""
    try:
        return max(int(text), 0)
    except ValueError:
        return 0


def parse_limit(text: str) -> int | None:
    """A limit; None for ``max``, for v1's huge number, for -1 and for no number at all."""
    try:
        value = int(text)
    except ValueError:
        return None
    return None if value < 0 or value > _UNLIMITED else value


def parse_keyed(text: str) -> dict[str, int]:
    """``key value`` lines, as in memory.stat."""
    words = text.split()
    try:
        return {key: max(int(value), 0) for key, value in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        found = {}
        for line in text.splitlines():
            parts = line.split()
            if len(parts) == 2:
                found[parts[0]] = parse_number(parts[1])
        return found


def parse_pressure(text: str) -> Pressure | None:
    """A ``*.pressure`` file; None if there is no such file."""
    lines: dict[str, PressureLine] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        pairs = rest.split()
        values = dict(pair.partition("=")[::2] for pair in pairs)
        try:
            lines[kind] = PressureLine(
                avg10=float(values["avg10"]),
                avg60=float(values["avg60"]),
                avg300=float(values["avg300"]),
                total=int(values["total"]),
            )
        except (KeyError, ValueError):
            continue
    return Pressure(some=lines.get("some"), full=lines.get("full")) if lines else None


def parse_io_stat(text: str) -> tuple[DeviceIO, ...]:
    """v2's io.stat."""
    found = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        pairs = rest.split()
        major, colon, minor = device.partition(":")
        if colon and pairs and major.isdecimal() and minor.isdecimal():
            values = dict(pair.partition("=")[::2] for pair in pairs)
            found.append(
                DeviceIO(
                    major=int(major),
                    minor=int(minor),
                    read_bytes=parse_number(values.get("rbytes", "")),
                    write_bytes=parse_number(values.get("wbytes", "")),
                    reads=parse_number(values.get("rios", "")),
                    writes=parse_number(values.get("wios", "")),
                )
            )
    return tuple(found)


def parse_blkio(service_bytes: str, serviced: str) -> tuple[DeviceIO, ...]:
    """v1's two blkio files, ``major:minor Operation number`` a line."""
    devices: dict[tuple[int, int], dict[str, int]] = {}
    for text, names in (
        (service_bytes, {"Read": "read_bytes", "Write": "write_bytes"}),
        (serviced, {"Read": "reads", "Write": "writes"}),
    ):
        for line in text.splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[1] in names:
                major, _, minor = parts[0].partition(":")
                if major.isdecimal() and minor.isdecimal():
                    entry = devices.setdefault((int(major), int(minor)), {})
                    entry[names[parts[1]]] = parse_number(parts[2])
    return tuple(
        DeviceIO(major=major, minor=minor, **values)
        for (major, minor), values in sorted(devices.items())
    )


def _huge_page_sizes(directory: str, suffix: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    sizes = []
    for name in names:
        if name.startswith("hugetlb.") and name.endswith(suffix):
            size = name[len("hugetlb.") : -len(suffix)]
            if "." not in size:
                sizes.append(size)
    return sorted(sizes)


def v1_oom_kills(memory_directory: str) -> int:
    """Kernel OOM kills in this cgroup (Linux 4.13 and later)."""
    text = read_text(f"{memory_directory}/memory.oom_control")
    return parse_keyed(text).get("oom_kill", 0)


def v2_oom_kills(directory: str) -> int:
    """Kernel OOM kills in this cgroup and below it."""
    return parse_keyed(read_text(f"{directory}/memory.events")).get("oom_kill", 0)


def read_v1(directories: Mapping[str, str], brief: Read | None = None) -> HostStats:
    """Counters of a cgroup that lies at ``directories``, by controller; ``brief`` as for stats."""
    read = brief or read_text
    values: dict[str, Any] = {}
    if (path := directories.get("cpuacct")) is not None:
        values["cpu_usage_ns"] = parse_number(read(f"{path}/cpuacct.usage"))
        values["cpu_user_ns"] = parse_number(read(f"{path}/cpuacct.usage_user"))
        values["cpu_system_ns"] = parse_number(read(f"{path}/cpuacct.usage_sys"))
    if (path := directories.get("cpu")) is not None:
        stat = parse_keyed(read(f"{path}/cpu.stat"))
        values.update(
            cpu_periods=stat.get("nr_periods", 0),
            cpu_throttled_periods=stat.get("nr_throttled", 0),
            cpu_throttled_ns=stat.get("throttled_time", 0),
            cpu_bursts=stat.get("nr_bursts", 0),
            cpu_burst_ns=stat.get("burst_time", 0),
        )
    if (path := directories.get("memory")) is not None:
        detail = parse_keyed(read(f"{path}/memory.stat"))
        oom = parse_keyed(read(f"{path}/memory.oom_control"))
        memory = _v1_amount(path, "memory", brief)
        if memory.limit is None:
            memory = memory.replace(
                limit=parse_limit(str(detail.get("hierarchical_memory_limit", -1)))
            )
        values.update(
            memory=memory,
            anonymous=detail.get("total_rss", 0),
            file=detail.get("total_cache", 0),
            inactive_file=detail.get("total_inactive_file", 0),
            active_file=detail.get("total_active_file", 0),
            page_faults=detail.get("total_pgfault", 0),
            major_faults=detail.get("total_pgmajfault", 0),
            memory_detail=detail,
            memory_events=MemoryEvents(
                oom_kill=oom.get("oom_kill", 0),
                oom_kill_disable=oom.get("oom_kill_disable", 0),
                under_oom=oom.get("under_oom", 0),
            ),
        )
        if not brief:
            values["swap"] = _v1_amount(path, "memory.memsw")
            values["kernel"] = _v1_amount(path, "memory.kmem")
    if (path := directories.get("pids")) is not None:
        values["pids"] = parse_number(read(f"{path}/pids.current"))
    if brief:
        return HostStats(**values)
    if (path := directories.get("pids")) is not None:
        values["pids_limit"] = parse_limit(read_text(f"{path}/pids.max"))
    if (path := directories.get("blkio")) is not None:
        values["io"] = _v1_io(path)
    if (path := directories.get("hugetlb")) is not None:
        values["huge_pages"] = tuple(
            HugePages(
                size=size,
                amount=Amount(
                    usage=parse_number(read_text(f"{path}/hugetlb.{size}.usage_in_bytes")),
                    limit=parse_limit(read_text(f"{path}/hugetlb.{size}.limit_in_bytes")),
                    maximum=parse_number(read_text(f"{path}/hugetlb.{size}.max_usage_in_bytes")),
                    failures=parse_number(read_text(f"{path}/hugetlb.{size}.failcnt")),
                ),
            )
            for size in _huge_page_sizes(path, ".usage_in_bytes")
        )
    return HostStats(**values)


def _v1_amount(path: str, stem: str, brief: Read | None = None) -> Amount:
    if brief is not None:
        return Amount(
            usage=parse_number(brief(f"{path}/{stem}.usage_in_bytes")),
            limit=parse_limit(brief(f"{path}/{stem}.limit_in_bytes")),
        )
    return Amount(
        usage=parse_number(read_text(f"{path}/{stem}.usage_in_bytes")),
        limit=parse_limit(read_text(f"{path}/{stem}.limit_in_bytes")),
        maximum=parse_number(read_text(f"{path}/{stem}.max_usage_in_bytes")),
        failures=parse_number(read_text(f"{path}/{stem}.failcnt")),
    )


def _v1_io(path: str) -> tuple[DeviceIO, ...]:
    # The bfq scheduler counts for itself; containerd prefers its figures where there are any.
    for prefix in ("blkio.bfq", "blkio.throttle"):
        sizes = read_text(f"{path}/{prefix}.io_service_bytes_recursive")
        found = parse_blkio(sizes, read_text(f"{path}/{prefix}.io_serviced_recursive"))
        if found:
            return found
    return ()


def read_v2(directory: str, memory_limit: int | None, brief: Read | None = None) -> HostStats:
    """Counters of a cgroup.  ``memory_limit`` is the one in force, which may be an ancestor's."""
    read = brief or read_text
    cpu = parse_keyed(read(f"{directory}/cpu.stat"))
    detail = parse_keyed(read(f"{directory}/memory.stat"))
    events = parse_keyed(read(f"{directory}/memory.events"))
    values: dict[str, Any] = {
        "cpu_usage_ns": cpu.get("usage_usec", 0) * 1000,
        "cpu_user_ns": cpu.get("user_usec", 0) * 1000,
        "cpu_system_ns": cpu.get("system_usec", 0) * 1000,
        "cpu_periods": cpu.get("nr_periods", 0),
        "cpu_throttled_periods": cpu.get("nr_throttled", 0),
        "cpu_throttled_ns": cpu.get("throttled_usec", 0) * 1000,
        "cpu_bursts": cpu.get("nr_bursts", 0),
        "cpu_burst_ns": cpu.get("burst_usec", 0) * 1000,
        "memory": Amount(
            usage=parse_number(read(f"{directory}/memory.current")),
            limit=memory_limit,
            maximum=0 if brief else parse_number(read(f"{directory}/memory.peak")),
            failures=events.get("max", 0),
        ),
        "kernel": Amount(usage=detail.get("kernel", 0)),
        "anonymous": detail.get("anon", 0),
        "file": detail.get("file", 0),
        "inactive_file": detail.get("inactive_file", 0),
        "active_file": detail.get("active_file", 0),
        "page_faults": detail.get("pgfault", 0),
        "major_faults": detail.get("pgmajfault", 0),
        "memory_detail": detail,
        "memory_events": MemoryEvents(
            low=events.get("low", 0),
            high=events.get("high", 0),
            max=events.get("max", 0),
            oom=events.get("oom", 0),
            oom_kill=events.get("oom_kill", 0),
            oom_group_kill=events.get("oom_group_kill", 0),
        ),
        "pids": parse_number(read(f"{directory}/pids.current")),
    }
    if brief:
        return HostStats(**values)
    return HostStats(
        **values,
        swap=Amount(
            usage=parse_number(read_text(f"{directory}/memory.swap.current")),
            limit=parse_limit(read_text(f"{directory}/memory.swap.max")),
            maximum=parse_number(read_text(f"{directory}/memory.swap.peak")),
        ),
        pids_limit=parse_limit(read_text(f"{directory}/pids.max")),
        io=parse_io_stat(read_text(f"{directory}/io.stat")),
        huge_pages=tuple(
            HugePages(
                size=size,
                amount=Amount(
                    usage=parse_number(read_text(f"{directory}/hugetlb.{size}.current")),
                    limit=parse_limit(read_text(f"{directory}/hugetlb.{size}.max")),
                    failures=parse_keyed(read_text(f"{directory}/hugetlb.{size}.events")).get(
                        "max", 0
                    ),
                ),
            )
            for size in _huge_page_sizes(directory, ".current")
        ),
        cpu_pressure=parse_pressure(read_text(f"{directory}/cpu.pressure")),
        memory_pressure=parse_pressure(read_text(f"{directory}/memory.pressure")),
        io_pressure=parse_pressure(read_text(f"{directory}/io.pressure")),
    )
