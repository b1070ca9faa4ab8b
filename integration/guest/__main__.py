"""The command line of `integration/vm`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from integration.guest import machine
from integration.harness.base import peers

# Left out is what measures the speed of a processor, and what is about cgroup v1.
DEFAULT = [
    "integration/test_cgroups.py",
    "integration/test_guest_containers.py",
    "integration/test_guest_pods.py",
    "--deselect=integration/test_cgroups.py::test_reading_statistics_is_cheap",
    "--deselect=integration/test_cgroups.py::test_memory_and_swap_rise_and_fall",
]
DEFAULT_SYSTEMD = [
    "integration/test_guest_systemd.py",
    "integration/test_guest_systemd_pods.py",
]
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="integration/vm",
        description="Run tests in a guest with cgroup v2 and every capability.",
        epilog="-- COMMAND runs that command there instead of tests.",
    )
    parser.add_argument("--systemd", action="store_true", help="with systemd as process 1")
    parser.add_argument(
        "--silence",
        type=float,
        default=machine.SILENCE,
        help="seconds without any output until the tests are interrupted (default: %(default)g)",
    )
    parser.add_argument("--artefacts", type=Path, help="keep what the guest writes here")
    words = sys.argv[1:]
    rest: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1 :]
    options, arguments = parser.parse_known_args(words)
    missing = machine.missing()
    if os.geteuid() or missing:
        print(f"vm: needs root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 2
    python = Path(sys.executable)
    command = rest or [str(python), *PYTEST, *_tests(arguments, options.systemd)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    try:
        status = machine.run(
            command,
            python=python,
            output=sys.stdout.fileno(),
            systemd=options.systemd,
            silence=options.silence,
            artefacts=options.artefacts,
        )
    except machine.NoResult as problem:
        print(f"vm: {problem}", file=sys.stderr)
        return 3
    print(f"vm: status {status} after {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return status


def _tests(arguments: list[str], systemd: bool) -> list[str]:
    """pytest's arguments; where they name no file, the tests that are meant for the guest."""
    named = any((peers.CHECKOUT / word.partition("::")[0]).exists() for word in arguments)
    default = DEFAULT_SYSTEMD if systemd else DEFAULT
    return arguments if named else [*default, *arguments]


if __name__ == "__main__":
    sys.exit(main())
