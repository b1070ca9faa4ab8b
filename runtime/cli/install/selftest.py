"""A sandbox that is started and ended before anything is registered."""

from __future__ import annotations

import json
import os
import shutil

from runtime.base.errors import Failed
from runtime.host import forward_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.install.node import Node

_ID = "selftest"
#: Seconds for a first boot on a slow machine.
_TIMEOUT = 120.0


def run(node: Node, version: str, options: str) -> None:
    """Run a program in a sandbox with what is in a version's folder, and the options' text.

    Raises Failed with the words of what failed.  Nothing is left.
    """
    base = f"/run/gvisor-shim-selftest-{os.getpid()}"
    gvctl = f"{version}/bin/gvctl"
    node.make_folder(f"{base}/bundle")
    common = (gvctl, "--root", f"{base}/state", "--config", f"{base}/options.toml")
    try:
        node.write(f"{base}/options.toml", options)
        forward_program.install((node.path(f"{base}/bundle") + "/rootfs",))
        node.write(f"{base}/bundle/config.json", json.dumps(_spec()))
        try:
            _ask(node, *common, "run", "--detach", "--bundle", f"{base}/bundle", _ID)
            state = json.loads(_ask(node, *common, "state", _ID))
            if state.get("status") != "running":
                raise Failed(f"its program is {state.get('status')!r}")
            _ask(node, *common, "ps", _ID)
        finally:
            status, text = node.run(*common, "delete", "--force", _ID, timeout=_TIMEOUT)
        if status:
            raise Failed(f"it can't be ended: {_last(text)}")
    except Failed as fault:
        raise Failed(f"the self-test's sandbox: {fault}") from None
    finally:
        shutil.rmtree(node.path(base), ignore_errors=True)


def _ask(node: Node, *words: str) -> str:
    status, text = node.run(*words, timeout=_TIMEOUT)
    if status:
        raise Failed(_last(text) or f"status {status}")
    return text


def _last(text: str) -> str:
    return " ".join(text.split())[-400:].removeprefix("gvctl: ")


def _spec() -> dict[str, object]:
    """A container of one program that waits."""
    kinds = ("pid", "mount", "network", "ipc", "uts")
    return {
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": True},
        "process": {
            "args": [f"/{forward_program.NAME}"],
            "cwd": "/",
            "env": [],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
