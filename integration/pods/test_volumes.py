"""Volumes of pods, mounted as CRI asks for it: shared, read-only, propagated, where links lead."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.daemon_api import Refused
from integration.harness.host import kubelet
from integration.harness.nodes.pods import Pod, PodNode
from runtime.host.linux import MNT_DETACH, MS_BIND, MS_REC, MS_SHARED, mount, umount2

SOCKET = Path(__file__).parents[1] / "programs" / "socket.c"

pytestmark = pytest.mark.gvisor


def _mount(path: str, source: object, **more: Any) -> dict[str, Any]:
    return {"container_path": path, "host_path": str(source), **more}


@pytest.fixture
def uid() -> Iterator[str]:
    """The uid of a pod of the kubelet's; its directories go with the test."""
    uid = str(uuid.uuid4())
    with kubelet.pod_folder(uid):
        yield uid


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
    folder = kubelet.PODS / uid / "volumes" / "kubernetes.io~empty-dir"
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


def _uid_pod(pods: PodNode, uid: str, **annotations: str) -> Pod:
    """A pod whose volumes nobody annotated."""
    return pods.pod(
        log_directory=str(pods.daemon.folder / "logs" / f"default_pod_{uid}"),
        annotations=annotations,
    )


@pytest.mark.without_pause
def test_an_empty_dir_in_memory(pods: PodNode, uid: str) -> None:
    """One file system for all containers, at /dev/shm as anywhere, of its own size and owner."""
    source = kubelet.PODS / uid / "volumes" / "kubernetes.io~empty-dir" / "memory"
    source.mkdir()
    mount("tmpfs", str(source), "tmpfs", 0, "size=8m,mode=2770,gid=7")
    try:
        pod = _uid_pod(pods, uid)
        program = source.parents[3] / "socket"
        subprocess.run(["gcc", "-static", "-o", program, SOCKET], check=True, timeout=60)
        more = _mount("/socket", program, readonly=True)
        places = ("/dev/shm", "/dev/shm", "/elsewhere")
        one, two, car = (
            pod.start("sleep", "1000", mounts=[_mount(place, source), more]) for place in places
        )
        for container, place in ((one, "/dev/shm"), (car, "/elsewhere")):
            told = pods.exec(
                container, "sh", "-c", f"stat -c '%a %g' {place}; stat -f -c '%T %b %S' {place}"
            )
            assert told.out.split()[:3] == ["2770", "7", "tmpfs"], told
            blocks, size = told.out.split()[3:]
            assert int(blocks) * int(size) == 8 << 20, told
        assert pods.exec(one, "sh", "-c", "echo x > /dev/shm/f").code == 0
        assert pods.exec(two, "cat", "/dev/shm/f").out == "x\n"
        assert pods.exec(car, "cat", "/elsewhere/f").out == "x\n"
        full = pods.exec(two, "dd", "if=/dev/zero", "of=/dev/shm/big", "bs=1M", "count=9")
        assert full.code != 0 and "No space left" in full.err, full
        held = "mkfifo /dev/shm/p; exec 3<>/dev/shm/p; /socket lock /dev/shm/l <&3"
        lock = pods.cri.call_later(
            "ExecSync", 30, container_id=one, cmd=["sh", "-c", held], timeout=15
        )
        until(lambda: pods.exec(two, "test", "-e", "/dev/shm/l").code == 0, 10, "the lock's file")
        until(
            lambda: "flock" in pods.exec(two, "/socket", "lock", "/dev/shm/l").err, 10, "the lock"
        )
        assert pods.exec(car, "sh", "-c", "echo go > /elsewhere/p").code == 0
        assert lock().exit_code == 0
        answer = pods.cri.call_later(
            "ExecSync", 30, container_id=one, cmd=["/socket", "listen", "/dev/shm/s"], timeout=15
        )
        until(
            lambda: pods.exec(car, "/socket", "connect", "/elsewhere/s").out == "hello\n",
            10,
            "an answer",
        )
        assert answer().exit_code == 0
        part = kubelet.PODS / uid / "volume-subpaths" / "memory" / "c" / "0"
        part.mkdir(parents=True)
        with pytest.raises(Refused, match="a subPath of volume 'memory'"):
            pod.start("true", mounts=[_mount("/part", part)])
        assert os.listdir(source) == []
        pod.remove()
    finally:
        umount2(str(source), MNT_DETACH)


