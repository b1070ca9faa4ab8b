from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.bundle.spec import Spec, parse_spec
from runtime.bundle.volumes import prepare
from tests.fakes.generations import GENERATIONS

UID = "a1b2"
LOGS = {"io.kubernetes.cri.sandbox-log-directory": f"/var/log/pods/ns_web_{UID}"}


def key(name: str, field: str) -> str:
    return f"dev.gvisor.spec.mount.{name}.{field}"


class Pod:
    """A pod's directories as the kubelet lays them out, and specs for it."""

    def __init__(self, folder: Path) -> None:
        self.pods = folder
        self.empty_dirs = folder / UID / "volumes" / "kubernetes.io~empty-dir"
        (self.empty_dirs / "cache").mkdir(parents=True)
        (folder / UID / "volumes" / "kubernetes.io~secret" / "keys").mkdir(parents=True)

    def source(self, name: str = "cache") -> str:
        return str(self.empty_dirs / name)

    def sandbox(self, year: int = 2024, mounts: Any = (), **annotations: str) -> Spec:
        spec = make_spec(mounts, {**LOGS, **annotations})
        return prepare(spec, GENERATIONS[year].mount_confs, None, str(self.pods))

    def member(self, sandbox: Spec, mounts: Any = (), **annotations: str) -> Spec:
        spec = make_spec(mounts, annotations)
        return prepare(spec, GENERATIONS[2024].mount_confs, sandbox.annotations, str(self.pods))


def make_spec(mounts: Any, annotations: dict[str, str]) -> Spec:
    value = {
        "process": {"args": ["true"]},
        "root": {"path": "/root"},
        "mounts": list(mounts),
        "annotations": annotations,
    }
    return parse_spec(json.dumps(value).encode(), "/bundle")


def bind(destination: str, source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", *options],
    }


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def hints(spec: Spec, name: str = "cache") -> dict[str, str]:
    prefix = key(name, "")
    assert spec.raw["annotations"] == spec.annotations
    return {k[len(prefix) :]: v for k, v in spec.annotations.items() if k.startswith(prefix)}


def test_without_annotations_nothing_changes(pod: Pod) -> None:
    spec = pod.sandbox(mounts=[bind("/cache", pod.source())])
    assert spec.annotations == LOGS
    assert pod.member(spec, [bind("/cache", pod.source())]).mounts == spec.mounts


@pytest.mark.parametrize("medium", ["tmpfs", "bind"])
def test_empty_dir(pod: Pod, medium: str) -> None:
    annotations = {key("cache", "type"): medium, key("cache", "share"): "container"}
    sandbox = pod.sandbox(**annotations)
    assert hints(sandbox) == {"source": pod.source(), "type": "tmpfs", "share": "container"}
    member = pod.member(sandbox, [bind("/cache", pod.source(), "ro")], **annotations)
    if medium == "tmpfs":
        assert (member.mounts[0].type, member.mounts[0].options) == ("tmpfs", ("ro",))
        assert member.raw["mounts"][0]["type"] == "tmpfs"
    else:  # on disk: runsc takes a bind mount of such a volume for a file in it
        assert member.mounts[0].is_bind


def test_older_releases_have_no_volumes_on_disk(pod: Pod) -> None:
    assert hints(pod.sandbox(2022, **{key("cache", "type"): "bind"}))["type"] == "bind"
    assert hints(pod.sandbox(2022, **{key("cache", "type"): "tmpfs"}))["type"] == "tmpfs"


def test_share_is_needed(pod: Pod) -> None:
    assert hints(pod.sandbox(**{key("cache", "type"): "bind"}))["share"] == "pod"


def test_forced_to_be_shared(pod: Pod) -> None:
    annotations = {
        key("cache", "type"): "tmpfs",
        key("cache", "share"): "pod",
        "dev.gvisor.empty-dir.cache.force-shared": "true",
    }
    sandbox = pod.sandbox(**annotations)
    assert hints(sandbox) == {"source": pod.source(), "type": "bind", "share": "shared"}
    assert pod.member(sandbox, [bind("/c", pod.source())], **annotations).mounts[0].is_bind


def test_with_files_of_the_hosts(pod: Pod) -> None:
    annotations = {key("cache", "type"): "tmpfs", key("cache", "share"): "pod"}
    (pod.empty_dirs / "cache" / ".gvisor.filestore.old").touch()
    assert hints(pod.sandbox(**annotations))["type"] == "tmpfs"
    (pod.empty_dirs / "cache" / "driver.sock").touch()
    sandbox = pod.sandbox(**annotations)
    assert (hints(sandbox)["type"], hints(sandbox)["share"]) == ("bind", "shared")
    # What a container gets was decided with the sandbox.
    (pod.empty_dirs / "cache" / "driver.sock").unlink()
    assert pod.member(sandbox, [bind("/c", pod.source())], **annotations).mounts[0].is_bind


def test_other_volumes_keep_their_type(pod: Pod) -> None:
    sandbox = pod.sandbox(**{key("keys", "type"): "bind", key("keys", "share"): "shared"})
    assert hints(sandbox, "keys")["type"] == "bind"
    assert hints(sandbox, "keys")["source"].endswith("/kubernetes.io~secret/keys")


def test_volume_that_is_not_there(pod: Pod) -> None:
    with pytest.raises(InvalidRequest, match=r"dev\.gvisor\.spec\.mount\.nope\.type"):
        pod.sandbox(**{key("nope", "type"): "bind"})
    (pod.pods / UID / "volumes" / "kubernetes.io~csi" / "cache").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="no volume, or several"):
        pod.sandbox(**{key("cache", "type"): "bind"})


def test_names_are_not_paths(pod: Pod) -> None:
    for name in ("..", "../../x", "*"):
        annotations = {key(name, "type"): "tmpfs"}
        if name == "*":
            with pytest.raises(InvalidRequest):
                pod.sandbox(**annotations)
        else:
            assert pod.sandbox(**annotations).annotations == {**LOGS, **annotations}


def test_sources_of_ones_own(pod: Pod) -> None:
    given = {key("x", "type"): "tmpfs", key("x", "share"): "pod", key("x", "source"): "/data"}
    spec = prepare(make_spec((), given), GENERATIONS[2024].mount_confs, None, str(pod.pods))
    assert spec.annotations == given


def test_shared_memory(pod: Pod) -> None:
    shm = bind("/dev/shm", "/run/pod/shm", "ro")
    private = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    sandbox = pod.sandbox(mounts=[shm])
    assert hints(sandbox, "gvisorinternaldevshm") == {
        "source": "/run/pod/shm",
        "type": "tmpfs",
        "share": "pod",
        "options": "rw",
    }
    for spec in (sandbox, pod.member(sandbox, [private, shm])):
        assert [(m.type, m.source, m.options) for m in spec.mounts] == [
            ("tmpfs", "/run/pod/shm", ("ro",))
        ]
    assert pod.sandbox(mounts=[private]).annotations == LOGS
