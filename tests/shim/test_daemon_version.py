import os
from pathlib import Path

import pytest

from shim import daemon_version as dv


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("containerd github.com/containerd/containerd v1.7.24 88bf19b\n", "1.7.24"),
        ("containerd github.com/containerd/containerd/v2 v2.1.9 abc\n", "2.1.9"),
        ("containerd github.com/containerd/containerd/v2 2.1.0-rc.1 abc\n", ""),
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n", "1.6.20"),
        ("containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", "2.1.9"),
        ("containerd github.com/containerd/containerd/v2 2.1.0~rc1 x\n", ""),
        ("k3s version v1.30.1+k3s1 (80978b5b)\n", ""),
        ("Docker version 27.0.1, build x\n", ""),
        ("", ""),
    ],
)
def test_parse_version(output: str, version: str) -> None:
    assert dv.parse_version(output) == version


@pytest.mark.parametrize(
    ("version", "accepts"),
    [
        ("1.7.24", False),
        ("2.0.5", False),
        ("2.0.6", True),
        ("2.1.0", True),
        ("2.2.3", True),
        ("3.0.0", False),
        ("", False),
        ("2.1", False),
    ],
)
def test_accepts_version_3(version: str, accepts: bool) -> None:
    assert dv.accepts_version_3(version) is accepts


def test_learn_and_know(tmp_path: Path) -> None:
    binary, cache = tmp_path / "containerd", str(tmp_path / "dir" / "version")
    binary.write_text("x")
    asked: list[str] = []

    def ask(path: str) -> bytes:
        asked.append(path)
        return b"containerd github.com/containerd/containerd/v2 v2.1.9 abc"

    path = str(binary)
    assert dv.known_version(path, cache, path) == ""
    assert dv.learn_daemon_version(path, cache, ask) == "2.1.9"
    assert dv.learn_daemon_version(path, cache, ask) == "2.1.9"
    assert asked == [path]
    assert dv.known_version(path, cache, path) == "2.1.9"
    # After an upgrade, the old daemon still runs: what is on disk tells nothing about it.
    assert dv.known_version(path, cache, "/proc/self/exe") == ""
    os.utime(binary, ns=(1, 1))
    assert dv.known_version(path, cache, path) == ""


def test_a_binary_without_an_answer_is_asked_once(tmp_path: Path) -> None:
    path, cache = str(tmp_path / "k3s"), str(tmp_path / "version")
    Path(path).write_text("x")
    assert dv.learn_daemon_version(path, cache, lambda _: b"k3s version v1") == ""
    assert dv.known_version(path, cache, path) == ""
    with open(cache) as file:
        assert file.read().endswith(" -\n")


def test_garbage_is_no_knowledge(tmp_path: Path) -> None:
    path, cache = str(tmp_path / "containerd"), tmp_path / "version"
    Path(path).write_text("x")
    for data in (b"\xff", b"", b"1 2 3 4", b"x" * 9000):
        cache.write_bytes(data)
        assert dv.known_version(path, str(cache), path) == ""
    assert dv.known_version("containerd", str(cache), path) == ""
    assert dv.known_version("/no/such/binary", str(cache), "/no/such/binary") == ""


def test_asking_a_real_process(tmp_path: Path) -> None:
    script = tmp_path / "containerd"
    script.write_text("#!/bin/sh\necho containerd example.com/containerd/v2 v2.2.0 $1\n")
    script.chmod(0o755)
    assert dv.learn_daemon_version(str(script), str(tmp_path / "version")) == "2.2.0"
