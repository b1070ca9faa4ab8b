"""Mount options, and the reading of the mount table; real mounts are tested as root elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.mount_options import parse_options
from runtime.bundle.rootfs import mount_rootfs, mounts_below, unmount_all
from runtime.host import linux
from runtime.host.spawn_spec import IdMap


def test_flags_are_told_from_data() -> None:
    options = parse_options(("rbind", "ro", "nosuid", "index=off", "lowerdir=a:b", "volatile"))
    assert options.flags == linux.MS_BIND | linux.MS_REC | linux.MS_RDONLY | linux.MS_NOSUID
    assert options.data == ("index=off", "lowerdir=a:b", "volatile")
    assert not options.propagation
    assert not options.idmapped


def test_a_later_option_undoes_an_earlier_one() -> None:
    assert parse_options(("ro", "nodev", "rw", "dev")).flags == 0
    assert parse_options(("rw", "ro")).flags == linux.MS_RDONLY
    assert parse_options(("defaults",)).flags == 0


def test_propagation_is_kept_apart() -> None:
    options = parse_options(("bind", "rprivate", "shared"))
    assert options.flags == linux.MS_BIND
    assert options.propagation == (linux.MS_PRIVATE | linux.MS_REC, linux.MS_SHARED)


def test_pseudo_options_are_dropped() -> None:
    options = parse_options(
        ("X-containerd.mkdir.path=/x", "x-systemd.automount", "", "loop", "rro")
    )
    assert options.data == ()
    assert options.loop
    assert options.recursive_read_only


def test_direct_io_belongs_to_the_loop_device() -> None:
    options = parse_options(("loop", "direct-io", "noload"))
    assert options.direct_io
    assert options.data == ("noload",)
    assert parse_options(("direct-io",)).data == ("direct-io",)


def test_id_maps() -> None:
    options = parse_options(("uidmap=0:100000:65536,65536:7:1", "gidmap=0:5:4294967290"))
    assert options.uid_maps == (
        IdMap(container_id=0, host_id=100000, size=65536),
        IdMap(container_id=65536, host_id=7, size=1),
    )
    assert options.gid_maps == (IdMap(container_id=0, host_id=5, size=4294967290),)
    assert options.idmapped


@pytest.mark.parametrize(
    "value", ["", "0:0", "0:0:0", "-1:0:1", "0:0:1:1", "0:0:1,", "a:0:1", "0:4294967295:2", "٣:0:1"]
)
def test_bad_id_maps(value: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_options((f"uidmap={value}", "gidmap=0:0:1"))


def test_one_id_map_is_not_enough() -> None:
    with pytest.raises(InvalidRequest, match="both or neither"):
        parse_options(("gidmap=0:0:1",))


def test_too_many_id_maps() -> None:
    many = ",".join(f"{n}:{n}:1" for n in range(341))
    with pytest.raises(InvalidRequest, match="more than 340"):
        parse_options((f"uidmap={many}", "gidmap=0:0:1"))


def test_the_mount_table_is_read() -> None:
    assert mounts_below("/proc")[-1] == "/proc"
    assert mounts_below("/")[-1] == "/"
    assert mounts_below("/nowhere") == []
    deepest = [place.count("/") for place in mounts_below("/")[:-1]]
    assert deepest == sorted(deepest, reverse=True)


def test_nothing_mounted_is_nothing_to_do(tmp_path: Path) -> None:
    unmount_all(str(tmp_path))
    unmount_all(str(tmp_path / "missing"))
    unmount_all(str(tmp_path / "missing/below"))
    mount_rootfs((), str(tmp_path / "rootfs"))
    assert os.listdir(tmp_path) == []
