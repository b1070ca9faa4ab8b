"""Build the native extension and the launchers."""

import hashlib
import os
import sys
import sysconfig

from setuptools import setup
from setuptools.command.build import build  # noqa: F401  # makes distutils that of setuptools

from distutils.ccompiler import new_compiler  # isort: skip
from distutils.command.build_scripts import build_scripts  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

#: The launchers, and what the compiler is told for each besides.
LAUNCHERS = {"containerd-shim-gvisor-v2": [], "gvctl": [("GVCTL", None)]}


def build_id():
    """A word that changes with any file of the packages: fork servers are of one build."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("shim", "runtime", "protos"):
        for folder, _, names in sorted(os.walk(package)):
            for name in sorted(names):
                if name.endswith((".py", ".c", ".h")) and name != "_native.c":
                    path = os.path.join(folder, name)
                    with open(path, "rb") as file:
                        digest.update(path.encode() + b"\0" + file.read())
    return digest.hexdigest()[:16]


class BuildLaunchers(build_scripts):
    """Compiles the launchers, which know where they are installed, so that copies elsewhere do.

    An installation from source is built by the interpreter that it is for; one that was moved, or
    built elsewhere, is found beside the launchers or not at all.
    """

    def run(self):
        os.makedirs(self.build_dir, exist_ok=True)
        compiler = new_compiler()
        customize_compiler(compiler)
        values = {
            "INSTALLED": sysconfig.get_path("platlib"),
            "INTERPRETER": sys.executable,
            "BUILD": build_id(),
        }
        quoted = {
            name: value.replace("\\", r"\\").replace('"', r"\"") for name, value in values.items()
        }
        macros = [(name, f'"{value}"') for name, value in quoted.items()]
        for name, more in LAUNCHERS.items():
            objects = compiler.compile(
                self.scripts,
                output_dir=os.path.join(self.build_dir, "objects"),
                macros=macros + more,
                extra_preargs=["-O2", "-Wall", "-Wextra"],
            )
            compiler.link_executable(objects, name, output_dir=self.build_dir)
            for path in objects:
                os.unlink(path)
            os.removedirs(os.path.dirname(objects[0]))


setup(
    cffi_modules=["runtime/_native_build.py:ffi"],
    scripts=["shim/native/launcher.c"],
    cmdclass={"build_scripts": BuildLaunchers},
)
