"""The part of TOML that configuration files of shims consist of, read without ``tomllib``.

Keys, plain strings, integers, booleans and one level of tables cover the files in use.  For
anything beyond, :func:`parse` gives up and the caller takes the real parser.  What it returns is
what tomllib would have returned.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Value = str | int | bool

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def _is_bare(key: str) -> bool:
    return bool(key) and _BARE.issuperset(key)


def _has_control(line: str) -> bool:
    return any((c < " " and c != "\t") or c == "\x7f" for c in line)


def _value(text: str) -> Value | None:
    """The value at the start of ``text`` if only a comment follows it; None if unsure."""
    quote = text[:1]
    if quote in ('"', "'"):
        end = text.find(quote, 1)
        if end < 0 or text.startswith(quote * 3) or (quote == '"' and "\\" in text[:end]):
            return None
        value: Value = text[1:end]
        rest = text[end + 1 :]
    else:
        word, hash_sign, comment = text.partition("#")
        rest = hash_sign + comment
        word = word.strip(" \t")
        if word in ("true", "false"):
            value = word == "true"
        elif word.isascii() and word.isdigit() and (word == "0" or word[0] != "0"):
            value = int(word)
        else:
            return None
    rest = rest.lstrip(" \t")
    return value if not rest or rest[0] == "#" else None


def parse(text: str) -> Mapping[str, Value | Mapping[str, Value]] | None:
    """The document as a dictionary, or None if it needs (or deserves) the full parser.

    Never raises: what is wrong is left to the full parser to name.
    """
    root: dict[str, Value | Mapping[str, Value]] = {}
    table: dict[str, Value | Mapping[str, Value]] | dict[str, Value] = root
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip(" \t")
        if not line:
            continue
        if _has_control(line):
            return None
        if line[0] == "#":
            continue
        if line[0] == "[":
            name, bracket, rest = line[1:].partition("]")
            name, rest = name.strip(" \t"), rest.strip(" \t")
            if not bracket or not _is_bare(name) or name in root or (rest and rest[0] != "#"):
                return None
            table = root[name] = {}
            continue
        key, equals, rest = line.partition("=")
        key = key.strip(" \t")
        value = _value(rest.strip(" \t"))
        if not equals or not _is_bare(key) or key in table or value is None:
            return None
        table[key] = value
    return root
