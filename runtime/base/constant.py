"""Named constants of a closed set: the part of ``enum`` that we need, without its import.

A set of constants is a class that derives from :class:`Constant`, with one :func:`member` for each
of its instances.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self


class Constant:
    """One of the instances that its class names.  Compared by identity, and hashable."""

    #: All instances, in the order of their definition.
    members: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    @classmethod
    def of(cls, value: object) -> Self | None:
        """The constant that stands for ``value``; None if there is none."""
        for each in cls.members:
            if each.value == value:
                found: Self = each
                return found
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class _Member:
    def __init__(self, value: object) -> None:
        self._value = value

    def __set_name__(self, owner: type[Constant], name: str) -> None:
        constant = owner(name, self._value)
        setattr(owner, name, constant)
        owner.members = (*owner.members, constant)


def member(value: object) -> Any:
    """In the body of a class of constants: its instance that stands for ``value``.

    To be annotated with the class, so that type checkers know what becomes of it.
    """
    return _Member(value)
