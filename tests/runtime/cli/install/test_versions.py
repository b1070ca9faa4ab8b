"""Which versions are in use, by real processes that run from them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.cli.install.node import Node
from runtime.cli.install.versions import SHIM, Versions

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs what has a shim's command line and executes a file of a version."""
    started = []

    def begin(version: str, ident: str, action: str = "start", *, shim: bool = True) -> object:
        program = tmp_path / "versions" / version / SHIM
        program.parent.mkdir(parents=True, exist_ok=True)
        if not program.exists():
            shutil.copy("/bin/sh", program)
        process = subprocess.Popen(
            [program, "-c", "echo; read _", "-namespace", "k8s.io", "-id", ident, action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=shim,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it executes the file by now
        return process

    yield begin  # type: ignore[misc]
    for process in started:
        process.communicate("")


def test_pods_are_counted_by_their_shims(run: Run, tmp_path: Path) -> None:
    known = Versions(Node("/"), str(tmp_path))
    assert known.shims() == [] and known.used() == {}
    old, new = run("v1", "pod2"), run("v2", "pod1")
    # Calls of containerd's: for a pod's containers, and for a pod itself.
    for ident, action in (("container", "start"), ("container", "delete"), ("pod1", "start")):
        run("v2", ident, action, shim=False)
    assert known.shims() == ["pod1", "pod2"]
    used = known.used()
    assert used["v1"] == [old.pid] and len(used["v2"]) == 4 and new.pid in used["v2"]


def test_a_call_alone_may_become_a_shim(run: Run, tmp_path: Path) -> None:
    run("v1", "pod", shim=False)
    assert Versions(Node("/"), str(tmp_path)).shims() == ["pod"]
