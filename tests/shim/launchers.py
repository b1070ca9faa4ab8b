"""Launchers compiled for tests, as setup.py does it, for installations that are links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.shim.process import REPOSITORY

NAME = "containerd-shim-gvisor-v2"
SOURCE = REPOSITORY / "shim" / "native" / "launcher.c"
PACKAGES = f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def compile_launcher(path: Path, **values: str) -> Path:
    """A launcher at ``path``; ``values`` are its constants (INSTALLED, INTERPRETER, ...)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    macros = [f'-D{name}="{value}"' for name, value in values.items()]
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Wextra", "-Werror", *macros, "-o", path, SOURCE], check=True
    )
    return path


def install(prefix: Path, packages: str = PACKAGES) -> Path:
    """A tree as pip makes it, but for the launcher; the folder of the packages."""
    site = prefix / "lib" / packages
    site.mkdir(parents=True)
    for package in ("shim", "runtime", "protos"):
        (site / package).symlink_to(REPOSITORY / package)
    return site
