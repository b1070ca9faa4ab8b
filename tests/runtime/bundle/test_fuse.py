"""Which FUSE connections are a pod's alone, and when they are ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import fuse
from runtime.bundle.fuse import own_connections, pod_directories, read_specs
from runtime.host import mountinfo
from runtime.host.mountinfo import Mounted

KUBELET = "/var/lib/kubelet"
VOLUME = f"{KUBELET}/pods/u-1/volumes/kubernetes.io~csi/v/mount"
OTHERS = f"{KUBELET}/pods/u-2/volumes/kubernetes.io~csi/v/mount"
STAGED = f"{KUBELET}/plugins/kubernetes.io/csi/driver/v/globalmount"


def spec(*sources: str, **annotations: str) -> dict[str, Any]:
    names = {name.replace("_", "-"): value for name, value in annotations.items()}
    found = {f"io.kubernetes.cri.{name}": value for name, value in names.items()}
    return {"annotations": found, "mounts": [{"source": source} for source in sources]}


def mounted(*places: str, device: str = "0:41", kind: str = "fuse.gcsfuse") -> list[Mounted]:
    return [Mounted(device=device, place=place, kind=kind) for place in places]


@pytest.mark.parametrize(
    ("specs", "found"),
    [
        ([spec(VOLUME, sandbox_uid="u-1")], {f"{KUBELET}/pods/u-1"}),
        ([spec(sandbox_uid="u-1"), spec(VOLUME)], {f"{KUBELET}/pods/u-1"}),
        ([spec(VOLUME, sandbox_log_directory="/var/log/pods/ns_p_u-1")], {f"{KUBELET}/pods/u-1"}),
        ([spec("/srv/kubelet/pods/u-1/x", sandbox_uid="u-1")], {"/srv/kubelet/pods/u-1"}),
        ([spec(OTHERS, "/mnt/data", sandbox_uid="u-1")], set()),
        ([spec(VOLUME)], set()),
        ([spec("/mnt/pods/../pods/u-1/x", sandbox_uid="u-1")], set()),
        ([spec("/pods/../x", sandbox_uid="..")], set()),
        ([{"annotations": [], "mounts": [3, {"source": 4}]}, {"mounts": {}}], set()),
    ],
)
def test_the_kubelets_directory_of_a_pod(specs: list[Any], found: set[str]) -> None:
    assert pod_directories(specs) == found


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        (mounted(VOLUME), {"41": VOLUME}),
        (mounted(VOLUME, STAGED), {"41": VOLUME}),
        (mounted(VOLUME, OTHERS), {}),
        (mounted(VOLUME, STAGED, OTHERS), {}),
        (mounted(VOLUME, "/mnt/data"), {}),
        (mounted(STAGED), {}),
        (mounted("/mnt/data", device="0:40") + mounted(VOLUME), {"41": VOLUME}),
        (mounted(VOLUME, kind="nfs4"), {}),
        (mounted(VOLUME, kind="fuseblk", device="8:1"), {}),
        (mounted(f"{KUBELET}/pods/u-11/volumes/x"), {}),
    ],
)
def test_what_others_may_use_is_not_the_pods(mounts: list[Mounted], found: dict[str, str]) -> None:
    assert own_connections(mounts, {f"{KUBELET}/pods/u-1"}) == found


@pytest.mark.parametrize(("waiting", "written"), [("2\n", "1"), ("0\n", "")])
def test_only_what_somebody_waits_for_is_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: str, written: str
) -> None:
    connection = tmp_path / "41"
    connection.mkdir()
    (connection / "waiting").write_text(waiting)
    (connection / "abort").touch()
    monkeypatch.setattr(mountinfo, "read", lambda: mounted(VOLUME))
    monkeypatch.setattr(fuse, "_open_control", lambda: os.open(tmp_path, os.O_PATH))
    assert fuse.abort_hanging([spec(VOLUME, sandbox_uid="u-1")]) == [VOLUME] * bool(written)
    assert (connection / "abort").read_text() == written
    os.unlink(connection / "waiting")
    assert fuse.abort_hanging([spec(VOLUME, sandbox_uid="u-1")]) == []


def test_a_table_that_cannot_be_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Mounted]:
        raise PermissionError(13, "no")

    monkeypatch.setattr(mountinfo, "read", refuse)
    assert fuse.abort_hanging([spec(VOLUME, sandbox_uid="u-1")]) == []


def test_specs_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for name, text in (("good", json.dumps(spec(VOLUME))), ("bad", "{"), ("odd", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    bundles = [str(tmp_path / name) for name in ("good", "bad", "odd", "gone")]
    assert read_specs(bundles) == [spec(VOLUME)]
