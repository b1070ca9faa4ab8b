"""Containers on a host with real cgroup v2 and every capability: see `integration/vm`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from integration.guest import scene
from integration.harness.clients.api import METRICS_V2, MetricsV2, packed
from integration.harness.clients.daemon_api import decode_any
from integration.harness.nodes.node import Node

pytestmark = pytest.mark.skipif(bool(scene.lacking()), reason=scene.lacking() or "-")

MIB = 1 << 20
LIMIT = 256 * MIB
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pairs = scene.pairs(metafunc.config)
    names = ["-".join(pair) for pair in pairs]
    metafunc.parametrize("machine", pairs, ids=names, indirect=True, scope="session")


@pytest.fixture
def host(machine: Node) -> Iterator[Node]:
    """The daemon of this combination; whatever a test leaves there makes the test fail."""
    yield machine
    machine.clean()
    machine.assert_clean(30)


def update(host: Node, name: str, resources: dict[str, object]) -> None:
    body = packed(RESOURCES, resources)
    host.api.task("Update", container_id=name, resources=body)


def test_a_limited_container(host: Node) -> None:
    """All of a sandbox is in the container's cgroup, with its limits, from birth to removal."""
    name = host.run_detached(
        "sleep", "1000", options=["--memory-limit", str(LIMIT), "--cpus", "0.5"]
    )
    cgroup = f"/{host.daemon.namespace}/{name}"
    assert scene.text(cgroup, "memory.max") == str(LIMIT)
    assert scene.text(cgroup, "cpu.max") == "50000 100000"
    pid = host.pid(name)
    shim = host.shim_pid(name)
    below = host.descendants(shim)
    assert pid in below and len(below) >= 2  # the sentry and the gofer
    assert {scene.cgroup_of(child) for child in below} == {cgroup}
    assert scene.cgroup_of(shim) == scene.own_cgroup()

    done = host.exec(name, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.out, done.code) == ("out\n", 5), done
    assert "err\n" in done.err

    data = host.api.task("Metrics", filters=[f"id=={name}"]).metrics[0].data
    assert data.type_url.rpartition("/")[2] == METRICS_V2
    metrics = decode_any(data, MetricsV2)
    assert MIB < metrics.memory.usage < LIMIT
    assert metrics.memory.usage_limit == LIMIT
    host_usec = int(scene.text(cgroup, "cpu.stat").split()[1])
    assert 10_000 < metrics.cpu.usage_usec <= host_usec
    assert metrics.cpu.user_usec + metrics.cpu.system_usec > 0
    assert metrics.pids.current >= 1
    assert host.metrics(name)  # containerd's own client decodes it

    update(host, name, {"memory": {"limit": 2 * LIMIT}, "cpu": {"quota": 80000, "period": 100000}})
    assert scene.text(cgroup, "memory.max") == str(2 * LIMIT)
    assert scene.text(cgroup, "cpu.max") == "80000 100000"
    update(host, name, {"pids": {"limit": 400}})
    assert scene.text(cgroup, "pids.max") == str(128 + 4 * 400)
    assert scene.text(cgroup, "memory.max") == str(2 * LIMIT)

    host.kill(name, "SIGKILL")
    host.wait_stopped(name, 20)
    host.delete(name)
    assert not scene.exists(cgroup)


def test_running_out_of_memory(host: Node) -> None:
    """The kernel's count in memory.events tells it; TaskOOM precedes TaskExit with 137."""
    with host.api.events() as events:
        options = ["--memory-limit", str(96 * MIB)]
        hog = ("dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1")
        name = host.run_detached(*hog, options=options)
        host.wait_stopped(name, timeout=60)
        assert events.wait(name, "exit").exit_status == 137
        topics = events.topics(name)
        assert topics.index("oom") < topics.index("exit"), topics
        assert topics.count("oom") == 1
    assert host.api.task("Delete", container_id=name).exit_status == 137


def test_no_oom_event_without_a_kill(host: Node) -> None:
    with host.api.events() as events:
        done = host.run("sh", "-c", "exit 9", options=["--memory-limit", str(LIMIT)])
        assert done.code == 9, done
        name = host.ids[-1]
        events.wait(name, "delete")
        assert "oom" not in events.topics(name)


@pytest.mark.parametrize("score", [-500, 700])
def test_oom_score(host: Node, score: int) -> None:
    """Lowering takes a capability that is there: sentry and gofer have the spec's score."""
    name = host.new_id()
    spec = host.api.spec("sleep", "1000", container=name)
    spec["process"]["oomScoreAdj"] = score
    mounts = host.api.make(name, host.runtime, spec)
    host.api.task("Create", container_id=name, rootfs=mounts)
    host.api.task("Start", container_id=name)
    shim = host.shim_pid(name)
    children = scene.children(shim)
    assert len(children) == 2
    assert {scene.oom_score(child) for child in children} == {score}
    assert scene.oom_score(shim) == scene.oom_score(os.getpid()) + 1  # containerd's, which is ours
