"""Reading JSON objects that come from outside, with every type checked.

Owns the wording of "this member is wrong".  Knows nothing of what the members mean.
"""

from __future__ import annotations

from runtime.base import fastjson
from runtime.base.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
}


def parse_object(data: bytes, where: str, limit: int) -> dict[str, Any]:
    """The JSON object in ``data``; ``where`` names its origin in errors.

    Raises InvalidRequest if it is longer than ``limit`` bytes, isn't JSON or isn't an object.
    """
    if len(data) > limit:
        raise InvalidRequest(where, f"is larger than {limit} bytes")
    try:
        value = fastjson.loads(data)
    except ValueError as error:
        # The message of a UnicodeDecodeError carries the input; that of a JSON error doesn't.
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(where, f"is not JSON: {why}") from None
    if type(value) is not dict:
        raise InvalidRequest(where, "is not a JSON object")
    return value


def _is_plain(value: object) -> bool:
    """Whether it is a text that needs no further look; of most of them nobody asks for a place."""
    return type(value) is str and value.isascii() and "\0" not in value


def _check_text(value: object, where: str) -> str:
    if type(value) is not str:
        raise InvalidRequest(where, "must be a string")
    if "\0" in value:
        raise InvalidRequest(where, "contains a NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest(where, "is not valid Unicode") from None
    return value


class Fields:
    """A JSON object and the name of its place, such as ``config.json: process``.

    Each getter takes a member's name.  A member that is absent or null gives the default; one of
    another type raises InvalidRequest naming it.
    """

    __slots__ = ("_origin", "_prefix", "value")

    def __init__(self, value: dict[str, Any], origin: str, prefix: str = "") -> None:
        self.value = value
        self._origin = origin
        self._prefix = prefix

    def where(self, name: str = "") -> str:
        """How errors call the member ``name``, or the object itself."""
        path = f"{self._prefix}.{name}" if self._prefix and name else self._prefix or name
        if not self._origin:
            return path
        return f"{self._origin}: {path}" if path else self._origin

    def error(self, name: str, why: str) -> InvalidRequest:
        """The exception that says what is wrong with the member ``name``."""
        return InvalidRequest(self.where(name), why)

    def _get(self, name: str, kind: type) -> Any:
        value = self.value.get(name)
        # By exact type: bool is a subclass of int.
        if value is None or type(value) is kind:
            return value
        raise self.error(name, f"must be {_NAMES[kind]}")

    def text(self, name: str, default: str = "") -> str:
        """A string without NUL characters."""
        value = self.value.get(name)
        return default if value is None else _check_text(value, self.where(name))

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value: bool | None = self._get(name, bool)
        return default if value is None else value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer from ``low`` to ``high``, or None if absent."""
        value: int | None = self._get(name, int)
        if value is not None and not low <= value <= high:
            raise self.error(name, f"must be from {low} to {high}")
        return value

    def array(self, name: str) -> list[Any]:
        """An array of whatever; empty if absent."""
        value: list[Any] | None = self._get(name, list)
        return value if value is not None else []

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(
            v if _is_plain(v) else _check_text(v, self.where(f"{name}[{i}]"))
            for i, v in enumerate(self.array(name))
        )

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """An array of integers from ``low`` to ``high``."""
        found = self.array(name)
        for index, value in enumerate(found):
            if type(value) is not int or not low <= value <= high:
                raise self.error(f"{name}[{index}]", f"must be an integer from {low} to {high}")
        return tuple(found)

    def fields(self, name: str) -> Fields | None:
        """A nested object, or None if absent."""
        value = self._get(name, dict)
        return None if value is None else Fields(value, self._origin, self._nested(name))

    def all_fields(self, name: str) -> list[Fields]:
        """An array of objects."""
        result = []
        for index, value in enumerate(self.array(name)):
            path = f"{name}[{index}]"
            if type(value) is not dict:
                raise self.error(path, "must be an object")
            result.append(Fields(value, self._origin, self._nested(path)))
        return result

    def text_mapping(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        value: dict[str, Any] | None = self._get(name, dict)
        if value is None:
            return {}
        for key, item in value.items():
            if not _is_plain(key) or not _is_plain(item):
                _check_text(key, self.where(name))
                _check_text(item, self.where(f"{name}[{key[:100]!r}]"))
        return value

    def _nested(self, name: str) -> str:
        return f"{self._prefix}.{name}" if self._prefix else name
