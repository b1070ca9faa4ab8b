"""The tests that need cgroup v2, systemd or every capability, in a guest: see `integration/vm`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from integration.guest import machine, scene
from integration.harness.base import peers

pytestmark = pytest.mark.gvisor


class Guest:
    """A guest under way; what it prints is kept."""

    def __init__(self, *mode: str) -> None:
        command = [sys.executable, "-m", "integration.guest", *mode]
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
    given = [getattr(item, "callspec", None) for item in items]
    modes = [each.params["mode"] for each in given if each is not None]
    under_way = {mode: Guest(*filter(None, [mode])) for mode in modes}
    yield under_way
    for guest in under_way.values():
        guest.end()


@pytest.mark.skipif(not scene.lacking(), reason="this machine has what a guest is for")
@pytest.mark.parametrize("mode", ["", "--systemd"], ids=["cgroups", "systemd"])
def test_in_a_guest(guests: dict[str, Guest], mode: str) -> None:
    """They pass there, all of them.  What the guest prints is shown with a failure."""
    guest = guests[mode]
    status = guest.wait()
    print("".join(guest.lines))
    assert status == 0, f"the guest's status is {status}"
    summary = next((line for line in reversed(guest.lines) if " passed" in line), "")
    assert summary and "skipped" not in summary and "xfailed" not in summary, summary


class _Qemu:
    """In QEMU's place: at each look it has written some more, and at the last it has ended."""

    args = "qemu"

    def __init__(self, written: machine.Written, amounts: Iterable[int]) -> None:
        self._written, self._amounts = written, iter(amounts)
        self.waited = 0.0

    def wait(self, timeout: float) -> int:
        amount = next(self._amounts, None)
        if amount is None:
            return 0
        self.waited += timeout
        self._written.count += amount
        raise subprocess.TimeoutExpired(self.args, timeout)


def test_the_bound_of_a_guest_follows_its_output(tmp_path: Path) -> None:
    """One that goes on writing has all the time it needs; one that is silent for long has not."""
    written = machine.Written(tmp_path / "console")
    slow = _Qemu(written, [1, *[0] * 9] * 50)
    machine.wait(cast("subprocess.Popen[bytes]", slow), written, 10)
    assert slow.waited == pytest.approx(500)

    silent = _Qemu(written, [1, *[0] * 50])
    with pytest.raises(subprocess.TimeoutExpired):
        machine.wait(cast("subprocess.Popen[bytes]", silent), written, 10)
    assert silent.waited == pytest.approx(11)

    (tmp_path / "console").write_text("what the kernel says counts as well")
    assert written.total() > written.count
