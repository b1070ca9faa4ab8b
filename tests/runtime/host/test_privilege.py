"""Capabilities over the host, told apart from those that a user namespace grants."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups import factory
from runtime.cgroups.hierarchy import CgroupDenied
from runtime.host.privilege import SYS_ADMIN, SYS_RESOURCE, holds_over_host
from tests.fakes.cgroupfs import FakeHost

ALL = "000001ffffffffff"
WHOLE = "0 0 4294967295"


def proc(base: Path, capabilities: str, uid_map: str) -> str:
    folder = base / "process" / "self"
    folder.mkdir(parents=True)
    (folder / "status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\nSeccomp:\t0\n")
    (folder / "uid_map").write_text(f"         {uid_map}\n")
    return str(folder.parent)


@pytest.mark.parametrize(
    ("capabilities", "uid_map", "admin", "resource"),
    [
        (ALL, WHOLE, True, True),
        ("000001fffeffffff", WHOLE, True, False),
        ("00000000a80425fb", WHOLE, False, False),
        (ALL, "0 1000 1", False, False),
    ],
)
def test_over_the_host(
    tmp_path: Path, capabilities: str, uid_map: str, admin: bool, resource: bool
) -> None:
    where = proc(tmp_path, capabilities, uid_map)
    assert holds_over_host(SYS_ADMIN, proc=where) is admin
    assert holds_over_host(SYS_RESOURCE, proc=where) is resource


def test_what_is_unknown_is_not_held(tmp_path: Path) -> None:
    assert not holds_over_host(SYS_ADMIN, proc=str(tmp_path))


@pytest.mark.parametrize("errno", [1, 13, 30])
@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_refused_cgroup_is_fatal_only_to_those_who_may(
    tmp_path: Path, errno: int, mode: str
) -> None:
    host = FakeHost(str(tmp_path), mode)
    file = "memory/c/memory.limit_in_bytes" if mode == "v1" else "c/memory.max"
    host.refuse[file] = errno
    limits = {"memory": {"limit": 1 << 20}}
    rootless = proc(tmp_path, ALL, "0 1000 1")
    assert factory.create_if_allowed("/c", limits, root=host, proc=rootless) is None
    assert not list(Path(host.path).rglob("c"))
    root = proc(tmp_path / "root", ALL, WHOLE)
    with pytest.raises(CgroupDenied):
        factory.create_if_allowed("/c", limits, root=host, proc=root)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_cgroup_of_others_that_may_not_be_joined(open_folder: Path) -> None:
    """Asked of the kernel: a file that nobody may write to, and a user who is not root."""
    host = FakeHost(str(open_folder), "v2")
    group = Path(host.path, "theirs")
    group.mkdir()
    procs = group / "cgroup.procs"
    procs.touch(mode=0o444)
    rootless = proc(open_folder, ALL, "0 1000 1")

    def ask() -> str:
        try:
            made = factory.create_if_allowed("/theirs", {}, root=host, proc=rootless)
        except Exception as error:
            return repr(error)
        return "none" if made is None else "made"

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            os.write(writing, ask().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        assert answer.read() == "none"
    os.waitpid(pid, 0)
    procs.chmod(0o666)
    assert ask() == "made"
