"""The programs as they are installed, called from where users put them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers


@pytest.mark.parametrize("program", ["containerd-shim-gvisor-v2", "gvctl"])
@pytest.mark.parametrize("link", [os.symlink, shutil.copy])
def test_they_work_from_elsewhere(tmp_path: Path, program: str, link: Any) -> None:
    """Copied into a folder of PATH, or linked from there."""
    link(peers.shim_bin() / program, tmp_path / program)
    flag = "-v" if "shim" in program else "--version"
    for command, path in ((str(tmp_path / program), ""), (program, f"{tmp_path}:")):
        done = subprocess.run(
            [command, flag], env={"PATH": f"{path}/usr/bin:/bin"}, capture_output=True, cwd="/"
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"ersion" in done.stdout
