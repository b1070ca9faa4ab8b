"""Which CPUs a sandbox is bound to, in cgroups that have no more than their parents, as on v1."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cgroups.pod_cpus import PodCpus, parse_cpus, sandbox_cpus, union
from runtime.cgroups.pod_limits import Limits, PodLimits


class Cpuset:
    """A cgroup's cpuset.cpus, in which the kernel's rule for parents and children holds."""

    def __init__(self, path: str, cpus: str, parent: Cpuset | None = None) -> None:
        self.path, self.value, self.children = path, cpus, list[Cpuset]()
        self.parent = parent
        self.writes = 0
        self.others: list[Any] = []
        self.fails: set[str] = set()
        if parent is not None:
            parent.children.append(self)

    def cpus(self) -> str:
        return self.value

    def update(self, resources: Any) -> None:
        if "memory" in resources:
            if "memory" in self.fails:
                raise Failed("memory")
            self.others.append(resources)
        cpus = resources.get("cpu", {}).get("cpus")
        if cpus is None:
            return
        wanted = parse_cpus(cpus)
        if self.parent is not None and not wanted <= parse_cpus(self.parent.value):
            raise Failed(f"{self.path}: permission denied")
        if not all(parse_cpus(child.value) <= wanted for child in self.children):
            raise Failed(f"{self.path}: busy")
        if not wanted <= set(range(4)):
            raise Failed(f"{self.path}: invalid argument")
        self.value = cpus
        self.writes += 1


class Scene:
    def __init__(self) -> None:
        self.pod = Cpuset("/pod", "0-3")
        self.first = Cpuset("/pod/pause", "0-3", self.pod)
        self.cpus = PodCpus(self.pod, self.first)  # type: ignore[arg-type]

    def join(self, name: str, cpus: str) -> Cpuset:
        own = Cpuset(f"/pod/{name}", self.pod.value, self.pod)
        self.set(own, cpus)
        return own

    def set(self, own: Cpuset, cpus: str) -> None:
        self.cpus.set(own, cpus)  # type: ignore[arg-type]

    def leave(self, own: Cpuset) -> None:
        self.pod.children.remove(own)
        self.cpus.leave(own)  # type: ignore[arg-type]


def test_nothing_is_written_before_a_container_names_some() -> None:
    scene = Scene()
    scene.leave(scene.join("a", ""))
    scene.join("b", "")
    assert scene.pod.writes == scene.first.writes == 0


def test_the_only_container_binds_the_sandbox_and_an_update_moves_it() -> None:
    scene = Scene()
    own = scene.join("a", "0")
    assert (scene.pod.value, own.value) == ("0", "0")
    scene.set(own, "2-3")
    assert (scene.pod.value, own.value) == ("2,3", "2-3")


def test_several_have_theirs_together_and_one_that_names_none_frees_all() -> None:
    scene = Scene()
    scene.join("a", "0")
    scene.join("b", "2")
    assert scene.pod.value == "0,2"
    free = scene.join("c", "")
    assert scene.pod.value == "0-3"
    scene.leave(free)
    assert scene.pod.value == "0,2"


def test_what_the_kernel_refuses_leaves_all_as_it_was() -> None:
    scene = Scene()
    own = scene.join("a", "0")
    with pytest.raises(Failed):
        scene.set(own, "7")
    assert (scene.pod.value, own.value, scene.cpus.of(own)) == ("0", "0", "0")  # type: ignore[arg-type]
    with pytest.raises(Failed):
        scene.join("b", "7")
    assert scene.pod.value == "0"


def test_an_update_that_fails_elsewhere_gives_the_cpus_back() -> None:
    scene = Scene()
    pod = PodLimits(scene.pod, {}, scene.first)  # type: ignore[arg-type]
    own: Any = Cpuset("/pod/a", "0-3", scene.pod)
    pod.cpus.set(own, "0")
    own.fails.add("memory")
    limits = Limits()
    with pytest.raises(Failed, match="memory"):
        limits.update({"cpu": {"cpus": "1"}, "memory": {"limit": 7}}, None, own, pod)
    assert (scene.pod.value, own.value) == ("0", "0")
    own.fails.clear()
    limits.update({"cpu": {"cpus": "1"}, "memory": {"limit": 7}}, None, own, pod)
    assert (scene.pod.value, own.value) == ("1", "1")
    assert own.others == [{"cpu": {}, "memory": {"limit": 7}}]


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "0-99999999999", "1-2-3", "8192"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cpu\.cpus"):
        parse_cpus(text)


def test_lists() -> None:
    assert union(["0-2,7", " 1, 3"]) == "0,1,2,3,7"
    assert (sandbox_cpus("0-3", []), sandbox_cpus("0-3", ["1", ""])) == ("0-3", "0-3")
