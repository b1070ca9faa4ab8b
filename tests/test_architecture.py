"""ARCHITECTURE.md tells the truth about the state machine."""

from __future__ import annotations

import importlib.util
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_the_state_diagram_is_the_transition_table() -> None:
    path = os.path.join(ROOT, "docs", "state_diagram.py")
    spec = importlib.util.spec_from_file_location("state_diagram", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(os.path.join(ROOT, "ARCHITECTURE.md"), encoding="utf-8") as source:
        text = source.read()
    assert module.current(text) == module.diagram(), "run: python docs/state_diagram.py --write"
