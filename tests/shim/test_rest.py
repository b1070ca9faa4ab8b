"""When a forked shim gives memory back."""

from __future__ import annotations

from collections.abc import Callable

from shim import rest


class FakeReactor:
    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], object]]] = []

    def call_later(self, delay: float, fn: Callable[[], object]) -> None:
        self.due.append((delay, fn))


def test_once_for_all_calls_of_a_while() -> None:
    reactor, given = FakeReactor(), []
    one = rest.Rest(reactor, lambda: given.append(1) or 0)  # type: ignore[arg-type, func-returns-value]
    assert not reactor.due
    for _ in range(3):
        one.worked()
    ((delay, give_back),) = reactor.due
    assert (delay, given) == (rest.DELAY, [])
    give_back()
    assert given == [1]
    assert len(reactor.due) == 1, "nothing is due without a call"
    one.worked()
    assert len(reactor.due) == 2
