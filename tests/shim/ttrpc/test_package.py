"""The package stands alone, and is cheap to import."""

from __future__ import annotations

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
COSTLY = {"typing", "dataclasses", "inspect", "asyncio", "logging", "subprocess", "json", "google"}


def test_imports() -> None:
    code = (
        "import sys, shim; before = set(sys.modules)\n"
        "import shim.ttrpc.server, shim.ttrpc.client\n"
        "print(*(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {ROOT!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(result.stdout.split())
    assert "shim.ttrpc.peer" in loaded
    own = {name for name in loaded if name.startswith("shim.ttrpc")}
    projects = ("shim", "runtime", "protos", "tests")
    assert {name for name in loaded - own if name.split(".")[0] in projects} == set()
    assert loaded & COSTLY == set()
