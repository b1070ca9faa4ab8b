"""The order of an upgrade, what refuses it, and that all goes on then."""

from __future__ import annotations

import fcntl
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.base import signals
from runtime.base.errors import Failed
from runtime.base.version import VERSION
from shim.base import arguments
from shim.daemon import Daemon
from shim.handover import program
from shim.handover import upgrade as module
from shim.handover.names import NotHandedOver
from shim.handover.upgrade import Upgrade

WAIT = 20.0


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that other tests have left don't count."""
    before = set(threading.enumerate())
    monkeypatch.setattr(module, "threads", lambda: [*_without(before), threading.main_thread()])


def _without(before: set[threading.Thread]) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each not in before]


class Parts:
    """What is frozen, if a test lets it."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.frozen = False
        self.thawed = 0

    def freeze(self) -> str:
        self.frozen = True
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def thaw(self) -> None:
        self.frozen = False
        self.thawed += 1


def attempted(
    parts: Parts,
    in_main: Callable[[Callable[[], str]], str] = lambda function: function(),
    path: str = "/bin/true",
    root: object = None,
) -> tuple[str, Upgrade]:
    """Why it was refused."""
    found = Upgrade(root, ("-id", "p"), parts, in_main)
    number = found.request(path)
    deadline = time.monotonic() + WAIT
    while found.about()["done"] < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    last = found.about()["last"]
    assert last["from"] == VERSION and not parts.frozen
    return last["refused"], found


def test_what_is_under_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    parts = Parts("under way: Delete")
    assert attempted(parts)[0] == "under way: Delete"
    assert parts.thawed > 1, "it was tried again"


def test_it_waits_for_what_is_under_way() -> None:
    parts = Parts("under way: Kill", "under way: Kill", "")
    assert attempted(parts, lambda _: "executed")[0] == "executed"
    assert parts.thawed == 3


def test_a_thread_that_has_work_holds_it_up_or_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    end = threading.Event()
    for name, why in (("forker", "it runs processes that end"), ("netns", "thread netns")):
        end.clear()
        thread = threading.Thread(target=end.wait, name=name)
        thread.start()
        try:
            assert why in attempted(Parts(""))[0]
        finally:
            end.set()
            thread.join()


def test_all_thaws_whatever_goes_wrong() -> None:
    def ends(_: Callable[[], str]) -> str:
        raise Failed("the shim ends")

    def breaks(_: Callable[[], str]) -> str:
        raise ZeroDivisionError("bug")

    for in_main, why in ((ends, "the shim ends"), (breaks, "ZeroDivisionError('bug')")):
        parts = Parts("")
        assert attempted(parts, in_main)[0] == why
        assert parts.thawed == 1
    # What can't be written down, and a program that is none of ours.
    assert "generator" in attempted(Parts(""), root=(n for n in ()))[0]
    assert "can't take over" in attempted(Parts(""))[0]
    assert "absolute" in attempted(Parts(""), path="bin/true")[0]


def test_no_more_requests_at_the_end_and_none_twice() -> None:
    go = threading.Event()

    def waits(_: Callable[[], str]) -> str:
        go.wait(WAIT)
        return "no"

    parts = Parts("")
    found = Upgrade(None, (), parts, waits)
    assert found.request("/bin/true") == found.request("/bin/true") == 1
    threading.Timer(0.1, go.set).start()
    found.stop(WAIT)
    assert found.about()["done"] == 1 and not parts.frozen
    assert found.request("/bin/true") == 1


def test_what_became_of_it_is_told_by_the_next_version() -> None:
    found = Upgrade(None, (), Parts(""), lambda _: "")
    found._asked, found._running = 3, True
    found.taken_over("0.0.9", 5.0)
    about = found.about()
    assert (about["done"], about["taken"]) == (3, 1)
    assert about["last"] == {"from": "0.0.9", "to": VERSION, "refused": "", "at": 5.0}
    found.failed("", "it broke", 6.0)
    assert found.about()["taken"] == 1 and found.about()["last"]["refused"] == "it broke"


def test_the_next_one_begins_when_all_has_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for by the reactor, which thaws before others."""
    monkeypatch.setattr(signals, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    reader, writer = os.pipe()
    steps: list[str] = []
    shim = SimpleNamespace(
        _handle_signals=lambda: None,
        _signals=(reader, writer),
        reactor=SimpleNamespace(call_later=lambda *_: None),
        pod=SimpleNamespace(all=list),
        thaw=lambda: steps.append("thawed"),
        _serve=lambda: steps.append("served"),
        _close=lambda: None,
    )
    assert Daemon.resume(shim, lambda: steps.append("told")) == 0  # type: ignore[arg-type]
    os.close(reader)
    os.close(writer)
    assert steps == ["thawed", "told", "served"]


# -- the program ----------------------------------------------------------------------------


def test_only_what_nobody_else_can_change_is_executed(tmp_path: Path) -> None:
    assert program.check_path("/bin/../bin/sh") == os.path.realpath("/bin/sh")
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o777)
    (tmp_path / "link").symlink_to(mine)
    for path in (mine, tmp_path / "link"):
        with pytest.raises(NotHandedOver, match=r"others than root may write|belongs to user"):
            program.check_path(str(path))
    for bad in ("sh", "", "./sh"):
        with pytest.raises(NotHandedOver, match="absolute"):
            program.check_path(bad)
    with pytest.raises(NotHandedOver, match="executable"):
        program.check_path("/etc/passwd")
    with pytest.raises(NotHandedOver, match="executable"):
        program.check_path("/etc")
    with pytest.raises(NotHandedOver, match="/nowhere"):
        program.check_path("/nowhere/at/all")


