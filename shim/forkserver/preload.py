"""Imports all that a shim may ever need: in the fork server, and in a shim that it didn't fork.

So a running shim needs none of its files any more: they can be replaced or removed below it, and
no later call fails or loads another version's modules into the old program.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Ours that neither a shim needs nor any other fork of the server: tools, what gvctl is of, and
#: what describes us, which containerd asks for when there is no server yet.
_NOT = (
    *("runtime.cli", "runtime._native_build", "shim.gvctl", "protos.generate"),
    *("shim.info", "runtime.bundle.features", "shim.observe.debug_client"),
    *("runtime.runsc.usage", "runtime.sandbox.inside_files"),
    *("runtime.state.destroy", "runtime.state.forward_signals", "runtime.state.loaded"),
    *("runtime.state.loaded_checkpoint", "runtime.state.loaded_limits"),
    *("runtime.state.loaded_state", "runtime.task.attach", "runtime.task.inherited_io"),
    *("runtime.task.library", "shim.take_over", "shim.handover.unpack"),
)
#: Ours that other processes than shims need: of ``start``, ``delete``, networks.
_OTHERS = (
    *("shim.__main__", "shim.cleanup", "shim.serve", "shim.forkserver", "runtime.network.helper"),
    *("shim.bootstrap", "shim.containerd_version", "shim.paths", "shim.base.arguments"),
    # Loaded at the start of a shim that is to trace.
    *("shim.observe.tracing", "shim.observe.tracing_setup", "shim.observe.otlp"),
    *("protos.otlp_pb2", "runtime.state.teardown"),
)
#: Ours that few shims use.  The rest is imported first: what all use lies together then, and what
#: a fork writes to is on fewer pages.
SELDOM = (
    *("runtime.bundle.fuse", "runtime.bundle.hooks", "runtime.bundle.seccomp"),
    *("runtime.cgroups.systemd", "runtime.host.dbus", "runtime.host.kvm", "runtime.host.loopdev"),
    *("runtime.host.systemd", "runtime.network.restored", "runtime.sandbox.checkpoint"),
    *("runtime.sandbox.checkpoint_image", "runtime.sandbox.idmapped_mounts"),
    *(
        "runtime.sandbox.files",
        "runtime.sandbox.restore",
        "runtime.task.start_container_hooks",
        "shim.sandbox",
    ),
    *("shim.handover.names", "shim.handover.pack", "shim.handover.program"),
    "shim.handover.shapes",
    *("shim.stdio.binary_logger", "shim.stdio.console", "protos"),
)
#: Of the standard library, which isn't ours to go, what spares forks of the server an import.
_STANDARD = (
    *("_sha256", "array", "encodings.ascii", "ipaddress", "json", "random", "select", "socket"),
    *("traceback", "zlib"),
)


def own_modules() -> Iterator[str]:
    """The names of our modules that a shim may import."""
    for package in ("runtime", "shim", "protos"):
        module = sys.modules.get(package) or __import__(package)
        top = os.path.dirname(module.__file__ or "")
        for folder, below, files in os.walk(top):
            below[:] = sorted(
                name for name in below if name not in ("__pycache__", "bin", "native")
            )
            prefix = ".".join([package, *os.path.relpath(folder, top).split(os.sep)]).rstrip(".")
            for file in sorted(files):
                stem, dot, ending = file.partition(".")
                if dot and ending == "py":
                    name = prefix if stem == "__init__" else f"{prefix}.{stem}"
                    if not _is_among(name, _NOT):
                        yield name


def of_a_shim() -> Iterator[str]:
    """Those that a running shim may import."""
    return (name for name in own_modules() if not _is_among(name, _OTHERS))


def in_order() -> list[str]:
    """All that :func:`own_modules` finds, what most shims use first."""
    return sorted(own_modules(), key=lambda n: 2 * _is_among(n, _OTHERS) + _is_among(n, SELDOM))


def _is_among(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(each + ".") for each in modules)


def everything(*, others: bool) -> None:
    """Import all of it; with ``others`` what other processes than shims need as well.

    What can't be imported is left to whoever wants it, who says what is wrong.
    """
    from importlib import import_module

    for name in (*in_order(), *_STANDARD) if others else of_a_shim():
        try:
            import_module(name)
        except ImportError:
            continue
    if not others:
        return
    from protos import _pool
    from runtime.base import log
    from runtime.network import helper

    log.preload()
    _pool.build_all()
    try:
        helper.Codec()
    except ImportError:
        pass  # the helper says so
