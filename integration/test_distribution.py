"""The tests themselves, where several processes run them: who gets which."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from integration.harness.base import distribution, peers
from integration.harness.base.distribution import unit

pytestmark = pytest.mark.gvisor


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("tests/shim/test_paths.py::test_a[1.7]", "tests/shim/test_paths.py"),
        ("integration/test_x.py::test_a[2.1-x]", "integration/test_x.py"),
        ("integration/nodes/test_bundle.py::test_a[1.7]", "integration/nodes/"),
        ("integration/nodes/test_install.py::test_b", "integration/nodes/"),
        *(
            (f"integration/p/test_x.py::test_a[{given}]", f"integration/p/test_x.py[{daemon}]")
            for given, daemon in (
                ("1.7-20240729", "1.7-20240729"),
                ("2.1-20240729-apart", "2.1-20240729-apart"),
                ("2.1-20240729-shim-a-b", "2.1-20240729-shim"),
                ("word-1.6-20221219", "1.6-20221219"),
                ("2.1-20221219-containerd, pod start", "2.1-20221219"),
            )
        ),
    ],
)
def test_units(test: str, expected: str) -> None:
    assert unit(test) == expected


def test_one_process_has_the_whole_of_a_unit(tmp_path: Path) -> None:
    """By the pytest and the xdist that are here: with some, groups are silently none at all."""
    for name in ("integration/nodes/test_a.py", "integration/nodes/test_b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def test_1(): pass\ndef test_2(): pass\n")
    words = ("-vv", "-n", "2", "-p", distribution.__name__, "--rootdir", tmp_path, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(peers.CHECKOUT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    processes = re.findall(r"^\[(gw\d+)\].* PASSED ", done.stdout, re.MULTILINE)
    assert len(processes) == 4 and len(set(processes)) == 1, done.stdout


def test_it_decides_here(request: pytest.FixtureRequest) -> None:
    found = request.config.pluginmanager.hook
    if not hasattr(found, "pytest_xdist_make_scheduler"):
        pytest.skip("pytest-xdist isn't loaded")
    chosen = [each.function for each in found.pytest_xdist_make_scheduler.get_hookimpls()]
    assert chosen[-1] is distribution.pytest_xdist_make_scheduler
