"""When hooks come in a container's life, and what their failure does to it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed
from runtime.bundle import hooks
from runtime.bundle.spec import parse_spec
from runtime.sandbox.sandbox import ExitInfo, SignalMode
from runtime.task.lifecycle import State
from tests.fakes.sandbox import Bench

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.workers.drain(5)
    bench.workers.stop()


class Hooked:
    """Gives the bench's container hooks that write their stage's name, and the status told."""

    def __init__(self, bench: Bench, folder: Path, *stages: str, code: int = 0) -> None:
        self.out = folder / "out"
        text = (
            "import json, sys\n"
            "state = json.load(sys.stdin)\n"
            f"open({str(self.out)!r}, 'a').write(' '.join([sys.argv[1], state['status'], "
            "str(state.get('pid')), '']))\n"
            f"sys.exit({code})"
        )
        value: dict[str, Any] = {"process": {"args": ["true"]}, "root": {"path": "rootfs"}}
        value["hooks"] = {
            stage: [{"path": PYTHON, "args": ["hook", "-ISc", text, stage]}] for stage in stages
        }
        bench.container.spec = self.spec = parse_spec(json.dumps(value).encode(), str(folder))

    def told(self) -> str:
        return self.out.read_text() if self.out.exists() else ""


def test_poststart_and_poststop(bench: Bench, tmp_path: Path) -> None:
    hooked = Hooked(bench, tmp_path, "poststart", "poststop", code=1)
    hooks.owe_poststop(hooked.spec)
    bench.run()
    assert bench.container.init.state is State.RUNNING
    assert hooked.told() == "poststart running 4711 "
    bench.sandbox.end(0)
    released = []
    bench.container.delete(lambda: released.append(hooked.told()))
    assert released == ["poststart running 4711 poststop stopped None "]


def test_poststop_waits_for_a_delete_that_works(bench: Bench, tmp_path: Path) -> None:
    hooked = Hooked(bench, tmp_path, "poststop")
    hooks.owe_poststop(hooked.spec)

    def refuse() -> None:
        raise Failed("still mounted")

    bench.holdings.refuse = refuse
    with pytest.raises(Failed, match="still mounted"):
        bench.container.delete(lambda: None)
    assert hooked.told() == ""
    bench.holdings.refuse = lambda: None
    bench.container.delete(lambda: None)
    assert hooked.told() == "poststop stopped None "


def start_container(bench: Bench, tmp_path: Path, status: int) -> None:
    """Give the container a startContainer hook, which ends as is said."""
    Hooked(bench, tmp_path, "startContainer")

    def end(cid: str, pid: int, callback: Callable[[ExitInfo], None]) -> None:
        assert (cid, pid, bench.container.init.state) == ("c", 3, State.STARTING)
        callback(ExitInfo(status=status))

    bench.sandbox.wait_pid = end  # type: ignore[method-assign]


def test_a_hook_in_the_container_precedes_the_start(bench: Bench, tmp_path: Path) -> None:
    start_container(bench, tmp_path, 0)
    bench.run()
    assert bench.container.init.state is State.RUNNING


@pytest.mark.parametrize("is_root", [True, False])
def test_its_failure_is_the_starts(bench: Bench, tmp_path: Path, is_root: bool) -> None:
    bench.container.is_root = is_root
    start_container(bench, tmp_path, 4)
    with pytest.raises(Failed, match=r"startContainer hook 0 .*: exit status 4"):
        bench.run()
    assert bench.container.init.state is State.STOPPED
    assert bench.sandbox.killed.is_set() is is_root
    ends = [] if is_root else [("c", 9, 0, SignalMode.ALL)]
    assert bench.sandbox.signals == ends
