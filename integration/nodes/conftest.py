"""The bundle, built once for all tests of this folder, which one process runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import bundle as builder
from integration.harness.base import peers


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the bundle, as `make bundle` builds it."""
    out = tmp_path_factory.mktemp("bundle")
    target = builder.Target(builder.native_arch(), Path("/"), peers.shim_bin().parent)
    packages = next(target.packages.glob("lib/python3*/site-packages"))
    return builder.build(target._replace(packages=packages), out, 3)


@pytest.fixture(scope="session")
def bundle(archive: Path, short_folder: Path) -> Iterator[Path]:
    """The bundle, unpacked and moved into a folder of a name that nobody expects."""
    place = short_folder / "not here"
    place.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", place], check=True, timeout=60)
    unpacked = next(place.iterdir())
    yield unpacked.rename(place / "é 1")
