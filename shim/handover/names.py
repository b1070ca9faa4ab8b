"""Names of code: how a class or a closure's code is called, and found again in another version.

A name is a module and a qualified name: ``runtime.task.pod``, ``Pod.create.<locals>.<lambda>``.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType

from runtime.base.errors import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Modules whose classes' instances may be handed over.
_OURS = ("runtime.", "shim.")
_LOCALS = ".<locals>."


class NotHandedOver(Failed):
    """Something can't be handed over, or not taken over by this version."""


def is_ours(module: object) -> bool:
    """Whether a module is of the project."""
    return isinstance(module, str) and module.startswith(_OURS)


def module_of(name: str) -> Any:
    """The module, which is imported if need be.  Raises NotHandedOver."""
    try:
        __import__(name)
    except ImportError as error:
        raise NotHandedOver(f"module {name}: {error}") from None
    return sys.modules[name]


def raw(module: str, path: str) -> Any:
    """What is called so, as its class has it: a static method is one still.

    Raises NotHandedOver if there is no such thing.
    """
    found = module_of(module)
    for part in path.split("."):
        try:
            found = vars(found)[part]
        except (KeyError, TypeError):
            raise NotHandedOver(f"{module}.{path} is unknown") from None
    return found


def find(module: str, path: str) -> Any:
    """The class or function of that name.  Raises NotHandedOver."""
    found = raw(module, path)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def codes(module: str, path: str) -> list[CodeType]:
    """The code objects of a function that is made within others: several lambdas have one name.

    In the order of the source.  Raises NotHandedOver if the outermost function is unknown.
    """
    outer, *inner = path.split(_LOCALS)
    function = find(module, outer)
    if isinstance(function, property):
        function = function.fget
    if not isinstance(function, FunctionType):
        raise NotHandedOver(f"{module}.{outer} is no function")
    found = [function.__code__]
    for name in inner:
        found = [
            each
            for code in found
            for each in code.co_consts
            if isinstance(each, CodeType) and each.co_name == name
        ]
    return found
