"""The table of mounts: its fields, their escapes, and lines that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.host import mountinfo
from runtime.host.mountinfo import Mounted

TABLE = b"""\
35 24 0:30 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro
37 35 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 35 0:36 /docker/136 /sys/cpu rw shared:16 master:1 - cgroup cgroup rw,cpu,cpuacct
42 35 0:37 / /broken
43 35 0:37 / /bro\\9ken rw - tmpfs tmpfs rw
44 35 0:41 / /a\\040b\rc rw - fuse.s3fs s3 rw
"""


def test_each_line_is_a_mount() -> None:
    assert list(mountinfo.parse(TABLE)) == [
        Mounted(device="0:30", place="/sys/fs/cgroup", kind="tmpfs", options="ro"),
        Mounted(
            device="0:32",
            place="/sys/fs/cgroup/systemd",
            kind="cgroup",
            options="rw,xattr,name=systemd",
        ),
        Mounted(
            device="0:36",
            root="/docker/136",
            place="/sys/cpu",
            kind="cgroup",
            options="rw,cpu,cpuacct",
        ),
        Mounted(device="0:41", place="/a b\rc", kind="fuse.s3fs", options="rw"),
    ]


def test_lines_without_the_hint_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(TABLE)
    found = mountinfo.read(str(tmp_path / "table"), b" - fuse")
    assert [each.place for each in found] == ["/a b\rc"]


@pytest.mark.parametrize("name", [b"plain", b"a b", b"\\040", b"\t\n#", b"\xff\\"])
def test_escapes(name: bytes) -> None:
    # The characters that the kernel's mangle() escapes in this file.
    escaped = b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes((c,)) for c in name)
    (found,) = mountinfo.parse(b"1 2 0:3 / /%s rw - ext4 x rw" % escaped)
    assert found.place == "/" + os.fsdecode(name)


def test_the_kernels_own_is_read() -> None:
    assert "/proc" in [each.place for each in mountinfo.read() if each.kind == "proc"]
