"""An installation does all of it or leaves nothing; what is uninstalled leaves what was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.base.errors import Failed, RuntimeFault, Unsupported
from runtime.cli.install import selftest, steps, versions
from tests.runtime.cli.install import trees

CURRENT = "opt/gvisor-shim/current"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle that gvctl is of; nothing is really started from it."""
    folder = trees.bundle(tmp_path / "bundle")
    monkeypatch.setattr(versions.sys, "prefix", str(folder))
    monkeypatch.setattr(selftest, "run", lambda *_: None)
    return folder


def make(tmp_path: Path, name: str = "kubeadm 2.1") -> trees.Tree:
    root = tmp_path / "node"
    root.mkdir()
    node = trees.make(root, name)
    node.remove("/usr/local/bin/runsc")
    runsc = tmp_path / "runsc"
    runsc.write_bytes(b"\x7fELF and so on")
    runsc.chmod(0o755)
    return node


def install(node: trees.Tree, tmp_path: Path, **values: object) -> list[str]:
    said: list[str] = []
    request = steps.InstallRequest(runsc=str(tmp_path / "runsc"), **values)  # type: ignore[arg-type]
    steps.Installation(node, request, said.append).run()
    return said


def uninstall(node: trees.Tree, **values: object) -> list[str]:
    said: list[str] = []
    steps.uninstall(node, steps.InstallRequest(**values), said.append)  # type: ignore[arg-type]
    return said


INSTALLABLE = sorted(set(trees.TREES) - {"talos"})


@pytest.mark.parametrize("name", INSTALLABLE)
def test_every_distribution_and_back(tmp_path: Path, bundle: Path, name: str) -> None:
    node = make(tmp_path, name)
    before = trees.snapshot(Path(node.root))
    install(node, tmp_path, dry_run=True)
    assert trees.snapshot(Path(node.root)) == before
    install(node, tmp_path)
    settled = trees.snapshot(Path(node.root))
    (version,) = (Path(node.root) / "opt/gvisor-shim/versions").iterdir()
    assert os.readlink(Path(node.root) / CURRENT) == f"versions/{version.name}"
    assert (version / "bin/gvctl").stat().st_mode & 0o777 == 0o755
    assert (version / "runsc/runsc").read_bytes().startswith(b"\x7fELF")
    assert any("nothing was restarted" in line for line in install(node, tmp_path))
    assert trees.snapshot(Path(node.root)) == settled
    uninstall(node, dry_run=True)
    assert trees.snapshot(Path(node.root)) == settled
    uninstall(node)
    assert trees.snapshot(Path(node.root)) == before


def _damage(bundle: Path) -> None:
    (bundle / "bin/gvctl").write_text("something else\n")


def _fail(*_: object) -> None:
    raise Failed("it does not boot")


_PLUGIN = '[plugins."io.containerd.cri.v1.runtime"]\n  x = 2\n'


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("copy", "gvctl is damaged"),
        ("self-test", "it does not boot"),
        ("write", "No space"),
        ("dump", "refuses its configuration"),
        ("unread", "doesn't read /etc/containerd/conf.d/gvisor.toml"),
        ("changed", "setting plugins.io.containerd.cri.v1.runtime.x would change"),
        ("lost", "would lose its runtimes runc"),
        ("restart", "job's result is 'failed'"),
    ],
)
def test_a_step_that_fails_undoes_all(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str, words: str
) -> None:
    node = make(tmp_path)
    before = trees.snapshot(Path(node.root))
    calls = []

    def written(path: str, text: str, mode: int = 0o644) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device", path)
        type(node).write(node, path, text, mode)

    def merged(path: str) -> dict[str, object]:
        found = type(node)._merged(node, path)
        runtimes = found.setdefault("plugins", {}).setdefault("io.containerd.cri.v1.runtime", {})
        there = runtimes.setdefault("containerd", {}).setdefault("runtimes", {})
        there["runc"] = {"runtime_type": "io.containerd.runc.v2"}
        if "gvisor" in there:
            if step == "unread":
                del there["gvisor"]
            elif step == "changed":
                runtimes["x"] = 2
            elif step == "lost":
                del there["runc"]
        return found

    def fail_to_restart(*_: object) -> None:
        raise Failed("systemd: restart containerd.service: the job's result is 'failed'")

    if step == "copy":
        _damage(bundle)
    elif step == "self-test":
        monkeypatch.setattr(selftest, "run", _fail)
    elif step == "write":
        monkeypatch.setattr(node, "write", written)
    elif step == "restart":
        monkeypatch.setattr(steps, "restart", fail_to_restart)
    elif step == "dump":
        node.refuses = "no such plugin"
    else:
        monkeypatch.setattr(node, "_merged", merged)
    with pytest.raises((RuntimeFault, OSError), match=words):
        install(node, tmp_path)
    assert trees.snapshot(Path(node.root)) == before


