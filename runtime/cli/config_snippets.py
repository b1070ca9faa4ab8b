"""``config``: what to write into containerd's configuration and into Kubernetes'."""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest
from runtime.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_RUNTIME = "io.containerd.gvisor.v2"
#: The plugin in whose tables the runtimes are, by the version of the configuration.
PLUGINS = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
#: The file that the snippets name.
OPTIONS_FILE = "/etc/containerd/gvisor.toml"
#: Where containerd 2.x is to read a file of ours from.
DROP_INS = "/etc/containerd/conf.d"
_SHIM = "/usr/local/bin/containerd-shim-gvisor-v2"
# Why there is no line with a version: of two in one file containerd fails; a file of its own that
# has none is taken for one of the same version as config.toml, by all releases of 2.x, while 2.1
# and 2.2 lose settings of an older config.toml beside a newer file, and 2.3 refuses both.  In 1.x
# such a file would replace all of config.toml's table of the CRI plugin, and any table of a runtime
# the default one, runc's.
_WHERE = {
    2: (
        "# to be appended to /etc/containerd/config.toml, which says version = 2 at its top,"
        " {whose};\n"
        "# where that has no table of a runtime yet, runc's has to go with it:\n"
        '#   [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '#     runtime_type = "io.containerd.runc.v2"\n'
    ),
    3: (
        "# {folder}/{handler}.toml, {whose}; config.toml must have, before any table:\n"
        '#   imports = ["{folder}/*.toml"]\n'
    ),
}
#: Where this was run, and what containerd's own table says; the README has more.
_VERSIONS = """\
# Run on containerd 1.6.20, 1.7.24, 2.1.9 (tests of every change), and by hand in November 2026
# on 2.2.7, 2.3.4, 2.4.0-beta.0; never on 2.0. By containerd's table of August 2026 supported are
# 2.0 (until March 2027), 2.2 (until 6 November 2026) and 2.3 (until April 2028).
"""
#: What a sandbox needs besides its containers: see the README's figures.
_OVERHEAD = "128Mi"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def config_version(release: str) -> int:
    """The version whose names of plugins a containerd release has: 4, of 2.3, has those of 3.

    Raises InvalidRequest for what is no release.
    """
    words = release.removeprefix("v").split(".")
    if not words[0].isdigit() or int(words[0]) < 1:
        raise InvalidRequest("--containerd", f"{release!r} is no version, such as 1.7 or 2.1")
    return 3 if int(words[0]) >= 2 else 2


def containerd_snippet(
    version: int, handler: str, shim: str = _SHIM, options: str = OPTIONS_FILE
) -> str:
    """The table of one runtime handler, with paths of the shim and of its options."""
    table = f'[plugins."{PLUGINS[version]}".containerd.runtimes.{_key(handler)}]'
    inner = table.removesuffix("]") + ".options]"
    return (
        f"{table}\n"
        f'  runtime_type = "{_RUNTIME}"\n'
        f"  runtime_path = {_quoted(shim)}\n"
        f'  pod_annotations = ["dev.gvisor.*"]\n'
        f"  {inner}\n"
        f'    TypeUrl = "io.containerd.gvisor.v2.options"\n'
        f"    ConfigPath = {_quoted(options)}\n"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def runtime_class(handler: str) -> str:
    """Kubernetes' object for the handler."""
    return (
        "apiVersion: node.k8s.io/v1\n"
        "kind: RuntimeClass\n"
        "metadata:\n"
        f"  name: {handler}\n"
        f"handler: {handler}\n"
        "overhead:\n"
        "  podFixed:\n"
        f"    memory: {_OVERHEAD}\n"
    )


def options_snippet(binary: str) -> str:
    """A file of options to start from."""
    return (
        f"binary_name = {_quoted(binary)}\n"
        '#log_path = "/var/log/gvisor/%ID%/shim.log"\n'
        "[runsc_config]\n"
        '#platform = "systrap"\n'
        '#debug-log = "/var/log/gvisor/%ID%/"\n'
    )


def check_handler(name: str, field: str = "--handler") -> str:
    """The name of a runtime.  Raises InvalidRequest."""
    if not name or not _NAME.issuperset(name) or len(name) > 63 or not name[0].isalnum():
        raise InvalidRequest(field, f"{name!r} is no name of a RuntimeClass")
    return name


def found_release() -> str:
    """The release of the containerd on PATH; empty if there is none that says."""
    from runtime.cli import doctor

    path = doctor.which("containerd")
    return doctor.containerd_version(doctor.ask(path, "--version")) if path else ""


def config_verb(args: argparse.Namespace) -> None:
    """``config``: for both kinds of containerd where none is found and none is named."""
    from runtime.cli import doctor

    handler = check_handler(args.handler)
    release = args.containerd or found_release()
    versions = [config_version(release)] if release else [2, 3]
    runsc = doctor.which("runsc") or "/usr/local/bin/runsc"
    shim = os.path.abspath(doctor.found_shim() or _SHIM)
    parts: list[str] = []
    if args.what in ("all", "containerd"):
        parts.append(_VERSIONS)
        for version in versions:
            whose = f"containerd {release}" if release else f"containerd {version - 1}.x"
            where = _WHERE[version].format(folder=DROP_INS, handler=handler, whose=whose)
            parts.append(where + containerd_snippet(version, handler, shim))
    if args.what in ("all", "options"):
        parts.append(f"# {OPTIONS_FILE}\n" + options_snippet(os.path.realpath(runsc)))
    if args.what in ("all", "runtimeclass"):
        parts.append("# kubectl apply -f\n" + runtime_class(handler))
    output.write("\n".join(parts))
