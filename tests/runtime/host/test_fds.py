"""Ownership of file descriptors."""

from __future__ import annotations

import os

import pytest

from runtime.host.fds import FdSet


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_all_that_is_owned_is_closed() -> None:
    with FdSet() as fds:
        owned = [*fds.pipe(), *fds.socketpair(), fds.open(os.devnull, os.O_RDWR), fds.dup(0)]
        assert len(fds) == 6
        assert all(not os.get_inheritable(fd) for fd in owned)
        assert owned[0] in fds
    assert not any(map(is_open, owned))
    assert len(fds) == 0


def test_what_is_stolen_stays_open() -> None:
    with FdSet() as fds:
        reader, writer = fds.pipe()
        assert fds.steal(writer) == writer
        with pytest.raises(KeyError):
            fds.steal(writer)
    assert not is_open(reader)
    assert is_open(writer)
    os.close(writer)


def test_an_exception_closes_too() -> None:
    fds = FdSet()
    with pytest.raises(RuntimeError), fds:
        fd = fds.open(os.devnull, os.O_RDWR)
        raise RuntimeError
    assert not is_open(fd)


def test_closing_goes_on_past_an_error() -> None:
    fds = FdSet()
    first = fds.open(os.devnull, os.O_RDWR)
    gone = fds.open(os.devnull, os.O_RDWR)
    os.close(gone)
    with pytest.raises(OSError):
        fds.close()
    assert not is_open(first)
    fds.close()


def test_no_descriptor_is_owned_twice_or_negative() -> None:
    with FdSet() as fds:
        fd = fds.open(os.devnull, os.O_RDWR)
        with pytest.raises(ValueError):
            fds.add(fd)
        with pytest.raises(ValueError):
            fds.add(-1)


def test_one_can_be_closed_early() -> None:
    with FdSet() as fds:
        fd = fds.open(os.devnull, os.O_RDWR)
        fds.close_one(fd)
        assert not is_open(fd)
        assert fd not in fds
