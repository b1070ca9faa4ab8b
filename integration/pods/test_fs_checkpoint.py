"""File systems saved alone, and put into a fresh pod; a release that can't says so by its name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients.daemon_api import Refused
from integration.harness.clients.gvctl import Gvctl
from integration.harness.nodes.pods import PodNode

pytestmark = pytest.mark.gvisor
PREFIX = "dev.gvisor.internal.fscheckpoint."
CANNOT = "can't save file systems alone"


@pytest.fixture
def gvctl(pods: PodNode) -> Gvctl:
    return Gvctl("--root", f"{pods.daemon.folder}/runsc/k8s.io")


@pytest.fixture
def saved(pods: PodNode) -> Iterator[Path]:
    """The folder of the pods' namespace, below the one that the options name."""
    folder = pods.daemon.folder / "saved" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def able(pods: PodNode) -> bool:
    """Whether the release has the flags."""
    command = [peers.runsc(pods.daemon.generation), "help", "boot"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return "-fs-save-fds" in done.stdout + done.stderr


def test_files_go_from_pod_to_pod(pods: PodNode, gvctl: Gvctl, saved: Path) -> None:
    image, mine = saved / "image", saved / "mine"
    restored = {PREFIX + "restore-path": str(image)}
    saving = {PREFIX + "enable": "true", PREFIX + "resume": "true", PREFIX + "path": str(mine)}
    write = ("sh", "-c", "echo kept >/kept; echo written; exec sleep 1000")
    if not able(pods):
        pod = pods.pod()
        member = pod.start(*write, name="app")
        done = gvctl("fscheckpoint", "--image-path", str(image), member)
        assert done.code == 1 and CANNOT in done.err
        image.mkdir()
        for annotations in (restored, saving):
            with pytest.raises(Refused, match=CANNOT):
                pods.pod(annotations=annotations)
        assert not mine.exists()
        assert pods.exec(member, "cat", "/kept").out == "kept\n"
        return
    pod = pods.pod(annotations=saving)
    member = pod.start(*write, name="app")
    pod.wait_log(member, "written")
    words = ("fscheckpoint", "--leave-running", "--path", "app:/", "--image-path", str(image))
    gvctl.ok(*words, member)
    assert gvctl(*words, member).code == 1  # there is one
    assert pods.exec(member, "cat", "/kept").out == "kept\n"
    # A program of the pod's saves, too: to where its author said.
    assert not (mine / "fscheckpoint.pb").stat().st_size
    asked = pods.exec(member, "sh", "-c", "echo 1 >/proc/gvisor/fscheckpoint")
    assert asked.code == 0, asked
    until(lambda: (mine / "fscheckpoint.pb").stat().st_size, 10, "it is saved")
    assert pods.exec(member, "echo", "on").out == "on\n"
    pod.remove()

    again = pods.pod(annotations=restored)
    app = again.start("sh", "-c", "cat /kept; exec sleep 1000", name="app")
    assert again.wait_log(app, "kept") == "kept\n"
    other = again.start("sleep", "1000", name="other")
    assert pods.exec(other, "cat", "/kept").code == 1
    gvctl.ok("wait", "--fsrestore", app)
    again.remove()
    with pytest.raises(Refused, match="already exists"):
        pods.pod(annotations=saving)


def test_what_a_pod_may_not_name(pods: PodNode, saved: Path) -> None:
    (saved / "link").symlink_to("/etc")
    (saved.parent / "other").mkdir(exist_ok=True)
    places = ["/etc/x", str(saved.parent / "other" / "x"), f"{saved}/../other/x"]
    if able(pods):
        places.append(str(saved / "link" / "x"))
    for key in ("path", "restore-path"):
        for place in places:
            with pytest.raises(Refused, match=r"below|symbolic link"):
                pods.pod(annotations={PREFIX + key: place})
    assert not list((saved.parent / "other").iterdir())
