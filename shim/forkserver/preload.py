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

#: Ours that no shim needs: tools, and what is run from the command line.
_NOT = ("runtime.cli", "runtime._native_build", "shim.gvctl", "shim.__main__", "protos.generate")
#: Ours that other processes than shims need: of ``start``, ``delete``, ``-info``, networks, gvctl.
_OTHERS = (
    *("shim.info", "shim.cleanup", "shim.serve", "shim.forkserver", "runtime.network.helper"),
    *("runtime.bundle.features", "runtime.runsc.usage", "runtime.state.destroy"),
    *("runtime.state.forward_signals", "runtime.state.loaded", "runtime.state.loaded_checkpoint"),
    *("runtime.state.loaded_limits", "runtime.state.loaded_state", "runtime.state.teardown"),
    *("runtime.task.attach", "runtime.task.inherited_io", "runtime.task.library"),
)
#: Of the standard library, which isn't ours to go, what spares forks of the server an import.
_STANDARD = ("array", "ipaddress", "json", "random", "select", "socket", "traceback", "zlib")


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
                    if not any(name == out or name.startswith(out + ".") for out in _NOT):
                        yield name


def of_a_shim() -> Iterator[str]:
    """Those that a running shim may import."""
    for name in own_modules():
        if not any(name == other or name.startswith(other + ".") for other in _OTHERS):
            yield name


def everything(*, others: bool) -> None:
    """Import all of it; with ``others`` what other processes than shims need as well.

    What can't be imported is left to whoever wants it, who says what is wrong.
    """
    from importlib import import_module

    for name in (*own_modules(), *_STANDARD) if others else of_a_shim():
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
