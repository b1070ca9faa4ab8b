"""Build the native extension and install the shim's launcher."""

import os
import shlex
import sys
import sysconfig

from setuptools import setup
from setuptools.command.build import build  # noqa: F401  # makes distutils that of setuptools

from distutils.command.build_scripts import build_scripts  # isort: skip


class BuildLauncher(build_scripts):
    """Writes into the launcher where it is installed, so that a copy elsewhere finds that.

    An installation from source is built by the interpreter that it is for; one that was moved, or
    built elsewhere, is found beside the launcher or not at all.
    """

    def run(self):
        super().run()
        values = {
            b"installed": sysconfig.get_path("platlib"),
            b"interpreter": sys.executable,
        }
        for script in self.scripts:
            path = os.path.join(self.build_dir, os.path.basename(script))
            with open(path, "rb") as file:
                text = file.read()
            for name, value in values.items():
                line = name + b"=" + os.fsencode(shlex.quote(value))
                text = text.replace(b"\n" + name + b"=\n", b"\n" + line + b"\n", 1)
            with open(path, "wb") as file:
                file.write(text)


setup(
    cffi_modules=["runtime/_native_build.py:ffi"],
    scripts=["shim/bin/containerd-shim-gvisor-v2"],
    cmdclass={"build_scripts": BuildLauncher},
)
