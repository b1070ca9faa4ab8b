from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.masked_paths import restrict, special_files
from runtime.bundle.spec import Spec, parse_spec
from tests.fakes.generations import GENERATIONS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("etc", "proc", "srv/data", "mnt"):
        (root / name).mkdir(parents=True)
    (root / "etc/secret").write_text("x")
    (root / "etc/link").symlink_to("/etc/secret")
    (root / "etc/out").symlink_to("../../../outside")
    (root / "etc/mtab").symlink_to("/proc/version")
    (tmp_path / "outside").write_text("x")
    return root


def run(
    root: Path,
    masked: Any = (),
    readonly: Any = (),
    mounts: Any = (),
    year: int = 2024,
    readonly_root: bool = False,
) -> tuple[Spec, tuple[str, ...]]:
    value = {
        "process": {"args": ["true"]},
        "root": {"path": str(root), "readonly": readonly_root},
        "mounts": list(mounts),
        "linux": {"maskedPaths": list(masked), "readonlyPaths": list(readonly)},
    }
    spec, notes = restrict(
        parse_spec(json.dumps(value).encode(), "/bundle"), GENERATIONS[year].has_newer_proc_files
    )
    # The two views of the mounts are of the same.
    assert [m.destination for m in spec.mounts] == [m["destination"] for m in spec.raw["mounts"]]
    return spec, notes


def shown(spec: Spec) -> list[tuple[str, ...]]:
    return [
        (m.destination, m.type, "ro" if m.read_only else "rw", m.source if m.is_bind else "")
        for m in spec.mounts
    ]


def bind(destination: str, source: object, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", *options],
    }


# -- masked paths ------------------------------------------------------------------------------


def test_masked_in_the_root(root: Path) -> None:
    spec, _ = run(root, ["/etc/secret", "/srv/data/", "/nope", "/etc/../srv/nope"])
    assert shown(spec) == [
        ("/etc/secret", "bind", "ro", "/dev/null"),
        ("/srv/data", "tmpfs", "ro", ""),
    ]


def test_masked_links_stay_inside(root: Path) -> None:
    spec, _ = run(root, ["/etc/link", "/etc/out", "/etc/mtab"])
    assert [each[0] for each in shown(spec)] == ["/etc/secret", "/proc/version"]


def test_masked_in_the_sentrys_file_systems(root: Path) -> None:
    paths = ["/proc/kcore", "/proc/version", "/sys/firmware", "/sys/devices/virtual/powercap"]
    spec, _ = run(root, paths)
    assert shown(spec) == [
        ("/proc/version", "bind", "ro", "/dev/null"),
        ("/sys/firmware", "tmpfs", "ro", ""),
    ]


def test_older_sentries_have_less(root: Path) -> None:
    assert shown(run(root, ["/proc/sysrq-trigger"], year=2022)[0]) == []
    assert len(shown(run(root, ["/proc/sysrq-trigger"], year=2024)[0])) == 1


def test_masked_in_a_volume(root: Path, tmp_path: Path) -> None:
    (tmp_path / "vol").mkdir()
    (tmp_path / "vol/key").write_text("x")
    volume = bind("/mnt", tmp_path / "vol")
    spec, _ = run(root, ["/mnt/key", "/mnt/nope"], mounts=[volume])
    assert shown(spec)[1:] == [("/mnt/key", "bind", "ro", "/dev/null")]


def test_a_mask_hides_the_mounts_inside(root: Path, tmp_path: Path) -> None:
    mounts = [bind("/srv/data/x", tmp_path), bind("/srv/data", tmp_path), bind("/mnt", tmp_path)]
    spec, _ = run(root, ["/srv/data"], mounts=mounts)
    assert [each[:2] for each in shown(spec)] == [("/mnt", "bind"), ("/srv/data", "tmpfs")]


def test_masked_below_another(root: Path) -> None:
    spec, _ = run(root, ["/srv", "/srv/data"], ["/srv/data"])
    assert shown(spec) == [("/srv", "tmpfs", "ro", "")]


# -- read-only paths ---------------------------------------------------------------------------


def test_readonly_in_the_root_lies_below_other_mounts(root: Path, tmp_path: Path) -> None:
    spec, _ = run(root, (), ["/etc", "/nope"], [bind("/etc/hosts", tmp_path)])
    assert shown(spec) == [
        ("/etc", "bind", "ro", f"{root}/etc"),
        ("/etc/hosts", "bind", "rw", str(tmp_path)),
    ]


def test_readonly_mounts(root: Path, tmp_path: Path) -> None:
    mounts = [bind("/mnt", tmp_path, "rw"), {"destination": "/tmp", "type": "tmpfs"}]
    spec, notes = run(root, (), ["/mnt", "/tmp"], mounts)
    assert [each[2] for each in shown(spec)] == ["ro", "ro"]
    assert (notes, spec.mounts[0].options) == ((), ("rbind", "ro"))


def test_readonly_root(root: Path) -> None:
    spec, _ = run(root, (), ["/"])
    assert spec.root_readonly and spec.raw["root"]["readonly"]
    spec, notes = run(root, (), ["/etc"], readonly_root=True)
    assert (shown(spec), notes) == ([], ())


def test_readonly_inside_a_volume_is_left_out(root: Path, tmp_path: Path) -> None:
    """Its other users could put a link in the place of the source."""
    (tmp_path / "outside.d").mkdir()
    spec, notes = run(root, (), ["/mnt/outside.d"], [bind("/mnt", tmp_path)])
    assert len(spec.mounts) == 1
    assert notes == ("/mnt/outside.d stays writable: it is inside a volume",)


def test_readonly_in_the_sentrys_file_systems(root: Path) -> None:
    spec, notes = run(root, (), ["/proc/bus", "/proc/sysrq-trigger", "/sys/fs", "/proc/acpi"])
    assert (shown(spec), notes) == ([], ())
    spec, notes = run(root, (), ["/proc/sys"])
    assert (shown(spec), len(notes)) == ([], 1)


# -- input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [["etc"], [""], [7], "x", ["/a\0"], ["/x"] * 1001, ["/"]])
def test_malformed(root: Path, paths: Any) -> None:
    linux = {"maskedPaths": paths}
    value = {"process": {"args": ["x"]}, "root": {"path": str(root)}, "linux": linux}
    with pytest.raises(InvalidRequest, match=r"linux\.maskedPaths"):
        restrict(
            parse_spec(json.dumps(value).encode(), "/bundle"),
            GENERATIONS[2024].has_newer_proc_files,
        )


def test_special_files_are_for_the_gofers_own_mounts(root: Path, tmp_path: Path) -> None:
    """What would be opened for a mount is covered by its path instead."""
    os.mkfifo(root / "etc/fifo")
    os.mkfifo(tmp_path / "pipe")
    (root / "srv/link").symlink_to("/etc/fifo")
    masked, readonly = ["/etc/fifo", "/mnt/pipe", "/etc/secret"], ["/srv/link", "/etc/fifo"]
    mounts = [bind("/mnt", tmp_path)]
    spec, _ = run(root, masked, readonly, mounts)
    assert [m.destination for m in spec.mounts] == ["/mnt", "/etc/secret"]
    found = special_files(spec, GENERATIONS[2024].has_newer_proc_files)
    assert [(f.path, f.place, f.masked) for f in found] == [
        ("/etc/fifo", "/etc/fifo", True),
        ("/mnt/pipe", "/pipe", True),
        ("/srv/link", "/etc/fifo", False),
    ]
    assert [f.mount and f.mount.destination for f in found] == [None, "/mnt", None]
