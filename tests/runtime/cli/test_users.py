"""Users and groups by the names that a container's image gives them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.executable import open_file
from runtime.bundle.spec import Spec, parse_spec
from runtime.cli import users
from runtime.cli.users import Account

PASSWD = (
    "root:x:0:0:root:/:/bin/sh\n#gone:x:7:7:::\nbob:x:1000:100:Bob:/:/bin/sh\n"
    "bad:x:many:1::\nbob:x:0:0::\n"
)
GROUP = (
    "root:x:0:\nusers:x:100:\nwheel:x:10:root,bob\naudio:x:63:bob\nodd:x:what:bob\n"
    "bobs:x:77:bobby\n"
)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def spec(rootfs: Path, mounts: Any = ()) -> Spec:
    value = {
        "process": {"args": ["x"], "cwd": "/"},
        "root": {"path": str(rootfs)},
        "mounts": [{"destination": each} for each in mounts],
    }
    return parse_spec(json.dumps(value).encode(), "/b")


def find(rootfs: Path, text: str, mounts: Any = ()) -> Account:
    return users.find(text, str(rootfs), spec(rootfs, mounts))


@pytest.mark.parametrize(
    ("text", "uid", "gid", "gids"),
    [
        ("5", 5, 0, None),
        ("5:6", 5, 6, None),
        ("4294967295", 0xFFFFFFFF, 0, None),
        ("5:wheel", 5, 10, None),
        ("bob", 1000, 100, (10, 63)),
        ("root", 0, 0, (10,)),
        ("bob:7", 1000, 7, ()),
        ("bob:audio", 1000, 63, ()),
    ],
)
def test_found(rootfs: Path, text: str, uid: int, gid: int, gids: Any) -> None:
    assert find(rootfs, text) == Account(uid=uid, gid=gid, gids=gids)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "USER"),
        (":5", "USER"),
        ("5:", "USER"),
        ("5:6:7", "USER"),
        ("4294967296", "more than"),
        ("9" * 5000, "more than"),
        ("alice", "no 'alice' in the container's /etc/passwd"),
        ("#gone", "no '#gone'"),
        ("bob:nobody", "no 'nobody' in the container's /etc/group"),
        ("bad", "malformed"),
        ("5:odd", "malformed"),
        ("-1", "no '-1'"),
    ],
)
def test_not_found(rootfs: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        find(rootfs, text)


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert find(tmp_path / "nowhere", "5:6") == Account(uid=5, gid=6)
    with pytest.raises(InvalidRequest, match="has no /etc/passwd: a number is wanted"):
        find(tmp_path / "nowhere", "bob")


def test_groups_may_be_missing(rootfs: Path) -> None:
    (rootfs / "etc/group").unlink()
    assert find(rootfs, "bob") == Account(uid=1000, gid=100, gids=())


@pytest.mark.parametrize("mounts", [["/etc"], ["/etc/passwd"], ["/"]])
def test_what_a_mount_covers_is_not_believed(rootfs: Path, mounts: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="a mount of the container decides"):
        find(rootfs, "bob", mounts)
    assert find(rootfs, "bob", ["/etc/hosts"]).uid == 1000


def test_no_link_leads_out(rootfs: Path, tmp_path: Path) -> None:
    """Absolute and relative ones end inside, where there may be nothing."""
    outside = tmp_path / "passwd"
    outside.write_text("bob:x:0:0::\n")
    for target in (str(outside), "../../passwd", "../../../../../../../etc/passwd"):
        (rootfs / "etc/passwd").unlink()
        (rootfs / "etc/passwd").symlink_to(target)
        with pytest.raises(InvalidRequest, match=r"no /etc/passwd|too many levels"):
            find(rootfs, "bob")
    (rootfs / "etc/real").write_text(PASSWD)
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/real")
    assert find(rootfs, "bob").uid == 1000


def test_only_regular_files_are_opened(rootfs: Path) -> None:
    """A FIFO would block, and a device do who knows what."""
    path = rootfs / "etc/passwd"
    path.unlink()
    os.mkfifo(path)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidRequest, match="a number is wanted"):
        find(rootfs, "bob")
    for where in ("/etc", "/", "/no/such"):
        with pytest.raises(OSError):
            open_file(str(rootfs), spec(rootfs), where)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_without_end(rootfs: Path) -> None:
    os.truncate(rootfs / "etc/passwd", 1 << 40)
    with pytest.raises(InvalidRequest, match="too large"):
        find(rootfs, "bob")
