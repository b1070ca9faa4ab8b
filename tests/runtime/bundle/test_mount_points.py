"""Which mount points a read-only root file system lacks; that they work is in ``integration/``."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.bundle import mount_points
from runtime.bundle.mount_points import MountPoints, can_have, missing
from runtime.bundle.spec import Mount


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("etc", "proc", "dev/given"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root/sys").symlink_to("/etc")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    status = SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID)
    monkeypatch.setattr(mount_points.os, "statvfs", lambda _: status)
    return tmp_path / "root"


def bind(destination: str, root: Path, source: str = "file") -> Mount:
    return Mount(destination=destination, type="bind", source=str(root.parent / source))


def test_all_of_a_file_system_that_lacks_one(root: Path) -> None:
    served = [
        bind("/proc/version", root),
        bind("/dev/given", root, "folder"),
        bind("/dev//a/./b", root, "folder"),
        bind("/dev/a/b/inside", root),
        bind("/device", root),
        bind("/etc/none", root),
        bind("/sys/none", root),
    ]
    assert missing(str(root), served) == [
        MountPoints(directory=f"{root}/proc", points=(("version", False),)),
        MountPoints(directory=f"{root}/dev", points=(("given", True), ("a/b", True))),
    ]


def test_nothing_where_nothing_is_missing(root: Path) -> None:
    assert missing(str(root), [bind("/dev/given", root, "folder"), bind("/etc", root)]) == []


def test_nothing_where_they_can_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_points.os, "statvfs", lambda _: SimpleNamespace(f_flag=0))
    assert missing(str(root), [bind("/proc/version", root)]) == []
    assert can_have(str(root), "/etc/none")


def test_what_can_have_one(root: Path) -> None:
    """In a read-only root: what is there, and what a file system of the sentry's covers."""
    assert can_have(str(root), "/etc")
    assert can_have(str(root), "/proc/version")
    assert not can_have(str(root), "/etc/none")
    # A link's target is where files may be needed.
    assert not can_have(str(root), "/sys/none")
