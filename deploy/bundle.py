"""Build the bundle: shim, gvctl and a Python to run them, in one folder that may lie anywhere.

    python -m deploy.bundle [--arch ARCH --sysroot DIR --packages DIR] [--out DIR] [--level N]

Run by the Python that it copies, in a checkout's virtual environment.  The result is
``OUT/gvisor-shim-VERSION-ARCH.tar.zst`` with its SHA-512 beside it.  A node needs nothing but a
kernel: the bundle has a C library of its own, which the interpreter and its modules find by a path
relative to themselves; the programs that are executed are static.  The same input gives the same
bytes: files are sorted, their times and owners fixed, compiled modules are checked by no time, and
nothing names where it was built.

With ``--sysroot`` Python and libraries are taken from there, a folder in which Debian packages of
another architecture were unpacked (``deploy/sysroot``), and ``--packages`` names the folder of that
architecture's wheels; the compiler is then Debian's cross compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: Debian's architectures, with the word of GNU triplets for each.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
#: The dynamic loader of each.
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
#: Where the interpreter's own file lies; ``bin/python3.X`` is what has the loader run it.
PROGRAM = f"lib/{PYTHON}/interpreter"
#: Of the standard library, what no program of ours can use.
UNUSED = {
    "EXTERNALLY-MANAGED", "LICENSE.txt", "__phello__", "_distutils_system_mod.py", "curses", "dbm",
    "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "sitecustomize.py", "sqlite3", "test", "tkinter", "turtle.py", "turtledemo", "venv",
}  # fmt: skip
_GLIBC = ("libc6", "LGPL-2.1-or-later")
#: Libraries that come along: the Debian package of each, and its licence.
LIBRARIES = {
    **dict.fromkeys(
        ("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
        _GLIBC,
    ),
    "libbz2.so.1.0": ("libbz2-1.0", "bzip2-1.0.6"),
    "libcrypto.so.3": ("libssl3", "Apache-2.0"),
    "libexpat.so.1": ("libexpat1", "MIT"),
    "libffi.so.8": ("libffi8", "MIT"),
    "libgcc_s.so.1": ("libgcc-s1", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "liblzma.so.5": ("liblzma5", "0BSD"),
    "libssl.so.3": ("libssl3", "Apache-2.0"),
    "libstdc++.so.6": ("libstdc++6", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libz.so.1": ("zlib1g", "Zlib"),
}
#: What is taken of the wheels: the distribution, what of it, and its licence.
WHEELS = {
    "protobuf": ("google/", "BSD-3-Clause"),
    "structlog": ("structlog/", "MIT OR Apache-2.0"),
    "pyroute2": ("pyroute2/", "GPL-2.0-or-later OR Apache-2.0"),
    "cffi": ("_cffi_backend", "MIT"),
}
EPOCH = 315532800  # 1980, the first year that every archiver knows
_TEST_MODULE = re.compile(r"_(ctypes_)?test|_xx|xxlimited")


class Component(NamedTuple):
    """Something that is in the bundle, and under whose terms."""

    name: str
    version: str
    licence: str
    source: str


class Target(NamedTuple):
    """What the bundle is for."""

    arch: str
    sysroot: Path
    packages: Path

    @property
    def triplet(self) -> str:
        return f"{MACHINES[self.arch]}-linux-gnu"

    @property
    def loader(self) -> str:
        return LOADERS[self.arch]

    @property
    def native(self) -> bool:
        return self.arch == native_arch()

    def tool(self, name: str) -> str:
        """The name of a program of the tool chain."""
        return name if self.native else f"{self.triplet}-{name}"


def native_arch() -> str:
    machine = platform.machine()
    return next(arch for arch, word in MACHINES.items() if word == machine)


def version() -> str:
    """The project's version."""
    text = (ROOT / "runtime/base/version.py").read_text()
    found = re.search(r'^VERSION.*= "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


def run(*words: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What a program prints; RuntimeError with its words when it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **variables},
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# -- what is copied -----------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    """One file, what a link leads to, with the modes that all files have."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)


def files_below(folder: Path, unused: Iterable[str] = ()) -> Iterator[Path]:
    """Paths relative to the folder, without compiled modules and ``unused`` names at its top."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "__pycache__" not in name.parts and name.parts[0] not in unused:
            yield name


def needed(path: Path) -> list[str]:
    """The libraries that a program or library names."""
    text = run("readelf", "-d", path)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text)


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def copy_python(target: Target, tree: Path) -> None:
    """The interpreter and its standard library; extension modules as far as LIBRARIES goes."""
    interpreter = Path(os.path.realpath(sys.executable))
    stdlib = Path(sysconfig.get_path("stdlib"))
    if target.sysroot != Path("/"):
        interpreter, stdlib = Path("/usr/bin", PYTHON), Path("/usr/lib", PYTHON)
    sysroot = target.sysroot
    program = tree / PROGRAM
    copy(sysroot / interpreter.relative_to("/"), program)
    source = sysroot / stdlib.relative_to("/")
    unused = UNUSED | {path.name for path in source.glob("config-*")}
    for name in files_below(source, unused):
        if "tests" in name.parts or "idle_test" in name.parts:
            continue
        if name.parts[0] == "lib-dynload" and not wanted_extension(source / name):
            continue
        copy(source / name, tree / "lib" / PYTHON / name)
    # Also for the libraries that the bundle's extension modules name: it is no RUNPATH.
    run("patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/..", program)


def wanted_extension(path: Path) -> bool:
    if _TEST_MODULE.match(path.name):
        return False
    loaders = LOADERS.values()
    return all(name in LIBRARIES or name in loaders for name in needed(path))


def copy_wheels(target: Target, place: Path) -> list[Component]:
    """The libraries of Python that the shim imports; what they are."""
    found = []
    for name, (prefix, licence) in WHEELS.items():
        each = next(
            each
            for each in importlib.metadata.distributions(path=[str(target.packages)])
            if each.metadata["Name"] == name
        )
        for file in each.files or ():
            path = Path(str(each.locate_file(file)))
            text = str(file)
            if text.startswith(prefix) and text.endswith((".py", ".so")):
                copy(path, place / text)
            elif "/licenses/" in text or re.search(r"dist-info/(LICEN|COPYING|NOTICE)", text):
                copy(path, place.parents[2] / "share/licenses" / name / path.name)
        found.append(Component(name, each.version, licence, "wheel"))
    return found


def copy_libraries(target: Target, tree: Path) -> list[Component]:
    """Those that programs and modules name, and the loader; what they and Python are."""
    copied: set[str] = set()
    known = {**LIBRARIES, target.loader: _GLIBC}
    todo = [path for path in tree.rglob("*") if path.is_file() and is_elf(path)]
    while todo:
        for name in needed(todo.pop()):
            if name in copied:
                continue
            if name not in known:
                raise RuntimeError(f"{name}: no package and licence are known")
            folders = (f"usr/lib/{target.triplet}", f"lib/{target.triplet}")
            paths = [target.sysroot / folder / name for folder in folders]
            copy(next(path for path in paths if path.exists()), tree / "lib" / name)
            (tree / "lib" / name).chmod(0o755 if name == target.loader else 0o644)
            todo.append(tree / "lib" / name)
            copied.add(name)
    found = [debian_component(target, tree, f"lib{PYTHON}-minimal", "PSF-2.0")]
    for package, licence in sorted({known[name] for name in copied}):
        found.append(debian_component(target, tree, package, licence))
    return found


def debian_component(target: Target, tree: Path, package: str, licence: str) -> Component:
    """A Debian package with its version; its copyright file is copied."""
    # Documentation of one package may be a link to that of another, by an absolute path.
    folder = target.sysroot / "usr/share/doc" / package
    if folder.is_symlink():
        folder = folder.parent / os.path.basename(os.readlink(folder))
    copy(folder / "copyright", tree / "share/licenses" / package / "copyright")
    words = ("-W", "-f", "${Version}\n", f"{package}:{target.arch}")
    found = run("dpkg-query", f"--admindir={target.sysroot}/var/lib/dpkg", *words).split()[0]
    return Component(package, found, licence, "Debian package")


def copy_own(place: Path) -> None:
    """The project's packages."""
    for package in ("shim", "runtime", "protos"):
        for name in files_below(ROOT / package):
            if name.suffix == ".py" or name.parts[0] == "bin":
                copy(ROOT / package / name, place / package / name)
    for unused in ("protos/generate.py", "runtime/_native_build.py"):
        (place / unused).unlink()


# -- what is compiled ---------------------------------------------------------------------------


def include_folders(target: Target) -> list[str]:
    if target.sysroot == Path("/"):
        return [f"-I{sysconfig.get_path('include')}"]
    return [f"-I{target.sysroot}/usr/include/{PYTHON}", f"-I{target.sysroot}/usr/include"]


def compile_native(target: Target, place: Path, work: Path) -> None:
    """The extension module, in C as cffi writes it."""
    sys.path.insert(0, str(ROOT))
    from runtime import _native_build

    work.mkdir(parents=True)
    _native_build.ffi.emit_c_code(str(work / "_native.c"))
    run(
        target.tool("gcc"), "-shared", "-fPIC", "-g0", "-DPy_LIMITED_API=0x030b0000",
        *_native_build.COMPILE_ARGUMENTS, *include_folders(target), "_native.c",
        "-o", "_native.abi3.so", *_native_build.LINK_ARGUMENTS, "-Wl,--build-id=none", "-s",
        cwd=work,
    )  # fmt: skip
    copy(work / "_native.abi3.so", place / "runtime/_native.abi3.so")


def compile_launchers(target: Target, tree: Path, work: Path) -> None:
    """The programs that are executed.  The two launchers are of one build with all beside them."""
    shutil.copyfile(ROOT / "shim/native/interpreter.c", work / "interpreter.c")
    paths = {"LOADER": f"lib/{target.loader}", "PROGRAM": PROGRAM}
    macros = [f'-D{name}="../{path}"' for name, path in paths.items()]
    compile_program(target, work, "interpreter.c", PYTHON, *macros)
    copy(work / PYTHON, tree / "bin" / PYTHON)
    digest = hashlib.sha256()
    for name in files_below(tree):
        digest.update(f"{name}\0".encode() + (tree / name).read_bytes())
    build = f'-DBUILD="{digest.hexdigest()[:16]}"'
    shutil.copyfile(ROOT / "shim/native/launcher.c", work / "launcher.c")
    for program, options in (("containerd-shim-gvisor-v2", ()), ("gvctl", ("-DGVCTL",))):
        compile_program(target, work, "launcher.c", program, build, *options)
        copy(work / program, tree / "bin" / program)


def compile_program(target: Target, work: Path, source: str, program: str, *macros: str) -> None:
    """A program that needs no loader and no library, as it names neither."""
    run(
        target.tool("gcc"), "-O2", "-g0", "-Wall", "-Wextra", "-static", *macros, source,
        "-o", program, "-Wl,--build-id=none", "-s", cwd=work,
    )  # fmt: skip


_COMPILE = """
import os, py_compile, sys
for path in sys.stdin.read().split():
    py_compile.compile(
        path, dfile=path, doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def compile_modules(tree: Path) -> None:
    """Every module, so that nothing is to be written on a node.

    By one process whose sets have one order; a module's path in it is relative to the bundle.
    """
    names = "\n".join(str(name) for name in files_below(tree) if name.suffix == ".py")
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-c", _COMPILE],
        input=names,
        text=True,
        capture_output=True,
        cwd=tree,
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


# -- the whole ----------------------------------------------------------------------------------


def build_tree(target: Target, tree: Path, work: Path) -> list[Component]:
    """Everything that is in the bundle, in the folder ``tree``; what it is made of."""
    place = tree / "lib" / PYTHON / "site-packages"
    copy_python(target, tree)
    components = [Component("containerd-shim-gvisor", version(), "Apache-2.0", "this project")]
    components += copy_wheels(target, place)
    copy_own(place)
    compile_native(target, place, work)
    components += copy_libraries(target, tree)
    for path in tree.rglob("*.so*"):
        if path.parent.name != "lib":
            path.chmod(0o644)
    compile_modules(tree)
    copy(ROOT / "docs/gvctl.1", tree / "share/man/man1/gvctl.1")
    for name in ("LICENSE", "README.md", "CHANGELOG.md"):
        copy(ROOT / name, tree / "share/doc" / name)
    compile_launchers(target, tree, work)
    components.sort()
    contents = {
        "name": "gvisor-shim",
        "version": version(),
        "arch": target.arch,
        "python": platform.python_version(),
        "components": [each._asdict() for each in components],
    }
    (tree / "share/contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    lines = [f"{digest_of(tree / name)}  {name}\n" for name in every_file(tree)]
    (tree / "share/SHA512SUMS").write_text("".join(lines))
    return components


def every_file(tree: Path) -> list[Path]:
    return [path.relative_to(tree) for path in sorted(tree.rglob("*")) if path.is_file()]


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def write_archive(tree: Path, name: str, archive: Path, level: int) -> None:
    """The tree as ``NAME/...`` in a compressed archive, and its digest in a file beside it."""
    plain = archive.with_suffix("")
    with tarfile.open(plain, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in (tree, *sorted(tree.rglob("*"))):
            entry = tar.gettarinfo(path, os.path.join(name, path.relative_to(tree)).rstrip("/."))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime = EPOCH
            # Whatever the umask of whoever builds it.
            entry.mode = 0o755 if entry.isdir() or entry.mode & stat.S_IXUSR else 0o644
            if entry.isfile():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    run("zstd", "-q", "-f", f"-{level}", "-T1", "--no-progress", plain, "-o", archive)
    plain.unlink()
    Path(f"{archive}.sha512").write_text(f"{digest_of(archive)}  {archive.name}\n")


def build(target: Target, out: Path, level: int) -> Path:
    """The archive's path.  What is in it is left unpacked in a folder of the same name."""
    name = f"gvisor-shim-{version()}-{target.arch}"
    tree, work = out / name, out / f".{name}.work"
    for folder in (tree, work):
        shutil.rmtree(folder, ignore_errors=True)
    tree.mkdir(parents=True)
    try:
        build_tree(target, tree, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    archive = out / f"{name}.tar.zst"
    write_archive(tree, name, archive, level)
    return archive


def tree_of(archive: Path) -> Path:
    """The folder in which an archive's content was left."""
    return archive.parent / archive.name.removesuffix(".tar.zst")


def arguments(description: str) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--arch", choices=sorted(MACHINES), default=native_arch())
    parser.add_argument("--sysroot", type=Path, default=Path("/"))
    parser.add_argument("--packages", type=Path, default=Path(sysconfig.get_path("platlib")))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--level", type=int, default=19, help="of zstd's compression")
    return parser.parse_args()


def target_of(args: argparse.Namespace) -> Target:
    return Target(args.arch, args.sysroot.resolve(), args.packages.resolve())


def main() -> None:
    args = arguments((__doc__ or "").partition("\n")[0])
    print(build(target_of(args), args.out.resolve(), args.level))


if __name__ == "__main__":
    main()
