"""README and docs name the options, command lines and numbers that the programs have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from runtime.bundle import hooks, submounts
from runtime.cgroups import settings
from runtime.cli import arguments
from runtime.cli.exporter import figures
from runtime.cli.insight import debug
from runtime.runsc import options_file
from runtime.task import pod_memory
from shim.forkserver import server
from shim.observe import otlp

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
#: What stands for something else in a command line, and what may be there in its place.
STANDS_FOR = {"LOCAL:REMOTE": "1:2", "...": "value", "$@": "list"}


def _command_lines() -> list[str]:
    """Those of gvctl in blocks of code."""
    found: list[str] = []
    for file in (TOP / "README.md", TOP / "SECURITY.md", *sorted((TOP / "docs").glob("*.md"))):
        for line in re.findall(r"^ {4,}(\S*gvctl .*)$", file.read_text(), re.MULTILINE):
            found += line.split("#")[0].split(";")
    return sorted({line.split(" > ")[0].strip() for line in found})


@pytest.mark.parametrize("line", _command_lines())
def test_a_command_line_is_accepted(line: str) -> None:
    words = [STANDS_FOR.get(word, word) for word in shlex.split(line)[1:]]
    assert arguments.build().parse_args(words).verb == next(w for w in words if w[0] != "-")


def test_command_lines_are_found() -> None:
    assert len(_command_lines()) > 20


def test_every_option_is_in_the_table_and_no_other() -> None:
    table = README[README.index("## Options") : README.index("### runsc's flags")]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`\[?(\w+)\]?`", row)}
    known = {*options_file._STRINGS, *options_file._NUMBERS, *options_file._BOOLEANS}
    assert named == known | {"pod_annotations", "runsc_config"}
    assert options_file._IGNORED[0] in table


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("a minute if they name none", hooks.DEFAULT_TIMEOUT / 60),
        ("a larger one, 128 plus four for each", settings._OWN_TASKS / 128),
        ("1/64 of the limit", pod_memory._FINENESS / 64),
        ("up to 16 mounts", submounts.MAX_SUBMOUNTS / 16),
        ("bounded (1000 samples)", figures.MAX_EXPORTED / 1000),
        ("the last 4 MiB of each log file", debug.MAX_LOG / (4 << 20)),
        ("in a queue of 2048 for 5 seconds", otlp.MAX_QUEUE / 2048),
        ("in a queue of 2048 for 5 seconds", otlp.DELAY / 5),
        ("after ten minutes without a call", server.IDLE / 600),
    ],
)
def test_a_number_is_that_of_the_program(words: str, number: float) -> None:
    assert words in " ".join(README.split())
    assert number == 1