def test_an_empty_dir_on_disk(pods: PodNode, uid: str) -> None:
    """The host's without an option; used in parts it is so with the option, too."""
    folder = kubelet.PODS / uid / "volumes" / "kubernetes.io~empty-dir"
    names = ("whole", "parts")
    for name in names:
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    part = kubelet.PODS / uid / "volume-subpaths" / "parts" / "c" / "0"
    part.mkdir(parents=True)
    options = pods.daemon.folder / "gvisor.toml"
    text = options.read_text()
    for kept in (False, True):
        options.write_text(text + ('share_volumes = "all"\n' if kept else ""))
        try:
            pod = _uid_pod(pods, uid)
        finally:
            options.write_text(text)
        mounts = [_mount(f"/{name}", folder / name) for name in names]
        one = pod.start("sleep", "1000", mounts=[mounts[0], _mount("/part", part)])
        two = pod.start("sleep", "1000", mounts=mounts)
        done = pods.exec(one, "sh", "-c", "echo x > /whole/f; echo x > /part/f")
        assert done.code == 0, done
        assert pods.exec(two, "sh", "-c", "cat /whole/f; echo y > /parts/f").out == "x\n"
        stored = [".gvisor.filestore." + pod.id] if kept else ["f"]
        assert os.listdir(folder / "whole") == stored
        assert os.listdir(part) == os.listdir(folder / "parts") == ["f"]
        pod.remove()
        for path in (folder / "whole", folder / "parts", part):
            for file in path.iterdir():
                file.unlink()


def test_sockets_in_the_hosts_volumes(pods: PodNode, uid: str) -> None:
    """By an option, of containers that mount nothing but their pod's own; with a path of the host's
    a container has neither that one's nor the volume's."""
    source = kubelet.PODS / uid / "volumes" / "kubernetes.io~empty-dir" / "disk"
    source.mkdir()
    source.chmod(0o777)
    host = source.parents[2] / "host"
    host.mkdir()
    program = host / "socket"
    subprocess.run(["gcc", "-static", "-o", program, SOCKET], check=True, timeout=60)
    options = pods.daemon.folder / "gvisor.toml"
    text = options.read_text()
    options.write_text(text + "volume_sockets = true\n")
    try:
        pod = _uid_pod(pods, uid)
        tool, volume = _mount("/socket", program, readonly=True), _mount("/v", source)
        one = pod.start("sleep", "1000", mounts=[tool, volume])
        two = pod.start("sleep", "1000", mounts=[tool, volume])
        mixed = pod.start("sleep", "1000", mounts=[tool, volume, _mount("/h", host)])
    finally:
        options.write_text(text)
    listens = ["/socket", "listen", "/v/s"]
    answer = pods.cri.call_later("ExecSync", 30, container_id=one, cmd=listens, timeout=15)
    until((source / "s").is_socket, 10, "the socket is the host's")
    refused = pods.exec(mixed, "/socket", "connect", "/v/s")
    assert refused.code != 0 and "refused" in refused.err, refused
    hello = pods.exec(two, "/socket", "connect", "/v/s")
    assert hello.out == "hello\n", hello
    assert answer().exit_code == 0
    pod.remove()


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


def test_the_hosts_devices_in_a_privileged_pod(pods: PodNode) -> None:
    """CRI gives such a container every device of the host's, besides the folder that has them."""
    context = {"security_context": {"privileged": True}}
    pod = pods.pod(linux=context)
    container = pod.start("sleep", "1000", mounts=[_mount("/dev", "/dev")], linux=context)
    script = "test -c /dev/null && echo x > /dev/null && test -d /dev/pts && echo ok"
    assert pods.exec(container, "sh", "-c", script).out == "ok\n"
