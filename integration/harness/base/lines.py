"""Reading another process's output line by line, with a time limit."""

from __future__ import annotations

import os
import select
import subprocess
import time


def next_line(process: subprocess.Popen[bytes], timeout: float = 15) -> str | None:
    """The next line of a process's unbuffered output; None when it ends or does not come in time.

    Reads no byte past the line, so that `communicate` finds all the rest.
    """
    assert process.stdout is not None
    line, deadline = bytearray(), time.monotonic() + timeout
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        byte = os.read(process.stdout.fileno(), 1) if ready else b""
        if not byte:
            return None
        line += byte
    return line.decode(errors="replace").removesuffix("\n")
