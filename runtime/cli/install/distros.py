"""What runs a node's pods, and where that takes a further runtime from.

Owns the facts of each distribution: its folders, which file is to be written and in which form,
and the units that have to be restarted.  Reads the node, and changes nothing.
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.base.record import Record
from runtime.cli import config_snippets, doctor
from runtime.cli.install import toml_edit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.install.node import Node

NAMES = ("containerd", "k3s", "rke2", "k0s", "microk8s", "crio", "talos")
CONFIG = "/etc/containerd/config.toml"
_RANCHER = "/var/lib/rancher/{}/agent"
_MICROK8S = "/var/snap/microk8s/current/args/containerd-template.toml"
_K0S_DROP_INS = "/etc/k0s/containerd.d"
_CRIO_DROP_INS = "/etc/crio/crio.conf.d"
#: A template of k3s and RKE2 begins with all that they write themselves.
BASE_TEMPLATE = '{{ template "base" . }}\n'
#: The plugin in whose tables the runtimes are, by the version of the configuration.
PLUGINS = config_snippets.PLUGINS
#: What runs while a distribution's containers are served.
_DAEMONS = {
    "k3s": "/rancher/k3s/", "rke2": "/rancher/rke2/", "k0s": "/k0s/", "microk8s": "/snap/microk8s/",
    "containerd": "/bin/containerd", "crio": "/bin/crio",
}  # fmt: skip


class Registration(Record):
    """Where a distribution's daemon finds a runtime."""

    distro: str
    file: str
    """What is written: a file of our own, or one that a block is added to."""
    plugin: int = 3
    """The version of the configuration whose names are used in it."""
    whole: bool = True
    """Whether the file is ours alone."""
    beginning: str = ""
    """What the file begins with where it isn't there yet."""
    config: str = ""
    """The configuration that the daemon reads; empty if it can't be asked of it."""
    pattern: str = ""
    """What ``config`` has to import, where it doesn't yet."""
    daemon: str = ""
    """The program to ask with ``config dump``."""
    release: str = ""
    units: tuple[str, ...] = ()
    """Those of which the ones that run are restarted."""
    rendered: bool = False
    """Whether the daemon's configuration is made anew from ``file`` at its start."""
    comments: tuple[str, ...] = ()
    """What the operator should know."""


def detect(node: Node, wanted: str = "auto") -> str:
    """The distribution's name.  Raises Unsupported or InvalidRequest in words to act by."""
    found = _traces(node)
    if wanted != "auto":
        if wanted != "talos" and wanted not in found:
            raise InvalidRequest(
                "--distro", f"there is no {wanted} on this node, {_in_words(found)}"
            )
        return wanted
    if not found:
        raise Unsupported(
            "nothing that runs pods was found: no containerd, k3s, RKE2, k0s, microk8s or CRI-O"
        )
    if len(found) > 1:
        running = [name for name in found if _runs(node, name)]
        found = running if len(running) == 1 else found
    if len(found) > 1:
        raise InvalidRequest("--distro", f"several could be meant, {_in_words(found)}: name one")
    return found[0]


def _in_words(found: list[str]) -> str:
    return "but " + " and ".join(found) if found else "nor anything else that runs pods"


def _traces(node: Node) -> list[str]:
    """The distributions of which a node has files."""
    found = []
    if _os_id(node) == "talos" or node.is_folder("/etc/cri/conf.d"):
        return ["talos"]
    for name in ("k3s", "rke2"):
        if node.is_folder(f"{_RANCHER.format(name)}/etc/containerd"):
            found.append(name)
    if node.is_folder("/var/lib/k0s/bin") or node.is_folder("/etc/k0s"):
        found.append("k0s")
    if node.exists(_MICROK8S):
        found.append("microk8s")
    if node.which("crio") or node.is_folder("/etc/crio"):
        found.append("crio")
    if node.which("containerd"):
        found.append("containerd")
    return found


