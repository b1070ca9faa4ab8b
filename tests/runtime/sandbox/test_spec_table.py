"""docs/spec.md against what is done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Unsupported
from runtime.bundle.spec import parse_spec
from runtime.runsc.config import RunscConfig
from runtime.sandbox.prepare_spec import NEWER_FIELDS, REFUSED_PARTS, UNKNOWN_FIELDS, prepare
from tests.fakes.generations import GENERATIONS

TABLE = Path(__file__).parents[3] / "docs/spec.md"
VALUES: dict[str, Any] = {
    "process.apparmorProfile": "x",
    "process.selinuxLabel": "x",
    "process.user.umask": 63,
    "domainname": "x",
    "linux.sysctl": {"kernel.shm_rmid_forced": "1"},
    "linux.mountLabel": "x",
}


def rows() -> dict[str, str]:
    found = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].startswith("`"):
            for name in re.findall(r"`([^`]+)`", cells[1]):
                assert name not in found
                found[name] = cells[2]
    return found


ROWS = rows()


def run(field: str) -> tuple[str, ...]:
    value: dict[str, Any] = {"process": {"args": ["x"]}, "root": {"path": "/r"}, "linux": {}}
    part = value
    *parents, name = field.split(".")
    for parent in parents:
        part = part.setdefault(parent, {})
    part[name] = VALUES.get(field, {"x": 1})
    spec = parse_spec(json.dumps(value).encode(), "/b")
    return prepare(spec, RunscConfig(root="/run/x"), GENERATIONS[2024]).notes


@pytest.mark.parametrize("field", [name for name, outcome in ROWS.items() if outcome == "warned"])
def test_warned(field: str) -> None:
    notes = run(field)
    assert any(field in note or "AppArmor" in note for note in notes), notes


@pytest.mark.parametrize("field", [name for name, outcome in ROWS.items() if outcome == "refused"])
def test_refused(field: str) -> None:
    with pytest.raises(Unsupported, match=field.rpartition(".")[2]):
        run(field)


def test_the_table_is_whole() -> None:
    assert set(ROWS.values()) == {"done", "warned", "refused", "for others"}
    assert {*UNKNOWN_FIELDS, *NEWER_FIELDS, *REFUSED_PARTS} <= ROWS.keys()
