from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.executable import find_executable
from runtime.bundle.spec import Spec, parse_spec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("")
    root = tmp_path / "root"
    for name in ("bin", "usr/bin", "etc", "opt/app", "run"):
        (root / name).mkdir(parents=True)
    for name in ("bin/sh", "usr/bin/tool", "opt/app/run", "etc/file"):
        (root / name).write_text("")
    return root


def spec(root: Path, *args: str, mounts: Any = (), **process: Any) -> Spec:
    value = {
        "process": {"args": list(args), "cwd": "/", "env": ["PATH=/usr/bin:/bin"], **process},
        "root": {"path": str(root)},
        "mounts": [{"destination": each} for each in mounts],
    }
    return parse_spec(json.dumps(value).encode(), "/b")


def find(root: Path, *args: str, **more: Any) -> None:
    find_executable(str(root), spec(root, *args, **more))


@pytest.mark.parametrize(
    "name", ["sh", "tool", "/bin/sh", "bin/sh", "/bin/../bin/./sh", "/../bin/sh"]
)
def test_found(root: Path, name: str) -> None:
    find(root, name)


def test_found_from_the_working_directory(root: Path) -> None:
    find(root, "./run", cwd="/opt/app")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nosuch", r'exec: "nosuch": executable file not found in \$PATH'),
        ("/no/such", 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("./no", 'exec: "./no": stat ./no: no such file or directory'),
        ("/etc/file/x", "not a directory"),
    ],
)
def test_missing(root: Path, name: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match="process.args: .*" + why):
        find(root, name)


def test_links_are_resolved_inside_the_root(root: Path, tmp_path: Path) -> None:
    (root / "bin/abs").symlink_to("/usr/bin/tool")
    (root / "bin/rel").symlink_to("../usr/bin/tool")
    (root / "bin/up").symlink_to("../../../../../../usr/bin/tool")
    (root / "bin/dir").symlink_to("/opt")
    for name in ("abs", "rel", "up", "/bin/dir/app/run"):
        find(root, name)
    # A target that exists on the host only.
    (root / "bin/out").symlink_to(str(tmp_path / "outside/secret"))
    (root / "bin/dangling").symlink_to("nothing")
    (root / "bin/out2").symlink_to("../../outside/secret")
    for name in ("/bin/out", "/bin/dangling", "/bin/out2"):
        with pytest.raises(InvalidRequest, match="no such file"):
            find(root, name)


def test_loops_are_left_to_the_sentry(root: Path) -> None:
    (root / "bin/a").symlink_to("b")
    (root / "bin/b").symlink_to("a")
    find(root, "/bin/a")
    (root / "bin/bomb").symlink_to("/".join(["x"] * 2000))
    with pytest.raises(InvalidRequest):
        find(root, "/bin/bomb")


@pytest.mark.parametrize("mount", ["/app", "/app/", "/", "/app/bin"])
def test_mounts_leave_it_open(root: Path, mount: str) -> None:
    find(root, "/app/bin/x", mounts=[mount])


def test_mounts_behind_links_leave_it_open(root: Path) -> None:
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    find(root, "/run/x/prog", mounts=["/var/run/x"])
    find(root, "/var/run/x/prog", mounts=["/run/x"])
    with pytest.raises(InvalidRequest):
        find(root, "/run/y/prog", mounts=["/var/run/x"])


def test_mounts_on_the_search_path_leave_it_open(root: Path) -> None:
    find(root, "nosuch", mounts=["/usr/bin"])
    with pytest.raises(InvalidRequest):
        find(root, "nosuch", mounts=["/opt"])


def test_search_path(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="not found in"):
        find(root, "sh", env=["PATH=/usr/bin"])
    with pytest.raises(InvalidRequest, match="not found in"):
        find(root, "sh", env=[])
    with pytest.raises(InvalidRequest, match="not found in"):
        find(root, "sh", env=["PATH=bin:."])
    find(root, "sh", env=["PATH=/etc/file:/nowhere:/bin"])


def test_working_directory(root: Path) -> None:
    find(root, "/bin/sh", cwd="/will/be/made")
    with pytest.raises(InvalidRequest, match=r"process.cwd: .*not a directory"):
        find(root, "/bin/sh", cwd="/etc/file")
    find(root, "/bin/sh", cwd="/etc/file", mounts=["/etc"])


def test_unreadable_root_is_left_to_the_gofer(tmp_path: Path) -> None:
    find(tmp_path / "none", "sh")


def test_no_descriptor_is_left(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    find(root, "/bin/../usr/bin/tool")
    with pytest.raises(InvalidRequest):
        find(root, "/opt/app/../nothing")
    assert len(os.listdir("/proc/self/fd")) == len(before)
