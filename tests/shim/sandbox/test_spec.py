"""What a pod without a pause container is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protos.pod_pb2 import PodSandboxConfig
from runtime.base.errors import InvalidRequest
from runtime.bundle.spec import read_spec
from shim.sandbox import spec as sandbox_spec
from shim.sandbox.spec import cgroups_path, complete_member, resolv_conf, spec_of, write


def _config(**linux: Any) -> PodSandboxConfig:
    return PodSandboxConfig(
        metadata={"name": "pod", "uid": "u1", "namespace": "ns"},
        hostname="host-of-pod",
        log_directory="/logs",
        annotations={
            "dev.gvisor.flag.debug": "true",
            "other": "x",
            "io.kubernetes.cri.container-type": "container",
        },
        linux={"cgroup_parent": "/kubepods/pod1", **linux},
    )


def _spec(config: PodSandboxConfig, netns: str = "/run/netns/a", allowed: Any = ()) -> Any:
    return spec_of(config, "s1", "/bundle", netns, "/inside", allowed)


def test_a_spec_that_can_be_read() -> None:
    config = _config(
        sysctls={"net.ipv4.ip_forward": "1"},
        resources={"cpu_period": 100000, "cpu_quota": 50000, "memory_limit_in_bytes": 1 << 28},
        overhead={"memory_limit_in_bytes": 1 << 26, "cpu_quota": 1000},
    )
    spec = read_spec(_spec(config), "/bundle")
    assert (spec.container_type, spec.sandbox_id) == ("sandbox", "s1")
    assert spec.netns_path == "/run/netns/a"
    assert set(spec.namespaces) == {"mount", "pid", "ipc", "uts", "network"}
    assert (spec.root_path, spec.root_readonly) == ("/inside", True)
    assert spec.process.args == ("/forward",) and spec.process.no_new_privileges
    assert spec.hostname == "host-of-pod"
    assert spec.cgroups_path == "/kubepods/pod1/s1"
    assert spec.raw["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1"}
    wanted = {
        "container-type": "sandbox",
        "sandbox-id": "s1",
        "sandbox-name": "pod",
        "sandbox-namespace": "ns",
        "sandbox-uid": "u1",
        "sandbox-log-directory": "/logs",
        "sandbox-cpu-period": "100000",
        "sandbox-cpu-quota": "51000",
        "sandbox-memory": str((1 << 28) + (1 << 26)),
    }
    # None of the pod's author's own, and above all none that says what the pod is.
    assert spec.annotations == {f"io.kubernetes.cri.{k}": v for k, v in wanted.items()}


def test_the_operators_list_of_annotations() -> None:
    found = _spec(_config(), allowed=("dev.gvisor.*", "io.*"))["annotations"]
    assert found["dev.gvisor.flag.debug"] == "true" and "other" not in found
    assert found["io.kubernetes.cri.container-type"] == "sandbox"


def test_the_hosts_namespaces() -> None:
    modes = {"network": 2, "pid": 2, "ipc": 2}
    config = _config(security_context={"namespace_options": modes})
    assert _spec(config, "")["linux"]["namespaces"] == [{"type": "mount"}]


def test_a_user_namespace() -> None:
    ids = [{"host_id": 1000000, "container_id": 0, "length": 65536}]
    modes: dict[str, Any] = {"userns_options": {"mode": 0, "uids": ids, "gids": ids}}
    spec = read_spec(_spec(_config(security_context={"namespace_options": modes})), "/bundle")
    assert "user" in spec.namespaces and not spec.namespaces["user"]
    for maps in (spec.uid_mappings, spec.gid_mappings):
        assert [(m.container_id, m.host_id, m.size) for m in maps] == [(0, 1000000, 65536)]
    modes["userns_options"] = {"mode": 2, "uids": ids, "gids": ids}
    spec = read_spec(_spec(_config(security_context={"namespace_options": modes})), "/bundle")
    assert "user" not in spec.namespaces and not spec.uid_mappings
    modes["userns_options"] = {"mode": 0, "uids": ids}
    with pytest.raises(InvalidRequest, match="without mappings"):
        _spec(_config(security_context={"namespace_options": modes}))


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/burstable/pod1/", "/kubepods/burstable/pod1/s1"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:s1"),
    ],
)
def test_cgroups(parent: str, path: str) -> None:
    assert cgroups_path(parent, "s1") == path


def test_dns() -> None:
    assert resolv_conf(PodSandboxConfig()) is None
    dns = {"servers": ["192.0.2.1", "192.0.2.2"], "searches": ["a", "b"], "options": ["ndots:5"]}
    assert resolv_conf(PodSandboxConfig(dns_config=dns)) == (
        b"search a b\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5\n"
    )
    with pytest.raises(InvalidRequest, match="line feed"):
        resolv_conf(PodSandboxConfig(dns_config={"servers": ["x\nnameserver y"]}))


def _member(path: Path, mounts: object) -> Any:
    (path / "config.json").write_text(json.dumps({"mounts": mounts, "process": {}}))
    complete_member(str(path), "/pod")
    return json.loads((path / "config.json").read_text())["mounts"]


def test_a_members_mounts(tmp_path: Path) -> None:
    """What the pod's author mounts stays, a default that is the container's own doesn't."""
    hosts = {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"}
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    found = {each["destination"]: each["source"] for each in _member(tmp_path, [hosts, shm])}
    assert found == {
        "/etc/hosts": "/kubelet/hosts",
        "/etc/hostname": "/pod/hostname",
        "/etc/resolv.conf": "/pod/resolv.conf",
        "/dev/shm": "/pod/shm",
    }
    for each in _member(tmp_path, []):
        assert each["options"] == ["rbind", "rprivate", "rw"] and "uidMappings" not in each
    own = {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}
    assert {**own} in _member(tmp_path, [own])
    assert _member(tmp_path, "no list") == "no list"
    (tmp_path / "config.json").unlink()
    complete_member(str(tmp_path), "/pod")


def test_mounts_are_as_the_member_is(tmp_path: Path) -> None:
    """Read-only where its root is, but for what all share, and with the ids of its namespace."""
    maps = {
        key: [{"containerID": 0, "hostID": 9, "size": 1}] for key in ("uidMappings", "gidMappings")
    }
    spec = {"root": {"path": "r", "readonly": True}, "linux": maps}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    complete_member(str(tmp_path), "/pod")
    for each in json.loads((tmp_path / "config.json").read_text())["mounts"]:
        assert each["options"][-1] == ("rw" if each["destination"] == "/dev/shm" else "ro")
        assert {key: each[key] for key in maps} == maps
    for odd in ({"root": [], "linux": 5}, {"root": {"readonly": "x"}, "linux": None}):
        (tmp_path / "config.json").write_text(json.dumps(odd))
        complete_member(str(tmp_path), "/pod")
        mounts = json.loads((tmp_path / "config.json").read_text())["mounts"]
        assert {each["options"][-1] for each in mounts} == {"rw"}


def test_the_files_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_spec, "_host_file", lambda path: path.encode())
    write(str(tmp_path), {"a": 1}, _config())
    assert (tmp_path / "hostname").read_text() == "host-of-pod\n"
    assert (tmp_path / "resolv.conf").read_text() == "/etc/resolv.conf"
    assert (tmp_path / "hosts").read_text() == "/etc/hosts"
    assert (tmp_path / "shm").stat().st_mode & 0o7777 == 0o1777
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


def test_a_member_of_a_sandbox_that_was_exchanged(tmp_path: Path) -> None:
    """CRI names the pod's namespaces by the pid that it was told."""
    paths = {"pid": "/proc/41/ns/pid", "user": "/proc/41/ns/user", "ipc": "/proc/411/ns/ipc"}
    namespaces = [{"type": kind, "path": path} for kind, path in paths.items()]
    namespaces += [{"type": "uts"}, {"type": "network", "path": "/run/netns/41"}]
    spec = {"mounts": [], "linux": {"namespaces": namespaces}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    complete_member(str(tmp_path), "/pod", {41: 52})
    found = json.loads((tmp_path / "config.json").read_text())["linux"]["namespaces"]
    assert [each.get("path") for each in found] == [
        "/proc/52/ns/pid", "/proc/52/ns/user", "/proc/411/ns/ipc", None, "/run/netns/41",
    ]  # fmt: skip
