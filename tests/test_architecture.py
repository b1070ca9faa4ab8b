"""The documents tell the truth about modules, the state machine, deaths, and the library."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from types import ModuleType

import pytest

from integration.pods import fault_rows, test_faults

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "docs", f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(document: str) -> str:
    with open(os.path.join(ROOT, document), encoding="utf-8") as source:
        return source.read()


def test_the_state_diagram_is_the_transition_table() -> None:
    module = _generator("state_diagram")
    assert module.PART.current(_text("ARCHITECTURE.md")) == module.diagram(), (
        "run: python docs/state_diagram.py --write"
    )


def test_the_table_of_deaths_is_the_list_of_rows() -> None:
    module = _generator("fault_table")
    assert module.PART.current(_text("docs/deaths.md")) == module.table(), (
        "run: python docs/fault_table.py --write"
    )


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


# -- the container library ----------------------------------------------------------------------

_ROWS = re.compile(r"^\| (\d+) \| .+ \| `([\w/]+):([\w.]+)` \| `([\w/]+\.py)::(\w+)` \|$")


def _rows() -> list[tuple[str, ...]]:
    text = _text("docs/conformance.md")
    start = text.index("<!-- rows of the container library")
    lines = text[start : text.index("<!-- end of rows -->", start)].splitlines()[3:]
    found = []
    for line in lines:
        match = _ROWS.match(line)
        assert match is not None, f"no row: {line}"
        found.append(match.groups())
    return found


def test_the_container_librarys_rows_are_all_there() -> None:
    assert [int(row[0]) for row in _rows()] == list(range(1, 53))


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0])
def test_a_row_names_a_function_and_a_test(row: tuple[str, ...]) -> None:
    _, module, function, file, test = row
    path = os.path.join(ROOT, "runtime", f"{module}.py")
    assert function in _definitions(path), f"runtime/{module}.py has no {function}"
    assert test in _definitions(os.path.join(ROOT, file)), f"{file} has no {test}"


def _definitions(path: str) -> set[str]:
    """The functions of a module, and the methods of its classes as ``Class.method``."""
    with open(path, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


# -- modules ------------------------------------------------------------------------------------

_NAMED = re.compile(r"`((?:(?:runtime|shim)/)?(?:\w+/)+(?:\w+\.py)?)`")


def test_every_module_that_architecture_names_is_there() -> None:
    named = _NAMED.findall(_text("ARCHITECTURE.md"))
    assert len(named) > 50
    for path in named:
        places = (path, f"runtime/{path}")
        assert any(os.path.exists(os.path.join(ROOT, p)) for p in places), path
