"""What the server arranges before it forks, without running any code of a class."""

from __future__ import annotations

import os

import pytest

from shim.forkserver import layout, preload


class Plain:
    ran = 0

    def __init__(self) -> None:
        type(self).ran += 1
        self.first = 1
        self.second, self.first = 2, 3


class Below(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.third = 1


class Guarded(Plain):
    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"{name} was set by the class's own code")


class Finalised(Plain):
    def __del__(self) -> None:
        type(self).ran += 1


class Slotted:
    __slots__ = ("one",)

    def __init__(self) -> None:
        self.one = 1


def test_the_attributes_that_a_function_sets() -> None:
    assert list(layout.stored_names(Plain.__init__.__code__)) == ["ran", "first", "second"]


def test_more_attributes_than_a_byte_can_number() -> None:
    names = [f"a{number}" for number in range(300)]
    body = "\n".join(f"    self.{name} = 1" for name in names)
    space: dict[str, object] = {}
    exec(f"def set_all(self):\n{body}\n", space)
    assert list(layout.stored_names(space["set_all"].__code__)) == names  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "cls", [Plain, Below, Guarded, Finalised, Slotted, ValueError, type, int, os.stat_result]
)
def test_no_code_of_a_class_runs(cls: type) -> None:
    before = Plain.ran
    layout.learn_keys(cls)
    assert (Plain.ran, Finalised.ran) == (before, before)


def test_what_most_shims_use_is_imported_first() -> None:
    order = preload.in_order()
    assert sorted(order) == sorted(preload.own_modules())
    places = [order.index(name) for name in ("shim.daemon", "shim.stdio.console", "shim.bootstrap")]
    assert places == sorted(places)


def test_seldom_and_other_modules_are_there() -> None:
    known = set(preload.own_modules())
    assert not {*preload.SELDOM, *preload._OTHERS} - known
    assert not known & {*preload._NOT}
