"""What a spec asks for beyond running a program: masks, filters, raw sockets, the host's network,
volumes that a pod shares.  Through a real containerd, on every generation of runsc."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.done import Done
from integration.harness.host import kubelet
from integration.harness.host.image import unpack_rootfs
from integration.harness.nodes.node import Node
from runtime.host.linux import MNT_DETACH, mount, umount2

pytestmark = pytest.mark.gvisor

NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    folder = tmp_path / "rootfs"
    folder.mkdir()
    unpack_rootfs(folder)
    return folder


def make_spec(node: Node, rootfs: Path, *command: str, without: str = "") -> dict[str, Any]:
    spec = node.api.spec(*command)
    spec["root"] = {"path": str(rootfs)}
    spec["linux"]["namespaces"] = [{"type": kind} for kind in NAMESPACES if kind != without]
    return spec


def run(node: Node, spec: dict[str, Any], *options: str, name: str = "") -> Done:
    """`ctr run` of a spec of our own."""
    name = name or node.new_id()
    spec["linux"]["cgroupsPath"] = f"/{node.daemon.namespace}/{name}"
    file = Path(spec["root"]["path"]).parent / f"{name}.json"
    file.write_text(json.dumps(spec))
    options = options or ("--rm", "--fifo-dir", str(node.daemon.fifos))
    return node.ctr("run", "--runtime", node.runtime, *options, "--config", str(file), name)


def start(node: Node, spec: dict[str, Any]) -> str:
    name = node.new_id()
    done = run(node, spec, "-d", "--null-io", name=name)
    assert done.code == 0, done
    return name


def bind(destination: str, source: object, *options: str) -> dict[str, Any]:
    options = options or ("rbind", "rw")
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": list(options),
    }


# -- masked and read-only paths ----------------------------------------------------------------


@pytest.mark.core
def test_masked_paths(node: Node, rootfs: Path) -> None:
    (rootfs / "srv/keys").mkdir(parents=True)
    (rootfs / "srv/keys/one").write_text("secret\n")
    script = """
        for file in /proc/version /etc/notice; do echo "$file:$(cat $file)"; done
        for folder in /sys/firmware /srv/keys; do echo "$folder:$(ls $folder)"; done
        for path in /proc/kcore /proc/acpi /sys/devices/virtual/powercap /srv/none; do
            test -e $path && echo "$path was made"
        done
        touch /srv/keys/two /sys/firmware/x || echo refused
        echo x > /etc/notice
        cat /etc/notice
    """
    spec = make_spec(node, rootfs, "sh", "-c", script)
    spec["linux"]["maskedPaths"] += ["/proc/version", "/etc/notice", "/srv/keys", "/srv/none"]
    done = run(node, spec)
    assert done.out.split() == [
        "/proc/version:",
        "/etc/notice:",
        "/sys/firmware:",
        "/srv/keys:",
        "refused",
    ], done
    # Like any null device it takes what is written, since runsc 2026, or refuses it.
    assert (rootfs / "etc/notice").read_text() == "made for the tests\n"


@pytest.mark.core
def test_mount_points_that_cannot_be_made(node: Node, rootfs: Path, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    mount(str(rootfs), str(view), "", MS_BIND, "")
    try:
        mount("", str(view), "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")
        (tmp_path / "log").write_text("a volume\n")
        (tmp_path / "deep").mkdir()
        script = "cat /proc/version /etc/notice /dev/log; ls -d /dev/a/b; cat /proc/uptime >&2"
        spec = make_spec(node, view, "sh", "-c", script)
        spec["root"]["readonly"] = True
        spec["linux"]["maskedPaths"] += ["/proc/version", "/etc/notice"]
        spec["mounts"] += [bind("/dev/log", tmp_path / "log"), bind("/dev/a/b", tmp_path / "deep")]
        done = run(node, spec)
        assert (done.out, done.code) == ("a volume\n/dev/a/b\n", 0), done
        assert len(done.err.split()) == 2, done
        assert sorted(os.listdir(rootfs / "proc") + os.listdir(rootfs / "dev")) == []
    finally:
        umount2(str(view), MNT_DETACH)


@pytest.mark.core
def test_readonly_paths(node: Node, rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "srv/deep").mkdir(parents=True)
    (rootfs / "srv/deep/file").write_text("there\n")
    (tmp_path / "volume").mkdir()
    (tmp_path / "inside").mkdir()
    script = """
        cat /srv/deep/file
        for path in /srv/new /srv/deep/file /etc/notice /mnt/new; do
            echo x > $path && echo "$path was written"
        done
        echo x > /srv/mounted/new && echo x > /etc/new && echo fine
    """
    spec = make_spec(node, rootfs, "sh", "-c", script)
    spec["linux"]["readonlyPaths"] += ["/srv", "/etc/notice", "/mnt", "/none"]
    spec["mounts"] += [bind("/mnt", tmp_path / "volume"), bind("/srv/mounted", tmp_path / "inside")]
    done = run(node, spec)
    assert done.out.split() == ["there", "fine"], done
    assert done.err.count("Read-only file system") == 4, done
    assert os.listdir(tmp_path / "volume") == []
    assert os.listdir(tmp_path / "inside") == ["new"]


@pytest.mark.core
@pytest.mark.parametrize(("option", "written"), [("ro", ["/mnt/inner/x"]), ("rro", [])])
def test_read_only_mounts(
    node: Node, rootfs: Path, tmp_path: Path, option: str, written: list[str]
) -> None:
    """What is mounted inside is read-only if so asked."""
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    mount(str(tmp_path / "other"), str(tmp_path / "outer/inner"), "", MS_BIND, "")
    try:
        script = "for path in /mnt/x /mnt/inner/x; do echo x > $path && echo $path; done; echo end"
        spec = make_spec(node, rootfs, "sh", "-c", script)
        spec["mounts"].append(bind("/mnt", tmp_path / "outer", "rbind", option))
        done = run(node, spec)
        assert done.out.split() == [*written, "end"], done
        assert done.err.count("Read-only file system") == 2 - len(written), done
        assert len(os.listdir(tmp_path / "other")) == len(written)
    finally:
        umount2(str(tmp_path / "outer/inner"), MNT_DETACH)


@pytest.mark.core
def test_id_mapped_mount(node: Node, rootfs: Path, tmp_path: Path) -> None:
    """Owners of files are others in the mount, and those that it makes are mapped back."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "file").touch()
    os.chown(folder / "file", 5, 6)
    script = "stat -c '%u %g' /mnt/file; touch /mnt/new; chown 100007:100008 /mnt/new"
    spec = make_spec(node, rootfs, "sh", "-c", script)
    maps = [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 100_001, "size": 65_535},
    ]
    spec["mounts"].append({**bind("/mnt", folder), "uidMappings": maps, "gidMappings": maps})
    done = run(node, spec)
    assert done.out == "100005 100006\n", done
    assert ((folder / "new").stat().st_uid, (folder / "new").stat().st_gid) == (7, 8)


