"""Copies of trees: what is copied, and that nothing leads out of where it goes."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cli.files import trees
from runtime.cli.files.trees import HostFiles, TarSink, TarSource, TreeSink, TreeSource
from runtime.sandbox.inside_files import AT_FDCWD


class Copier:
    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "source", folder / "target"
        self.outside = folder / "outside"
        for each in (self.source, self.target, self.outside):
            each.mkdir()
        self.files = HostFiles()
        self.told: list[str] = []
        self.top = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)

    def copy(self, *, keep: bool = False, name: str = "new") -> None:
        source = TreeSource(self.files, AT_FDCWD, bytes(self.source), self.told.append)
        source.copy(self.sink(keep), name.encode())

    def sink(self, keep: bool = False) -> TreeSink:
        return TreeSink(self.files, self.top, keep)

    def extract(self, *members: tarfile.TarInfo | tuple[str, bytes], keep: bool = False) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for member in members:
                if isinstance(member, tuple):
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    archive.addfile(info, io.BytesIO(member[1]))
                else:
                    archive.addfile(member)
        stream.seek(0)
        TarSource(stream, self.told.append).copy(self.sink(keep))

    def archive(self) -> tarfile.TarFile:
        stream = io.BytesIO()
        with TarSink(stream, self.told.append) as sink:
            TreeSource(self.files, AT_FDCWD, bytes(self.source), self.told.append).copy(sink, b"n")
        stream.seek(0)
        return tarfile.open(fileobj=stream)


@pytest.fixture
def copier(tmp_path: Path) -> Iterator[Copier]:
    before = set(os.listdir("/proc/self/fd"))
    copier = Copier(tmp_path)
    yield copier
    os.close(copier.top)
    assert set(os.listdir("/proc/self/fd")) <= before  # nothing is left open


def member(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def fill(folder: Path) -> None:
    (folder / "d/e").mkdir(parents=True)
    (folder / "d/f").write_bytes(b"x" * 600_000)
    (folder / "d/l").symlink_to("/etc/passwd")
    (folder / "d/e").chmod(0o500)
    (folder / "suid").write_text("s")
    (folder / "suid").chmod(0o6755)
    os.mkfifo(folder / "p", 0o640)
    os.utime(folder / "d/f", ns=(1, 10**18 + 1))


def test_a_tree_is_copied_as_it_is(copier: Copier) -> None:
    fill(copier.source)
    copier.copy(keep=True)
    new = copier.target / "new"
    assert sorted(p.relative_to(new).as_posix() for p in new.rglob("*")) == [
        *("d", "d/e", "d/f", "d/l", "p", "suid"),
    ]
    assert (new / "d/f").read_bytes() == b"x" * 600_000
    assert (new / "d/f").stat().st_mtime_ns == 10**18 + 1
    assert os.readlink(new / "d/l") == "/etc/passwd"
    assert stat.S_IMODE((new / "suid").stat().st_mode) == 0o6755
    assert stat.S_IMODE((new / "d/e").stat().st_mode) == 0o500
    assert stat.S_ISFIFO((new / "p").stat().st_mode)
    assert copier.told == []


def test_rights_of_an_owner_are_not_copied_unless_asked_for(copier: Copier) -> None:
    fill(copier.source)
    copier.copy()
    assert stat.S_IMODE((copier.target / "new/suid").stat().st_mode) == 0o755


@pytest.mark.parametrize("there", ["d", "f", "l"])
def test_a_link_that_is_there_is_never_followed(copier: Copier, there: str) -> None:
    fill(copier.source / "")
    (copier.outside / "victim").write_text("mine")
    (copier.target / "new").mkdir()
    if there == "d":  # in a folder's place
        (copier.target / "new/d").symlink_to(copier.outside)
        with pytest.raises(OSError):
            copier.copy()
    else:  # in a file's, or a link's
        (copier.target / "new/d").mkdir()
        (copier.target / "new/d" / there).symlink_to(copier.outside / "victim")
        copier.copy()
    assert [p.name for p in copier.outside.iterdir()] == ["victim"]
    assert (copier.outside / "victim").read_text() == "mine"


def test_a_file_that_is_there_is_written_where_it_is(copier: Copier) -> None:
    (copier.source / "f").write_text("new")
    (copier.target / "new").mkdir()
    (copier.target / "new/f").write_text("longer than before")
    number = (copier.target / "new/f").stat().st_ino
    copier.copy()
    assert (copier.target / "new/f").read_text() == "new"
    assert (copier.target / "new/f").stat().st_ino == number


def test_a_pipe_that_is_there_is_replaced(copier: Copier) -> None:
    (copier.source / "f").write_text("new")
    (copier.target / "new").mkdir()
    os.mkfifo(copier.target / "new/f")
    copier.copy()
    assert (copier.target / "new/f").read_text() == "new"


def test_depth_is_bounded(copier: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_DEPTH", 5)
    (copier.source / "d/d/d/d/d/d").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="folders deep"):
        copier.copy()


# -- archives ----------------------------------------------------------------------------------


def test_an_archive_of_a_tree(copier: Copier) -> None:
    fill(copier.source)
    with copier.archive() as archive:
        names = {m.name: m for m in archive.getmembers()}
        data = archive.extractfile("n/d/f")
        assert data is not None and data.read() == b"x" * 600_000
    assert set(names) == {"n", "n/d", "n/d/e", "n/d/f", "n/d/l", "n/suid", "n/p"}
    assert names["n/d/l"].linkname == "/etc/passwd" and names["n/suid"].mode == 0o6755


def test_a_file_that_shrinks_meanwhile_does_not_spoil_the_archive(copier: Copier) -> None:
    (copier.source / "a").write_text("a" * 100)
    (copier.source / "b").write_text("b" * 100)
    status = copier.files.stat
    copier.files.stat = lambda *a, **k: (  # type: ignore[method-assign]
        s.replace(size=s.size * 2) if stat.S_ISREG((s := status(*a, **k)).mode) else s
    )
    with copier.archive() as archive:
        for name in ("n/a", "n/b"):
            data = archive.extractfile(name)
            assert data is not None and data.read() == name[-1].encode() * 100 + bytes(100)
    assert len(copier.told) == 2 and "shrank" in copier.told[0]


def test_an_archive_is_unpacked(copier: Copier) -> None:
    copier.extract(
        member("./d", tarfile.DIRTYPE, mode=0o750),
        ("d/f", b"text"),
        ("deep/er/f", b"more"),
        member("d/l", tarfile.SYMTYPE, linkname="../.."),
        member("d/h", tarfile.LNKTYPE, linkname="./d/f"),
        member("dev", tarfile.CHRTYPE),
    )
    assert (copier.target / "d/f").read_text() == (copier.target / "d/h").read_text() == "text"
    assert (copier.target / "deep/er/f").read_text() == "more"
    assert os.readlink(copier.target / "d/l") == "../.."
    assert stat.S_IMODE((copier.target / "d").stat().st_mode) == 0o750
    assert copier.told == ["dev: left out, as it is a device"]


@pytest.mark.parametrize("name", ["../f", "d/../../f", "a/" * 500 + "f", "x" * 300])
def test_a_name_that_leads_out_is_refused(copier: Copier, name: str) -> None:
    with pytest.raises((InvalidRequest, Failed)):
        copier.extract((name, b"text"))
    assert list(copier.target.iterdir()) == []


def test_an_absolute_name_is_within(copier: Copier) -> None:
    copier.extract(("/etc/f", b"text"))
    assert (copier.target / "etc/f").read_text() == "text"


def test_a_link_of_the_archive_is_not_followed_by_what_comes_after_it(copier: Copier) -> None:
    with pytest.raises(OSError):
        copier.extract(
            member("a", tarfile.DIRTYPE, mode=0o755),
            member("a/d", tarfile.SYMTYPE, linkname=str(copier.outside)),
            ("a/d/f", b"text"),
        )
    assert list(copier.outside.iterdir()) == []
    (copier.outside / "victim").write_text("mine")
    with pytest.raises(InvalidRequest, match="linked and no file"):
        copier.extract(
            member("l", tarfile.SYMTYPE, linkname=str(copier.outside / "victim")),
            member("h", tarfile.LNKTYPE, linkname="l"),
        )


def test_what_is_no_archive(copier: Copier) -> None:
    with pytest.raises(InvalidRequest, match="tar archive"):
        TarSource(io.BytesIO(b"no archive" * 100), copier.told.append).copy(copier.sink())
