"""The bundle alone: what is in it, and that it runs on a machine that has nothing."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import bundle as builder
from deploy import debian_package
from integration.harness.base import peers
from integration.harness.host import footprint
from integration.harness.host.bare_root import BareRoot
from integration.harness.host.containerd import Containerd
from integration.harness.nodes.node import Node

ROOT = peers.CHECKOUT


@pytest.fixture(scope="session")
def bare(short_folder: Path) -> BareRoot:
    """Not even a C library."""
    root = BareRoot(short_folder / "bare", [peers.PEERS], glibc=False)
    root.make()
    return root


def run(bare: BareRoot, *words: str | Path) -> str:
    """A program in the bare root, with an environment of nothing; what it prints."""
    done = subprocess.run(
        bare.command(*words), capture_output=True, text=True, timeout=60, env={"PATH": "/bin"}
    )
    assert done.returncode == 0, done
    return done.stdout


def test_programs_start(bare: BareRoot, bundle: Path) -> None:
    assert builder.version() in run(bare, bundle / "bin/gvctl", "--version")
    assert builder.version() in run(bare, bundle / "bin/containerd-shim-gvisor-v2", "-v")
    # What they start as sys.executable is the bundle's, and so is what that starts.
    python = next((bundle / "bin").glob("python3*"))
    program = "import os, sys; os.execv(sys.executable, (sys.executable, '-I', '-S', '-c', {!r}))"
    program = program.format("import sys; print(sys.executable, sys.prefix, *sys.argv)")
    found = run(bare, python, "-I", "-S", "-c", program)
    assert found == f"{python} {bundle} -c\n"
    link = bare.folder / "usr/bin/gvctl"
    link.symlink_to(bundle / "bin/gvctl")
    assert builder.version() in run(bare, "/usr/bin/gvctl", "--version")


def test_every_module_that_ours_import_is_there(bare: BareRoot, bundle: Path) -> None:
    names = set()
    for package in ("shim", "runtime", "protos"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name in ("_native_build.py", "generate.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(str(node.module))
    # Of pyroute2 only a part is loaded, which the network's helper knows; all of it wants sqlite.
    names = {name for name in names if _is_here(name) and not name.startswith("pyroute2")}
    assert {"structlog.processors", "google.protobuf", "threading"} <= names
    program = (
        "import importlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "from runtime.network.helper import Codec\n"
        "Codec()\n"
        "print(*{m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)})\n"
    )
    python = next((bundle / "bin").glob("python3*"))
    packages = bundle / "lib" / python.name / "site-packages"
    words = ("-I", "-S", "-c", program, packages, *sorted(names))
    files = run(bare, python, *words)
    assert str(packages / "structlog/__init__.py") in files


def _is_here(name: str) -> bool:
    """Whether this Python has a module: of some, each of its releases has another."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_it_says_what_is_inside(bare: BareRoot, bundle: Path, archive: Path) -> None:
    contents = json.loads((bundle / "share/contents.json").read_text())
    assert contents["version"] == builder.version()
    components = {each["name"]: each for each in contents["components"]}
    assert {"protobuf", "pyroute2", "structlog", "cffi", "zlib1g"} <= set(components)
    assert all(each["version"] and each["licence"] for each in components.values())
    for name in set(components) - {"containerd-shim-gvisor"}:
        assert any((bundle / "share/licenses" / name).iterdir()), name
    assert (bundle / "share/doc/LICENSE").exists()
    # Every file is in the list, and busybox finds each as it was.
    sums = (bundle / "share/SHA512SUMS").read_text().splitlines()
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {line.split("  ", 1)[1] for line in sums} == files - {"share/SHA512SUMS"}
    check = f"cd '{bundle}' && sha512sum -c share/SHA512SUMS | grep -v ': OK$' || true"
    assert run(bare, "/bin/sh", "-c", check) == ""
    digest, name = Path(f"{archive}.sha512").read_text().split()
    assert (digest, name) == (builder.digest_of(archive), archive.name)


def test_nothing_names_the_place_where_it_was_built(bundle: Path) -> None:
    names = (str(ROOT).encode(), sys.prefix.encode())
    for path in bundle.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(name in data for name in names), path


