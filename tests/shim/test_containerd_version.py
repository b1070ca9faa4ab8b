import os
import threading
from pathlib import Path

import pytest

from shim import containerd_version as dv


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
    binary, records = tmp_path / "containerd", str(tmp_path / "dir" / "records")
    binary.write_text("x")
    asked: list[str] = []

    def ask(path: str) -> str:
        asked.append(path)
        return "containerd github.com/containerd/containerd/v2 v2.1.9 abc"

    path = str(binary)
    assert dv.known_version(path, records) is None
    assert dv.learn_version(path, path, records, ask) == "2.1.9"
    assert dv.learn_version(path, path, records, ask) == "2.1.9"
    assert asked == [path]
    assert dv.known_version(path, records) == "2.1.9"
    # After an upgrade, the old daemon still runs: what is on disk tells nothing about it.
    assert dv.known_version("/proc/self/exe", records) is None
    assert dv.learn_version(path, "/proc/self/exe", records, ask) == ""
    os.utime(binary, ns=(1, 1))
    assert dv.known_version(path, records) is None
    assert asked == [path]


def test_releases_do_not_push_each_other_out(tmp_path: Path) -> None:
    records = str(tmp_path / "records")
    binaries = {}
    for version in ("1.7.24", "2.1.9", "2.0.6"):
        binaries[version] = tmp_path / version
        binaries[version].write_text(version)
        line = f"containerd github.com/containerd/containerd/v2 v{version} abc"
        path = str(binaries[version])
        assert dv.learn_version(path, path, records, lambda _, t=line: t) == version  # type: ignore[misc]
    for version, binary in binaries.items():
        assert dv.known_version(str(binary), records) == version


def test_records_are_bounded(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir(mode=0o700)
    for number in range(3 * dv.MAX_RECORDS):
        left = records / f".left-{number}"
        left.write_text("by a dead process")
        os.utime(left, ns=(number, number))
    binary = tmp_path / "containerd"
    binary.write_text("x")
    path, line = str(binary), "containerd github.com/containerd/containerd v1.7.24 abc"
    assert dv.learn_version(path, path, str(records), lambda _: line) == "1.7.24"
    assert len(list(records.iterdir())) == dv.MAX_RECORDS
    assert dv.known_version(path, str(records)) == "1.7.24"
    assert not (records / ".left-0").exists()


def test_a_binary_without_an_answer_is_asked_once(tmp_path: Path) -> None:
    path, records = str(tmp_path / "k3s"), str(tmp_path / "records")
    Path(path).write_text("x")
    assert dv.learn_version(path, path, records, lambda _: "k3s version v1") == ""
    assert dv.known_version(path, records) == ""
    assert dv.learn_version(path, path, records, lambda _: "containerd x/containerd 2.1.9") == ""


def test_garbage_is_no_knowledge(tmp_path: Path) -> None:
    path, records = str(tmp_path / "containerd"), tmp_path / "records"
    Path(path).write_text("x")
    assert dv.learn_version(path, path, str(records), lambda _: "-") == ""
    record = next(records.iterdir())
    for data in (b"\xff", b"", b"1 2 3 4", b"x" * 9000):
        record.write_bytes(data)
        assert dv.known_version(path, str(records)) is None
    record.unlink()
    record.symlink_to("/etc/hostname")
    assert dv.known_version(path, str(records)) is None
    assert dv.known_version("/no/such/binary", str(records)) is None
    assert dv.learn_version("containerd", path, str(records)) == ""


def test_what_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path, records = str(tmp_path / "containerd"), tmp_path / "records"
    Path(path).write_text("x")
    line = "containerd github.com/containerd/containerd/v2 v2.1.9 abc"
    assert dv.learn_version(path, path, str(records), lambda _: line) == "2.1.9"
    assert records.stat().st_mode & 0o777 == 0o700
    assert dv.known_version(path, str(records)) == "2.1.9"
    records.chmod(0o770)
    assert dv.known_version(path, str(records)) is None
    assert dv.learn_version(path, path, str(records), lambda _: line) == ""
    records.chmod(0o700)
    moved = records.rename(tmp_path / "moved")
    records.symlink_to(moved)
    assert dv.known_version(path, str(records)) is None


def test_asking_a_real_process(tmp_path: Path) -> None:
    script = tmp_path / "containerd"
    script.write_text("#!/bin/sh\necho containerd example.com/containerd/v2 v2.2.0 $1\n")
    script.chmod(0o755)
    path = str(script)
    assert dv.learn_version(path, path, str(tmp_path / "records")) == "2.2.0"


def test_a_binary_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dv, "_ASK_TIMEOUT", 0.1)
    script = tmp_path / "containerd"
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o755)
    path, records = str(script), str(tmp_path / "records")
    assert dv.learn_version(path, path, records) == ""
    assert dv.known_version(path, records) == ""


def test_only_one_of_many_asks(tmp_path: Path) -> None:
    script, asked = tmp_path / "containerd", tmp_path / "asked"
    line = "containerd example.com/containerd/v2 v2.2.0"
    script.write_text(f"#!/bin/sh\necho x >> {asked}\nsleep 0.1\necho {line}\n")
    script.chmod(0o755)
    path, records = str(script), str(tmp_path / "records")
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(dv.learn_version(path, path, records)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["2.2.0"] * 5
    assert asked.read_text() == "x\n"
