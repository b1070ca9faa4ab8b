"""Memory in a pod: a container's own limit, the pod's, who is to blame, and the scores."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base.linux import unified_cgroups
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.daemon_api import Api, Refused
from integration.harness.figures.measure import switch_count
from integration.harness.host.footprint import cgroup_files
from integration.harness.host.image import IMAGE
from integration.harness.nodes.pods import PodNode, in_parallel

pytestmark = pytest.mark.gvisor

MIB = 1 << 20
# Grows until something stops it: tail keeps what it reads for as long as no line ends.
HOG = ("sh", "-c", "tail /dev/zero; exit 99")


def holding(mib: int) -> tuple[str, ...]:
    """Takes that much memory and keeps it."""
    return ("sh", "-c", f"(head -c {mib}m /dev/zero; exec sleep 1000) | tail")


def limited(mib: int) -> dict[str, object]:
    return {"linux": {"resources": {"memory_limit_in_bytes": mib * MIB}}}


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def used(pods: PodNode, container: str) -> int:
    stats = pods.call("ContainerStats", container_id=container).stats
    return int(stats.memory.usage_bytes.value)


def wait_held(pods: PodNode, container: str, wanted: int) -> None:
    """Until it has so much memory, for as long as that grows."""
    seen = 0
    while seen < wanted:
        before = seen
        until(
            lambda before=before: used(pods, container) > before, 20, "more memory than before", 0.2
        )
        seen = used(pods, container)


@pytest.fixture
def api(pods: PodNode) -> Iterator[Api]:
    api = Api(pods.daemon)
    yield api
    api.close()


@pytest.mark.without_pause
def test_a_container_over_its_own_limit(pods: PodNode, api: Api) -> None:
    """It ends as the kernel would end it; the others, and the pod, live on."""
    with api.events() as events:
        pod = pods.pod()
        other = pod.start("sleep", "1000", **limited(64))
        hog = pod.start(*HOG, **limited(64))
        assert pods.wait_reason(hog, "OOMKilled", 30) == 137
        topics = events.topics(hog)
        assert topics.count("oom") == 1 and topics.index("oom") < topics.index("exit"), topics
        assert "oom" not in events.topics(other)
        assert pods.exec(other, "echo", "fine").out == "fine\n"
        assert pod.status.state == cri.READY
        again = pod.start(*HOG, attempt=1, **limited(64))
        assert pods.wait_reason(again, "OOMKilled", 30) == 137
        assert pods.status(other).state == cri.RUNNING


# Takes memory page by page, as fast as it can.
GROWER = """
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    size_t size = 200 << 20, at;
    char *taken = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (at = 0; at < size; at += 4096) taken[at] = 1;
    sleep(1000);
}
"""


def test_one_that_grows_fast(pods: PodNode, tmp_path: Path) -> None:
    """It ends before the pod is out of memory, which the kernel would end as a whole.

    The pod has the sum of its containers' limits, and what the README calls its overhead.
    """
    (tmp_path / "grower.c").write_text(GROWER)
    subprocess.run(["gcc", "-static", "-o", tmp_path / "grower", tmp_path / "grower.c"], check=True)
    volume = {"container_path": "/mnt", "host_path": str(tmp_path)}
    pod = pods.pod(linux={"resources": {"memory_limit_in_bytes": (128 + 128) * MIB}})
    other = pod.start("sleep", "1000", **limited(64))
    for attempt in range(3):
        config = {"mounts": [volume], "attempt": attempt, **limited(64)}
        grower = pod.start("/mnt/grower", **config)
        assert pods.wait_reason(grower, "OOMKilled", 30) == 137
    assert pods.exec(other, "echo", "fine").out == "fine\n"
    assert pods.status(other).state == cri.RUNNING


# Maps a file and reads every page of it, then waits.
MAPPER = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    size_t size = 200 << 20, at, sum = 0;
    char *file = mmap(0, size, PROT_READ, MAP_SHARED, open(argv[1], O_RDONLY), 0);
    for (at = 0; at < size; at += 4096) sum += file[at];
    printf("mapped %zu\\n", sum);
    fflush(stdout);
    sleep(1000);
}
"""


