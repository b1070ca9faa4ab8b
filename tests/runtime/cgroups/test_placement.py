"""Where sandboxes are put, and which limits they get there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.spec import Spec, parse_spec
from runtime.cgroups.placement import CGROUP_PARENT, place

SANDBOX = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"}


def spec(path: str, annotations: dict[str, str], resources: dict[str, Any] | None = None) -> Spec:
    body = {
        "process": {"args": ["pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "annotations": annotations,
        "linux": {"cgroupsPath": path, "resources": resources or {}},
    }
    return parse_spec(json.dumps(body).encode(), "/bundle")


@pytest.mark.parametrize(
    ("path", "annotations", "mode", "expected", "own"),
    [
        ("", {}, "v1", "/c", ""),
        ("/a/b", {}, "v1", "/a/b", ""),
        ("/kubepods/burstable/podX/s", SANDBOX, "v1", "/kubepods/burstable/podX", "="),
        ("/kubepods/burstable/podX/s", SANDBOX, "v2", "/kubepods/burstable/podX/s", ""),
        ("/kubepods/burstable/podX/s", {}, "v1", "/kubepods/burstable/podX/s", ""),
        ("/k8s.io/s", SANDBOX, "v1", "/k8s.io/s", ""),
        (
            "kubepods-burstable-podX.slice:cri-containerd:s",
            SANDBOX,
            "v1",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice",
            "=",
        ),
        ("/a/b", {CGROUP_PARENT: "/parent"}, "v1", "/parent", "="),
        ("/a/b", {CGROUP_PARENT: "/parent"}, "v2", "/parent", "="),
    ],
)
def test_placement(
    path: str, annotations: dict[str, str], mode: str, expected: str, own: str
) -> None:
    placement = place(spec(path, annotations), "c", mode)
    assert placement.path == expected
    assert placement.own == (path if own == "=" else "")


POD = "/kubepods/burstable/podX"
SLICE = "kubepods-burstable-podX.slice"


@pytest.mark.parametrize("mode", ["v1", "v2"])
@pytest.mark.parametrize(
    ("own", "named", "counts"),
    [
        (f"{POD}/s", POD, True),
        (f"{POD}/s", f"{POD}/below/it", True),
        (f"{POD}/s", f"{POD}Y", False),
        (f"{POD}/s", "/kubepods", False),
        (f"{POD}/s", "/kubepods/burstable/podY", False),
        (f"{POD}/s", "/system.slice/containerd.service", False),
        (f"{POD}/s", "system.slice", False),
        (f"{POD}/s", "user.slice:a:b", False),
        (f"{POD}/s", POD.lstrip("/"), False),
        (f"{SLICE}:cri:s", SLICE, True),
        (f"{SLICE}:cri:s", f"{SLICE}:x:y", True),
        (f"{SLICE}:cri:s", "kubepods-burstable-podX-low.slice", True),
        (f"{SLICE}:cri:s", "kubepods-burstable-podXlow.slice", False),
        # No pod's cgroup is known: then it is the sandbox's.
        ("/k8s.io/s", "/k8s.io/s/low", True),
        ("/k8s.io/s", "/k8s.io", False),
        ("", "/s/low", True),
        ("", "/other", False),
    ],
)
def test_a_pods_author_gets_nowhere_else(own: str, named: str, counts: bool, mode: str) -> None:
    marked = {**SANDBOX, CGROUP_PARENT: named}
    found = place(spec(own, marked), "s", mode)
    assert (found.named, found.refused) == (counts, "" if counts else named)
    if not counts:
        plain = place(spec(own, SANDBOX), "s", mode)
        assert found == plain.replace(refused=named)
    operators = place(spec(own, marked), "s", mode, anywhere=True)
    assert operators.named and operators.path != "" and operators.refused == ""


@pytest.mark.parametrize("kind", ["sandbox", "container"])
@pytest.mark.parametrize("named", ["/..", "/a/../b", "/", "a--b.slice", "x:y:"])
def test_a_parent_that_is_none(named: str, kind: str) -> None:
    marks = {**SANDBOX, "io.kubernetes.cri.container-type": kind, CGROUP_PARENT: named}
    with pytest.raises(InvalidRequest):
        place(spec(f"{POD}/s", marks), "s", "v1")


def test_a_single_container_keeps_its_limits() -> None:
    limits = {"cpu": {"shares": 2, "quota": 5000, "period": 10000}}
    assert place(spec("/c", {}, limits), "c", "v1").resources == limits


def test_a_pod_gets_its_own_sums_and_not_the_pause_containers_shares() -> None:
    annotations = {
        **SANDBOX,
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-cpu-quota": "150000",
        "io.kubernetes.cri.sandbox-cpu-shares": "1536",
        "io.kubernetes.cri.sandbox-memory": "268435456",
    }
    given = {"cpu": {"shares": 2, "cpus": "0-1"}, "memory": {"swap": 1}, "pids": {"limit": 9}}
    assert place(spec("/k8s.io/s", annotations, given), "s", "v1").resources == {
        "cpu": {"cpus": "0-1", "period": 100000, "quota": 150000, "shares": 1536},
        "memory": {"swap": 1, "limit": 268435456},
        "pids": {"limit": 9},
    }


SUMS = {
    **SANDBOX,
    "io.kubernetes.cri.sandbox-cpu-period": "100000",
    "io.kubernetes.cri.sandbox-cpu-quota": "150000",
    "io.kubernetes.cri.sandbox-memory": "1000",
}


@pytest.mark.parametrize(
    ("limits", "memory", "cpu"),
    [
        ({}, {"limit": 1000}, (150000, 100000)),
        ({"memory": {"limit": 1064}}, {"limit": 1064}, (150000, 100000)),
        ({"memory": {"limit": 900}}, {"limit": 1000}, (150000, 100000)),
        ({"cpu": {"quota": 100000, "period": 50000}}, {"limit": 1000}, (100000, 50000)),
        ({"cpu": {"quota": 150000, "period": 200000}}, {"limit": 1000}, (150000, 100000)),
    ],
)
@pytest.mark.parametrize("own", ["/kubepods/burstable/pod7/s", "kubepods-pod7.slice:cri:s"])
def test_a_sandbox_has_the_overhead_that_is_the_pods(
    own: str, limits: dict[str, Any], memory: dict[str, int], cpu: tuple[int, int]
) -> None:
    """The kubelet writes it into the pod's cgroup, and tells CRI of the containers' sums alone."""
    asked: list[str] = []

    def limits_of(directory: str) -> dict[str, Any]:
        asked.append(directory)
        return limits

    found = place(spec(own, SUMS), "s", "v2", limits_of=limits_of).resources
    assert asked[0].rpartition("/")[2] in ("pod7", "kubepods-pod7.slice")
    assert found["memory"] == memory
    assert (found["cpu"]["quota"], found["cpu"]["period"]) == cpu


def test_memory_and_swap_get_it_both() -> None:
    given = {"memory": {"swap": 3000}}
    limits = {"memory": {"limit": 1064}}
    placed = place(spec("/pod7/s", SUMS, given), "s", "v2", limits_of=lambda _: limits)
    assert placed.resources["memory"] == {"limit": 1064, "swap": 3064}


def test_what_is_unlimited_stays_so() -> None:
    limits = {"memory": {"limit": 1064}, "cpu": {"quota": 5000, "period": 5000}}
    placed = place(spec("/pod7/s", SANDBOX), "s", "v2", limits_of=lambda _: limits)
    assert placed.resources == {}


def test_an_unlimited_pod_has_no_limits() -> None:
    annotations = {
        **SANDBOX,
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-cpu-quota": "0",
        "io.kubernetes.cri.sandbox-memory": "0",
    }
    given = {"cpu": {"shares": 2}}
    assert place(spec("/k8s.io/s", annotations, given), "s", "v1").resources == {"cpu": {}}


def test_a_limit_that_is_no_number_names_its_annotation() -> None:
    annotations = {**SANDBOX, "io.kubernetes.cri.sandbox-memory": "much"}
    with pytest.raises(InvalidRequest, match="sandbox-memory: 'much' is no number"):
        place(spec("/k8s.io/s", annotations), "s", "v1")
