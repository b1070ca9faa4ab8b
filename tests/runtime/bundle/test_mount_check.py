from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.bundle.mount_check import check
from runtime.bundle.spec import parse_spec
from tests.fakes.generations import GENERATIONS


def run(
    type: str, *options: str, at: str = "/m", source: str = "s", year: int = 2024, **linux: Any
) -> tuple[str, ...]:
    mount = {"destination": at, "type": type, "source": source, "options": list(options)}
    value = {
        "process": {"args": ["true"]},
        "root": {"path": "/r"},
        "mounts": [mount],
        "linux": linux,
    }
    return check(parse_spec(json.dumps(value).encode(), "/b"), GENERATIONS[year].mounts_cgroup2)


@pytest.mark.parametrize("type", ["tmpfs", "proc", "sysfs", "devpts", "cgroup", "mqueue", "bind"])
def test_what_the_sentry_mounts(type: str) -> None:
    assert run(type) == ()


@pytest.mark.parametrize("type", ["overlay", "hugetlbfs", "tmpsf", "", "none", "devtmpfs", "erofs"])
def test_what_it_would_leave_out(type: str) -> None:
    with pytest.raises(Unsupported, match=f"mount /m: gVisor has no file system of type '{type}'"):
        run(type)


def test_its_own() -> None:
    assert run("devtmpfs", at="/dev") == run("none", "rbind") == ()


def test_types_of_a_release() -> None:
    assert run("cgroup2", year=2026) == ()
    with pytest.raises(Unsupported):
        run("cgroup2", year=2024)


def test_bind_without_a_source() -> None:
    with pytest.raises(InvalidRequest, match="mount /m: a bind mount without a source"):
        run("bind", "rbind", source="")


@pytest.mark.parametrize("option", ["shared", "rshared"])
def test_propagation_to_the_host(option: str) -> None:
    with pytest.raises(Unsupported, match=f"mount /m: propagation '{option}' .*Bidirectional"):
        run("bind", "rbind", option)
    with pytest.raises(Unsupported, match=f"rootfsPropagation '{option}'"):
        run("tmpfs", rootfsPropagation=option)
    assert run("bind", "rbind", "rslave", rootfsPropagation="rslave") == ()


def test_options() -> None:
    assert run("tmpfs", "tmpcopyup") == (
        "mount /m: option 'tmpcopyup': the files below aren't copied up",
    )
    assert run("tmpfs", "nr_inodes=5") == ("mount /m: option 'nr_inodes=5' has no effect",)
    assert run("bind", "rbind", "nosymfollow") == (
        "mount /m: option 'nosymfollow': links are followed",
    )
