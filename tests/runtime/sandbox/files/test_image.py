"""Checkpoints of file systems alone: what the sentry is asked, and what a pod may name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import (
    AlreadyExists,
    Failed,
    InvalidRequest,
    NotFound,
    SandboxGone,
    Unsupported,
)
from runtime.host.fds import FdSet
from runtime.runsc.control import Control
from runtime.runsc.driver import DirectDriver
from runtime.sandbox.files import image as files_image
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry, SentryError

SAVE, WAIT = "containerManager.FSSave", "containerManager.WaitFSRestore"
PREFIX = "dev.gvisor.internal.fscheckpoint."
OLD, NEW = GENERATIONS[2024], GENERATIONS[2026]


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fake = FakeSentry.at(str(tmp_path / "s"))
    fake.handlers[SAVE] = lambda _: {}
    fake.written[SAVE] = b"saved"
    yield fake
    fake.stop()


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(str(tmp_path / "s"), DirectDriver(NEW), lambda: SandboxGone(7))


def test_it_is_saved_and_read(sentry: FakeSentry, control: Control, tmp_path: Path) -> None:
    image = tmp_path / "a" / "image"
    files_image.save(control, NEW, str(image), [("", "/"), ("app", "/data")], timeout=5)
    (request,) = sentry.requests
    assert request.argument["paths"] == [
        {"container_name": "", "path": "/"},
        {"container_name": "app", "path": "/data"},
    ]
    assert request.argument["exit_after_saving"] is False
    names = {*files_image.NAMES, files_image.ABOUT}
    assert {each.name for each in image.iterdir()} == names
    found = files_image.FilesImage(files_image.load(str(image), NEW))
    assert [os.pread(fd, 9, 0) for fd in found.fds] == [b"saved"] * 4
    found.close()
    found.close()
    with pytest.raises(AlreadyExists):
        files_image.save(control, NEW, str(image), [("", "/")], timeout=5)
    assert {each.name for each in image.iterdir()} == names


def test_an_image_of_runscs_own_has_no_checksums(
    sentry: FakeSentry, control: Control, tmp_path: Path
) -> None:
    files_image.save(control, NEW, str(tmp_path / "i"), [("", "/")], timeout=5)
    (tmp_path / "i" / files_image.ABOUT).unlink()
    files_image.FilesImage(files_image.load(str(tmp_path / "i"), NEW)).close()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda image: (image / "pages.img").write_bytes(b"sawed"), InvalidRequest, "checksum"),
        (lambda image: (image / "multitar.img").write_bytes(b""), InvalidRequest, "0 bytes"),
        (lambda image: (image / "multitar.img").unlink(), NotFound, "no multitar.img"),
        (lambda image: (image / files_image.ABOUT).write_text("[]"), InvalidRequest, "lacks"),
        (
            lambda image: (
                (image / "pages.img").unlink(),
                (image / "pages.img").symlink_to("/etc/passwd"),
            ),
            InvalidRequest,
            "symbolic link",
        ),
    ],
)
def test_what_is_damaged(
    sentry: FakeSentry, control: Control, tmp_path: Path, spoil: object, error: type, words: str
) -> None:
    image = tmp_path / "i"
    files_image.save(control, NEW, str(image), [("", "/")], timeout=5)
    spoil(image)  # type: ignore[operator]
    with pytest.raises(error, match=words):
        files_image.load(str(image), NEW)


def test_a_sentry_that_cannot_save(sentry: FakeSentry, control: Control, tmp_path: Path) -> None:
    def fail(_: object) -> object:
        raise SentryError("no checkpointable filesystems")

    sentry.handlers[SAVE] = fail
    with pytest.raises(Failed, match="no checkpointable"):
        files_image.save(control, NEW, str(tmp_path / "i"), [("", "/x")], timeout=5)
    assert not (tmp_path / "i").exists()


def test_an_older_release_refuses_by_name(control: Control, tmp_path: Path) -> None:
    words = f"runsc {OLD.version} can't save file systems alone"
    with pytest.raises(Unsupported, match=words):
        files_image.save(control, OLD, str(tmp_path / "i"), [("", "/")], timeout=5)
    with pytest.raises(Unsupported, match=words):
        files_image.load(str(tmp_path), OLD)
    with pytest.raises(Unsupported, match=words), FdSet() as fds:
        asked = {PREFIX + "path": f"{tmp_path}/a"}
        files_image.open_for_saving(asked, str(tmp_path), OLD, fds)
    assert not (tmp_path / "i").exists() and not (tmp_path / "a").exists()


def test_waiting_for_files(sentry: FakeSentry, control: Control) -> None:
    sentry.handlers[WAIT] = lambda _: {}
    assert control.wait_files_restored("c", 5)
    assert sentry.requests[-1].argument == {"CID": "c"}
    answers = ["no filesystems restored for container c", "I/O error"]

    def fail(_: object) -> object:
        raise SentryError(answers.pop(0))

    sentry.handlers[WAIT] = fail
    assert not control.wait_files_restored("c", 5)
    with pytest.raises(Failed, match="I/O error"):
        control.wait_files_restored("c", 5)


@pytest.mark.parametrize(
    ("path", "folder", "namespace", "words"),
    [
        ("/saved/a", "", "", "fs_checkpoints"),
        ("/saved", "/saved", "", "below"),
        ("/saved/../etc", "/saved", "", "below"),
        ("/saved2/a", "/saved", "", "below"),
        ("a", "/saved", "", "below"),
        ("/saved/other/a", "/saved", "mine", "below /saved/mine"),
        ("/saved/mine/../other/a", "/saved", "mine", "below"),
    ],
)
def test_what_a_pod_may_not_name(path: str, folder: str, namespace: str, words: str) -> None:
    key = files_image.RESTORE_PATH
    annotations = {key: path, "io.kubernetes.cri.sandbox-namespace": namespace}
    with pytest.raises(InvalidRequest, match=words):
        files_image.wanted(annotations, key, folder)


def test_what_a_pod_may_name() -> None:
    key = files_image.RESTORE_PATH
    mine = {"io.kubernetes.cri.sandbox-namespace": "mine"}
    assert files_image.wanted({key: "/saved/mine/a", **mine}, key, "/saved") == "/saved/mine/a"
    assert files_image.wanted({key: "/saved/a"}, key, "/saved/") == "/saved/a"
    assert files_image.wanted({}, key, "") == ""


def test_files_that_a_program_may_save_to(tmp_path: Path) -> None:
    """Empty until then, one sandbox's at a time, and never over an image; no link is followed."""
    folder = str(tmp_path / "saved")
    os.mkdir(folder)
    asked = {PREFIX + "path": f"{folder}/a/b"}
    with FdSet() as fds:
        found = files_image.open_for_saving(asked, folder, NEW, fds)
        assert sorted(os.listdir(f"{folder}/a/b")) == sorted(files_image.NAMES)
        with pytest.raises(AlreadyExists), FdSet() as others:
            files_image.open_for_saving(asked, folder, NEW, others)
        os.write(found[1], b"half")
    with FdSet() as fds:
        found = files_image.open_for_saving(asked, folder, NEW, fds)
        assert os.fstat(found[1]).st_size == 0
        os.write(found[0], b"whole")
    with pytest.raises(AlreadyExists), FdSet() as fds:
        files_image.open_for_saving(asked, folder, NEW, fds)
    with FdSet() as fds:
        assert files_image.open_for_saving({}, folder, NEW, fds) == ()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, f"{folder}/link")
    for path in (f"{folder}/link", f"{folder}/link/x"):
        with pytest.raises(InvalidRequest, match="symbolic link"), FdSet() as fds:
            files_image.open_for_saving({PREFIX + "path": path}, folder, NEW, fds)
        with pytest.raises(InvalidRequest, match="symbolic link"):
            files_image.check_links(folder, path)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("text", ["relative", "", ":", "name:relative"])
def test_paths_that_make_no_sense(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not of the form"):
        files_image.parse_path(text)


def test_paths() -> None:
    assert files_image.parse_path("/data") == ("", "/data")
    assert files_image.parse_path("app:/a:b") == ("app", "/a:b")
    assert files_image.parse_path("all-tmpfs") == ("", "all-tmpfs")
