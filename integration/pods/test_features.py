"""What containerd grants a runtime by its features, or asks of it, since one of its releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.nodes.pods import PodNode
from runtime.host.linux import MNT_DETACH, MS_BIND, mount, umount2

pytestmark = pytest.mark.gvisor

#: In these two from 2.2.7 and 2.3.4 on.
_ASKING = (2, 2)


def _need(pods: PodNode, release: tuple[int, int]) -> None:
    if pods.daemon.release < release:
        pytest.skip("needs containerd {}.{} or later".format(*release))


def test_every_handler_has_its_features(pods: PodNode) -> None:
    """The shim's `-info` is asked for each, by name or by path, and not for runc's alone."""
    _need(pods, _ASKING)
    found = {
        each.name: (each.features.recursive_read_only_mounts, each.features.user_namespaces)
        for each in pods.call("Status").runtime_handlers
    }
    ours = {name: granted for name, granted in found.items() if name.startswith("gvisor")}
    assert {"gvisor", "gvisor-path", "gvisor-counted"} <= set(ours)
    assert set(ours.values()) == {(True, True)}, ours


def test_a_recursively_read_only_volume(pods: PodNode, tmp_path: Path) -> None:
    """Granted by the feature: what is mounted in the volume is read-only as well."""
    _need(pods, _ASKING)
    (tmp_path / "inner").mkdir()
    mount(str(tmp_path), str(tmp_path), "", MS_BIND)
    try:
        mount("inner", str(tmp_path / "inner"), "tmpfs")
        pod = pods.pod()
        volume = {"host_path": str(tmp_path), "readonly": True}
        container = pod.start(
            *("sleep", "1000"),
            mounts=[
                {**volume, "container_path": "/plain"},
                {**volume, "container_path": "/whole", "recursive_read_only": True},
            ],
        )
        files = "/plain/x /whole/x /whole/inner/x /plain/inner/x"
        script = f"for f in {files}; do echo > $f; done; ls -d /*/inner/x"
        done = pods.exec(container, "sh", "-c", script)
        assert done.err.count("Read-only file system") == 3, done
        # It is one file system, by either way.
        assert done.out == "/plain/inner/x\n/whole/inner/x\n"
        pod.remove()
    finally:
        umount2(str(tmp_path), MNT_DETACH)


def test_metrics_of_cri(pods: PodNode) -> None:
    """What the kubelet takes in place of cAdvisor's figures: since containerd 2.2."""
    _need(pods, (2, 2))
    pod = pods.pod()
    busy = pod.start("sh", "-c", "while true; do :; done")

    def look() -> dict[str, int]:
        for each in pods.call("ListPodSandboxMetrics").pod_metrics:
            if each.pod_sandbox_id == pod.id:
                assert any(m.name == "container_network_receive_bytes_total" for m in each.metrics)
                return _values(each.container_metrics, busy)
        return {}

    first = until(look, 10, "figures of the container")
    until(
        lambda: (
            look()["container_cpu_usage_seconds_total"] > first["container_cpu_usage_seconds_total"]
        ),
        20,
        "its CPU is counted",
    )
    assert 0 < first["container_memory_working_set_bytes"] < 4 << 30
    assert first["container_processes"] == 1


def _values(containers: Any, container: str) -> dict[str, int]:
    found = [each for each in containers if each.container_id == container]
    return {m.name: m.value.value for each in found for m in each.metrics}
