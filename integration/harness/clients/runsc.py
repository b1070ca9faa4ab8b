"""runsc's own command line, as an operator uses it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from integration.harness.base.done import Done


class Runsc:
    """runsc of one generation, on the containers below one root directory."""

    def __init__(self, generation: str, root: Path) -> None:
        self.binary = peers.runsc(generation)
        self.root = root

    def __call__(self, *arguments: str, timeout: float = 30, output: bool = True) -> Done:
        """Run a command to its end.

        Without ``output`` for one that starts a container, which would keep a pipe open.
        """
        where = subprocess.PIPE if output else subprocess.DEVNULL
        try:
            done = subprocess.run(
                [self.binary, "--root", self.root, "--network=none", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=where,
                stderr=where,
                timeout=timeout,
            )
        finally:
            self._remove_namespace()
        return Done(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())

    def _remove_namespace(self) -> None:
        """Releases of 2026 leave a mount: the empty network namespace that their gofers share."""
        kept = self.root / "null-netns"
        if kept.exists():
            subprocess.run(["umount", kept], check=True)
            kept.unlink()

    def ok(self, *arguments: str, output: bool = True) -> str:
        """The output of a command that has to succeed."""
        done = self(*arguments, output=output)
        assert done.code == 0, (arguments, done)
        return done.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments))

    def status(self, container: str) -> str:
        return str(self.json("state", container)["status"])
