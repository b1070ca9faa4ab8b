"""Where a runsc's sentry is looked for, and what of it is refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from runtime.base.errors import Failed, Unsupported
from runtime.cli.doctor import Facts, examine
from runtime.runsc import driver, sidecars
from runtime.runsc.config import RunscConfig
from runtime.runsc.driver import find_driver
from runtime.runsc.release import probe
from tests.fakes.generations import help_text

_POLICY = "sidecar-release-enforcement-policy"
_USAGE = "sidecar-usage-policy"


class Tree:
    """A release: ``runsc`` and ``gvisor-bin/gvisor_sentry``, scripts that note each run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        (folder / "boot").write_text(help_text(2026, "boot"))
        (folder / "gofer").write_text(help_text(2026, "gofer"))
        flags = help_text(2026, "flags")
        for name, default in ((_POLICY, "NEVER"), (_USAGE, "DEFAULT")):
            flags += f"  -{name} value\n    \twhat it is (default {default})\n"
        (folder / "flags").write_text(flags)
        self.binary = self.program(folder / "runsc", "1.0", "gofer")
        (folder / sidecars.FOLDER).mkdir()
        self.sentry = self.program(folder / sidecars.FOLDER / sidecars.SENTRY, "1.0", "boot")

    def program(self, path: Path, version: str, *topics: str) -> Path:
        here = self.folder
        path.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {here}/runs\ncase "$1 $2" in\n'
            + "".join(f'"help {topic}") cat {here}/{topic} ;;\n' for topic in topics)
            + f'"flags "*) cat {here}/flags >&2 ;;\n'
            f'"--version "*) echo "runsc version {version}" ;;\n'
            '*) echo "Subcommand $2 not understood" >&2 ;;\nesac\n'
        )
        path.chmod(0o755)
        return path

    def runs(self) -> int:
        log = self.folder / "runs"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def find(self, **flags: str) -> driver.Driver:
        named = {name.replace("_", "-"): value for name, value in flags.items()}
        config = RunscConfig(binary=str(self.binary), root="/r", flags=named)
        return find_driver(config, str(self.cache))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.delenv(sidecars.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(sidecars.RELEASE_VARIABLE, raising=False)
    return Tree(tmp_path)


# -- where it is ---------------------------------------------------------------------------------


def test_a_sentry_of_its_own_boots(tree: Tree) -> None:
    found = probe(str(tree.binary), str(tree.cache))
    assert (found.binary, found.boot_binary) == (str(tree.binary), str(tree.sentry))
    assert (found.version, found.boot_version) == ("1.0", "1.0")
    assert "controller-fd" in found.boot_flags
    assert found.gofer_takes_id


def test_without_one_runsc_boots(tree: Tree) -> None:
    tree.sentry.unlink()
    tree.program(tree.binary, "1.0", "gofer", "boot")
    found = probe(str(tree.binary), str(tree.cache))
    assert found.boot_binary == str(tree.binary)


def test_beside_what_the_link_names(tree: Tree, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    link = links / "runsc"
    link.symlink_to(tree.binary)
    assert sidecars.find_sentry(str(link)) == sidecars.Sidecar(path=str(tree.sentry))
    # A folder beside the link itself goes first, even where nothing is in it.
    (links / sidecars.FOLDER).mkdir()
    nearer = links / sidecars.FOLDER / sidecars.SENTRY
    assert sidecars.find_sentry(str(link)).path == str(nearer)
    assert sidecars.find_sentry(str(link)).fault == "no such file or directory"


def test_the_operators_folder_goes_first(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    sentry = tree.program(other / sidecars.SENTRY, "1.0", "boot")
    monkeypatch.setenv(sidecars.FOLDER_VARIABLE, str(other))
    assert tree.find().generation.boot_binary == str(sentry)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("missing", "no such file or directory"),
        ("folder", "not a regular file"),
        ("mode", "not executable: it has no x bit"),
        ("loop", "too many levels of symbolic links"),
    ],
)
def test_a_sentry_that_is_of_no_use(tree: Tree, damage: str, why: str) -> None:
    if damage == "mode":
        tree.sentry.chmod(0o644)
    else:
        tree.sentry.unlink()
    if damage == "folder":
        tree.sentry.mkdir()
    elif damage == "loop":
        tree.sentry.symlink_to(tree.sentry)
    with pytest.raises(Unsupported, match=f"{tree.sentry}, is of no use: {why}"):
        tree.find()
    # A runsc that has a sentry inside goes on with that, unless it is told not to.
    tree.program(tree.binary, "1.0", "gofer", "boot")
    assert tree.find().generation.boot_binary == str(tree.binary)
    with pytest.raises(Failed, match=f"{tree.sentry}, which is to boot sandboxes.*: {why}"):
        tree.find(sidecar_usage_policy="strict")


# -- the cache -----------------------------------------------------------------------------------


def test_the_cache_knows_both_files(tree: Tree) -> None:
    first = tree.find().generation
    asked = tree.runs()
    assert tree.find().generation == first
    assert tree.runs() == asked
    # Another sentry is another release, whatever becomes of runsc.
    os.utime(tree.sentry, (1, 1))
    tree.find()
    assert tree.runs() == 2 * asked
    tree.sentry.unlink()
    with pytest.raises(Unsupported):
        tree.find()


# -- one release ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "policy", "inherited", "value"),
    [
        ("release-20260914.0", "", "", "SKIP:release-20260914.0"),
        ("release-20260914.0", "NEVER", "", "SKIP:release-20260914.0"),
        ("release-20260914.0", "IF_RELEASE_BUILD", "", "release-20260914.0"),
        ("release-20260914", "if_release_build", "", "release-20260914"),
        ("gke-20260914.1", "IF_RELEASE_BUILD", "", "gke-20260914.1"),
        ("release-20260914.0-70", "IF_RELEASE_BUILD", "", "SKIP:release-20260914.0-70"),
        ("release-2026", "IF_RELEASE_BUILD", "", "SKIP:release-2026"),
        ("x-20260914", "IF_RELEASE_BUILD", "", "SKIP:x-20260914"),
        ("0.0~1", "ALWAYS", "", "0.0~1"),
        ("0.0~1", "ALWAYS", "SKIP", "SKIP:0.0~1"),
        ("0.0~1", "ALWAYS", "SKIP:other", "SKIP:other"),
        ("0.0~1", "ALWAYS", "TESTONLY_SKIP", "TESTONLY_SKIP:0.0~1"),
        ("0.0~1", "ALWAYS", "SKIPPED", "0.0~1"),
    ],
)
def test_what_the_sentry_is_told(version: str, policy: str, inherited: str, value: str) -> None:
    assert sidecars.release_value(version, {}, {_POLICY: policy}, inherited) == value
    assert sidecars.release_value(version, {_POLICY: policy}, {}, inherited) == value


