"""What is committed is what the generator makes of the sources."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from protos import generate


def test_nothing_is_stale() -> None:
    assert generate.stale() == [], "run: python -m protos.generate"


def test_nothing_is_stale_by_digest() -> None:
    assert generate.stale_by_digest() == [], "run: python -m protos.generate"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for pattern in ("*.proto", "*_pb2.py*", "MANIFEST"):
        for path in generate.HERE.glob(pattern):
            shutil.copy(path, tmp_path)
    assert generate.stale_by_digest(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize("name", ["task.proto", "task_pb2.py", "task_pb2.pyi"])
def test_an_edit_is_seen_without_protoc(copy: Path, name: str) -> None:
    path = copy / name
    path.write_text(path.read_text() + "\n")
    assert generate.stale_by_digest(copy) == [name]


def test_a_new_and_a_lost_file_are_seen_without_protoc(copy: Path) -> None:
    (copy / "new.proto").write_text("")
    (copy / "wkt_pb2.py").unlink()
    assert generate.stale_by_digest(copy) == ["new.proto", "wkt_pb2.py"]


def test_manifest_names_every_file() -> None:
    names = {line.split()[1] for line in generate.MANIFEST.read_text().splitlines()}
    stems = {path.stem for path in generate.sources()}
    assert names == {f"{s}{end}" for s in stems for end in (".proto", "_pb2.py", "_pb2.pyi")}
    text = (generate.HERE / "wkt.proto").read_bytes()
    assert hashlib.sha256(text).hexdigest() in generate.MANIFEST.read_text()