def test_what_is_kept_is_sealed() -> None:
    fd = program.keep(b"x" * 300_000)
    try:
        assert program.read(fd) == b"x" * 300_000
        with pytest.raises(PermissionError):
            os.write(fd, b"y")
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    plain = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(Failed, match="sealed"):
            program.read(plain)
    finally:
        os.close(plain)
    with pytest.raises(Failed):
        program.read(plain)


def answering(tmp_path: Path, script: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_other_version_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = program.keep(b"{}")
    try:
        # It gets what is handed over at the number that it is told, and nothing but that.
        script = """[ "$*" = "-id p -state 3 -check take-over" ] && [ "$(cat <&3)" = "{}" ] &&
            [ "$(ls /proc/self/fd | wc -l)" -le 5 ] && echo '{"refused":"","version":"7"}'"""
        assert program.ask(answering(tmp_path, script), ("-id", "p"), state) == "7"
        refusing = answering(tmp_path, """echo '{"refused":"too new","version":"7"}'""")
        with pytest.raises(NotHandedOver, match=r"^too new$"):
            program.ask(refusing, (), state)
        for script, why in (("exit 3", "it says nothing"), ("echo no such verb >&2", "such verb")):
            with pytest.raises(NotHandedOver, match=why):
                program.ask(answering(tmp_path, script), (), state)
        monkeypatch.setattr(program, "CHECK_TIMEOUT", 0.2)
        with pytest.raises(NotHandedOver, match="did not answer"):
            program.ask(answering(tmp_path, "exec sleep 1000"), (), state)
    finally:
        os.close(state)


def test_what_can_not_be_executed_leaves_all_as_it_was(tmp_path: Path) -> None:
    import signal

    kept = program.open_descriptors()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert str(tmp_path) in program.execute(str(tmp_path / "none"), (), 0)
    assert program.open_descriptors() == kept
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        program.keep_to_ourselves()
        assert fcntl.fcntl(reader, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(reader)
        os.close(writer)


def test_the_command_line_of_who_takes_over() -> None:
    call = arguments.parse(["-id", "p", "-state", "7", "-check", "take-over"])
    assert (call.action, call.id, call.state, call.check) == ("take-over", "p", "7", True)
    assert not arguments.parse(["-id", "p", "-state", "7", "take-over"]).check
