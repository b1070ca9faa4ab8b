"""Edits of a TOML text that keep all the rest of it: a marked block at its end, and one import.

Owns where in the text is what.  What is in it is read by ``tomllib``; an edit that it doesn't
understand as meant is refused.
"""

from __future__ import annotations

import tomllib

from runtime.base.errors import Failed, InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def parse(path: str, text: str) -> dict[str, Any]:
    """The text's values.  Raises InvalidRequest naming the file."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(path, f"is no TOML: {error}") from None


def _marks(name: str) -> tuple[str, str]:
    return f"# begin of gvctl install {name}\n", f"# end of gvctl install {name}\n"


def without_block(text: str, name: str) -> str:
    """The text without the block of that name, if it has one.  Raises Failed if it is broken."""
    first, last = _marks(name)
    start = text.find(first)
    if start < 0:
        return text
    end = text.find(last, start)
    if end < 0:
        raise Failed(f"the line {last.strip()!r} is gone: remove the tables of {name} by hand")
    return text[:start].removesuffix("\n") + text[end + len(last) :]


def with_block(text: str, name: str, block: str) -> str:
    """The text with that block at its end, in place of an earlier one of the name."""
    first, last = _marks(name)
    rest = without_block(text, name)
    if rest and not rest.endswith("\n"):
        rest += "\n"
    # The line feed before it goes with it again.
    return f"{rest}\n{first}{block}{last}" if rest else f"{first}{block}{last}"


def imports(document: dict[str, Any]) -> list[str]:
    """The patterns of the files that it imports."""
    found = document.get("imports", [])
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def with_import(path: str, text: str, pattern: str) -> str:
    """The text with one more import.  Raises Failed where its place isn't found."""
    document = parse(path, text)
    wanted = [*imports(document), pattern]
    if pattern in imports(document):
        return text
    if "imports" in document:
        changed = _extended(text, pattern)
    else:
        at = _first_table(text)
        line = f'imports = ["{pattern}"]\n'
        before = text[:at]
        if before and not before.endswith("\n"):
            before += "\n"
        changed = before + line + text[at:]
    try:
        found = tomllib.loads(changed) if changed else {}
    except tomllib.TOMLDecodeError:
        found = {}
    if found != {**document, "imports": wanted}:
        raise Failed(f'{path}: add "{pattern}" to its imports by hand')
    return changed


def _first_table(text: str) -> int:
    """Where the first line is that begins a table, or the end."""
    at = 0
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            return at
        at += len(line)
    return at


def _extended(text: str, pattern: str) -> str:
    """The text with the pattern as the last of its imports; empty if that isn't found."""
    at = 0
    for line in text.splitlines(keepends=True):
        key, equals, _ = line.partition("=")
        if equals and key.strip() == "imports":
            end = _end_of_array(text, at + len(key) + 1)
            if end < 0:
                return ""
            before = text[:end].rstrip()
            comma = "" if before.endswith(("[", ",")) else ", "
            return f'{before}{comma}"{pattern}"{text[end:]}'
        at += len(line)
    return ""


def _end_of_array(text: str, at: int) -> int:
    """Where the bracket is that ends the array after ``at``; -1 if it has what isn't a string."""
    quote = ""
    opened = False
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\" and quote == '"':
                at += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char == "#":
            # A comment may hold anything, and what is added must not go into one.
            return -1
        elif char == "[":
            opened = True
        elif char == "]" and opened:
            return at
        at += 1
    return -1
