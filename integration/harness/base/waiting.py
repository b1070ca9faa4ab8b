"""Waiting for the state of another process, which nothing announces to us."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: A loaded machine takes so many times as long as a quiet one, whose seconds the callers give.  It
#: costs nothing where tests pass, and proves no time: a time that is promised is measured.
PATIENCE = 5


def until(look: Callable[[], T | None], timeout: float, what: str, interval: float = 0.02) -> T:
    """Call `look` until it returns something true; AssertionError after `timeout` quiet seconds."""
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {timeout * PATIENCE:g} s: {what} (last seen: {seen!r})"
            )
        time.sleep(interval)
