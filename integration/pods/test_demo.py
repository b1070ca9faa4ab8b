"""The demonstration works, and takes everything away also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.host import footprint

FOLDER = Path("/run/gvisor-shim-demo")


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "integration.harness.figures.demonstration"],
        cwd=peers.CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def _left(pid: int) -> list[str]:
    """What names the demonstration's folder or its pods' cgroup."""
    folder, group = f"{FOLDER}/{pid}", f"gvt{pid}-0"
    found = [folder] if os.path.exists(folder) else []
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if folder in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{group}")]
    for name in os.listdir("/proc"):
        if name.isdigit() and any(folder in word for word in footprint.command_line(int(name))):
            found.append(f"process {name}")
    return found


def test_demonstration(demo: subprocess.Popen[str]) -> None:
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, out
    assert [line[1] for line in out.splitlines() if line.startswith("[")] == list("123456789")
    assert "'made for the tests'" in out
    timeline = out.partition("Timeline")[2].splitlines()
    assert sum("█" in line for line in timeline) == 9
    assert not _left(demo.pid)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_demonstration_is_interrupted(demo: subprocess.Popen[str], signo: int) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("[3/9]"):
            break
    demo.send_signal(signo)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, out
    assert "Stopped" in out
    assert "Not clean" not in out
    assert not _left(demo.pid)
