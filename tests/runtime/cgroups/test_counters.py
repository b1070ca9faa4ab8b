"""Reading the kernel's statistics files, of both versions, from directories made up here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups import counters
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.cgroups.metrics import Amount, DeviceIO, HostStats, HugePages, PressureLine
from runtime.cgroups.v1 import CgroupV1
from runtime.cgroups.v2 import CgroupV2

MEMORY_STAT_V1 = """\
cache 10
rss 11
hierarchical_memory_limit 9000
hierarchical_memsw_limit 9223372036854771712
total_cache 20
total_rss 21
total_pgfault 22
total_pgmajfault 23
total_inactive_file 24
total_active_file 25
"""


def fill(directory: Path, files: dict[str, str]) -> str:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return str(directory)


def v1_tree(base: Path) -> dict[str, str]:
    return {
        "cpuacct": fill(
            base / "cpuacct",
            {
                "cpuacct.usage": "3000\n",
                "cpuacct.usage_user": "2000\n",
                "cpuacct.usage_sys": "1000\n",
            },
        ),
        "cpu": fill(
            base / "cpu",
            {"cpu.stat": "nr_periods 4\nnr_throttled 3\nthrottled_time 2\nnr_bursts 1\n"},
        ),
        "memory": fill(
            base / "memory",
            {
                "memory.stat": MEMORY_STAT_V1,
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 5\n",
                "memory.usage_in_bytes": "100\n",
                "memory.limit_in_bytes": "9223372036854771712\n",
                "memory.max_usage_in_bytes": "150\n",
                "memory.failcnt": "7\n",
                "memory.memsw.usage_in_bytes": "110\n",
                "memory.memsw.limit_in_bytes": "5000\n",
            },
        ),
        "pids": fill(base / "pids", {"pids.current": "6\n", "pids.max": "max\n"}),
        "blkio": fill(
            base / "blkio",
            {
                "blkio.bfq.io_service_bytes_recursive": "Total 0\n",
                "blkio.throttle.io_service_bytes_recursive": (
                    "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\n9:1 Read 4\nTotal 7\n"
                ),
                "blkio.throttle.io_serviced_recursive": "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
            },
        ),
        "hugetlb": fill(
            base / "hugetlb",
            {
                "hugetlb.2MB.usage_in_bytes": "1",
                "hugetlb.2MB.limit_in_bytes": "2",
                "hugetlb.2MB.max_usage_in_bytes": "3",
                "hugetlb.2MB.failcnt": "4",
                "hugetlb.2MB.rsvd.usage_in_bytes": "9",
            },
        ),
    }


def test_v1(tmp_path: Path) -> None:
    stats = counters.read_v1(v1_tree(tmp_path))
    assert (stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns) == (3000, 2000, 1000)
    assert (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled_ns) == (4, 3, 2)
    # Its own limit isn't set, so the one of an ancestor is reported.
    assert stats.memory == Amount(usage=100, limit=9000, maximum=150, failures=7)
    assert stats.swap == Amount(usage=110, limit=5000)
    assert (stats.anonymous, stats.file) == (21, 20)
    assert (stats.page_faults, stats.major_faults) == (22, 23)
    assert (stats.inactive_file, stats.active_file) == (24, 25)
    assert stats.memory_events.oom_kill == 5
    assert (stats.pids, stats.pids_limit) == (6, None)
    assert stats.io == (
        DeviceIO(major=8, minor=0, read_bytes=1, write_bytes=2, reads=5, writes=6),
        DeviceIO(major=9, minor=1, read_bytes=4),
    )
    assert stats.huge_pages == (
        HugePages(size="2MB", amount=Amount(usage=1, limit=2, maximum=3, failures=4)),
    )


V2_TREE = {
    "cpu.stat": "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 4\nnr_throttled 5\n"
    "throttled_usec 6\nnr_bursts 7\nburst_usec 8\n",
    "cpu.pressure": "some avg10=0.50 avg60=1.00 avg300=2.00 total=99\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "memory.stat": "anon 1\nfile 2\nkernel 3\ninactive_file 4\nactive_file 5\npgfault 6\n"
    "pgmajfault 7\nslab 8\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "memory.current": "100\n",
    "memory.max": "max\n",
    "memory.peak": "150\n",
    "memory.swap.current": "10\n",
    "memory.swap.max": "0\n",
    "pids.current": "6\n",
    "pids.max": "50\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n9:0 \n",
    "hugetlb.2MB.current": "1\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 9\n",
    "hugetlb.2MB.rsvd.current": "9\n",
}


def test_v2(tmp_path: Path) -> None:
    directory = fill(tmp_path / "root" / "pod" / "leaf", V2_TREE)
    (tmp_path / "root" / "pod" / "memory.max").write_text("7000\n")
    root = CgroupRoot(str(tmp_path / "root"))
    group = CgroupV2(root, "/pod/leaf", {"": directory}, {})
    stats = group.stats()
    assert (stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns) == (3000, 2000, 1000)
    assert (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled_ns) == (4, 5, 6000)
    assert (stats.cpu_bursts, stats.cpu_burst_ns) == (7, 8000)
    assert stats.memory == Amount(usage=100, limit=7000, maximum=150, failures=3)
    assert stats.swap == Amount(usage=10, limit=0)
    assert stats.kernel.usage == 3
    assert (stats.anonymous, stats.file, stats.inactive_file, stats.active_file) == (1, 2, 4, 5)
    assert (stats.page_faults, stats.major_faults) == (6, 7)
    assert stats.memory_detail["slab"] == 8
    assert stats.memory_events.oom_kill == 5
    assert (stats.pids, stats.pids_limit) == (6, 50)
    assert stats.io == (DeviceIO(major=8, minor=0, read_bytes=1, write_bytes=2, reads=3, writes=4),)
    assert stats.huge_pages == (HugePages(size="2MB", amount=Amount(usage=1, failures=9)),)
    assert stats.cpu_pressure is not None
    assert stats.cpu_pressure.some == PressureLine(avg10=0.5, avg60=1.0, avg300=2.0, total=99)
    assert stats.memory_pressure is None
    assert group.oom_kills() == 5


def test_kills_before_our_time_are_not_counted(tmp_path: Path) -> None:
    directories = v1_tree(tmp_path / "one")
    first = CgroupV1(CgroupRoot(), "/pod", directories, {}, oom_baseline=4)
    assert first.oom_kills() == 1
    assert first.stats().memory_events.oom_kill == 1
    directory = fill(tmp_path / "two", V2_TREE)
    second = CgroupV2(CgroupRoot(str(tmp_path)), "/two", {"": directory}, {}, oom_baseline=4)
    assert second.oom_kills() == 1
    assert second.stats().memory_events.oom_kill == 1


def test_a_cgroup_that_is_gone_gives_zeros(tmp_path: Path) -> None:
    directories = dict.fromkeys(("cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"), "/gone")
    assert counters.read_v1(directories) == HostStats()
    assert counters.read_v1({}) == HostStats()
    assert counters.read_v2(str(tmp_path / "gone"), None) == HostStats()


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max", None), ("9223372036854771712", None), ("-1", None), ("", None), ("0", 0), ("5", 5)],
)
def test_parse_limit(text: str, limit: int | None) -> None:
    assert counters.parse_limit(text) == limit


def test_parse_keyed_tolerates_what_it_does_not_know() -> None:
    assert counters.parse_keyed("a 1\nb -5\n") == {"a": 1, "b": 0}
    assert counters.parse_keyed("a 1\nodd\nb x\nc 1 2\nd 3") == {"a": 1, "b": 0, "d": 3}


@given(st.text(max_size=80))
def test_no_text_breaks_the_parsers(text: str) -> None:
    counters.parse_keyed(text)
    counters.parse_pressure(text)
    counters.parse_io_stat(text)
    counters.parse_blkio(text, text)
    counters.parse_limit(text)
    counters.parse_number(text)


def brief_of(stats: HostStats) -> tuple[object, ...]:
    """What is in brief figures as well."""
    times = stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns, stats.cpu_throttled_ns
    periods = stats.cpu_periods, stats.cpu_throttled_periods
    memory = stats.memory.usage, stats.memory.limit, stats.inactive_file, stats.memory_events
    return *times, *periods, *memory, stats.pids


def test_brief_figures_are_the_same_by_way_of_files_that_are_kept_open(tmp_path: Path) -> None:
    tree = v1_tree(tmp_path / "v1")
    leaf = fill(tmp_path / "v2" / "leaf", V2_TREE)
    group = CgroupV2(CgroupRoot(str(tmp_path / "v2")), "/leaf", {"": leaf}, {})
    kept = counters.KeptFiles()
    for _ in range(2):
        for read in (counters.read_text, kept.read):
            brief = counters.read_v1(tree, read)
            assert brief_of(brief) == brief_of(counters.read_v1(tree))
            assert not brief.io and not brief.huge_pages and brief.swap == Amount()
            assert brief_of(group.stats(brief=read)) == brief_of(group.stats())
        Path(tree["pids"], "pids.current").write_text("77\n")
        Path(leaf, "pids.current").write_text("78\n")
    assert counters.read_v1(tree, kept.read).pids == 77 and group.stats(brief=kept.read).pids == 78
    kept.close()


def test_kept_files_are_read_whole_and_closed(tmp_path: Path) -> None:
    kept = counters.KeptFiles()
    before = len(os.listdir("/proc/self/fd"))
    assert kept.read(str(tmp_path / "none")) == ""
    long = tmp_path / "long"
    long.write_text("1\n" * 20_000)
    for _ in range(2):
        assert kept.read(str(long)).count("1") == 20_000
    # A file that can't be read any more, as those of a cgroup that was removed.
    assert kept.read(str(tmp_path)) == ""
    assert len(os.listdir("/proc/self/fd")) == before + 1
    kept.close()
    kept.close()
    assert len(os.listdir("/proc/self/fd")) == before
