"""Print what importing costs: of each process of ours, and of libraries that the shim goes without.

python docs/import_cost.py [ROUNDS]     or  make import-cost

Each figure is the median of ROUNDS (15) fresh interpreters that run as the shim's does: modules
loaded, milliseconds of CPU time, and KiB of memory that the process shares with no other.  What a
library costs is what it adds to a daemon; libraries share parts, so the figures don't add up.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_START = "import shim.__main__, shim.bootstrap, shim.base.sockets, runtime.base.files"
_DAEMON = f"{_START}, shim.daemon"
#: As the shim's commands do: looking for garbage would be a tenth of it.
_AS_WE_DO = "import gc; gc.disable()"
#: What is measured: its name, what is loaded before, what is loaded then.
PROCESSES = (
    ("start", _AS_WE_DO, _START),
    ("delete", _AS_WE_DO, "import shim.__main__, shim.cleanup"),
    ("daemon", _AS_WE_DO, _DAEMON),
    ("gvctl list", "", "import shim.gvctl, runtime.cli.main, runtime.cli.show"),
)
LIBRARIES = tuple(
    (f"daemon + {name}", f"{_AS_WE_DO}; {_DAEMON}", f"import {name}")
    for name in (
        "enum", "signal", "socket", "json", "re", "typing", "dataclasses", "contextlib",
        "tomllib", "argparse", "subprocess", "logging", "structlog",
        "asyncio",
    )
)  # fmt: skip
_PROGRAM = """
import sys, time
sys.path[:0] = {path!r}
{before}
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
modules, memory, began = len(sys.modules), private(), time.process_time()
{measured}
spent = time.process_time() - began
print(len(sys.modules) - modules, spent * 1000, private() - memory)
"""


def measure(before: str, measured: str) -> tuple[int, float, int]:
    """Modules, milliseconds and KiB of one run."""
    path = [ROOT, sysconfig.get_path("platlib")]
    program = _PROGRAM.format(path=path, before=before, measured=measured)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True
    )
    modules, milliseconds, memory = done.stdout.split()
    return int(modules), float(milliseconds), int(memory)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rows = PROCESSES + LIBRARIES
    found: list[list[tuple[int, float, int]]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for runs, (_, before, measured) in zip(found, rows, strict=True):
            figures = measure(before, measured)
            if number:  # the first round compiles
                runs.append(figures)
    print("| | modules | ms | KiB |\n|---|---|---|---|")
    for runs, (name, _, _) in zip(found, rows, strict=True):
        modules, milliseconds, memory = map(statistics.median, zip(*runs, strict=True))
        print(f"| {name} | {modules:.0f} | {milliseconds:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