def test_id_mapped_mount_of_what_can_not_be_mapped(node: Node, rootfs: Path) -> None:
    spec = make_spec(node, rootfs, "true")
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    spec["mounts"].append({**bind("/mnt", "/proc"), "uidMappings": maps, "gidMappings": maps})
    done = run(node, spec)
    assert done.code != 0 and "mount /proc on /mnt with id maps" in done.err, done


# -- filters, capabilities, networks -----------------------------------------------------------


@pytest.mark.core
def test_seccomp_profile(node: Node, rootfs: Path) -> None:
    script = "touch /tmp/file && echo touched; mkdir /tmp/a; chmod 700 /tmp; true"
    spec = make_spec(node, rootfs, "sh", "-c", script)
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }
    done = run(node, spec)
    assert done.out == "touched\n", done
    assert "can't create directory '/tmp/a': Operation not permitted" in done.err
    assert "/tmp: Operation not permitted" in done.err


@pytest.mark.core
def test_default_seccomp_profile(node: Node) -> None:
    done = node.run("sh", "-c", "seq 3 | sort -r | head -n1; id -u", options=["--seccomp"])
    assert done.out == "3\n0\n", done


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "no seccomp agents"),
        ({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "no seccomp agents"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "is not a flag"),
        ({"architectures": ["SCMP_ARCH_BOGUS"]}, "is not an architecture"),
    ],
)
def test_seccomp_profile_that_can_not_be_carried_out(
    node: Node, rootfs: Path, profile: dict[str, Any], why: str
) -> None:
    spec = make_spec(node, rootfs, "true")
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", **profile}
    done = run(node, spec)
    assert done.code != 0 and why in done.err, done


