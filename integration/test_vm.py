"""The tests that need cgroup v2, systemd or every capability, in a guest: see `integration/vm`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from integration.guest import scene
from integration.harness import peers

#: Seconds after which something is wrong, even on a busy machine; two minutes are usual.
TIMEOUT = 420

pytestmark = [
    pytest.mark.gvisor,
    pytest.mark.skipif(not scene.lacking(), reason="this machine has what a guest is for"),
]


class Guest:
    """A guest under way; what it prints is kept."""

    def __init__(self, *mode: str) -> None:
        command = [sys.executable, "-m", "integration.guest", *mode, f"--timeout={TIMEOUT}"]
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*command, "-v", "-rs", "--durations=5"],
            cwd=peers.CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)

    def wait(self) -> int:
        status = self._process.wait()
        self._reader.join()
        return status

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def guests(request: pytest.FixtureRequest) -> Iterator[dict[str, Guest]]:
    """All that are wanted, at once: each keeps one processor busy."""
    items = [item for item in request.session.items if item.path == request.path]
    modes = [item.callspec.params["mode"] for item in items]  # type: ignore[attr-defined]
    under_way = {mode: Guest(*filter(None, [mode])) for mode in modes}
    yield under_way
    for guest in under_way.values():
        guest.end()


@pytest.mark.parametrize("mode", ["", "--systemd"], ids=["cgroups", "systemd"])
def test_in_a_guest(guests: dict[str, Guest], mode: str) -> None:
    """They pass there, all of them.  What the guest prints is shown with a failure."""
    guest = guests[mode]
    status = guest.wait()
    print("".join(guest.lines))
    assert status == 0, f"the guest's status is {status}"
    summary = next((line for line in reversed(guest.lines) if " passed" in line), "")
    assert summary and "skipped" not in summary and "xfailed" not in summary, summary
