"""All that a shim may ever import, imported: by the fork server, and by a shim that it didn't fork.

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
#: Of the standard library and of dependencies, what functions import.
OTHERS = (
    "array",
    "ipaddress",
    "json",
    "linecache",
    "pty",
    "random",
    "select",
    "socket",
    "stat",
    "structlog.processors",
    "traceback",
    "tty",
    "types",
    "zlib",
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
                    if not any(name == out or name.startswith(out + ".") for out in _NOT):
                        yield name


def everything(*, network: bool) -> None:
    """Import all of it; with ``network`` what network helpers need as well.

    What can't be imported is left to whoever wants it, who says what is wrong.
    """
    from importlib import import_module

    from runtime.base import log

    for name in (*own_modules(), *OTHERS):
        if name == "runtime.network.helper" and not network:
            continue
        try:
            import_module(name)
        except ImportError:
            continue
    log.preload()
    if network:
        from protos import _pool

        _pool.build_all()
    if network:
        from runtime.network import helper

        try:
            helper.Codec()
        except ImportError:
            pass  # the helper says so
