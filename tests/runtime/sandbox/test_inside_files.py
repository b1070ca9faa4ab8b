"""Files reached by system calls of a program; here the program runs on the host itself."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.sandbox import inside_files
from runtime.sandbox.inside_files import AT_FDCWD, InsideFiles


@pytest.fixture
def files(tmp_path: Path) -> Iterator[InsideFiles]:
    program = tmp_path / "program"
    program.write_bytes(inside_files.program())
    program.chmod(0o755)
    (tmp_path / "top").mkdir()
    calls, our_calls = os.pipe(), os.pipe()
    process = subprocess.Popen([program], stdin=calls[0], stdout=our_calls[1], cwd=tmp_path / "top")
    os.close(calls[0])
    os.close(our_calls[1])
    ended: list[int] = []
    with InsideFiles(calls[1], our_calls[0], lambda: ended.append(process.wait(10))) as files:
        yield files
    assert ended == [0]


def test_a_file_is_written_and_read(files: InsideFiles, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    fd = files.open(AT_FDCWD, b"f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    left = data
    while left:
        left = left[files.write(fd, left) :]
    files.chmod(fd, 0o604)
    files.set_time(fd, b"", 1_234_567_890_123_456_789)
    files.chown(fd, b"", os.getuid(), os.getgid())
    status = files.stat(fd, b"")
    files.close(fd)
    found = (tmp_path / "top/f").stat()
    assert (tmp_path / "top/f").read_bytes() == data
    assert status.mode == found.st_mode == stat.S_IFREG | 0o604
    assert status.mtime_ns == found.st_mtime_ns == 1_234_567_890_123_456_789
    assert (status.uid, status.gid, status.size) == (found.st_uid, found.st_gid, 700_000)
    fd = files.open(AT_FDCWD, b"f", os.O_RDONLY)
    parts = b""
    while chunk := files.read(fd, 1 << 30):
        parts += chunk
    assert parts == data


def test_folders_links_and_pipes(files: InsideFiles, tmp_path: Path) -> None:
    top = tmp_path / "top"
    files.mkdir(AT_FDCWD, b"d", 0o711)
    folder = files.open(AT_FDCWD, b"d", os.O_RDONLY | os.O_DIRECTORY)
    names = [f"name-{n:04}-{'x' * 200}".encode() for n in range(300)]
    for name in names:
        files.symlink(b"../elsewhere", folder, name)
    assert sorted(files.names(folder)) == names
    assert files.readlink(folder, names[0]) == b"../elsewhere"
    assert stat.S_ISLNK(files.stat(folder, names[0]).mode)
    files.set_time(folder, names[0], 5 * 10**9 + 7)
    assert (top / "d" / os.fsdecode(names[0])).lstat().st_mtime_ns == 5 * 10**9 + 7
    files.fifo(folder, b"p", 0o600)
    assert stat.S_ISFIFO((top / "d/p").stat().st_mode)
    files.link(folder, b"p", AT_FDCWD, b"q")
    files.unlink(folder, b"p")
    assert stat.S_ISFIFO(files.stat(AT_FDCWD, b"q").mode)


def test_errors_are_the_systems(files: InsideFiles) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.open(AT_FDCWD, b"none", os.O_RDONLY)
    assert caught.value.filename == "none"
    files.symlink(b"none", AT_FDCWD, b"link")
    with pytest.raises(OSError, match="symbolic links"):
        files.open(AT_FDCWD, b"link", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
    with pytest.raises(FileNotFoundError):
        files.stat(AT_FDCWD, b"link", follow=True)
    with pytest.raises(Failed, match="longer than"):
        files.open(AT_FDCWD, b"a/" * 5000, os.O_RDONLY)


class Peer:
    """Something in the program's place."""

    def __init__(self, timeout: float = 10.0) -> None:
        self.calls, calls = os.pipe()
        answers, self.answers = os.pipe()
        os.write(self.answers, struct.pack("<Q", 0x7FFF_0000_0000))
        self.files = InsideFiles(calls, answers, timeout=timeout)

    def close(self) -> None:
        self.files.close_all()
        for fd in (self.calls, self.answers):
            os.close(fd)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


def entry(name: bytes, length: int = 0) -> bytes:
    data = struct.pack("<QqHB", 1, 1, length or 19 + len(name) + 1, 8) + name + b"\0"
    return data


@pytest.mark.parametrize(
    "answer",
    [
        entry(b"../../etc/passwd"),
        entry(b"/etc"),
        entry(b""),
        entry(b"a" * 256),
        entry(b"a", 3),
        entry(b"a", 5000),
        b"short",
    ],
    ids=["leads-up", "absolute", "empty", "long", "too-short", "too-long", "cut-off"],
)
def test_a_name_that_cannot_be_is_refused(peer: Peer, answer: bytes) -> None:
    os.write(peer.answers, struct.pack("<q", len(answer)) + answer)
    with pytest.raises(Failed):
        list(peer.files.names(3))


def test_a_lying_program_is_no_more_than_an_error(peer: Peer) -> None:
    os.write(peer.answers, struct.pack("<q", 1 << 40))
    with pytest.raises(Failed, match="tells of"):
        peer.files.read(3, 100)
    os.write(peer.answers, struct.pack("<q", 50))
    with pytest.raises(Failed, match="more was written"):
        peer.files.write(3, b"x")
    os.write(peer.answers, struct.pack("<q", 0) + b"\xff" * 256)
    with pytest.raises(Failed, match="impossible"):
        peer.files.stat(3, b"")
    os.write(peer.answers, struct.pack("<q", -100_000))
    with pytest.raises(OSError, match="unknown"):
        peer.files.close(3)


def test_a_program_that_is_gone_or_silent(peer: Peer) -> None:
    silent = Peer(timeout=0.01)
    with pytest.raises(DeadlineExceeded):
        silent.files.close(3)
    silent.close()
    os.close(peer.answers)
    peer.answers = os.dup(peer.calls)
    with pytest.raises(Failed, match="has ended"):
        peer.files.close(3)
