"""Runs one target, guided by coverage: ``python -m tests.fuzz.guided NAME [libFuzzer's options]``.

Needs the extra ``fuzz``.  Never returns: libFuzzer ends the process, with status 0 at its time.
"""

from __future__ import annotations

import sys
import time

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["shim", "runtime"]):
    from tests.fuzz import targets

#: Seconds that one input may take, which is at most 64 KiB.
SLOW = 2.0


def main() -> None:
    name = sys.argv.pop(1)
    run = targets.TARGETS[name].run
    before = 0
    inputs = 0

    def one(data: bytes) -> None:
        nonlocal before, inputs
        began = time.process_time()
        run(data)
        took = time.process_time() - began
        assert took < SLOW, f"took {took:.1f} s"
        inputs += 1
        if not inputs % 1000:
            now = targets.descriptors()
            assert not before or now <= before, f"{now - before} descriptors are left"
            before = now

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
