"""Images: written whole or not at all, checked before a sentry sees them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    ResourceExhausted,
    RuntimeFault,
    SandboxGone,
    Unsupported,
)
from runtime.runsc.control import Control
from runtime.runsc.driver import DirectDriver
from runtime.sandbox import checkpoint
from runtime.sandbox.checkpoint import SavedContainer, check_fit, choose_compression
from runtime.sandbox.restore import Restore
from tests.fakes.generations import GENERATIONS
from tests.fakes.sentry import FakeSentry, SentryError

CALL = "containerManager.Checkpoint"
ROOT = SavedContainer(name="", args=("sh",), mounts=("/data",))
WORKER = SavedContainer(name="worker", args=("w",))


def state(**header: str) -> bytes:
    """A state file as a sentry begins it."""
    text = json.dumps(header).encode()
    return b"gVisorSF" + len(text).to_bytes(8, "big") + text + bytes(100)


@pytest.fixture
def sentry(tmp_path: Path) -> Iterator[FakeSentry]:
    fake = FakeSentry.at(str(tmp_path / "s"))
    fake.handlers[CALL] = lambda _: {}
    for method in ("ContainerRuntimeState", "Pause", "Resume"):
        fake.handlers[f"containerManager.{method}"] = lambda _: 0
    fake.written[CALL] = state(compression="flate-best-speed")
    yield fake
    fake.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b"


def control(image: Path, year: int) -> Control:
    path = str(image.parent.parent / "s")
    return Control(path, DirectDriver(GENERATIONS[year]), lambda: SandboxGone(77, 2, "panic: x"))


def save(image: Path, year: int = 2024, **options: Any) -> None:
    original = {name: options.pop(name) for name in checkpoint.Original._fields if name in options}
    checkpoint.save(
        checkpoint.Original(
            id="box",
            control=control(image, year),
            generation=GENERATIONS[year],
            **{"containers": (ROOT,), **original},
        ),
        str(image),
        **{"leave_running": True, "timeout": 5.0, **options},
    )


def load(image: Path, year: int = 2024) -> checkpoint.Image:
    return checkpoint.load(str(image), GENERATIONS[year])


# -- saving ------------------------------------------------------------------------------------

TIMEOUT = {"Argv": "", "Timeout": 600_000_000_000, "ContainerID": "box"}


@pytest.mark.parametrize(
    ("year", "options", "argument", "files"),
    [
        (2022, {"leave_running": False}, {"key": None, "metadata": None}, 1),
        (
            2024,
            {},
            {
                "key": None,
                "metadata": {"compression": "flate-best-speed"},
                "have_pages_file": False,
                "Resume": True,
                "ExecOpts": TIMEOUT,
                "runsc_version": "0.0~2024",
            },
            1,
        ),
        (
            2026,
            {"compression": "none", "leave_running": False},
            {
                "key": None,
                "metadata": {"compression": "none"},
                "have_pages_file": True,
                "Resume": True,
                "ExecOpts": TIMEOUT,
                "runsc_version": "0.0~2026",
            },
            3,
        ),
    ],
)
def test_what_the_sentry_is_asked(
    sentry: FakeSentry, image: Path, year: int, options: Any, argument: Any, files: int
) -> None:
    if year == 2022:
        del sentry.handlers["containerManager.ContainerRuntimeState"]
    save(image, year, network={"FDBasedLinks": None}, **options)
    asked = next(each for each in sentry.requests if each.method == CALL)
    assert (asked.method, asked.argument, len(asked.files)) == (CALL, argument, files)
    names = ["checkpoint.img", "pages_meta.img", "pages.img"][:files]
    # In this order, and they are the very files that bear the names now.
    assert asked.files == [(os.stat(image / n).st_dev, os.stat(image / n).st_ino) for n in names]
    assert {*os.listdir(image)} == {*names, "gvisor-shim.json"}
    assert {p.stat().st_mode & 0o777 for p in image.iterdir()} == {0o600}
    assert image.stat().st_mode & 0o777 == 0o700
    if files == 3:
        sentry.written[CALL] = state()
    found = load(image, year)
    try:
        assert (found.paged, len(found.fds)) == (files > 1, files)
        assert found.about is not None
        assert found.about.containers == (ROOT,)
        assert (found.about.runsc, found.about.sandbox_id) == (f"0.0~{year}", "box")
        assert found.about.network == {"FDBasedLinks": None}
        assert os.lseek(found.fds[0], 0, os.SEEK_CUR) == 0, "the sentry reads from where it is"
    finally:
        found.close()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"leave_running": True}, Unsupported, "must be asked to exit"),
        ({"containers": [ROOT, WORKER]}, Unsupported, "several containers"),
        ({"compression": "none"}, Unsupported, "always compresses"),
        ({"execs": 1}, InvalidState, "running execs"),
    ],
)
def test_what_old_sentries_cannot(
    sentry: FakeSentry, image: Path, options: Any, kind: type[RuntimeFault], words: str
) -> None:
    del sentry.handlers["containerManager.ContainerRuntimeState"]
    with pytest.raises(kind, match=words):
        save(image, 2022, **{"leave_running": False, **options})
    assert CALL not in sentry.methods()
    assert not image.parent.exists()


def _asked(sentry: FakeSentry) -> list[str]:
    methods = [method.rpartition(".")[2] for method in sentry.methods()]
    return [method for method in methods if method != "ContainerRuntimeState"]


def test_a_sandbox_that_is_to_end_stands_still_first(sentry: FakeSentry, image: Path) -> None:
    """A sentry that is told to end does so even if it couldn't save: it is told to in the end."""
    for paused in (False, True):
        sentry.requests.clear()
        save(image, leave_running=False, paused=paused)
        shutil.rmtree(image)
        frozen = [] if paused else ["Pause"]
        assert _asked(sentry) == [*frozen, "Checkpoint", "Checkpoint", "Resume"]
        saved, ended = (each for each in sentry.requests if each.method == CALL)
        assert (saved.argument["Resume"], ended.argument["Resume"]) == (True, False)
        null = os.stat(os.devnull)
        assert ended.files == [(null.st_dev, null.st_ino)]
    sentry.requests.clear()
    save(image)
    assert _asked(sentry) == ["Checkpoint"]


