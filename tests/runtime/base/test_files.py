import fcntl
import json
import math
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.base import fastjson, files
from runtime.base.errors import DeadlineExceeded, InvalidRequest


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert files.read_bounded(str(path), 3) is None
    assert files.read_bounded(str(path / "below"), 3) is None
    path.write_bytes(b"abc")
    assert files.read_bounded(str(path), 3) == b"abc"
    assert files.read_bounded(str(path / "below"), 3) is None
    with pytest.raises(InvalidRequest, match="larger than 2"):
        files.read_bounded(str(path), 2)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidRequest, match="not a regular file"):
            files.read_bounded(str(path), 10)
    (tmp_path / "f").write_text("x")
    (tmp_path / "link").symlink_to("f")
    with pytest.raises(OSError):
        files.read_bounded(str(tmp_path / "link"), 10)
    assert files.read_bounded(str(tmp_path / "link"), 10, follow=True) == b"x"


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    outside = tmp_path / "outside"
    path.symlink_to(outside)
    files.replace_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert not path.is_symlink() and not outside.exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # What a process with our pid left behind when it died.
    (tmp_path / f".f.{os.getpid()}").write_text("old")
    files.replace_file(str(path), b"newer")
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_failed_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError):
        files.replace_file(str(tmp_path / "d"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_remove_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    files.remove_file(str(tmp_path / "f"))
    files.remove_file(str(tmp_path / "f"))
    assert not list(tmp_path.iterdir())


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=40)
@given(_JSON, st.sampled_from(["", " ", "\n\t"]))
def test_fastjson_reads_what_json_writes(value: object, blank: str) -> None:
    text = blank + json.dumps(value, indent=1) + blank
    assert fastjson.loads(text.encode()) == value


@given(st.text(alphabet='{}[]",:01.eE-truefalsn \\u\n', max_size=12))
def test_fastjson_refuses_what_json_refuses(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            fastjson.loads(text.encode())
    else:
        assert fastjson.loads(text.encode()) == expected


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"[" * 100_000, b"\xff", b"{} {}", b""])
def test_fastjson_errors(text: bytes) -> None:
    with pytest.raises(ValueError):
        fastjson.loads(text)


@settings(max_examples=40)
@given(_JSON)
def test_fastjson_writes_what_json_writes(value: object) -> None:
    assert fastjson.dumps(value) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "error"),
    [(math.nan, ValueError), ([-math.inf], ValueError), (b"", TypeError), ({(): 1}, TypeError)],
)
def test_fastjson_writes_nothing_else(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        fastjson.dumps(value)
    with pytest.raises(error):
        json.dumps(value, allow_nan=False)


def test_fastjson_without_the_parts_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": [1, 2.5, None, True], "\u00e9": "\n"}
    quick = fastjson.dumps(value)
    monkeypatch.setitem(sys.modules, "_json", None)
    assert fastjson.dumps(value) == quick
    assert fastjson.loads(quick.encode()) == value
    assert fastjson.quote("\u00e9") == '"\\u00e9"'
    for text in (b"NaN", b"[" * 100_000, b"\xff", b"{} {}", b""):
        with pytest.raises(ValueError):
            fastjson.loads(text)
    for wrong in (math.nan, [b""]):
        with pytest.raises((ValueError, TypeError)):
            fastjson.dumps(wrong)


@given(st.text())
def test_quote(text: str) -> None:
    assert json.loads(fastjson.quote(text)) == text


def test_a_directory_is_locked_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_TIMEOUT", 0.02)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DeadlineExceeded), files.DirectoryLock(str(tmp_path)):
        pass
    os.close(holder)
    with files.DirectoryLock(str(tmp_path)):
        pass
