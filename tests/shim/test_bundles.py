"""The files in a bundle by which containerd finds its shim again, and a bundle's end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import bundles
from shim.bundles import Bundles

ADDRESS = "unix:///run/s/1"


def bundle(folder: Path, name: str, **content: str) -> Path:
    path = folder / name
    path.mkdir()
    for file, text in content.items():
        (path / file.replace("_", "-")).write_text(text)
    return path


def test_a_container_that_joins_gets_address_and_binary(tmp_path: Path) -> None:
    first = bundle(tmp_path, "pod", shim_binary_path="/opt/shim")
    shim = Bundles(ADDRESS, str(first))
    joined = bundle(tmp_path, "joined")
    shim.note(str(joined))
    assert (joined / "address").read_text() == ADDRESS
    assert (joined / "shim-binary-path").read_text() == "/opt/shim"
    # Whoever starts a container after the first is gone has it as well.
    (first / "shim-binary-path").unlink()
    late = bundle(tmp_path, "late")
    shim.note(str(late))
    assert (late / "shim-binary-path").read_text() == "/opt/shim"


def test_what_containerd_wrote_stays(tmp_path: Path) -> None:
    first = bundle(tmp_path, "pod", shim_binary_path="/opt/shim")
    started = bundle(tmp_path, "started", address="from start", shim_binary_path="/opt/other")
    Bundles(ADDRESS, str(first)).note(str(started))
    assert (started / "address").read_text() == "from start"
    assert (started / "shim-binary-path").read_text() == "/opt/other"


def test_a_runtime_that_containerd_found_by_name_stays_so(tmp_path: Path) -> None:
    # containerd before 1.6 and CRI-O note no binary.
    joined = bundle(tmp_path, "joined")
    Bundles(ADDRESS, str(bundle(tmp_path, "pod"))).note(str(joined))
    assert os.listdir(joined) == ["address"]


def test_a_bundle_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    Bundles(ADDRESS, str(tmp_path)).note(str(tmp_path / "gone"))


def test_a_forgotten_bundle_goes(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    forgotten = bundle(tmp_path, "forgotten", address=ADDRESS)
    (forgotten / "work").symlink_to(work)
    (forgotten / "rootfs").mkdir()
    os.mkfifo(forgotten / "log")
    bundles.remove(str(forgotten))
    assert os.listdir(tmp_path) == ["work"], "what links point to is not ours"
    bundles.remove(str(forgotten))


def test_what_is_in_a_bundles_directories_stays(tmp_path: Path) -> None:
    forgotten = bundle(tmp_path, "forgotten")
    (forgotten / "rootfs").mkdir()
    (forgotten / "rootfs" / "data").touch()
    with pytest.raises(OSError, match="not empty"):
        bundles.remove(str(forgotten))
    assert (forgotten / "rootfs" / "data").exists()