def test_a_version_over_another_and_a_failure_over_that(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(tmp_path)
    install(node, tmp_path)
    trees.bundle(bundle, "2.0")
    settled = trees.snapshot(Path(node.root))
    monkeypatch.setattr(selftest, "run", _fail)
    with pytest.raises(Failed, match="boot"):
        install(node, tmp_path, upgrade=True)
    assert trees.snapshot(Path(node.root)) == settled
    monkeypatch.setattr(selftest, "run", lambda *_: None)
    said = install(node, tmp_path, upgrade=True)
    assert any(line.startswith("removed version 1.0-") for line in said)
    assert any("the configuration is the same" in line for line in said)
    assert os.readlink(Path(node.root) / CURRENT).startswith("versions/2.0-")


def test_an_upgrade_keeps_the_runsc(tmp_path: Path, bundle: Path) -> None:
    node = make(tmp_path)
    install(node, tmp_path)
    trees.bundle(bundle, "2.0")
    steps.Installation(node, steps.InstallRequest(upgrade=True), lambda _: None).run()
    assert (Path(node.root) / CURRENT / "runsc/runsc").read_bytes().startswith(b"\x7fELF")


def test_the_nodes_own_runsc_is_named_and_not_copied(tmp_path: Path, bundle: Path) -> None:
    node = make(tmp_path)
    node.write("/usr/local/bin/runsc", "", 0o755)
    steps.Installation(node, steps.InstallRequest(), lambda _: None).run()
    assert 'binary_name = "/usr/local/bin/runsc"' in (
        node.read("/etc/containerd/gvisor.toml") or ""
    )
    assert not node.exists("/opt/gvisor-shim/current/runsc")


def test_two_names_share_versions(tmp_path: Path, bundle: Path) -> None:
    node = make(tmp_path)
    before = trees.snapshot(Path(node.root))
    install(node, tmp_path)
    install(node, tmp_path, name="gvisor-two")
    uninstall(node)
    assert node.exists("/etc/containerd/conf.d/gvisor-two.toml")
    assert node.exists("/opt/gvisor-shim/current/bin/gvctl")
    assert not node.exists("/etc/containerd/conf.d/gvisor.toml")
    assert "conf.d" in (node.read("/etc/containerd/config.toml") or "")
    uninstall(node, name="gvisor-two")
    assert trees.snapshot(Path(node.root)) == before


def test_what_the_operator_changed_since_stays(tmp_path: Path, bundle: Path) -> None:
    node = make(tmp_path, "kubeadm 1.7")
    path = "/etc/containerd/config.toml"
    before = node.read(path) or ""
    install(node, tmp_path)
    node.write(path, (node.read(path) or "") + "[debug]\n  level = 'info'\n")
    uninstall(node)
    assert node.read(path) == before + "[debug]\n  level = 'info'\n"


def test_pods_keep_it_installed(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(tmp_path)
    install(node, tmp_path)
    settled = trees.snapshot(Path(node.root))
    monkeypatch.setattr(versions.Versions, "shims", lambda _: ["a" * 64])
    with pytest.raises(Unsupported, match="1 pod runs with it: aaaaaaaaaaaaa; end them"):
        uninstall(node)
    assert trees.snapshot(Path(node.root)) == settled


def test_processes_that_can_not_be_seen_count_as_running(tmp_path: Path, bundle: Path) -> None:
    """In another pid namespace: the records of pods say that there are some."""
    node = make(tmp_path)
    install(node, tmp_path)
    first = versions.Versions(node).current()
    trees.bundle(bundle, "2.0")
    node.make_folder("/run/containerd/runsc/k8s.io")
    records = [
        f"/run/containerd/runsc/k8s.io/{name}_sandbox:pod.shim.json" for name in ("pod", "member")
    ]
    for record in records:
        node.write(record, "{}")
    said = install(node, tmp_path)
    assert any(line.startswith(f"kept version {first}") for line in said)
    with pytest.raises(Unsupported, match="1 pod runs with it: pod; end"):
        uninstall(node)
    for record in records:
        node.remove(record)
    uninstall(node)
    assert not node.exists("/opt/gvisor-shim")


@pytest.mark.parametrize("flag", [os.ST_RDONLY, os.ST_NOEXEC])
def test_a_root_that_can_not_be_used_is_said(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    node = make(tmp_path)
    monkeypatch.setattr(node, "file_system_flags", lambda _: flag)
    with pytest.raises(Unsupported, match="name another folder with --prefix"):
        install(node, tmp_path)


def test_units_are_restarted_only_if_something_changed(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, calls = make(tmp_path), []
    restart: Callable[..., None] = lambda *_: calls.append(1)  # noqa: E731
    monkeypatch.setattr(steps, "restart", restart)
    install(node, tmp_path)
    assert calls == [1]
    install(node, tmp_path)
    trees.bundle(bundle, "2.0")
    install(node, tmp_path)
    assert calls == [1]
    uninstall(node)
    assert calls == [1, 1]
