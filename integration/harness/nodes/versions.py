"""Other versions of the shim, for one to become another: copies of the installed one, changed."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

NAME = "containerd-shim-gvisor-v2"
_OURS = ("shim", "runtime", "protos")


class Version:
    """An installation in a folder of its own, which is made; the dependencies are links."""

    def __init__(self, folder: Path) -> None:
        installed = Path(sysconfig.get_path("purelib"))
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / python / "site-packages"
        self.packages.mkdir(parents=True)
        for each in installed.iterdir():
            if each.name in _OURS:
                shutil.copytree(each, self.packages / each.name)
            elif each.suffix != ".pth":
                (self.packages / each.name).symlink_to(each)
        self.launcher = folder / "bin" / NAME
        self.launcher.parent.mkdir()
        shutil.copy(Path(sys.prefix, "bin", NAME), self.launcher)

    def call_it(self, version: str) -> None:
        """Have it say that it is of that version."""
        path = self.packages / "runtime/base/version.py"
        line = next(each for each in path.read_text().splitlines() if each.startswith("VERSION"))
        self.edit("runtime/base/version.py", line, f'VERSION = "{version}"')

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.packages / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new))
