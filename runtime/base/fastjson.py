"""JSON without ``json``: the scanner and the encoder in C that json itself calls.

``json`` loads regular expressions, which only its pure Python parts use.  An interpreter that lacks
the parts in C gets the ordinary module.
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


def loads(data: bytes | bytearray) -> Any:
    """The value in ``data``, which is UTF-8.

    Raises ValueError with the text that json has for it, also for NaN and too deep a nesting.
    """
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


def dumps(value: object) -> str:
    """``value`` as JSON, in ASCII and without blanks.

    Raises TypeError for what JSON can't express, ValueError for NaN, infinities and cycles.
    """
    try:
        from _json import encode_basestring_ascii, make_encoder

        encode = make_encoder(
            {}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False
        )
    except (ImportError, TypeError):
        import json

        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    return "".join(encode(value, 0))


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON")


def quote(text: str) -> str:
    """``text`` as a JSON string, in ASCII."""
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        import json

        return json.dumps(text)
    return encode_basestring_ascii(text)
