"""JSON for processes that live for milliseconds: the interpreter's own scanner without ``json``.

``import json`` costs 8 ms, nearly all of it for regular expressions that only its pure Python
parts use.  The scanner in C, which json itself calls, does without them.  An interpreter that
lacks it gets the ordinary module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    """What json.JSONDecoder hands to the scanner by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 -- read by name only, never filled

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def loads(data: bytes) -> Any:
    """The value in ``data``, which is UTF-8.  Raises ValueError, also for too deep a nesting."""
    text = data.decode("utf-8")
    try:
        from _json import make_scanner
    except ImportError:
        return _load_slowly(text)
    body = text.strip(" \t\r\n")
    try:
        value, end = make_scanner(_Settings)(body, 0)  # type: ignore[arg-type]
    except (StopIteration, SystemError, ValueError, RecursionError):
        # It has no words for what is wrong until json is imported, not even an exception.
        value, end = None, -1
    return value if end == len(body) else _load_slowly(text)


def _load_slowly(text: str) -> Any:
    import json

    try:
        return json.loads(text, parse_constant=_Settings.parse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def quote(text: str) -> str:
    """``text`` as a JSON string, in ASCII."""
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        import json

        return json.dumps(text)
    return encode_basestring_ascii(text)