def _os_id(node: Node) -> str:
    for line in (node.read("/etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "ID":
            return value.strip("\"'")
    return ""


def _runs(node: Node, name: str) -> bool:
    if not node.shows_processes:
        return False
    if name in ("containerd", "crio"):
        return any(
            path.endswith(_DAEMONS[name])
            and not any(other in path for other in list(_DAEMONS.values())[:4])
            for _, path in node.executables()
        )
    return any(
        _DAEMONS[name] in path and os.path.basename(path) == "containerd"
        for _, path in node.executables()
    )


def place(node: Node, distro: str, name: str) -> Registration:
    """Where the runtime ``name`` goes.  Raises Unsupported, Failed, InvalidRequest."""
    if distro == "talos":
        raise Unsupported(
            "Talos has a root that can't be written to, and takes runtimes from its image only:"
            " build a system extension from the bundle, see docs/kubernetes.md"
        )
    makers = {
        "containerd": _containerd, "k3s": _rancher, "rke2": _rancher, "k0s": _k0s,
        "microk8s": _microk8s, "crio": _crio,
    }  # fmt: skip
    return makers[distro](node, distro, name)


def _release(node: Node, daemon: str) -> str:
    return doctor.containerd_version(node.ask(daemon, "--version")) if daemon else ""


def _version_of(path: str, document: dict[str, Any]) -> int:
    found = document.get("version", 1)
    if not isinstance(found, int) or not 1 <= found <= 4:
        raise Unsupported(f"{path}: version {found!r} of containerd's configuration isn't known")
    return found


def _containerd(node: Node, distro: str, name: str) -> Registration:
    daemon = node.which("containerd")
    release = _release(node, daemon)
    if not release:
        raise Failed(f"{daemon} doesn't tell its version")
    words = release.split(".")
    if (int(words[0]), int(words[1])) < (1, 6):
        raise Unsupported(f"containerd {release} is too old: take 1.6 or later")
    text = node.read(CONFIG)
    document = toml_edit.parse(CONFIG, text or "")
    common: dict[str, Any] = {
        "distro": distro,
        "config": CONFIG,
        "daemon": daemon,
        "release": release,
        "units": ("containerd.service",),
    }
    if int(words[0]) < 2:
        version = _version_of(CONFIG, document) if text is not None else 2
        return Registration(
            **common,
            file=CONFIG,
            plugin=min(version, 2),
            whole=False,
            beginning="version = 2\n",
        )
    folder, pattern = _import_folder(document)
    return Registration(**common, file=f"{folder}/{name}.toml", pattern=pattern)


def _import_folder(document: dict[str, Any]) -> tuple[str, str]:
    """The folder that a configuration imports, or ours and the pattern that is wanting."""
    for pattern in toml_edit.imports(document):
        folder, name = os.path.split(pattern)
        if name == "*.toml" and folder.startswith("/") and "*" not in folder:
            return folder, ""
    folder = config_snippets.DROP_INS
    return folder, f"{folder}/*.toml"


def _rancher(node: Node, distro: str, name: str) -> Registration:
    agent = _RANCHER.format(distro)
    folder = f"{agent}/etc/containerd"
    config = f"{folder}/config.toml"
    text = node.read(config)
    if text is None:
        raise Failed(f"{config} isn't there yet: start {distro} once, it writes that file")
    document = toml_edit.parse(config, text)
    version = _version_of(config, document)
    kind = "config-v3" if version >= 3 else "config"
    daemon = f"/var/lib/rancher/{distro}/data/current/bin/containerd"
    daemon = daemon if node.exists(daemon) else f"/var/lib/rancher/{distro}/bin/containerd"
    daemon = daemon if node.exists(daemon) else ""
    units = ("k3s.service", "k3s-agent.service")
    if distro == "rke2":
        units = ("rke2-server.service", "rke2-agent.service")
    common: dict[str, Any] = {
        "distro": distro,
        "plugin": 3 if version >= 3 else 2 if version == 2 else 1,
        "config": config,
        "daemon": daemon,
        "release": _release(node, daemon),
        "units": units,
    }
    for pattern in toml_edit.imports(document):
        parent, last = os.path.split(pattern)
        if last == "*.toml" and "*" not in parent and parent.startswith(folder):
            return Registration(**common, file=f"{parent}/{name}.toml")
    comment = (
        f"{distro} renders its configuration from the template, and has to be of 2023 or later"
    )
    return Registration(
        **common,
        file=f"{folder}/{kind}.toml.tmpl",
        whole=False,
        beginning=BASE_TEMPLATE,
        rendered=True,
        comments=(comment,),
    )


def _k0s(node: Node, distro: str, name: str) -> Registration:
    daemon = "/var/lib/k0s/bin/containerd"
    release = _release(node, daemon) if node.exists(daemon) else ""
    config = "/etc/k0s/containerd.toml"
    text = node.read(config)
    if text is not None and "k0s_managed=true" not in text:
        raise Unsupported(
            f"{config} is the operator's own, and k0s adds nothing to it: add the runtime there by"
            " hand, as gvctl config containerd prints it"
        )
    return Registration(
        distro=distro,
        file=f"{_K0S_DROP_INS}/{name}.toml",
        plugin=config_snippets.config_version(release) if release else 2,
        daemon=daemon if release else "",
        release=release,
        rendered=True,
        comments=("k0s notices the file by itself, and restarts containerd",),
    )


def _microk8s(node: Node, distro: str, name: str) -> Registration:
    text = node.read(_MICROK8S) or ""
    # What the daemon fills in is in strings, so that the template is TOML itself.
    document = toml_edit.parse(_MICROK8S, text)
    version = _version_of(_MICROK8S, document)
    return Registration(
        distro=distro,
        file=_MICROK8S,
        plugin=min(version, 3),
        whole=False,
        units=("snap.microk8s.daemon-containerd.service",),
        rendered=True,
    )


def _crio(node: Node, distro: str, name: str) -> Registration:
    return Registration(
        distro=distro,
        file=f"{_CRIO_DROP_INS}/99-{name}.conf",
        plugin=0,
        units=("crio.service",),
        comments=("the shim was never run with CRI-O: try it before anything depends on it",),
    )


# -- what is written ----------------------------------------------------------------------------

_FIRST_LINE = "# Written by gvctl install, removed by gvctl uninstall; changes are overwritten.\n"


def table(found: Registration, name: str, shim: str, options: str) -> str:
    """The runtime's tables in the form of its daemon."""
    if found.distro == "crio":
        return (
            f"[crio.runtime.runtimes.{name}]\n"
            f'  runtime_path = "{shim}"\n'
            '  runtime_type = "vm"\n'
            '  runtime_root = "/run/containerd/runsc"\n'
            f'  runtime_config_path = "{options}"\n'
            '  allowed_annotations = ["dev.gvisor."]\n'
        )
    return config_snippets.containerd_snippet(found.plugin, name, shim, options)


def changes(node: Node, found: Registration, name: str, shim: str, options: str) -> dict[str, str]:
    """The texts that files are to have: path -> text.  Raises Failed, InvalidRequest."""
    wanted: dict[str, str] = {}
    tables = table(found, name, shim, options)
    if found.whole:
        wanted[found.file] = _FIRST_LINE + tables
    else:
        text = node.read(found.file)
        text = found.beginning if text is None else text
        rest = toml_edit.without_block(text, name)
        if not found.rendered or found.distro == "microk8s":
            if not _runtimes(toml_edit.parse(found.file, rest), found.plugin):
                tables += _runc(found.plugin)
            changed = toml_edit.with_block(rest, name, tables)
            toml_edit.parse(found.file, changed)
        else:
            changed = toml_edit.with_block(rest, name, tables)
        wanted[found.file] = changed
    if found.pattern:
        text = node.read(found.config)
        if text is None:
            version = 3
            text = f"version = {version}\n"
        wanted[found.config] = toml_edit.with_import(found.config, text, found.pattern)
    return {path: text for path, text in wanted.items() if node.read(path) != text}


def _runc(plugin: int) -> str:
    """runc's table, as it is the default only where none is named."""
    return (
        f'[plugins."{PLUGINS[plugin]}".containerd.runtimes.runc]\n'
        '  runtime_type = "io.containerd.runc.v2"\n'
    )


def runtimes(dump: dict[str, Any], release: str) -> dict[str, Any]:
    """The runtimes of a whole configuration, as ``containerd config dump`` prints it."""
    return _runtimes(dump, config_snippets.config_version(release))


def _runtimes(document: dict[str, Any], plugin: int) -> dict[str, Any]:
    here: Any = document
    for key in ("plugins", PLUGINS[plugin], "containerd", "runtimes"):
        here = here.get(key, {}) if isinstance(here, dict) else {}
    return here if isinstance(here, dict) else {}
