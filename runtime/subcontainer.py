"""A container besides its sandbox's root one, and the spec by which the sentry starts it."""

from __future__ import annotations

import os

from runtime.gofer import raw_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.boot_params import BootParams
    from runtime.gofer import Gofer
    from runtime.settings import Settings


class Subcontainer:
    """What a sandbox keeps of it: how it was made, its gofer, its stdio until the start."""

    def __init__(self, params: BootParams, settings: Settings, gofer: Gofer) -> None:
        self.params = params
        self.settings = settings
        self.gofer = gofer
        self.stdio = tuple(os.dup(fd) for fd in params.stdio)

    def close_stdio(self) -> None:
        stdio, self.stdio = self.stdio, ()
        for fd in stdio:
            os.close(fd)


def resolved_spec(params: BootParams, mounts: list[Any], sentry_pid: int) -> dict[str, Any]:
    """The spec as the sentry wants it for a subcontainer: the gofer's mounts, absolute paths.

    A PID namespace that is the sentry's own means the sandbox's root one, which a container is
    in if it names none (runsc/sandbox, fixPidns).
    """
    raw = raw_spec(params.spec, params.tty)
    raw["mounts"] = mounts
    raw["root"] = {**raw["root"], "path": params.spec.root_path}
    linux = raw.get("linux")
    if isinstance(linux, dict) and params.spec.namespaces.get("pid") == (
        f"/proc/{sentry_pid}/ns/pid"
    ):
        others = [n for n in linux["namespaces"] if n.get("type") != "pid"]
        raw["linux"] = {**linux, "namespaces": others}
    return raw