def test_the_same_input_gives_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    """In another folder, with other times, by a process of another hash seed and umask."""
    checkout = tmp_path / "another"
    for name in ("shim", "runtime", "protos", "deploy", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "_native.c")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored, copy_function=shutil.copyfile)
    for name in ("LICENSE", "README.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, checkout / name)
    command = [sys.executable, "-m", "deploy.bundle", "--out", str(tmp_path), "--level", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LANG": "C", "TZ": "Asia/Tokyo"}
    subprocess.run(
        command, cwd=checkout, env=environment, check=True, umask=0o077, timeout=120, stdout=-3
    )
    assert builder.digest_of(tmp_path / archive.name) == builder.digest_of(archive)


def test_the_debian_package(archive: Path, short_folder: Path, tmp_path: Path) -> None:
    """The same content, from where gvctl works as from the bundle."""
    tree = builder.tree_of(archive)
    package = debian_package.build(tree, tmp_path, 1)
    again = tmp_path / "again"
    again.mkdir()
    assert builder.digest_of(debian_package.build(tree, again, 1)) == builder.digest_of(package)
    fields = builder.run("dpkg-deb", "--field", package)
    assert "Depends: " not in fields and "Architecture: " in fields
    root = BareRoot(short_folder / "debian", [peers.PEERS], glibc=False)
    root.make()
    builder.run("dpkg-deb", "-x", package, root.folder)
    assert builder.version() in run(root, "/usr/bin/gvctl", "--version")
    assert builder.version() in run(root, "/usr/bin/containerd-shim-gvisor-v2", "-v")
    for path in tree.rglob("*"):
        name = path.relative_to(tree)
        if path.is_file():
            assert (
                root.folder / "usr/lib/gvisor-shim" / name
            ).stat().st_size == path.stat().st_size
    page = gzip.decompress((root.folder / "usr/share/man/man1/gvctl.1.gz").read_bytes())
    assert page == (ROOT / "docs/gvctl.1").read_bytes()
    licences = (root.folder / "usr/share/doc/gvisor-shim/copyright").read_text()
    assert "Files: zlib1g" in licences and "License: Apache-2.0" in licences


@pytest.fixture(params=["2.1", "1.7"])
def bare_node(
    request: pytest.FixtureRequest,
    bundle: Path,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Node]:
    """A daemon that starts the bundle's shim, both in the bare root."""
    version = request.param
    monkeypatch.setenv("GVISOR_SHIM_BIN", str(bundle / "bin"))
    folder = short_folder / f"b{version}"
    namespace = f"b{os.getpid()}-{version.replace('.', '')}"
    bare = BareRoot(short_folder / "bare containerd", [peers.PEERS])
    daemon = Containerd(version, "20240729", folder, namespace, bare_root=bare)
    daemon.fork_server = version == "2.1"
    node = Node(daemon, peers.GVISOR)
    daemon.start()
    try:
        daemon.import_image()
        yield node
        node.clean()
        node.assert_clean()
    finally:
        node.close()
        daemon.remove()
        footprint.remove_cgroups(daemon)


def test_containers_run_in_gvisor(bare_node: Node, bundle: Path) -> None:
    node = bare_node
    done = node.run("sh", "-c", "uname -r; echo to stderr >&2; exit 3")
    assert (done.code, done.out.split(), done.err.strip()) == (3, ["4.4.0"], "to stderr")
    container = node.run_detached("sleep", "1000")
    assert node.exec(container, "echo", "inside").out == "inside\n"
    shim = node.shim_pid(container)
    # In a mount namespace of its own: the path is what the bare root has.
    assert str(bundle) in os.readlink(f"/proc/{shim}/exe")
    maps = Path(f"/proc/{shim}/maps").read_text()
    libraries = {line.split(maxsplit=5)[5] for line in maps.splitlines() if ".so" in line}
    assert any(os.path.basename(path) == "libc.so.6" for path in libraries)
    assert {path for path in libraries if not path.startswith(f"{bundle}/")} == set()
    assert node.kill(container, "SIGKILL").code == 0
    node.wait_stopped(container)
