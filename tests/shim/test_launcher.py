import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.base.version import VERSION
from tests.shim.launchers import NAME, PACKAGES, compile_launcher, install

VERSIONED = PACKAGES.partition("/")[0]
EXPECTED = f"Version:  {VERSION}\n"


def run(path: str | Path, cwd: Path | None = None, **environment: str) -> str:
    result = subprocess.run(
        [str(path), "-v"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def interpreter(path: Path, marker: Path) -> Path:
    """An interpreter that leaves a mark where it was used."""
    path.write_text(f'#!/bin/sh\n: >"{marker}"\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_in_an_environment(tmp_path: Path) -> None:
    install(tmp_path)
    launcher = compile_launcher(tmp_path / "bin" / NAME)
    # The environment's interpreter is taken, not the one on the path.
    marker = tmp_path / "used"
    interpreter(launcher.parent / VERSIONED, marker)
    assert EXPECTED in run(launcher, PATH="/nowhere:/usr/bin:/bin")
    assert marker.exists()


def test_with_the_interpreter_elsewhere(tmp_path: Path) -> None:
    install(tmp_path, f"{VERSIONED}/dist-packages")
    launcher = compile_launcher(tmp_path / "bin" / NAME)
    directory = tmp_path / "path"
    directory.mkdir()
    (directory / VERSIONED).symlink_to(sys.executable)
    assert EXPECTED in run(launcher, PATH=f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize("link", [os.symlink, os.link, shutil.copy])
def test_elsewhere_it_finds_where_it_was_installed(tmp_path: Path, link: Any) -> None:
    prefix = tmp_path / "a prefix"
    site, marker = install(prefix), tmp_path / "used"
    named = interpreter(tmp_path / "a python", marker)
    launcher = compile_launcher(prefix / "bin" / NAME, INSTALLED=str(site), INTERPRETER=str(named))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link(launcher, elsewhere / NAME)
    assert EXPECTED in run(elsewhere / NAME, tmp_path)
    assert marker.exists(), "the interpreter that it was installed for"
    assert EXPECTED in run(NAME, tmp_path, PATH=f"{elsewhere}:/usr/bin:/bin")
    assert EXPECTED in run(f"./{NAME}", elsewhere)


def test_a_tree_that_was_moved_is_found_beside_it(tmp_path: Path) -> None:
    prefix, moved = tmp_path / "prefix", tmp_path / "moved"
    site = install(prefix)
    compile_launcher(prefix / "bin" / NAME, INSTALLED=str(site), INTERPRETER="/nowhere")
    prefix.rename(moved)
    (moved / "bin" / VERSIONED).symlink_to(sys.executable)
    assert EXPECTED in run(moved / "bin" / NAME, PATH="/nowhere")


def test_a_directory_for_standard_input(tmp_path: Path) -> None:
    """The interpreter wouldn't start with one."""
    site = install(tmp_path / "prefix")
    launcher = compile_launcher(
        tmp_path / "prefix/bin" / NAME, INSTALLED=str(site), INTERPRETER=sys.executable
    )
    folder = os.open(tmp_path, os.O_RDONLY)
    result = subprocess.run([str(launcher), "-v"], stdin=folder, capture_output=True, text=True)
    os.close(folder)
    assert EXPECTED in result.stdout, result


def test_pythons_environment_is_ignored(tmp_path: Path) -> None:
    site = install(tmp_path / "prefix")
    launcher = compile_launcher(
        tmp_path / "l" / NAME, INSTALLED=str(site), INTERPRETER=sys.executable
    )
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "__init__.py").write_text("raise SystemExit('wrong one')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONWARNINGS": "x"}
    assert EXPECTED in run(launcher, tmp_path, **environment)


def test_without_its_interpreter(tmp_path: Path) -> None:
    install(tmp_path, "python3.999/site-packages")
    launcher = compile_launcher(tmp_path / "bin" / NAME)
    result = subprocess.run([launcher, "-v"], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert result.returncode == 1
    assert result.stderr == f"{NAME}: no python3.999 to run it with\n".encode()