def test_another_way_to_end_it(sentry: FakeSentry, image: Path) -> None:
    seen: list[list[str]] = []
    save(image, leave_running=False, end=lambda: seen.append(_asked(sentry)))
    assert seen == [["Pause", "Checkpoint"]] == [_asked(sentry)]
    assert (image / "checkpoint.img").exists()


def test_one_that_could_not_be_saved_goes_on(sentry: FakeSentry, image: Path) -> None:
    def fail(_: object) -> None:
        raise SentryError("endpoint cannot be saved in connected state")

    sentry.handlers[CALL] = fail
    for paused in (False, True):
        sentry.requests.clear()
        with pytest.raises(Failed, match="connected state"):
            save(image, leave_running=False, paused=paused)
        assert _asked(sentry) == (["Checkpoint"] if paused else ["Pause", "Checkpoint", "Resume"])


def test_an_old_sentry_that_is_frozen_is_thawed_to_end(sentry: FakeSentry, image: Path) -> None:
    del sentry.handlers["containerManager.ContainerRuntimeState"]
    save(image, 2022, leave_running=False, paused=True)
    assert _asked(sentry)[:1] == ["Checkpoint"]
    assert _asked(sentry)[-1] == "Resume"


def test_a_failure_leaves_nothing(sentry: FakeSentry, image: Path) -> None:
    def fail(_: object) -> None:
        raise SentryError("no space left on device\ngoroutine 1 [running]:\nmain()")

    sentry.handlers[CALL] = fail
    with pytest.raises(Failed, match=r"^checkpoint 'box': no space left on device$"):
        save(image)
    assert not image.parent.exists()
    sentry.dropped.add(CALL)
    with pytest.raises(SandboxGone, match="checkpoint 'box': panic: x"):
        save(image)
    assert not image.parent.exists()
    sentry.dropped.clear()
    sentry.silent.add(CALL)
    with pytest.raises(DeadlineExceeded):
        save(image, timeout=0.1)
    assert not image.parent.exists()