def test_flags_of_a_seccomp_profile(node: Node, rootfs: Path) -> None:
    """What they ask for is so anyway, or the log says that it isn't."""
    spec = make_spec(node, rootfs, "mkdir", "/tmp/a")
    flags = [f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "SPEC_ALLOW", "LOG")]
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": flags,
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    }
    done = run(node, spec)
    assert "Operation not permitted" in done.err, done
    log = node.daemon.log.read_text(errors="replace")
    (told,) = {
        line for line in log.splitlines() if "spec.partly_honoured" in line and "FLAG" in line
    }
    assert "SECCOMP_FILTER_FLAG_LOG" in told
    assert "TSYNC" not in told and "SPEC_ALLOW" not in told


@pytest.mark.core
@pytest.mark.parametrize("asked", [True, False])
def test_raw_sockets(node: Node, rootfs: Path, asked: bool) -> None:
    spec = make_spec(node, rootfs, "ping", "-c1", "-W2", "127.0.0.1")
    for names in spec["process"]["capabilities"].values():
        names[:] = ["CAP_KILL", "CAP_NET_RAW"] if asked else ["CAP_KILL"]
    done = run(node, spec)
    assert (done.code == 0, "1 packets received" in done.out) == (asked, asked), done


class Listener:
    """A server on the host's loopback, good for one connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(20)
        self.port = self._server.getsockname()[1]
        self.seen = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            self.seen = connection.recv(100)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._server.close()


@pytest.mark.core
def test_host_network(node: Node, rootfs: Path) -> None:
    with Listener() as host:
        command = ("sh", "-c", f"echo hello | nc -w 2 127.0.0.1 {host.port}")
        done = run(node, make_spec(node, rootfs, *command, without="network"))
    assert host.seen == b"hello\n", done


@pytest.mark.core
def test_a_network_of_its_own(node: Node, rootfs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run(node, make_spec(node, rootfs, "nc", "-w", "2", "127.0.0.1", str(port)))
    assert done.code != 0 and "refused" in done.err, done


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"namespaces": [{"type": kind} for kind in NAMESPACES if kind != "ipc"]}, "IPC namespace"),
        ({"sysctl": {"kernel.shm_rmid_forced": "1"}}, "kernel.shm_rmid_forced"),
    ],
)
def test_refused(node: Node, rootfs: Path, change: dict[str, Any], why: str) -> None:
    spec = make_spec(node, rootfs, "true")
    spec["linux"] |= change
    done = run(node, spec)
    assert done.code != 0 and why in done.err, done


# -- volumes of a pod --------------------------------------------------------------------------


@pytest.fixture
def volumes() -> Iterator[Path]:
    """The volumes of a pod, where the kubelet has them."""
    with kubelet.pod_folder(f"test-{uuid.uuid4()}") as folder:
        yield folder


class Pod:
    """A sandbox, its members, and their volumes."""

    def __init__(
        self,
        node: Node,
        tmp_path: Path,
        annotations: dict[str, str] | None = None,
        mounts: Sequence[dict[str, Any]] = (),
        without: str = "",
    ) -> None:
        self.node, self.tmp_path, self.annotations = node, tmp_path, annotations or {}
        self.without = without
        self.id = self.add("sandbox", mounts)

    def add(self, kind: str, mounts: Sequence[dict[str, Any]] = (), caps: str = "") -> str:
        rootfs = self.tmp_path / f"{kind}{len(self.node.ids)}" / "rootfs"
        rootfs.mkdir(parents=True)
        unpack_rootfs(rootfs)
        spec = make_spec(self.node, rootfs, "sleep", "1000", without=self.without)
        spec["mounts"] += mounts
        for names in spec["process"]["capabilities"].values():
            names[:] = ["CAP_KILL", *caps.split()]
        spec["annotations"] = {**self.annotations, "io.kubernetes.cri.container-type": kind}
        if kind == "sandbox":
            return start(self.node, spec)
        spec["annotations"]["io.kubernetes.cri.sandbox-id"] = self.id
        return start(self.node, spec)

    def sh(self, container: str, script: str) -> str:
        done = self.node.exec(container, "sh", "-c", script)
        assert done.code == 0, done
        return done.out


def annotate(folder: Path, **types: str) -> dict[str, str]:
    uid = folder.parents[1].name
    annotations = {"io.kubernetes.cri.sandbox-log-directory": f"/var/log/pods/ns_pod_{uid}"}
    for name, kind in types.items():
        (folder / name).mkdir()
        annotations[f"dev.gvisor.spec.mount.{name}.type"] = kind
        annotations[f"dev.gvisor.spec.mount.{name}.share"] = "pod"
    return annotations


@pytest.mark.core
@pytest.mark.parametrize("medium", ["tmpfs", "bind"])
def test_empty_dir(node: Node, tmp_path: Path, volumes: Path, medium: str) -> None:
    """Two containers share it, one of them read-only; a new container finds it as it was."""
    pod = Pod(node, tmp_path, annotate(volumes, cache=medium))
    one = pod.add("container", [bind("/cache", volumes / "cache")])
    two = pod.add("container", [bind("/mnt", volumes / "cache", "rbind", "ro")])
    pod.sh(one, "echo shared > /cache/file")
    assert pod.sh(two, "cat /mnt/file; touch /mnt/x 2>/dev/null || echo refused") == (
        "shared\nrefused\n"
    )
    node.kill(one, "SIGKILL")
    node.wait_stopped(one)
    node.delete(one)
    three = pod.add("container", [bind("/cache", volumes / "cache")])
    assert pod.sh(three, "cat /cache/file; ls -a /cache") == "shared\n.\n..\nfile\n"
    kind = pod.sh(three, "grep ' /cache ' /proc/mounts").split()[2]
    on_host = sorted(os.listdir(volumes / "cache"))
    if medium == "tmpfs":
        assert (kind, on_host) == ("tmpfs", [])
    elif node.daemon.generation < "2023":
        assert on_host == ["file"]  # an old one has no volumes on disk but the host's own
    else:
        assert (kind, on_host) == ("tmpfs", [f".gvisor.filestore.{pod.id}"])
    for each in (two, three, pod.id):
        node.kill(each, "SIGKILL")
        node.wait_stopped(each)
        node.delete(each)
    assert not list((volumes / "cache").glob(".gvisor*"))


@pytest.mark.core
def test_empty_dir_shared_with_the_host(node: Node, tmp_path: Path, volumes: Path) -> None:
    annotations = annotate(volumes, forced="tmpfs", full="tmpfs")
    annotations["dev.gvisor.empty-dir.forced.force-shared"] = "true"
    (volumes / "full" / "file").write_text("host\n")
    pod = Pod(node, tmp_path, annotations)
    mounts = [bind(f"/{name}", volumes / name) for name in ("forced", "full")]
    one = pod.add("container", mounts)
    assert pod.sh(one, "cat /full/file; echo x > /forced/file; echo x > /full/new") == "host\n"
    assert (volumes / "forced/file").read_text() == "x\n"
    assert (volumes / "full/new").read_text() == "x\n"


@pytest.mark.core
def test_shared_memory(node: Node, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    pod = Pod(node, tmp_path, mounts=[bind("/dev/shm", shm)])
    one, two = (pod.add("container", [bind("/dev/shm", shm)]) for _ in range(2))
    pod.sh(one, "echo shared > /dev/shm/file")
    assert pod.sh(two, "cat /dev/shm/file; grep -c ' /dev/shm tmpfs' /proc/mounts") == "shared\n1\n"
    assert os.listdir(shm) == []


# -- other things of a pod ---------------------------------------------------------------------


@pytest.mark.core
def test_raw_sockets_are_each_containers_own(node: Node, tmp_path: Path) -> None:
    pod = Pod(node, tmp_path)
    asked, other = pod.add("container", caps="CAP_NET_RAW"), pod.add("container")
    ping = "ping -c1 -W2 127.0.0.1 2>&1 | tail -n2"
    assert "1 packets received" in pod.sh(asked, ping)
    assert "permission denied" in pod.sh(other, ping)


@pytest.mark.core
def test_pod_on_the_hosts_network(node: Node, tmp_path: Path) -> None:
    pod = Pod(node, tmp_path, without="network")
    one = pod.add("container")
    with Listener() as host:
        pod.sh(one, f"echo hello | nc -w 2 127.0.0.1 {host.port}")
    assert host.seen == b"hello\n"
