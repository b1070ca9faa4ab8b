"""Where each distribution gets the runtime, on folder trees like theirs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from runtime.base.errors import Failed, InvalidRequest, RuntimeFault, Unsupported
from runtime.cli.install import distros
from tests.runtime.cli.install import trees

SHIM = "/opt/gvisor-shim/current/bin/containerd-shim-gvisor-v2"
OPTIONS = "/etc/containerd/gvisor.toml"


def plan(node: trees.Tree) -> tuple[distros.Registration, dict[str, str]]:
    place = distros.place(node, distros.detect(node), "gvisor")
    return place, distros.changes(node, place, "gvisor", SHIM, OPTIONS)


#: tree -> distribution, what is written, the plugin's name, the first unit to restart.
_V2, _V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
_K3S = "/var/lib/rancher/k3s/agent/etc/containerd"
_RKE2 = "/var/lib/rancher/rke2/agent/etc/containerd"
_MICROK8S = "/var/snap/microk8s/current/args/containerd-template.toml"
_MAIN = "/etc/containerd/config.toml"
_EXPECTED = {
    "kubeadm 2.1": ("containerd", ["/etc/containerd/conf.d/gvisor.toml", _MAIN], _V3, "containerd"),
    "kubeadm 2.2": ("containerd", ["/etc/containerd/conf.d/gvisor.toml"], _V3, "containerd"),
    "eks": ("containerd", ["/etc/containerd/config.d/gvisor.toml"], _V3, "containerd"),
    "no configuration": (
        "containerd", ["/etc/containerd/conf.d/gvisor.toml", _MAIN], _V3, "containerd",
    ),
    "kubeadm 1.7": ("containerd", [_MAIN], _V2, "containerd"),
    "k3s": ("k3s", [f"{_K3S}/config-v3.toml.d/gvisor.toml"], _V3, "k3s"),
    "k3s of before": ("k3s", [f"{_K3S}/config.toml.tmpl"], _V2, "k3s"),
    "rke2": ("rke2", [f"{_RKE2}/config-v3.toml.tmpl"], _V3, "rke2-server"),
    "k0s": ("k0s", ["/etc/k0s/containerd.d/gvisor.toml"], _V2, ""),
    "microk8s": ("microk8s", [_MICROK8S], _V2, "snap.microk8s.daemon-containerd"),
    "crio": ("crio", ["/etc/crio/crio.conf.d/99-gvisor.conf"], "", "crio"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_EXPECTED))
def test_each_distribution(tmp_path: Path, name: str) -> None:
    distro, files, plugin, unit = _EXPECTED[name]
    before = trees.snapshot(tmp_path)
    node = trees.make(tmp_path, name)
    place, changes = plan(node)
    assert place.distro == distro and sorted(changes) == sorted(files)
    assert place.units[:1] == ((f"{unit}.service",) if unit else ())
    text = changes[place.file].replace(distros.BASE_TEMPLATE, "")
    if distro == "crio":
        found = tomllib.loads(text)["crio"]["runtime"]["runtimes"]["gvisor"]
        assert (found["runtime_path"], found["runtime_type"]) == (SHIM, "vm")
        assert found["runtime_config_path"] == OPTIONS
    else:
        runtimes = tomllib.loads(text)["plugins"][plugin]["containerd"]["runtimes"]
        assert runtimes["gvisor"]["runtime_path"] == SHIM
        assert runtimes["gvisor"]["options"]["ConfigPath"] == OPTIONS
    # Nothing of what was there is lost.
    for path in changes:
        old = node.read(path)
        assert old is None or all(line in changes[path] for line in old.splitlines() if line)
    assert before == {} and node.commands == [
        words for words in node.commands if words[1] == "--version"
    ]


def test_a_template_begins_with_what_is_rendered_anyway(tmp_path: Path) -> None:
    _, changes = plan(trees.make(tmp_path, "k3s of before"))
    assert next(iter(changes.values())).startswith('{{ template "base" . }}\n')


def test_runc_stays_the_default_where_none_is_named(tmp_path: Path) -> None:
    node = trees.make(tmp_path, "kubeadm 1.7")
    node.write(_MAIN, "version = 2\n")
    _, changes = plan(node)
    runtimes = tomllib.loads(changes[_MAIN])["plugins"][_V2]["containerd"]["runtimes"]
    assert set(runtimes) == {"gvisor", "runc"}


def test_an_old_form_of_configuration_gets_its_names(tmp_path: Path) -> None:
    node = trees.make(tmp_path, "kubeadm 1.7")
    node.write(_MAIN, "[plugins.cri]\n  sandbox_image = 'pause'\n")
    _, changes = plan(node)
    assert set(tomllib.loads(changes[_MAIN])["plugins"]) == {"cri"}


def test_twice_is_nothing(tmp_path: Path) -> None:
    for name in _EXPECTED:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        node = trees.make(folder, name)
        for path, text in plan(node)[1].items():
            node.write(path, text)
        assert plan(node)[1] == {}, name


@pytest.mark.parametrize(
    ("change", "fault", "words"),
    [
        ("talos", Unsupported, "Talos has a root"),
        ("empty", Unsupported, "nothing that runs pods was found"),
        ("both", InvalidRequest, "several could be meant, but k3s and containerd: name one"),
        ("old", Unsupported, "containerd 1.5.2 is too old"),
        ("silent", Failed, "doesn't tell its version"),
        ("version", Unsupported, "version 'x' of containerd's configuration isn't known"),
        ("never started", Failed, "start k3s once"),
        ("k0s of the operator", Unsupported, "is the operator's own"),
        ("no toml", InvalidRequest, "is no TOML"),
    ],
)
def test_refusals_have_words_of_their_own(
    tmp_path: Path, change: str, fault: type[RuntimeFault], words: str
) -> None:
    tree = {"talos": "talos", "version": "kubeadm 1.7", "never started": "k3s", "both": "k3s"}
    tree |= {"k0s of the operator": "k0s"}
    node = trees.make(tmp_path, tree.get(change, "kubeadm 2.1"))
    if change == "empty":
        (tmp_path / "usr/bin/containerd").unlink()
    elif change == "both":
        (tmp_path / "usr/bin").mkdir()
        (tmp_path / "usr/bin/containerd").touch(0o755)
    elif change == "old":
        node.release = "1.5.2"
    elif change == "silent":
        node.release = "?"
    elif change == "version":
        node.write(_MAIN, 'version = "x"\n')
    elif change == "never started":
        node.remove(f"{_K3S}/config.toml")
    elif change == "k0s of the operator":
        node.write("/etc/k0s/containerd.toml", "version = 2\n")
    elif change == "no toml":
        node.write(_MAIN, "version = \n")
    with pytest.raises(fault, match=words.replace("?", r"\?")):
        plan(node)


def test_links_of_the_node_lead_nowhere_else(tmp_path: Path) -> None:
    """By the node's own root: an absolute link in it is none into ours."""
    node = trees.make(tmp_path, "kubeadm 2.1")
    (tmp_path / "data/containerd").mkdir(parents=True)
    (tmp_path / "etc/containerd").rename(tmp_path / "data/old")
    (tmp_path / "etc/containerd").symlink_to("/data/containerd")
    node.write(_MAIN, "version = 3\n")
    assert (tmp_path / "data/containerd/config.toml").read_text() == "version = 3\n"
    (tmp_path / "out").symlink_to("../../../../../../../../tmp")
    assert node.path("/out/x") == f"{tmp_path}/tmp/x"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Failed, match="too many levels"):
        node.path("/a")
