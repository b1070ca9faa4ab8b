"""What is told of a shim that becomes another version, from its answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.base.errors import DeadlineExceeded, Failed, Unsupported
from runtime.cli.insight.shims import Shim
from runtime.cli.install import running

HANGS = DeadlineExceeded("the debug socket", 10)


def info(version: str, done: int, refused: str = "") -> dict[str, Any]:
    return {"version": version, "upgrade": {"done": done, "last": {"refused": refused}}}


@pytest.mark.parametrize(
    ("answers", "status", "text"),
    [
        (
            [info("1", 0), {"number": 1}, info("1", 0), HANGS, HANGS, info("2", 1)],
            0,
            "p: handed over from 1 to 2",
        ),
        (
            [info("1", 0), {"number": 1}, info("1", 1, "busy")],
            1,
            "p: refused: busy (it runs on as 1)",
        ),
        ([info("1", 0), HANGS], 1, "p: not known: "),
        ([HANGS], 1, "p: not known: "),
        ([info("1", 0), Failed("gone")], 1, "p: refused: gone (it runs on as 1)"),
        ([info("1", 0), Unsupported("no such method")], 1, "p: refused: this shim is of a version"),
        ([info("1", 0), {}, {}], 1, "p: refused: this shim is of a version"),
    ],
)
def test_what_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[Any],
    status: int,
    text: str,
) -> None:
    monkeypatch.setattr(running, "_INTERVAL", 0.0)
    shim = Shim(sandbox="p", namespace="n", address="unix:///a")
    monkeypatch.setattr(running, "_shims", lambda _: ([shim], False))

    def ask(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    args: Any = SimpleNamespace(ask_debug=ask, program="", ids=[])
    assert running.upgrade_running(args) == status
    assert capsys.readouterr().out.startswith(text)
    assert answers == []
