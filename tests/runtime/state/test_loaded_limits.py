"""Limits of containers that are known from their files, on directories that look like cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed, InvalidRequest, InvalidState, Unsupported
from runtime.host.pids import start_time
from runtime.state import loaded_limits, shim_record
from runtime.state.loaded import StoredContainer
from runtime.state.shim_record import ContainerRecord, Pinned
from tests.fakes.sentry import FakeSentry
from tests.fakes.state_files import Helpers, runsc_state, write

FILES = {
    "memory": {"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "100"},
    "cpu": {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpu.shares": "512"},
    "pids": {"pids.max": "max"},
}


class Pod:
    """A pod's root container c1 and its member c2, which gvctl made."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.folder = tmp_path / "root", tmp_path / "cgroups"
        self.bundle = tmp_path / "bundle"
        (self.bundle / "rootfs").mkdir(parents=True)
        self.socket = str(tmp_path / "s")
        self.sentry = FakeSentry.at(self.socket)
        self.sentry.handlers["containerManager.ContainerRuntimeState"] = lambda _: 2
        self.helpers = Helpers()
        self.process = self.helpers.spawn("runsc-sandbox", "c1")

    def add(self, name: str, spec: Any = None, **fields: Any) -> StoredContainer:
        body = runsc_state(self.bundle, name, pid=self.process.pid, socket=self.socket)
        body["spec"] |= spec or {}
        write(self.root, body)
        record = ContainerRecord(
            id=name,
            sandbox_id="c1",
            is_root=name == "c1",
            bundle=str(self.bundle),
            boot=Pinned(pid=self.process.pid, start_time=start_time(self.process.pid))
            if name == "c1"
            else None,
            control_socket=self.socket,
            **{"cgroups": (self.cgroup(name),), **fields},
        )
        shim_record.save(str(self.root), record, locator=False)
        return StoredContainer.load(str(self.root), name)

    def cgroup(self, name: str) -> dict[str, Any]:
        places = {each: self.folder / each / name for each in FILES}
        for controller, place in places.items():
            place.mkdir(parents=True, exist_ok=True)
            for file, value in FILES[controller].items():
                (place / file).write_text(value)
        return {
            "mode": "v1",
            "path": f"/{name}",
            "directories": {each: str(place) for each, place in places.items()},
            "own": {each: [str(place)] for each, place in places.items()},
        }

    def value(self, name: str, file: str) -> str:
        return (self.folder / file.partition(".")[0] / name / file).read_text().strip()

    def resources(self, name: str) -> Any:
        record = shim_record.load_exact(str(self.root), name, "c1")
        assert record is not None
        return record.resources

    def close(self) -> None:
        self.helpers.close()
        self.sentry.stop()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    found = Pod(tmp_path)
    yield found
    found.close()


def limited(memory: int, quota: int) -> dict[str, Any]:
    return {"memory": {"limit": memory}, "cpu": {"quota": quota, "period": 100000}}


def test_a_sandboxs_own(pod: Pod) -> None:
    method = "Cgroups.WriteControlFiles"
    pod.sentry.handlers[method] = lambda _: {"results": [{"is_error": False}]}
    found = pod.add("c1", {"mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup"}]})
    loaded_limits.update(found, {"pids": {"limit": 77}, "cpu": {"shares": 99}})
    assert (pod.value("c1", "pids.max"), pod.value("c1", "cpu.shares")) == ("436", "99")
    asked = [r.argument["args"] for r in pod.sentry.requests if r.method == method]
    assert [(a["file"]["name"], a["value"]) for a in asked[0]] == [
        ("cpu.shares", "99"),
    ]
    pod.sentry.dropped.add(method)  # what is kept on the host counts
    loaded_limits.update(found, {"cpu": {"shares": 99}})
    assert pod.value("c1", "memory.limit_in_bytes") == "100"
    assert pod.resources("c1") == {"pids": {"limit": 77}, "cpu": {"shares": 99}}


def test_a_pods_sums_follow_every_update(pod: Pod) -> None:
    """The second as well, which has to know of the first."""
    sums = {
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-memory": "10000",
            "io.kubernetes.cri.sandbox-cpu-quota": "60000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
        }
    }
    pod.add("c1", sums)
    found = pod.add("c2", {"linux": {"resources": limited(4000, 20000)}})
    for memory, total in ((5000, 11000), (3000, 9000)):
        loaded_limits.update(found, {"memory": {"limit": memory}})
        assert pod.value("c2", "memory.limit_in_bytes") == str(memory)
        assert pod.value("c1", "memory.limit_in_bytes") == str(total)
    loaded_limits.update(found, {"cpu": {"quota": 30000}})
    assert (pod.value("c1", "cpu.cfs_quota_us"), pod.value("c2", "cpu.cfs_quota_us")) == (
        "70000",
        "30000",
    )
    assert pod.resources("c2") == limited(3000, 30000)


def test_members_of_what_is_no_pod_are_for_themselves(pod: Pod) -> None:
    pod.add("c1", {"linux": {"resources": limited(10000, 1000)}})
    loaded_limits.update(pod.add("c2"), {"memory": {"limit": 7}})
    assert pod.value("c2", "memory.limit_in_bytes") == "7"
    assert pod.value("c1", "memory.limit_in_bytes") == "100"


def test_all_or_none(pod: Pod) -> None:
    found = pod.add("c1")
    (pod.folder / "pids/c1/pids.max").unlink()
    (pod.folder / "pids/c1/pids.max").mkdir()
    with pytest.raises(Failed, match=r"pids\.max"):
        loaded_limits.update(found, {"memory": {"limit": 5}, "pids": {"limit": 7}})
    assert pod.value("c1", "memory.limit_in_bytes") == "100"
    assert pod.resources("c1") is None


def test_a_shim_is_asked_for_its_own(pod: Pod) -> None:
    found = pod.add("c1", shim_address="unix:///x", shim_pid=1)
    asked: list[Any] = []
    loaded_limits.update(found, {"pids": {"limit": 7}}, lambda *words: asked.append(words))
    assert asked == [(found.record, {"pids": {"limit": 7}})]
    assert pod.value("c1", "pids.max") == "max" and pod.resources("c1") is None
    with pytest.raises(Unsupported, match="its shim's to change"):
        loaded_limits.update(found, {"pids": {"limit": 7}})


@pytest.mark.parametrize("resources", [{"memory": {"limit": "x"}}, {"cpu": 5}, {"pids": []}])
def test_malformed_limits_change_nothing(pod: Pod, resources: Any) -> None:
    with pytest.raises(InvalidRequest):
        loaded_limits.update(pod.add("c1"), resources)


def test_without_a_cgroup(pod: Pod) -> None:
    with pytest.raises(InvalidState, match="running without a cgroup"):
        loaded_limits.update(pod.add("c1", cgroups=()), {"pids": {"limit": 7}})


def test_what_has_stopped_or_is_runscs(pod: Pod) -> None:
    found = pod.add("c1")
    (pod.root / "c1_sandbox:c1.shim.json").unlink()
    with pytest.raises(Unsupported, match="made by runsc"):
        loaded_limits.update(found.reload(), {"pids": {"limit": 7}})
    pod.process.kill()
    pod.process.wait()
    with pytest.raises(InvalidState, match='cannot update container "c1" in state stopped'):
        loaded_limits.update(found, {"pids": {"limit": 7}})
