"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of left-aligned columns; what terminals would act on is shown instead."""
    lines = [tuple(heads), *(tuple(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        text += "".join(padded).rstrip() + "\n"
    return text


def printable(value: object) -> str:
    """Text without control characters: names come from containers and must not move the cursor."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


#: What terminals act on, but for the end of a line and the tabulator.
_CONTROLS = {
    code: f"\\x{code:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}


def plain(text: str) -> str:
    """Lines of text without other control characters: a sandbox's words must not drive the
    operator's terminal."""
    return text.translate(_CONTROLS)


def dumps(value: object, *, indent: int | None = None) -> str:
    """JSON in a line, or indented."""
    return json.dumps(value, indent=indent) + "\n"


def write(text: str) -> None:
    """Print and flush: whoever reads may be waiting."""
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(text: str) -> None:
    """A line on stderr that is no failure."""
    sys.stderr.write(f"gvctl: {plain(text)}\n")


def size(number: int | None) -> str:
    """Bytes for people: 1.5 MiB."""
    if number is None:
        return "-"
    value = float(number)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"
