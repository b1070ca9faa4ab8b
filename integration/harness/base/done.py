"""What a command came to."""

from __future__ import annotations

from typing import NamedTuple


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str
