"""Releases whose sentry is a program of its own: trees of them, whole and broken.

That everything else works on such a release is proved by the tests marked `core`, which run on one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.clients.gvctl import Gvctl, Shop

pytestmark = pytest.mark.gvisor

_SOURCE = Path(__file__).parent / "harness" / "host" / "without_boot.c"


class Tree:
    """``runsc`` that boots nothing, and ``gvisor-bin/gvisor_sentry``, made of a runsc at hand."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.folder, self._real = folder, peers.runsc(generation)
        self.sentry = folder / "gvisor-bin" / "gvisor_sentry"
        self.sentry.parent.mkdir(parents=True)
        self.runsc = self.compile(folder / "runsc", COMMAND="boot")
        self.compile(self.sentry)

    def compile(self, path: Path, **macros: str) -> Path:
        """A program that stands before the real runsc; see `without_boot.c`."""
        macros = {"RUNSC": str(self._real), **macros}
        words = [f'-D{name}="{value}"' for name, value in macros.items()]
        subprocess.run(["gcc", "-static", *words, "-o", path, _SOURCE], check=True, timeout=60)
        return path

    def label(self) -> str:
        done = subprocess.run(
            [self._real, "--version"], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.split("\n")[0].removeprefix("runsc version ")


class Place:
    """A shop whose runsc is a tree's."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.tree = Tree(folder / "tree", generation)
        self.shop = Shop(generation, folder / "shop")
        self.point(self.tree.runsc)

    def point(self, runsc: Path, **environment: str) -> None:
        self.shop.options = ("--root", str(self.shop.root), "--runsc", str(runsc))
        self.shop.gvctl = Gvctl(*self.shop.options)

    def refused(self) -> str:
        """What a creation is refused with, after which nothing is left."""
        done = self.shop.gvctl("create", "-b", self.shop.bundle("one", "true"), "one")
        assert done.code == 1, done
        assert not self.shop.root.exists() or not [*self.shop.root.iterdir()]
        return done.err

    def doctor(self) -> tuple[str, str]:
        done = self.shop.gvctl("doctor", "-f", "json")
        found = {each["check"]: each for each in json.loads(done.out)["checks"]}
        return found["sentry"]["level"], found["sentry"]["text"]


@pytest.fixture
def folder(short_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = short_folder / f"tree{abs(hash(request.node.name)) % 10**6}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


@pytest.fixture
def place(folder: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    if peers.RUNSCS == ("custom",):
        pytest.skip("makes its trees of the fetched runscs")
    place = Place(folder, getattr(request, "param", "20240729"))
    yield place
    place.shop.close()
    for top in ("", "memory", "pids", "cpu", "cpuacct", "cpuset"):
        path = Path("/sys/fs/cgroup", top, place.shop.cgroup)
        if path.is_dir():
            for each in [*sorted(path.rglob("*/"), reverse=True), path]:
                each.rmdir()


@pytest.mark.parametrize("place", peers.RUNSCS, indirect=True)
def test_linked_and_told_its_release(place: Place, folder: Path) -> None:
    """The sentry beside what a link names; it wants the label of its runsc, as a release does."""
    tree, shop = place.tree, place.shop
    tree.compile(tree.sentry, RELEASE=f"SKIP:{tree.label()}")
    (folder / "bin").mkdir()
    link = folder / "bin" / "runsc"
    link.symlink_to(tree.runsc)
    place.point(link)
    shop.run("one", "sh", "-c", "echo up; sleep 1000")
    done = shop.gvctl("exec", "one", "sh", "-c", "exit 7")
    assert done.code == 7
    sandbox = json.loads((shop.root / "one_sandbox:one.shim.json").read_text())
    assert sandbox["binary"] == str(link)
    shop.gvctl.ok("kill", "one", "KILL")
    shop.gvctl.ok("delete", "one")


def test_a_running_sandbox_is_known_by_its_own_binary(place: Place) -> None:
    """What boots it is no runsc, and runsc doesn't boot: an image still names the release."""
    tree, shop = place.tree, place.shop
    # The programs themselves, as they are to be found in /proc.
    tree.sentry.unlink()
    os.link(peers.runsc("20240729"), tree.sentry) if _same_device(tree) else _copy(tree)
    pid = shop.run("one", "sh", "-c", "sleep 1000; true", hostname="x")
    assert os.readlink(f"/proc/{pid}/exe") == str(tree.sentry)
    image = place.shop.folder / "image"
    # Another runsc is configured by now.
    place.point(peers.runsc("20221219"))
    shop.gvctl.ok("checkpoint", "--image-path", str(image), "--leave-running", "one")
    assert json.loads((image / "gvisor-shim.json").read_text())["runsc"] == tree.label()
    shop.gvctl.ok("delete", "--force", "one")


def _same_device(tree: Tree) -> bool:
    return peers.runsc("20240729").stat().st_dev == tree.folder.stat().st_dev


def _copy(tree: Tree) -> None:
    subprocess.run(["cp", peers.runsc("20240729"), tree.sentry], check=True)


def test_a_tree_without_its_sentry(place: Place) -> None:
    place.tree.sentry.unlink()
    said = place.refused()
    assert f"{place.tree.runsc} doesn't boot sandboxes itself" in said
    assert f"{place.tree.sentry}, is of no use: no such file or directory" in said
    level, text = place.doctor()
    assert (level, text) == ("warning", "unknown without runsc")


def test_a_sentry_without_its_x_bit(place: Place) -> None:
    place.tree.sentry.chmod(0o644)
    assert f"{place.tree.sentry}, is of no use: not executable: it has no x bit" in place.refused()


def test_a_sentry_that_wants_another_release(place: Place) -> None:
    """Its own words say so; what can be known before is logged."""
    tree = place.tree
    tree.compile(tree.sentry, VERSION="release-20990101.0", RELEASE="release-20990101.0")
    said = place.refused()
    assert f"expected release is SKIP:{tree.label()}" in said


@pytest.mark.parametrize("place", ["20221219"], indirect=True)
def test_a_folder_that_only_root_may_enter(place: Place) -> None:
    place.tree.folder.chmod(0o700)
    said = place.refused()
    assert f"{place.tree.folder} is closed to the user that the sentry runs as" in said
    level, text = place.doctor()
    assert (level, text) == ("warning", f"only its owner may enter {place.tree.folder}")
