"""What follows for a pod when one container's limits change, and that it is all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cgroups.pod_limits import Limits, PodLimits, create_own, merged, shifted, shown
from tests.fakes.sandbox import FakeCgroup, FakeHoldings

SUMS = {"memory": {"limit": 300}, "cpu": {"quota": 50000, "period": 100000, "shares": 600}}
OWN = {"memory": {"limit": 100}, "cpu": {"quota": 10000, "period": 50000, "shares": 200}}


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        ({}, {}),
        ({"memory": {"limit": 100}}, {}),
        ({"memory": {"limit": 150}}, {"memory": {"limit": 350}}),
        ({"memory": {"limit": 20}}, {"memory": {"limit": 220}}),
        ({"memory": {"limit": -1}}, {"memory": {"limit": -1}}),
        # 20000 of 50000 are 40000 of the pod's 100000, 20000 more than before.
        ({"cpu": {"quota": 20000}}, {"cpu": {"quota": 70000}}),
        ({"cpu": {"quota": 20000, "period": 100000}}, {}),
        ({"cpu": {"quota": -1}}, {"cpu": {"quota": -1}}),
        ({"cpu": {"shares": 100}}, {"cpu": {"shares": 500}}),
        ({"pids": {"limit": 5}}, {}),
    ],
)
def test_sums_follow(new: dict[str, Any], changed: dict[str, Any]) -> None:
    assert shifted(SUMS, OWN, merged(OWN, new)) == changed


def test_a_pod_without_a_limit_gets_none() -> None:
    assert shifted({}, OWN, {"memory": {"limit": 500}, "cpu": {"quota": 1000}}) == {}


def test_a_container_that_was_unlimited_adds_to_the_sum() -> None:
    assert shifted({"memory": {"limit": 300}}, {}, OWN) == {"memory": {"limit": 400}}


def _update(limits: Limits, resources: dict[str, Any], holdings: Any) -> None:
    limits.update(resources, holdings.cgroup, holdings.own_cgroup, holdings.pod_limits)


class Scene:
    def __init__(self) -> None:
        self.pod, self.own = FakeCgroup(), FakeCgroup()
        self.limits = Limits()
        self.limits.set(OWN)
        self.holdings: Any = FakeHoldings()
        self.holdings.cgroup, self.holdings.own_cgroup = None, self.own
        self.holdings.pod_limits = PodLimits(self.pod, SUMS)  # type: ignore[arg-type]

    def update(self, resources: dict[str, Any]) -> None:
        _update(self.limits, resources, self.holdings)


def test_an_update_reaches_the_container_and_the_pod() -> None:
    scene = Scene()
    scene.update({"memory": {"limit": 150}})
    scene.update({"memory": {"limit": 250}})
    assert scene.own.updates == [{"memory": {"limit": 150}}, {"memory": {"limit": 250}}]
    assert scene.pod.updates == [{"memory": {"limit": 350}}, {"memory": {"limit": 450}}]
    assert scene.limits.memory == 250


def refuse(resources: Any) -> None:
    raise Failed("no")


def test_what_the_containers_cgroup_refuses_is_undone_in_the_pods() -> None:
    scene = Scene()
    scene.own.refuse_update = refuse
    with pytest.raises(Failed):
        scene.update({"memory": {"limit": 150}, "cpu": {"shares": 300}})
    assert scene.pod.updates == [
        {"memory": {"limit": 350}, "cpu": {"shares": 700}},
        {"memory": {"limit": 300}, "cpu": {"shares": 600}},
    ]
    assert scene.limits.memory == 100
    scene.own.refuse_update = lambda _: None
    scene.update({"memory": {"limit": 150}})
    assert scene.pod.updates[-1] == {"memory": {"limit": 350}}


def test_what_the_pod_refuses_reaches_nobody() -> None:
    scene = Scene()
    scene.pod.refuse_update = refuse
    with pytest.raises(Failed):
        scene.update({"memory": {"limit": 150}})
    assert scene.own.updates == [] and scene.limits.memory == 100


def test_a_bad_limit_changes_nothing() -> None:
    scene = Scene()
    with pytest.raises(InvalidRequest):
        scene.update({"memory": {"limit": "much"}})
    assert scene.own.updates == scene.pod.updates == []


def test_limits_of_the_sandbox_itself_replace_the_sums() -> None:
    scene = Scene()
    root: Any = FakeHoldings()
    root.cgroup, root.pod_limits = scene.pod, scene.holdings.pod_limits
    _update(Limits(), {"memory": {"limit": 1000}}, root)
    scene.update({"memory": {"limit": 150}})
    assert scene.pod.updates == [{"memory": {"limit": 1000}}, {"memory": {"limit": 1050}}]


# -- a container's own cgroup, which is empty -------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "limits"),
    [
        ({}, {}),
        (OWN, OWN),
        ({"cpu": {"period": 100000, "cpus": "0"}, "memory": {"swap": 7}}, {}),
        ({"cpu": {"shares": 2}, "pids": {"limit": 5}}, {"cpu": {"shares": 2}}),
        ({"cpu": None, "memory": {"limit": None}}, {}),
    ],
)
def test_it_has_the_limits_that_cadvisor_reads(
    resources: dict[str, Any], limits: dict[str, Any]
) -> None:
    made: list[Any] = []
    create_own(made.append, resources)
    assert made == [limits]


def test_a_limit_that_cant_be_shown_fails_no_creation() -> None:
    made: list[Any] = []

    def make(limits: Any) -> None:
        made.append(limits)
        if limits:
            raise Failed("cpu.cfs_quota_us: Invalid argument")

    create_own(make, OWN)
    assert made == [shown(OWN), {}]


def test_an_update_of_a_first_container_shows_in_its_own_cgroup_as_well() -> None:
    scene = Scene()
    scene.holdings.cgroup = scene.pod
    scene.update({"memory": {"limit": 70, "swap": 140}})
    assert scene.pod.updates == [{"memory": {"limit": 70, "swap": 140}}]
    assert scene.own.updates == [{"memory": {"limit": 70}}]
