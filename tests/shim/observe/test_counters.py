"""What is counted, and that it stays small."""

from __future__ import annotations

import pytest

from runtime.base import stages
from runtime.task.events import TaskDeleted, TaskOOM
from shim.observe import counters
from shim.observe.counters import BOUNDS, Counters


def test_calls_are_counted_by_method_code_and_time() -> None:
    found = Counters()
    found.called("State", 0, BOUNDS[0])  # a bound belongs to its own bucket
    found.called("State", 5, BOUNDS[0] * 1.01)
    found.called("Start", 0, 1e9)
    rpcs = found.snapshot()["rpcs"]
    assert rpcs["State"]["codes"] == {"0": 1, "5": 1}
    assert rpcs["State"]["buckets"][:3] == [1, 1, 0]
    assert rpcs["State"]["seconds"] == pytest.approx(BOUNDS[0] * 2.01)
    assert rpcs["Start"]["buckets"] == [0] * len(BOUNDS) + [1]


def test_a_name_is_counted_over_the_lives_of_its_containers() -> None:
    found = Counters()
    found.created("id1", "web")
    found.happened(TaskOOM(container_id="id1"))
    found.happened(TaskDeleted(container_id="id1", id="e1", pid=1, exit_status=0, exited_at=0))
    found.happened(TaskOOM(container_id="id1"))
    found.happened(TaskDeleted(container_id="id1", id="id1", pid=1, exit_status=0, exited_at=0))
    found.created("id2", "web")
    found.happened(TaskOOM(container_id="id2"))
    found.happened(TaskOOM(container_id="id1"))
    told = found.snapshot()
    assert told["starts"] == {"web": 2}
    assert told["oomKills"] == {"web": 3, counters.OTHER: 1}


def test_names_are_bounded_in_number_and_length() -> None:
    found = Counters()
    for n in range(1000):
        found.created(f"id{n}", f"{n}" + "x" * 10_000)
        found.happened(TaskOOM(container_id=f"id{n}"))
    told = found.snapshot()
    assert len(told["starts"]) == len(told["oomKills"]) == counters.MAX_NAMES + 1
    assert sum(told["starts"].values()) == 1000
    assert max(map(len, told["starts"])) == counters.MAX_NAME


def test_stages_are_timed_unless_they_fail() -> None:
    found = Counters()
    stages.observe(found)
    try:
        with stages.stage("boot"), stages.stage("gofer"):
            pass
        with pytest.raises(KeyError), stages.stage("network"):
            raise KeyError
    finally:
        stages.observe(None)
    with stages.stage("boot"):
        pass
    told = found.snapshot()["stages"]
    assert set(told) == {"boot", "gofer"} and told["boot"][0] == 1
    assert told["boot"][1] == told["boot"][2] >= told["gofer"][1] >= 0
