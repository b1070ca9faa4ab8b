"""Volumes of pods, mounted as CRI asks for it: shared, read-only, propagated, where links lead."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.daemon_api import Refused
from integration.harness.pods import Pod, PodNode
from integration.harness.waiting import until
from runtime.host.linux import MNT_DETACH, MS_BIND, MS_REC, MS_SHARED, mount, umount2

KUBELET = Path("/var/lib/kubelet/pods")

pytestmark = pytest.mark.gvisor


def _mount(path: str, source: object, **more: Any) -> dict[str, Any]:
    return {"container_path": path, "host_path": str(source), **more}


@pytest.fixture
def uid() -> Iterator[str]:
    """The uid of a pod of the kubelet's; its directories go with the test."""
    made = next((p for p in (*reversed(KUBELET.parents), KUBELET) if not p.exists()), None)
    uid = str(uuid.uuid4())
    (KUBELET / uid / "volumes" / "kubernetes.io~empty-dir").mkdir(parents=True)
    yield uid
    shutil.rmtree(KUBELET / uid)
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)


def _with_volumes(pods: PodNode, uid: str, **annotations: str) -> Pod:
    """A pod as an admission controller for gVisor leaves it."""
    prefix = "dev.gvisor.spec.mount."
    return pods.pod(
        log_directory=str(pods.daemon.folder / "logs" / f"default_pod_{uid}"),
        annotations={
            (key if key.startswith("dev.") else prefix + key): value
            for key, value in annotations.items()
        },
    )


@pytest.mark.core
def test_empty_dirs(pods: PodNode, uid: str) -> None:
    """Of either medium, of one container or of two, and one that the host looks into."""
    folder = KUBELET / uid / "volumes" / "kubernetes.io~empty-dir"
    names = ("memory", "disk", "own", "forced")
    for name in names:
        (folder / name).mkdir()
    hints = {
        "memory.type": "tmpfs",
        "memory.share": "pod",
        "disk.type": "bind",
        "disk.share": "pod",
        "own.type": "tmpfs",
        "own.share": "container",
        "forced.type": "tmpfs",
        "forced.share": "pod",
        "dev.gvisor.empty-dir.forced.force-shared": "true",
    }
    pod = _with_volumes(pods, uid, **hints)
    shared = [_mount(f"/{name}", folder / name) for name in names if name != "own"]
    annotations = {f"dev.gvisor.spec.mount.{n}.type": hints[f"{n}.type"] for n in names}
    one = pod.start(
        "sleep",
        "1000",
        mounts=[*shared, _mount("/own", folder / "own")],
        annotations=annotations,
    )
    two = pod.start("sleep", "1000", mounts=shared, annotations=annotations)
    done = pods.exec(one, "sh", "-ec", "for v in memory disk own forced; do echo $v > /$v/f; done")
    assert done.code == 0, done
    for name in ("memory", "disk", "forced"):
        assert pods.exec(two, "cat", f"/{name}/f").out == f"{name}\n"
    table = pods.exec(one, "cat", "/proc/mounts").out
    kinds = {line.split()[1]: line.split()[2] for line in table.splitlines()}
    assert kinds["/memory"] == kinds["/own"] == "tmpfs" != kinds["/forced"]
    on_host = {name: sorted(os.listdir(folder / name)) for name in names}
    assert on_host["memory"] == on_host["own"] == []
    assert on_host["forced"] == ["f"]
    if pods.daemon.generation > "2023":
        assert kinds["/disk"] == "tmpfs"
        assert on_host["disk"] == [f".gvisor.filestore.{pod.id}"]
    pod.remove()
    assert sorted(os.listdir(folder / "disk")) in ([], ["f"])


@pytest.mark.core
def test_volume_that_is_not_there(pods: PodNode, uid: str) -> None:
    with pytest.raises(Refused, match="no volume, or several, of that name"):
        _with_volumes(pods, uid, **{"missing.type": "tmpfs", "missing.share": "pod"})


@pytest.mark.core
def test_flags_that_a_pod_may_not_override(pods: PodNode) -> None:
    with pytest.raises(Refused, match=r"dev\.gvisor\.flag\.network: flag override disabled"):
        pods.pod(annotations={"dev.gvisor.flag.network": "host"})
    pod = pods.pod(annotations={"dev.gvisor.flag.debug": "true"})
    assert pods.wait_exited(pod.start("true")).exit_code == 0


@pytest.mark.core
def test_read_only_volumes(pods: PodNode, tmp_path: Path) -> None:
    pod = pods.pod()
    context = {"security_context": {"readonly_rootfs": True}}
    mounts = [_mount("/ro", tmp_path, readonly=True), _mount("/rw", tmp_path)]
    container = pod.start("sleep", "1000", mounts=mounts, linux=context)
    script = "for f in /ro/x /x /rw/x; do echo x > $f && echo $f; done"
    done = pods.exec(container, "sh", "-c", script)
    assert done.out == "/rw/x\n" and done.err.count("Read-only file system") == 2, done


@pytest.mark.core
def test_propagation(pods: PodNode, tmp_path: Path) -> None:
    """What the host mounts later is seen where it is to propagate, and nowhere else."""
    outer, other = tmp_path / "outer", tmp_path / "other"
    for folder in (outer / "late", other):
        folder.mkdir(parents=True)
    (other / "file").write_text("late\n")
    mount(str(outer), str(outer), "", MS_BIND)
    mount("", str(outer), "", MS_SHARED | MS_REC)
    try:
        pod = pods.pod()
        mounts = [
            _mount("/slave", outer, propagation=1),
            _mount("/private", outer, propagation=0),
        ]
        container = pod.start("sleep", "1000", mounts=mounts)
        mount(str(other), str(outer / "late"), "", MS_BIND)
        seen = until(
            lambda: pods.exec(container, "cat", "/slave/late/file").out, 10, "the late mount"
        )
        assert seen == "late\n"
        assert pods.exec(container, "ls", "/private/late").out == ""
        with pytest.raises(Refused, match=r"rshared|[Bb]idirectional|not supported"):
            pod.start("true", mounts=[_mount("/both", outer, propagation=2)])
        pod.remove()
    finally:
        umount2(str(outer), MNT_DETACH)


@pytest.mark.core
def test_destinations_behind_links(pods: PodNode, tmp_path: Path) -> None:
    """They stay inside of the root file system, wherever the links point to."""
    outside, volume, links = (tmp_path / name for name in ("outside", "volume", "links"))
    for folder in (outside, volume, links):
        folder.mkdir()
    (volume / "file").write_text("volume\n")
    (outside / "target").mkdir()
    os.symlink(outside, links / "absolute")
    os.symlink("../" * 12 + str(outside)[1:], links / "relative")
    os.symlink("loop", links / "loop")
    pod = pods.pod()
    for link in ("absolute", "relative"):
        mounts = [_mount("/links", links), _mount(f"/links/{link}/target", volume)]
        container = pod.start("sleep", "1000", mounts=mounts)
        assert pods.exec(container, "cat", f"{outside}/target/file").out == "volume\n"
        assert pods.exec(container, "cat", f"/links/{link}/target/file").out == "volume\n"
        pods.exec(container, "touch", f"{outside}/fresh")
    assert os.listdir(outside) == ["target"]
    assert os.listdir(outside / "target") == []
    with pytest.raises(Refused, match="too many"):
        pod.start("true", mounts=[_mount("/links", links), _mount("/links/loop/x", volume)])
