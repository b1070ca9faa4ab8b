"""What is taken of what an operator gives for a runsc."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest, RuntimeFault
from runtime.cli.install import runsc_source
from runtime.cli.install.node import Node

ELF = b"\x7fELF program"


def find(given: Path | str) -> runsc_source.RunscSource:
    return runsc_source.find(Node("/"), str(given), "")


def archive(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """A tarball; a member with a text is a link to it."""
    mode = {"gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(path.name.rpartition(".")[2], "w")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


MEMBERS: list[tuple[str, bytes | str]] = [
    ("./runsc", ELF),
    ("./gvisor-bin/gvisor_sentry", ELF + b"2"),
    ("containerd-shim-runsc-v1", ELF),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_release(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / f"gvisor.{kind}", MEMBERS)
    found = find(path)
    assert set(found.data) == {"runsc", "gvisor-bin/gvisor_sentry"}
    found.copy_to(str(tmp_path / "out"))
    assert (tmp_path / "out/gvisor-bin/gvisor_sentry").read_bytes() == ELF + b"2"
    assert (tmp_path / "out/runsc").stat().st_mode & 0o777 == 0o755
    Path(f"{path}.sha512").write_text(f"{hashlib.sha512(path.read_bytes()).hexdigest()}  x\n")
    assert find(path).digests() == found.digests()
    Path(f"{path}.sha512").write_text("00  x\n")
    with pytest.raises(Failed, match="is damaged"):
        find(path)


def test_no_name_or_link_in_a_tarball_leads_anywhere(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("../../runsc", b"outside"),
        ("runsc", "/etc/passwd"),
        ("release/runsc", ELF),
        ("release/gvisor-bin/../../evil", ELF),
        ("gvisor-bin/link", "/etc/shadow"),
        ("/gvisor-bin/absolute", ELF),
    ]
    found = find(archive(tmp_path / "x.tar", members))
    assert found.data == {"runsc": ELF, "gvisor-bin/absolute": ELF}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.tar.bz2", b"<html>404</html>", "can't be read as a tarball"),
        ("x.tar", b"", "can't be read as a tarball|has no program runsc"),
        ("x.tar.zst", b"<html>404</html>", "zstd"),
        ("runsc", b"<html>404</html>", "is no program, its first bytes are b'<htm'"),
        ("missing", None, "No such file"),
        ("plain", ELF, "is not executable"),
    ],
)
def test_what_is_no_runsc(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RuntimeFault, match=words):
        find(path)
    with pytest.raises(InvalidRequest, match="is a directory"):
        find(tmp_path)


def test_a_tarball_without_a_runsc(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no program runsc"):
        find(archive(tmp_path / "x.tar", [("readme", b"text"), ("runsc", b"#!/bin/sh\n")]))


def test_side_cars_come_along(tmp_path: Path) -> None:
    (tmp_path / "real/gvisor-bin").mkdir(parents=True)
    for name in ("runsc", "gvisor-bin/gvisor_sentry", "gvisor-bin/runsc-fd-parking"):
        (tmp_path / "real" / name).write_bytes(ELF)
        (tmp_path / "real" / name).chmod(0o755)
    (tmp_path / "runsc").symlink_to("real/runsc")
    assert set(find(tmp_path / "runsc").paths) == {
        "runsc", "gvisor-bin/gvisor_sentry", "gvisor-bin/runsc-fd-parking",
    }  # fmt: skip
    (tmp_path / "real/gvisor-bin/gvisor_sentry").chmod(0o644)
    with pytest.raises(Failed, match="gvisor_sentry"):
        find(tmp_path / "runsc")
