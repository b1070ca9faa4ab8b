"""Which containers get the sentry's cgroups mounted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.bundle.spec import Spec, parse_spec
from runtime.runsc.release import Generation
from runtime.sandbox.cgroup_mounts import counts, prepare
from tests.fakes.generations import GENERATIONS

SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs"}
CONTAINER = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s"}
SANDBOX = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"}


def spec(annotations: dict[str, str], *mounts: dict[str, Any]) -> Spec:
    body = {
        "process": {"args": ["a"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "annotations": annotations,
        "mounts": list(mounts),
    }
    return parse_spec(json.dumps(body).encode(), "/bundle")


@pytest.mark.parametrize("year", [2024, 2026])
def test_a_container_of_a_pod_gets_them(year: int) -> None:
    before = spec(CONTAINER, SYS)
    after = prepare(before, GENERATIONS[year])
    assert [m.destination for m in after.mounts] == ["/sys", "/sys/fs/cgroup"]
    assert after.raw["mounts"][1]["type"] == "cgroup" and "ro" in after.mounts[1].options
    assert len(before.raw["mounts"]) == 1


def cgroups(destination: str, kind: str) -> dict[str, str]:
    return {"destination": destination, "type": kind, "source": kind}


@pytest.mark.parametrize(
    ("before", "generation"),
    [
        (spec(CONTAINER, SYS), GENERATIONS[2022]),
        (spec({}, SYS), GENERATIONS[2024]),
        (spec(SANDBOX, SYS), GENERATIONS[2024]),
        (spec(CONTAINER), GENERATIONS[2024]),
        (spec(CONTAINER, SYS, cgroups("/sys/fs/cgroup", "cgroup")), GENERATIONS[2024]),
        (spec(CONTAINER, SYS, cgroups("/cg", "cgroup2")), GENERATIONS[2024]),
        (spec(CONTAINER, SYS, cgroups("/sys/fs/cgroup/", "bind")), GENERATIONS[2024]),
    ],
)
def test_others_are_left_as_they_are(before: Spec, generation: Generation) -> None:
    assert prepare(before, generation) is before


@pytest.mark.parametrize("year", [2024, 2026])
def test_those_that_have_them_are_counted_by_themselves(year: int) -> None:
    before = spec(CONTAINER, SYS)
    assert not counts(before, GENERATIONS[year])
    assert counts(prepare(before, GENERATIONS[year]), GENERATIONS[year])


def test_an_old_release_counts_the_sandbox_alone() -> None:
    assert not counts(spec(CONTAINER, SYS, cgroups("/cg", "cgroup")), GENERATIONS[2022])
