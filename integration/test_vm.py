"""The tests that need cgroup v2, systemd or every capability, in a guest: see `integration/vm`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from integration.guest import scene
from integration.harness import peers

#: Seconds that the tests in a guest may take on a busy machine.
TIMEOUT = 280


@pytest.mark.gvisor
@pytest.mark.skipif(not scene.lacking(), reason="this machine has what a guest is for")
@pytest.mark.parametrize("mode", [[], ["--systemd"]], ids=["cgroups", "systemd"])
def test_in_a_guest(mode: list[str]) -> None:
    """They pass there, all of them.  What the guest prints is shown with a failure."""
    command = [sys.executable, "-m", "integration.guest", *mode, f"--timeout={TIMEOUT}"]
    words: list[str] = []
    with subprocess.Popen(
        [*command, "-v", "-rs", "--durations=5"],
        cwd=peers.CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as guest:
        assert guest.stdout is not None
        try:
            for line in guest.stdout:
                words.append(line)
                print(line, end="", flush=True)
        except BaseException:
            guest.terminate()
            raise
    assert guest.returncode == 0, f"the guest's status is {guest.returncode}"
    summary = next((line for line in reversed(words) if " passed" in line), "")
    assert summary and "skipped" not in summary and "xfailed" not in summary, summary
