"""The operator's configuration, from the command line and the shim's file together."""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.runsc import options_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from runtime.runsc.config import RunscConfig


def document(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The file that counts and its keys; both empty where there is none.

    Raises InvalidRequest naming file, key and reason.
    """
    path, data = args.config, options_file.read(args.config) if args.config else None
    if not path:
        path, data = options_file.read_global(options_file.GLOBAL_FILES)
    if data is None:
        raise InvalidRequest(path, "no such file")
    return path, options_file.check(path, options_file.parse(path, data))[0]


def config(args: argparse.Namespace, root: str) -> RunscConfig:
    """The configuration of a container that is kept in ``root``.  Raises InvalidRequest."""
    found = document(args)[1]
    base = options_file.config_of({**found, "root": root}, "")
    flags = {**base.flags, **dict(args.flag)}
    return base.replace(
        binary=args.runsc or base.binary,
        flags=flags,
        systemd_cgroup=args.systemd_cgroup or base.systemd_cgroup,
    )