def test_files_are_not_memory(pods: PodNode, tmp_path: Path) -> None:
    """Neither what a container writes and reads again nor what it maps counts: both can go."""
    (tmp_path / "mapper.c").write_text(MAPPER)
    subprocess.run(["gcc", "-static", "-o", tmp_path / "mapper", tmp_path / "mapper.c"], check=True)
    with open(tmp_path / "large", "wb") as large:
        large.truncate(200 << 20)
    volume = {"container_path": "/mnt", "host_path": str(tmp_path)}
    pod = pods.pod()
    script = (
        "for n in 0 1 2 3; do head -c 50m /dev/zero >>/file; echo $n; done;"
        " cat /file >/dev/null; echo read; exec /mnt/mapper /mnt/large"
    )
    container = pod.start("sh", "-c", script, mounts=[volume], **limited(48))
    pod.start("sleep", "1000")
    for step in ("0", "1", "2", "3", "read", "mapped 0"):
        pod.wait_log(container, step + "\n", 30)
    assert used(pods, container) > 150 * MIB  # the sentry does count it
    assert pods.status(container).state == cri.RUNNING


def test_an_update_of_its_own_limit(pods: PodNode) -> None:
    """A lowered limit binds; one below its use is refused, as the kernel has it."""
    pod = pods.pod()
    more = "(head -c 50m /dev/zero; until [ -e /more ]; do sleep 0.1; done; cat /dev/zero) | tail"
    container = pod.start("sh", "-c", more, **limited(1000))
    pod.start("sleep", "1000")
    wait_held(pods, container, 48 * MIB)
    path = f"{pod.cgroup}/{container}"
    file = "memory.max" if unified_cgroups() else "memory.limit_in_bytes"

    def update(mib: int, **others: int) -> None:
        linux = {"memory_limit_in_bytes": mib * MIB, **others}
        pods.call("UpdateContainerResources", container_id=container, linux=linux)

    update(200)
    assert cgroup_files("memory", path, file) == [str(200 * MIB)]
    with pytest.raises(Refused):
        # The kernel takes no quota below a millisecond; nothing of it holds then.
        update(150, cpu_quota=10, cpu_period=100000)
    with pytest.raises(Refused, match=rf"unable to set memory limit to {MIB} \(current usage: \d+"):
        update(1)
    assert cgroup_files("memory", path, file) == [str(200 * MIB)]
    update(100)
    assert pods.status(container).state == cri.RUNNING
    pods.exec(container, "touch", "/more")
    assert pods.wait_reason(container, "OOMKilled", 60) == 137


@pytest.mark.without_pause
@pytest.mark.core
def test_a_pod_that_runs_out_of_memory(pods: PodNode, api: Api) -> None:
    """The kernel ends all of it, and the container that used the most is told to be the cause."""
    with api.events() as events:
        sums = {"resources": {"memory_limit_in_bytes": 160 * MIB}}
        pod = pods.pod(linux=sums)
        steady = pod.start(*holding(20))
        until(lambda: used(pods, steady) > 18 * MIB, 20, "it has its memory")
        hog = pod.start(*HOG)
        assert pods.wait_reason(hog, "OOMKilled", 30) == 137
        assert pods.wait_reason(steady, "Error", 10) == 137
        events.wait(pod.id, "exit")
        topics = events.topics(hog)
        assert topics.count("oom") == 1 and topics.index("oom") < topics.index("exit"), topics
        assert "oom" not in events.topics(steady) + events.topics(pod.id)