def test_the_sentrys_environment(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tree.find().boot_environment({}) == {sidecars.RELEASE_VARIABLE: "SKIP:1.0"}
    flags = {_POLICY: "ALWAYS", "platform": "kvm"}
    assert tree.find().boot_environment(flags) == {
        sidecars.RELEASE_VARIABLE: "1.0",
        "GODEBUG": "asyncpreemptoff=1",
    }
    monkeypatch.setenv(sidecars.RELEASE_VARIABLE, "SKIP:9")
    assert tree.find().boot_environment(flags)[sidecars.RELEASE_VARIABLE] == "SKIP:9"
    tree.sentry.unlink()
    tree.program(tree.binary, "1.0", "gofer", "boot")
    assert tree.find().boot_environment({}) == {}


def test_a_sentry_of_another_release(tree: Tree) -> None:
    tree.program(tree.sentry, "2.0", "boot")
    assert tree.find().generation.boot_version == "2.0"  # runs, with a warning
    with pytest.raises(Failed, match=rf"{tree.sentry} is of release 2\.0, {tree.binary} of 1\.0"):
        tree.find(sidecar_release_enforcement_policy="ALWAYS")


def test_only_flags_that_both_know_are_given(tree: Tree) -> None:
    flags = (tree.folder / "flags").read_text()
    tree.program(tree.sentry, "1.0", "boot")
    sentry = tree.sentry.read_text().replace(f"{tree.folder}/flags", f"{tree.folder}/fewer")
    tree.sentry.write_text(sentry)
    (tree.folder / "fewer").write_text(flags.replace("  -host-fifo", "  -other"))
    found = tree.find().generation
    assert "host-fifo" not in found.global_flags
    assert "other" not in found.global_flags
    assert "network" in found.global_flags


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_that_others_may_not_enter() -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        inner = top / "a" / "b"
        inner.mkdir(parents=True)
        (inner / "runsc").write_text("")
        assert sidecars.closed_folder(str(inner / "runsc")) == ""
        (top / "a").chmod(0o700)
        assert sidecars.closed_folder(str(inner / "runsc")) == str(top / "a")
        assert sidecars.closed_folder(str(top / "none" / "runsc")) == ""


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        ({}, "ok", "part of runsc"),
        ({"sentry": "/g/gvisor_sentry", "sentry_version": "1.0"}, "ok", "/g/gvisor_sentry, 1.0"),
        ({"sentry": "/g/x", "sentry_fault": "/g/x: no x bit"}, "failure", "/g/x: no x bit"),
        ({"closed_folder": "/root"}, "warning", "only its owner may enter /root"),
        ({"runsc_version": ""}, "warning", "unknown"),
    ],
)
def test_what_doctor_says(facts: dict[str, str], level: str, words: str) -> None:
    values = {"runsc": "/r", "runsc_version": "1.0", **facts}
    (found,) = [each for each in examine(Facts(**values)) if each.check == "sentry"]  # type: ignore[arg-type]
    assert found.level == level
    assert words in found.text
