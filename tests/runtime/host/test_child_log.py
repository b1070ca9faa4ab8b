"""What a gofer or a sentry printed, and which line of it tells why it ended.

``child_logs.json`` has what releases of runsc printed when they were made to fail.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runtime.host.child_log import SIZE, ChildLog, is_echo

COLLECTED = json.loads(Path(__file__).with_name("child_logs.json").read_text())


def log_of(data: bytes) -> ChildLog:
    log = ChildLog("test")
    os.write(log.fd, data)
    return log


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ""),
        (b"FATAL ERROR: unknown platform: zork\n", "unknown platform: zork"),
        (
            b"W1123 12:00:00.1 1 x.go:5] careful\nError reading mounts: bad\nJSON bytes:\n\n",
            "Error reading mounts: bad",
        ),
        (b"invalid value\nUsage: runsc\n  -x\n", "invalid value"),
        (b"x\npanic: boom\n\ngoroutine 1:\nerror\n", "panic: boom"),
        (b"W1123 12:00:00.1 1 x.go:5] creating FS failed\n", "creating FS failed"),
        (b"W1123 12:00:00.1 1 x.go:5] error\nthe cause\n", "the cause"),
        (b"error of a helper\nunable to read from the sync descriptor: 0\n", "error of a helper"),
        (
            b"unable to read from the sync descriptor: 0\n",
            "unable to read from the sync descriptor: 0",
        ),
        (b"a" * 600 + b"-" * 900 + b"b" * 600, "a" * 500 + " ... " + "b" * 500),
        (b"\xff\n", "\ufffd"),
    ],
)
def test_message(data: bytes, message: str) -> None:
    log = log_of(data)
    assert log.message() == message
    assert bool(log.panic()) is (b"panic" in data)
    log.close()
    log.close()
    assert log.text() == ""


def test_output_is_bounded() -> None:
    log = log_of(b"panic: first\n")
    for _ in range(SIZE // 1000 - 1):
        os.write(log.fd, b"x" * 1000)
    with pytest.raises(PermissionError):
        os.write(log.fd, b"y" * 4000)
        os.write(log.fd, b"y" * 4000)
    assert len(log.text()) <= SIZE
    assert log.panic() == "panic: first"
    log.close()


@pytest.mark.parametrize("row", COLLECTED, ids=lambda row: f"{row['release']}-{row['failure']}")
def test_collected(row: dict[str, str]) -> None:
    log = log_of(row["output"].encode())
    assert log.message() == row["message"]
    log.close()


def test_of_each_failure_somebody_knows_the_cause() -> None:
    """One process's echo is explained by the other's words."""
    known = {row["failure"] for row in COLLECTED if not is_echo(row["message"])}
    assert known == {row["failure"] for row in COLLECTED}
