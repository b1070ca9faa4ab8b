"""Where imports come from.  The launcher runs the interpreter without ``site``.

``start`` finds all that it imports in the one directory that the launcher names.  Dependencies may
lie elsewhere, as a distribution's packages do beside those of pip; then ``site`` is run after all.
"""

from __future__ import annotations

import sys

#: What the daemon will import sooner or later.
DEPENDENCIES = ("_cffi_backend", "google.protobuf", "structlog", "pyroute2")


def complete(*modules: str) -> None:
    """Make sure that ``modules`` can be imported, without importing them.

    Leaves the path alone if they are found; else does what the interpreter does at its start.
    """
    from _frozen_importlib_external import PathFinder

    for module in modules:
        parent, _, name = module.rpartition(".")
        path = [f"{directory}/{parent}" for directory in sys.path] if parent else None
        if PathFinder.find_spec(name if not parent else module, path) is None:
            import site

            site.main()
            return
