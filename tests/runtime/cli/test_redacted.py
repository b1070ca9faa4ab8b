"""What must not leave the host with the report of a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.cli.insight import redacted
from runtime.cli.insight.redacted import MARK, secrets_of, text

SPEC: dict[str, Any] = {
    "process": {
        "args": ["server", "--token", "tok-77777"],
        "env": ["PATH=/usr/bin", "PASSWORD=hunter2222", "DEBUG=false", 'QUOTED=a"b\\c\u00e9'],
        "cwd": "/srv",
    },
    "hooks": {"prestart": [{"path": "/bin/hook", "args": ["hook", "s3cret"], "env": ["A=bcdefg"]}]},
    "annotations": {"dev.gvisor.x": "shown", "io.kubernetes.cri.sandbox-name": "p", "mine": "hid"},
}


def test_a_specification_keeps_names_only() -> None:
    found = redacted.spec(SPEC)
    assert found["process"]["args"] == ["server", MARK, MARK]
    assert found["process"]["env"][1] == f"PASSWORD={MARK}" and found["process"]["cwd"] == "/srv"
    assert found["hooks"]["prestart"][0]["args"] == ["hook", MARK]
    assert found["annotations"]["mine"] == MARK and found["annotations"]["dev.gvisor.x"] == "shown"
    whole = json.dumps(found)
    for secret in ("hunter2222", "tok-77777", "s3cret", "bcdefg", "hid"):
        assert secret not in whole


@pytest.mark.parametrize(
    "line",
    [
        "I0101 it said hunter2222 aloud",
        'I0101 Process should have started: {"env":["PASSWORD=hunter2222"]}',
        'D0101 [ 1] sh E execve(0x1 /bin/ls, 0x2 ["ls", "later-secret"], 0x3 ["B=later-secret"])',
        'I0101 [   2:   2] env E write(0x1 /dev/null, 0x55 "A=\\"b\\nB=later-secret\\n", 0x49)',
        "D0101 Exec: argv: [ls later-secret]",
        "D0101 args: [--password later-secret]",
        json.dumps({"msg": 'a"b\\c\u00e9'}),
    ],
)
def test_a_log_keeps_neither(line: str) -> None:
    found = text(f"before\n{line}\nafter\n", secrets_of([SPEC]))
    assert "hunter2222" not in found and "later-secret" not in found and "c\\u00e9" not in found
    assert found.startswith("before\n") and found.endswith("after\n") and MARK in found


def test_how_the_sentry_was_started_is_kept() -> None:
    line = "I0320 x:0] Args: [runsc-sandbox --root=/run/gvctl --debug=true boot --bundle=/b one]"
    assert text(f"{line}\n", secrets_of([SPEC])) == f"{line}\n"


def test_a_specification_that_a_log_prints() -> None:
    lines = json.dumps(
        {"process": {"args": ["x", "other-secret"], "env": ["Q=other-secret"]}, "z": 1}, indent=2
    )
    found = text(lines, [])
    assert "other-secret" not in found and '"z": 1' in found


def test_short_and_common_values_are_no_secrets() -> None:
    found = secrets_of([{"process": {"args": ["a", "-v"], "env": ["A=1", "B=false", "P=/bin/sh"]}}])
    assert "1" not in found and "false" not in found and "/bin/sh" not in found
    assert secrets_of([{}, {"process": 5}, {"process": {"env": [1], "args": None}}]) == []
