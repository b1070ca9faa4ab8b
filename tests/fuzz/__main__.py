"""`make fuzz`: run fuzzers for as long as is asked, and say what they did and found.

    python -m tests.fuzz [--seconds N] [--seed S] [--once] [--keep-going] [NAME...]

Each of the named fuzzers, by default all, runs for N seconds, one after the other: `calls` is the
stateful one (``calls.py``), the others feed a target by coverage (``targets.py``) and need the
extra `fuzz`.  Ends with status 1 if anything was found.  With --once, `calls` runs the script of
the one seed and nothing else.  Inputs are kept below .fuzz/, and the one that failed in
.fuzz/NAME-crash-*.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import calls, targets

CORPUS = Path(__file__).resolve().parents[2] / ".fuzz"
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
#: Bytes of an input, seconds and MiB that it may cost.
_LONGEST, _SLOWEST, _LARGEST = 8192, 20, 1024


def fuzz_calls(seconds: float, seed: int, once: bool, keep_going: bool) -> bool:
    """Run scripts one after the other; whether one found something, which is shrunk and shown."""
    began, trials, made, events = time.monotonic(), 0, 0, 0
    found = False
    while time.monotonic() - began < seconds:
        script = calls.script(seed)
        stdio = calls.stdio(seed)
        outcome = calls.attempt(script, stdio)
        trials, made, events = trials + 1, made + outcome.calls, events + outcome.events
        for line in outcome.slow:
            print(f"calls: seed {seed}: {line}", flush=True)
        if outcome.flaws:
            found = True
            print(
                f"calls: seed {seed} ({stdio}) found\n  " + "\n  ".join(outcome.flaws), flush=True
            )
            if not once and not keep_going:

                def fails(shorter: Sequence[calls.Action], stdio: str = stdio) -> bool:
                    return any(calls.attempt(shorter, stdio).flaws for _ in range(3))

                script = calls.shrink(script, fails)
            print("  by " + ", ".join(map(str, script)), flush=True)
        if once or (found and not keep_going):
            break
        seed += 1
    took = time.monotonic() - began
    print(f"calls: {trials} scripts, {made} calls, {events} events in {took:.0f} s", flush=True)
    return found


def fuzz_target(name: str, seconds: float, seed: int) -> bool:
    """Feed one target, guided by coverage; whether that found something."""
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(targets.TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus)]
    command += [f"-max_total_time={seconds:.0f}", f"-seed={seed % (1 << 31)}"]
    command += [f"-max_len={_LONGEST}", f"-timeout={_SLOWEST}", f"-rss_limit_mb={_LARGEST}"]
    command += [f"-artifact_prefix={CORPUS / name}-", "-verbosity=1", "-print_final_stats=0"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    counted = _DONE.search(done.stderr)
    if done.returncode == 0 and counted:
        print(f"{name}: {counted[1]} inputs in {counted[2]} s", flush=True)
        return False
    words = done.stdout.splitlines()[-25:]
    words += [line for line in done.stderr.splitlines()[-12:] if line[:1] not in "#"]
    print(f"{name}: found\n  " + "\n  ".join(words), flush=True)
    return True


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", default=["calls", *targets.TARGETS], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="`calls`: after a finding, too")
    options = parser.parse_args()
    found = []
    for name in options.names:
        if name == "calls":
            if fuzz_calls(options.seconds, options.seed, options.once, options.keep_going):
                found.append(name)
        elif fuzz_target(name, options.seconds, options.seed):
            found.append(name)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
