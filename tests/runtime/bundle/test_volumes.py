from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.bundle import volumes
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
        self.used: dict[str, str] = {}
        self.empty_dirs = folder / UID / "volumes" / "kubernetes.io~empty-dir"
        (self.empty_dirs / "cache").mkdir(parents=True)
        (folder / UID / "volumes" / "kubernetes.io~secret" / "keys").mkdir(parents=True)

    def source(self, name: str = "cache") -> str:
        return str(self.empty_dirs / name)

    def sandbox(
        self, year: int = 2024, mounts: Any = (), share: str = "memory", **annotations: str
    ) -> Spec:
        kind = {"io.kubernetes.cri.container-type": "sandbox"}
        spec = make_spec(mounts, {**LOGS, **kind, **annotations})
        return self.without_kind(
            prepare(spec, GENERATIONS[year].knows_volume_options, None, str(self.pods), share=share)
        )

    @staticmethod
    def without_kind(spec: Spec) -> Spec:
        left = {k: v for k, v in spec.annotations.items() if not k.endswith("container-type")}
        return spec.replace(annotations=left, raw={**spec.raw, "annotations": left})

    def member(self, sandbox: Spec, mounts: Any = (), **annotations: str) -> Spec:
        spec = make_spec(mounts, annotations)
        hints, used = sandbox.annotations, self.used
        return prepare(
            spec, GENERATIONS[2024].knows_volume_options, hints, str(self.pods), used=used
        )


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
    os.chmod(pod.source(), 0o2770)
    annotations = {key("cache", "type"): medium, key("cache", "share"): "container"}
    sandbox = pod.sandbox(**annotations)
    assert hints(sandbox) == {
        "source": pod.source(),
        "type": "tmpfs",
        "share": "container",
        "options": f"rw,mode=2770,uid={os.geteuid()},gid={os.getegid()}",
    }
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
    spec = prepare(
        make_spec((), given), GENERATIONS[2024].knows_volume_options, None, str(pod.pods)
    )
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


# -- what nobody annotated ---------------------------------------------------------------------


@pytest.fixture
def in_memory(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> Pod:
    """The pod, its volume a tmpfs of the host's."""
    points = frozenset((os.path.realpath(pod.source()),))
    monkeypatch.setattr("runtime.bundle.volumes.tmpfs_points", lambda: points)
    os.chmod(pod.source(), 0o777)
    return pod


def test_a_volume_in_memory_is_kept_by_the_sandbox(in_memory: Pod) -> None:
    sandbox = in_memory.sandbox()
    found = hints(sandbox)
    size = os.statvfs(in_memory.source())
    assert found.pop("options").split(",") == [
        "rw", "mode=777", f"uid={os.geteuid()}", f"gid={os.getegid()}",
        f"size={size.f_blocks * size.f_frsize}",
    ]  # fmt: skip
    assert found == {"source": in_memory.source(), "type": "tmpfs", "share": "pod"}
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    for mounts in ([shm, bind("/dev/shm", in_memory.source())], [bind("/x", in_memory.source())]):
        member = in_memory.member(sandbox, mounts)
        assert [(m.type, m.source) for m in member.mounts] == [("tmpfs", in_memory.source())]


@pytest.mark.parametrize(("share", "kept"), [("memory", 0), ("all", 1), ("none", 0)])
def test_a_volume_on_disk_by_option(pod: Pod, share: str, kept: int) -> None:
    sandbox = pod.sandbox(share=share)
    assert len([k for k in sandbox.annotations if k == key("cache", "source")]) == kept
    assert pod.member(sandbox, [bind("/c", pod.source())]).mounts[0].is_bind


@pytest.mark.parametrize(
    ("year", "share", "more"),
    [
        (2024, "none", {}),
        (2022, "memory", {}),
        (2024, "memory", {"dev.gvisor.empty-dir.cache.force-shared": "true"}),
        (2024, "memory", {key("cache", "share"): "pod"}),
    ],
)
def test_a_volume_in_memory_that_stays_the_hosts(
    in_memory: Pod, year: int, share: str, more: dict[str, str]
) -> None:
    more["dev.gvisor.shim.medium.cache"] = "memory"  # nobody else's to say
    sandbox = in_memory.sandbox(year, share=share, **more)
    del more["dev.gvisor.shim.medium.cache"]
    assert sandbox.annotations == {**LOGS, **more}
    assert in_memory.member(sandbox, [bind("/c", in_memory.source())]).mounts[0].is_bind


def test_a_sub_path_is_never_of_other_files(in_memory: Pod) -> None:
    sandbox = in_memory.sandbox()
    part = bind("/part", f"{in_memory.pods}/{UID}/volume-subpaths/cache/main/0")
    whole = bind("/whole", in_memory.source())
    in_memory.member(sandbox, [whole])
    with pytest.raises(
        Unsupported, match=r"mount /part: a subPath of volume 'cache', .*force-shared"
    ):
        in_memory.member(sandbox, [part])
    # Used in parts from the first on, it is the host's for all.
    in_memory.used.clear()
    assert in_memory.member(sandbox, [part]).mounts[0].source.endswith("/0")
    mount = in_memory.member(sandbox, [whole]).mounts[0]
    assert (mount.is_bind, mount.source) == (True, in_memory.source() + "/.")


def test_the_socket_of_a_bucket(pod: Pod) -> None:
    folder = pod.empty_dirs / "gke-gcsfuse-tmp"
    folder.mkdir()
    (folder / "socket").touch()
    sandbox = pod.sandbox()
    assert sandbox.annotations["dev.gvisor.flag.host-uds"] == "open"
    member = pod.member(sandbox, [bind("/tmp", str(folder))])
    assert member.annotations["dev.gvisor.flag.host-uds"] == "open"
    assert "dev.gvisor.flag.host-uds" not in pod.member(sandbox, []).annotations


def test_what_is_the_pods_own(pod: Pod) -> None:
    """All that a container mounts, but for files; of nobody who isn't a pod of the kubelet's."""
    home = pod.empty_dirs.parents[1]
    part = home / "volume-subpaths/cache/c/0"
    claim = home / "volumes/kubernetes.io~csi/claim"
    claimed = home / "volume-subpaths/claim/c/0"
    for folder in (part, claim, claimed):
        folder.mkdir(parents=True)
    (home / "etc-hosts").touch()
    keys = home / "volumes/kubernetes.io~secret/keys"
    own = [pod.source(), part, keys, home / "etc-hosts", __file__]
    others = [claim, claimed, home, home / "volumes", "/", pod.pods, f"{pod.source()}/../../../.."]
    others += [f"{pod.source('gone')}", home / "volumes/kubernetes.io~empty-dir"]

    def are_own(*sources: Any, **annotations: str) -> bool:
        mounts = [bind(f"/m{n}", str(source)) for n, source in enumerate(sources)]
        return volumes.are_own(make_spec(mounts, {}), annotations or LOGS, str(pod.pods))

    assert are_own(*own)
    assert are_own()
    for other in others:
        assert not are_own(*own, other), other
    assert not are_own(*own, nobody="")


def test_a_users_volume_at_dev_shm_is_the_users(pod: Pod) -> None:
    """Of a container by itself: only what its caller mounts for shared memory is replaced."""
    spec = make_spec([bind("/dev/shm", pod.source())], {})
    assert prepare(spec, GENERATIONS[2024].knows_volume_options, None, str(pod.pods)) is spec
