"""Where lines go, which are written, and that nothing blocks or is imported without need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.base import log

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def sink() -> Iterator[tuple[log.Sink, int]]:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    sink = log.Sink()
    sink.configure(writer, log.INFO)
    yield sink, reader
    os.close(reader)


def test_a_line_has_the_event_first_and_its_fields(sink: tuple[log.Sink, int]) -> None:
    sink[0].write(log.WARNING, "sandbox.died", {"pid": 7, "why": "two words"})
    line = os.read(sink[1], 4096).decode()
    assert line.endswith('level=warning msg=sandbox.died pid=7 why="two words"\n')


def test_a_full_pipe_drops_lines_and_counts_them(sink: tuple[log.Sink, int]) -> None:
    for _ in range(100):
        sink[0].write(log.ERROR, "x.happened", {"data": "d" * 3000})
    while True:
        try:
            os.read(sink[1], 1 << 20)
        except BlockingIOError:
            break
    sink[0].write(log.ERROR, "y.happened", {})
    assert b"dropped=" in os.read(sink[1], 4096)


def test_lines_can_be_sent_elsewhere(sink: tuple[log.Sink, int], tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    sink[0].redirect(os.open(path, os.O_WRONLY | os.O_CREAT), path)
    sink[0].set_level(log.DEBUG)
    assert (sink[0].destination(), sink[0].level) == (path, log.DEBUG)
    sink[0].write(log.DEBUG, "a.done", {})
    assert "msg=a.done" in Path(path).read_text()
    assert os.read(sink[1], 10) == b""  # the earlier descriptor is closed


def test_structlog_comes_with_the_first_line_and_asyncio_never() -> None:
    code = (
        "import sys; from runtime.base import log; log.configure(1, log.INFO)\n"
        "l = log.get_logger('c'); l.debug('a.b'); assert 'structlog' not in sys.modules\n"
        "l.info('a.b'); assert 'structlog.processors' in sys.modules\n"
        "assert not {'asyncio', 'structlog', 'structlog.tracebacks', 'inspect'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_lines_go_on_when_structlogs_files_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "structlog.processors", None)
    render = log._import_structlog()
    assert render({"msg": 'a "b"\nc\\', "n": 1}) == 'msg="a \\"b\\"\\nc\\\\" n="1"'