def test_a_sentry_that_writes_nothing_is_no_success(sentry: FakeSentry, image: Path) -> None:
    sentry.written.clear()
    with pytest.raises(Failed, match="wrote nothing"):
        save(image)
    assert not image.parent.exists()


def test_the_host_network_has_its_own_words(sentry: FakeSentry, image: Path) -> None:
    def refuse(_: object) -> None:
        raise SentryError("checkpoint not supported when using hostinet")

    sentry.handlers[CALL] = refuse
    with pytest.raises(Unsupported, match="host's"):
        save(image)


@pytest.mark.parametrize("name", ["checkpoint.img", "pages.img", "gvisor-shim.json"])
def test_what_is_there_is_never_replaced(sentry: FakeSentry, image: Path, name: str) -> None:
    image.mkdir(parents=True)
    (image / name).write_text("good")
    with pytest.raises(AlreadyExists, match=name):
        save(image)
    assert CALL not in sentry.methods()
    assert [p.name for p in image.iterdir()] == [name]
    assert (image / name).read_text() == "good"


def test_nor_what_appears_meanwhile(sentry: FakeSentry, image: Path) -> None:
    def intrude(_: object) -> dict[str, object]:
        (image / "checkpoint.img").write_text("other")
        return {}

    sentry.handlers[CALL] = intrude
    with pytest.raises(AlreadyExists):
        save(image)
    assert [p.name for p in image.iterdir()] == ["checkpoint.img"]
    assert (image / "checkpoint.img").read_text() == "other"


def test_nothing_has_its_name_before_all_is_written(sentry: FakeSentry, image: Path) -> None:
    gate = sentry.gates[CALL] = threading.Event()
    seen: list[list[str]] = []

    def look(_: object) -> dict[str, object]:
        seen.append(sorted(os.listdir(image)))
        return {}

    sentry.handlers[CALL] = look
    gate.set()
    save(image)
    assert len(seen[0]) == 1
    assert seen[0][0].endswith(".partial")


@pytest.mark.parametrize("path", ["", "relative", "/x\0y"])
def test_paths_that_are_none(sentry: FakeSentry, image: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="absolute"):
        save(_Text(path, image))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="absolute"):
        checkpoint.load(path, GENERATIONS[2024])


class _Text:
    """A path that pathlib would change."""

    def __init__(self, text: str, image: Path) -> None:
        self.text, self.parent = text, image.parent

    def __str__(self) -> str:
        return self.text


