"""ARCHITECTURE.md tells the truth about the state machine, and about deaths what is proved."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

from integration.pods import fault_rows, test_faults

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "docs", f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text() -> str:
    with open(os.path.join(ROOT, "ARCHITECTURE.md"), encoding="utf-8") as source:
        return source.read()


def test_the_state_diagram_is_the_transition_table() -> None:
    module = _generator("state_diagram")
    assert module.current(_text()) == module.diagram(), "run: python docs/state_diagram.py --write"


def test_the_table_of_deaths_is_the_list_of_rows() -> None:
    module = _generator("fault_table")
    assert module.current(_text()) == module.table(), "run: python docs/fault_table.py --write"


def test_every_row_of_the_table_of_deaths_is_proved() -> None:
    proved = []
    for test in (test_faults.test_death, test_faults.test_death_everywhere):
        for mark in test.pytestmark:
            if mark.name == "parametrize":
                proved += mark.args[1]
    assert sorted(proved) == sorted(fault_rows.ROWS)


def test_every_victim_has_every_moment() -> None:
    """A sandbox that is being made has one gofer, its own."""
    wanted = {
        (victim, moment)
        for victim in fault_rows.VICTIMS
        for moment in fault_rows.MOMENTS
        if victim != "gofer" or not moment.startswith("pod ")
    }
    assert {(row.victim, row.moment) for row in fault_rows.ROWS} == wanted
    assert len(fault_rows.ROWS) == len(wanted)
