"""Files that are held until their user has ended, and then let go of by the kernel."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from typing import NoReturn

import pytest

from runtime.host import linux
from runtime.runsc.pin_ring import PinRing


def _refusal() -> str:
    try:
        os.close(linux.disabled_ring())
    except OSError as error:
        return str(error)
    return ""


permitted = pytest.mark.skipif(bool(_refusal()), reason=f"needs io_uring: {_refusal()}")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left"


def _ended(reader: int, timeout: float) -> bool:
    return bool(select.select([reader], [], [], timeout)[0]) and not os.read(reader, 1)


@permitted
def test_files_are_held_until_it_is_closed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    ring = PinRing()
    ring.pin((writer,))
    os.close(writer)
    assert not _ended(reader, 0), "nothing holds the file"
    ring.close()
    assert _ended(reader, 10)
    ring.close()


@permitted
def test_a_ring_that_is_another_process_s_to_fill(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    ring = PinRing()
    assert ring.to_donate() == ring.to_donate() >= 0
    ring.pin((writer,))
    os.close(writer)
    assert _ended(reader, 10), "files can be put there only once, and not by us"
    ring.close()


def test_what_comes_after_the_end_is_not_held(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    ring = PinRing()
    ring.close()
    ring.pin((writer,))
    assert ring.to_donate() == -1
    os.close(writer)
    assert _ended(reader, 10)


@permitted
def test_what_is_no_file_costs_the_ring_alone(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(writer)
    ring = PinRing()
    ring.pin((1 << 20,))
    assert _ended(reader, 10)


def test_a_host_without_rings(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are switched off on many."""

    def refuse() -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(linux, "disabled_ring", refuse)
    reader, writer = pipe
    ring = PinRing()
    ring.pin((writer,))
    assert ring.to_donate() == -1
    os.close(writer)
    assert _ended(reader, 10)
    ring.close()
