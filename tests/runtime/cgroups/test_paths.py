"""Paths: both forms of linux.cgroupsPath, slices, the pod's parent, the kernel's tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.base.errors import InvalidRequest
from runtime.cgroups import paths


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("/a/b", "/a/b"),
        ("a/b", "a/b"),
        ("//a//./b/", "/a/b"),
        ("/kubepods/burstable/pod1/abc", "/kubepods/burstable/pod1/abc"),
        ("/with:three:colons", "/with:three:colons"),
        ("one:colon", "one:colon"),
        ("a.slice:cri:x", "/a.slice/cri-x.scope"),
        ("a-b.slice:prefix:name", "/a.slice/a-b.slice/prefix-name.scope"),
        (":runsc:x", "/system.slice/runsc-x.scope"),
        ("-.slice:p:n", "/p-n.scope"),
        (
            "kubepods-besteffort-pod1_2.slice:cri-containerd:abc",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"
            "/cri-containerd-abc.scope",
        ),
    ],
)
def test_locate(path: str, directory: str) -> None:
    assert paths.locate(path).directory == directory


def test_a_scope_keeps_its_unit_and_slice() -> None:
    location = paths.locate("a-b.slice:p:n", systemd=True)
    assert (location.unit, location.slice) == ("p-n.scope", "a-b.slice")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".",
        "/..",
        "/a/../b",
        "a/..",
        "/a\0b",
        "/a\nb",
        "/" + "a" * 256,
        "/" + "a/" * 1100,
        "x:y:z",
        "a--b.slice:p:n",
        "-a.slice:p:n",
        ".slice:p:n",
        "a/b.slice:p:n",
        "a.slice:p/q:n",
        "a.slice:p:../../n",
        "a.slice:p:",
    ],
)
def test_locate_refuses(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        paths.locate(path)
    assert caught.value.field == "linux.cgroupsPath"


@pytest.mark.parametrize("path", ["/a/b", "a:b", "a.slice:b:c:d"])
def test_the_systemd_driver_wants_systemds_form(path: str) -> None:
    with pytest.raises(InvalidRequest):
        paths.locate(path, systemd=True)


@given(st.text(max_size=60))
def test_no_path_leads_out_of_the_hierarchy(path: str) -> None:
    try:
        directory = paths.locate(path).directory
    except InvalidRequest:
        return
    elements = directory.removeprefix("/").split("/")
    assert elements and not {"", ".", ".."} & set(elements) and "\0" not in directory


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        ("/kubepods/burstable/podX/ID", "/kubepods/burstable/podX"),
        ("kubepods/podX/ID", "kubepods/podX"),
        ("/kubepods/podX/a/b", "/kubepods/podX"),
        ("/pod1/pod2/c", "/pod1/pod2"),
        ("/kubepods/burstable/podX", None),
        ("/kubepods/besteffort/X/ID", None),
        ("/default/mypod", None),
        ("/default/podlike", None),
        (
            "kubepods-besteffort-podX.slice:cri-containerd:ID",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podX.slice",
        ),
        ("kubepods-podX.slice:cri-containerd:ID", "/kubepods.slice/kubepods-podX.slice"),
        ("system.slice:docker:ID", None),
        (":docker:podID", None),
    ],
)
def test_derive_parent(path: str, parent: str | None) -> None:
    assert paths.derive_parent(path) == parent


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 1), ("0,1,2,8,9,10", 6), ("0-1", 2), ("0-7\n", 8), ("0-7,16,32-39,64,65", 19)],
)
def test_count_cpus(text: str, count: int) -> None:
    assert paths.count_cpus(text) == count


@pytest.mark.parametrize("text", ["", "a", "5-a", "a-5", "-10", "15-", "-", "--", "3-1", "1,,2"])
def test_count_cpus_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        paths.count_cpus(text)


def test_parse_memberships() -> None:
    text = "9:memory:/m:with:colons\n2:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/u\nbroken\n"
    assert paths.parse_memberships(text) == {
        "memory": "/m:with:colons",
        "cpu": "/c",
        "cpuacct": "/c",
        "systemd": "/s",
        "": "/u",
    }


@pytest.mark.parametrize(
    ("root", "path", "seen"),
    [
        ("/", "/a/b", "/a/b"),
        ("/docker/136", "/docker/136", "/"),
        ("/docker/136", "/docker/136/test", "/test"),
        ("/docker/136", "/docker/1366", "/"),
        ("/docker/136", "/elsewhere", "/"),
    ],
)
def test_below(root: str, path: str, seen: str) -> None:
    assert paths.below(root, path) == seen