def test_limits_of_the_pod_follow_its_containers(pods: PodNode) -> None:
    """The sandbox's cgroup has the sums that the pod began with, and what changed since."""
    sums = {"memory_limit_in_bytes": 600 * MIB, "cpu_quota": 80000, "cpu_period": 100000}
    pod = pods.pod(linux={"resources": sums})
    place = f"{pod.cgroup}/{pod.id}" if unified_cgroups() else pod.cgroup
    file = "memory.max" if unified_cgroups() else "memory.limit_in_bytes"
    container = pod.start("sleep", "1000", **limited(200))
    assert cgroup_files("memory", place, file) == [str(600 * MIB)]
    # Its own, where cAdvisor looks.
    assert cgroup_files("memory", f"{pod.cgroup}/{container}", file) == [str(200 * MIB)]
    update = "UpdateContainerResources"
    pods.call(update, container_id=container, linux={"memory_limit_in_bytes": 300 * MIB})
    assert cgroup_files("memory", place, file) == [str(700 * MIB)]
    with pytest.raises(Refused):
        refused = {"memory_limit_in_bytes": 400 * MIB, "cpu_quota": 10, "cpu_period": 100000}
        pods.call(update, container_id=container, linux=refused)
    assert cgroup_files("memory", place, file) == [str(700 * MIB)]


def test_cpus_of_a_pod_are_those_that_all_its_containers_name(pods: PodNode) -> None:
    """A pod's only container binds the sandbox; a second that names none sets it free."""
    pod = pods.pod()
    place = f"{pod.cgroup}/{pod.id}" if unified_cgroups() else pod.cgroup

    def bound(path: str = place) -> list[str]:
        effective = ".effective" if unified_cgroups() else ""
        return cgroup_files("cpuset", path, f"cpuset.cpus{effective}")

    whole = bound()
    first = pod.start("sleep", "1000", linux={"resources": {"cpuset_cpus": "0"}})
    assert bound() == bound(f"{pod.cgroup}/{first}") == ["0"]
    update = "UpdateContainerResources"
    pods.call(update, container_id=first, linux={"cpuset_cpus": "1"})
    assert bound() == bound(f"{pod.cgroup}/{first}") == ["1"]
    second = pod.start("sleep", "1000")
    assert bound() == whole
    pods.call("StopContainer", container_id=second, timeout=0)
    pods.call("RemoveContainer", container_id=second)
    assert bound() == ["1"]


def test_scores(pods: PodNode) -> None:
    """The sentry's is the lowest that a workload asks for, each gofer's its own container's."""
    pod = pods.pod()
    sentry = pod.sentry()
    original = score(sentry)

    def scored(value: int, name: str) -> str:
        return pod.start("sleep", "1000", name=name, linux={"resources": {"oom_score_adj": value}})

    first = scored(900, "first")
    assert (score(sentry), score(pod.gofer(first))) == (900, 900)
    calls = [
        pods.cri.call_later(
            "CreateContainer",
            30,
            pod_sandbox_id=pod.id,
            sandbox_config=pod.config,
            config={
                "metadata": {"name": f"n{value}"},
                "image": {"image": IMAGE},
                "command": ["sleep", "1000"],
                "linux": {"resources": {"oom_score_adj": value}},
            },
        )
        for value in (700, 500, 600)
    ]
    others = [reply.container_id for reply in in_parallel(calls)]
    for each in others:
        pods.call("StartContainer", container_id=each)
    assert score(sentry) == 500
    assert [score(pod.gofer(each)) for each in others] == [700, 500, 600]
    assert score(pod.gofer(first)) == 900
    for each, left in zip(
        (others[1], others[2], others[0], first), (600, 700, 900, original), strict=True
    ):
        pods.stop(each)
        pods.delete(each)
        assert score(sentry) == left


def test_a_pod_that_stands_still_is_not_polled(pods: PodNode) -> None:
    """However near to their limits its containers are: the kernel would say if that changed."""
    pod = pods.pod(linux={"resources": {"memory_limit_in_bytes": 300 * MIB}})
    for _ in range(2):
        container = pod.start(*holding(40), **limited(60))
        until(lambda name=container: used(pods, name) > 36 * MIB, 20, "it has its memory")  # type: ignore[misc]
    shim = pod.shim

    def quiet() -> bool:
        before = switch_count(shim)
        time.sleep(1)
        return switch_count(shim) == before

    until(quiet, 10, "the shim sleeps for a second")
    assert all(each.state == cri.RUNNING for each in pods.call("ListContainers").containers)
