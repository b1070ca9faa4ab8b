"""Short runs of programs: what they print, its bound, and their end."""

from __future__ import annotations

import pytest

from runtime.base.errors import DeadlineExceeded
from runtime.host.children import owns
from runtime.host.run import Run
from runtime.host.spawn_spec import SpawnSpec


def sh(script: str) -> SpawnSpec:
    return SpawnSpec(path="/bin/sh", argv=("sh", "-c", script))


def test_both_outputs_are_kept_as_they_came() -> None:
    with Run(sh("printf one; printf two >&2; exit 3"), 100) as run:
        assert run.result(20) == (3 << 8, "onetwo")
        assert run.result(20) == (3 << 8, "onetwo")


def test_no_more_is_kept_than_the_limit() -> None:
    with Run(sh("while printf 0123456789; do :; done 2>/dev/null"), 64) as run:
        status, text = run.result(20)
    assert (status, len(text)) == (0, 60)


def test_one_that_runs_on_is_killed() -> None:
    with Run(sh("exec sleep 1000"), 10) as run, pytest.raises(DeadlineExceeded):
        run.result(0.05)
    assert not owns(run._child.pid)