def test_links_are_not_followed(sentry: FakeSentry, image: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image.parent.mkdir()
    image.symlink_to(elsewhere)
    with pytest.raises(InvalidRequest, match=str(image)):
        save(image)
    assert not list(elsewhere.iterdir())
    image.unlink()
    save(image)
    (image / "checkpoint.img").rename(elsewhere / "x")
    (image / "checkpoint.img").symlink_to(elsewhere / "x")
    with pytest.raises(InvalidRequest, match="symbolic link"):
        load(image)


# -- loading -----------------------------------------------------------------------------------


def _open_below(path: Path) -> list[str]:
    """Descriptors of this process that are of files in ``path``, or of itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # was the listing's own
    return [each for each in found if each.startswith(str(path))]


def _alter(path: Path, **changes: Any) -> None:
    document = json.loads((path / "gvisor-shim.json").read_text())
    document.update(changes)
    (path / "gvisor-shim.json").write_text(json.dumps(document))


def _rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


HARM = {
    "longer": (lambda p: _rewrite(p / "checkpoint.img", state() + b"x"), "bytes instead of"),
    "flipped": (
        lambda p: _rewrite(
            p / "checkpoint.img", (p / "checkpoint.img").read_bytes()[:-1] + b"\x01"
        ),
        "checksum of checkpoint.img is wrong",
    ),
    "another file": (lambda p: _rewrite(p / "pages.img", b"x"), "pages_meta.img is missing"),
    "two more": (
        lambda p: [_rewrite(p / n, b"x") for n in ("pages.img", "pages_meta.img")],
        "don't belong together",
    ),
    "another runsc": (lambda p: _alter(p, runsc="9.9"), "made by runsc 9.9; runsc 0.0~2024"),
    "another format": (lambda p: _alter(p, format=2), "has format 2"),
    "no list": (lambda p: _alter(p, containers=5), "lacks something"),
    "no containers": (lambda p: _alter(p, containers=[]), "lacks something"),
    "bad container": (lambda p: _alter(p, containers=[{"name": 3}]), "lacks something"),
    "bad sandbox": (lambda p: _alter(p, sandbox="../../x"), "lacks something"),
    "bad network": (lambda p: _alter(p, network=[]), "lacks something"),
    "bad size": (
        lambda p: _alter(p, files={"checkpoint.img": {"size": "1", "crc32": 0}}),
        "lacks something",
    ),
    "no JSON": (lambda p: _rewrite(p / "gvisor-shim.json", b"{"), "is not JSON"),
    "no object": (lambda p: _rewrite(p / "gvisor-shim.json", b"[1]"), "is not a JSON object"),
    "empty": (lambda p: _rewrite(p / "gvisor-shim.json", b"null"), "format None"),
    "fifo": (
        lambda p: ((p / "checkpoint.img").unlink(), os.mkfifo(p / "checkpoint.img")),
        "is not a regular file",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_found(sentry: FakeSentry, image: Path, harm: str) -> None:
    save(image)
    act, words = HARM[harm]
    act(image)
    with pytest.raises(InvalidRequest, match=words):
        load(image)
    assert not _open_below(image)


def test_an_image_of_holes(sentry: FakeSentry, image: Path) -> None:
    """Reading a TiB of zeros takes minutes of a core, which nobody may be made to spend."""
    save(image)
    with (image / "checkpoint.img").open("ab") as file:
        file.truncate(1 << 40)
    _alter(image, files={"checkpoint.img": {"size": 1 << 40, "crc32": 0}})
    with pytest.raises(InvalidRequest, match="hardly any on disk"):
        load(image)
    assert not _open_below(image)


def test_a_check_that_nobody_waits_for_any_more(sentry: FakeSentry, image: Path) -> None:
    save(image)

    def give_up() -> None:
        raise Failed("deleted meanwhile")

    with pytest.raises(Failed, match="deleted meanwhile"):
        checkpoint.load(str(image), GENERATIONS[2024], give_up)
    assert not _open_below(image)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"gVisorS", "no state of a sentry"),
        (b"x" * 100, "no state of a sentry"),
        (b"gVisorSF" + bytes(3), "header"),
        (b"gVisorSF" + b"\xff" * 8, "header"),
        (state()[:17], "header"),
        (b"gVisorSF" + (2).to_bytes(8, "big") + b"[]", "header"),
        (state(compression="zip"), "'zip' is unknown"),
        (state(runsc_version="1.2.3"), "made by runsc 1.2.3"),
    ],
)
def test_headers_of_images_of_runsc_itself(image: Path, data: bytes, words: str) -> None:
    image.mkdir(parents=True)
    (image / "checkpoint.img").write_bytes(data)
    with pytest.raises(InvalidRequest, match=words):
        load(image)


def test_images_of_runsc_itself(image: Path) -> None:
    image.mkdir(parents=True)
    for name in ("checkpoint.img", "pages_meta.img", "pages.img"):
        (image / name).write_bytes(state(container_count="3", compression="none"))
    found = load(image)
    shutil.rmtree(image)
    try:
        assert (found.about, found.paged, found.containers) == (None, True, 3)
        check_fit(found, WORKER, False)
        # Still there for the one who holds it.
        assert os.pread(found.fds[2], 8, 0) == b"gVisorSF"
    finally:
        found.close()
    found.close()


def test_no_image(image: Path) -> None:
    with pytest.raises(NotFound, match=str(image)):
        load(image)
    image.mkdir(parents=True)
    with pytest.raises(NotFound, match=r"no checkpoint\.img"):
        load(image)


def test_a_count_that_contradicts(sentry: FakeSentry, image: Path) -> None:
    sentry.written[CALL] = state(container_count="2")
    save(image)
    with pytest.raises(InvalidRequest, match="container count"):
        load(image)


# -- fitting -----------------------------------------------------------------------------------


@pytest.fixture
def pod(sentry: FakeSentry, image: Path) -> Iterator[checkpoint.Image]:
    sentry.written[CALL] = state(container_count="2")
    save(image, containers=[ROOT, WORKER])
    found = load(image)
    yield found
    found.close()


def test_containers_must_be_those_that_were_saved(pod: checkpoint.Image) -> None:
    check_fit(pod, ROOT.replace(args=("other",)), True)
    check_fit(pod, WORKER, False)
    with pytest.raises(InvalidRequest, match=r"mounts \['/data'\], not \[\]"):
        check_fit(pod, ROOT.replace(mounts=()), True)
    with pytest.raises(InvalidRequest, match="terminal False, not True"):
        check_fit(pod, WORKER.replace(terminal=True), False)
    with pytest.raises(InvalidRequest, match="no container 'other', but 'worker'"):
        check_fit(pod, WORKER.replace(name="other"), False)


def test_leftovers_of_the_saved_container(pod: checkpoint.Image, tmp_path: Path) -> None:
    for name in (".gvisor.filestore.box", ".gvisor.filestore.new", ".gvisor.filestore.other"):
        (tmp_path / name).touch()
    checkpoint.remove_leftovers(pod, "new", str(tmp_path))
    left = [p.name for p in tmp_path.iterdir() if "filestore" in p.name]
    assert left == [".gvisor.filestore.other"]


def test_compression() -> None:
    key = "dev.gvisor.internal.checkpoint.compression"
    assert choose_compression({}, "") == ""
    assert choose_compression({}, "none") == "none"
    assert choose_compression({key: "flate-best-speed"}, "none") == "flate-best-speed"
    with pytest.raises(InvalidRequest, match="'zip' is none of"):
        choose_compression({key: "zip"}, "")


# -- restoring ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("year", "argument"),
    [
        (2022, {"SandboxID": "new"}),
        (
            2024,
            {
                "SandboxID": "new",
                "HavePagesFile": False,
                "HaveDeviceFile": False,
                "Background": False,
            },
        ),
    ],
)
def test_a_restore_waits_for_all_its_containers(
    sentry: FakeSentry, pod: checkpoint.Image, image: Path, year: int, argument: Any
) -> None:
    manager = "containerManager."
    sentry.handlers[manager + "Restore"] = lambda _: {}
    sentry.handlers[manager + "RestoreSubcontainer"] = lambda _: {}
    driver = DirectDriver(GENERATIONS[year])
    from runtime.runsc.config import RunscConfig

    settings = driver.settings(RunscConfig(root="/r"), None)
    restore = Restore(pod)
    assert (restore.waiting, restore.complete) == (False, False)
    restore.root(control(image, year), settings, "new", 5)
    assert sentry.requests[-1].argument == argument
    assert len(sentry.requests[-1].files) == 1
    assert pod.fds == ()
    assert (restore.waiting, restore.complete) == (True, False)
    ended: list[bool] = []

    def give_up() -> None:
        ended.append(True)

    restore.member(control(image, year), give_up, {"CID": "w"}, (), 5)
    assert (restore.waiting, restore.complete, ended) == (False, True, [])
    # One that was never sent.
    with pytest.raises(DeadlineExceeded):
        restore.member(control(image, year), give_up, {"CID": "w"}, (), -1)
    with pytest.raises(ResourceExhausted):
        restore.member(control(image, year), give_up, {"CID": "w"}, (0,) * 200, 5)
    assert ended == []
    del sentry.handlers[manager + "RestoreSubcontainer"]
    with pytest.raises(Unsupported):
        restore.member(control(image, year), give_up, {"CID": "w"}, (), 5)
    assert ended == [True]
