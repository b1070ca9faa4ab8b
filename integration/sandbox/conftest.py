"""A lab for each generation of runsc; whatever a test leaves behind makes it fail."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.sandbox.lab import Lab
from runtime.host import children


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=peers.RUNSCS)
def lab(request: pytest.FixtureRequest, tmp_path: Path, probed: Path) -> Iterator[Lab]:
    gc.collect()  # a driver holds runsc's file for as long as it lives
    before = os.listdir("/proc/self/fd")
    known = set(children._children)  # of other tests in this process
    tmp_path.chmod(0o755)
    lab = Lab(request.param, tmp_path, probed)
    yield lab
    lab.close()
    gc.collect()
    assert not set(children._children) - known, "a process is left"
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor is left"
    assert not list(lab.state.iterdir()) if lab.state.exists() else True, "a socket is left"
    assert not list(tmp_path.rglob(".gvisor.filestore*")), "a filestore is left"
