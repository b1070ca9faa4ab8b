"""When a forked shim gives memory back."""

from __future__ import annotations

from collections.abc import Callable

from shim import rest


class FakeReactor:
    """A reactor's timers, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def call_later(self, delay: float, fn: Callable[[], object]) -> None:
        self.timers.append((self.now + delay, fn))

    def go_to(self, when: float) -> None:
        while due := sorted(t for t, _ in self.timers if t <= when):
            self.now = due[0]
            index = next(n for n, (t, _) in enumerate(self.timers) if t == due[0])
            self.timers.pop(index)[1]()
        self.now = when


def shim_at_rest() -> tuple[FakeReactor, rest.Rest, list[float]]:
    reactor = FakeReactor()
    given: list[float] = []

    def give_back() -> int:
        given.append(reactor.now)
        return 1

    return reactor, rest.Rest(reactor, give_back, lambda: reactor.now), given  # type: ignore[arg-type]


def test_some_time_after_the_last_call() -> None:
    reactor, one, given = shim_at_rest()
    assert not reactor.timers
    for seconds in (0, 1, 2.5):
        reactor.go_to(100 + seconds)
        one.worked()
    reactor.go_to(200)
    assert given == [100 + 2.5 + rest.DELAY]
    assert not reactor.timers, "a shim that isn't called is woken"
    one.worked()
    reactor.go_to(300)
    assert given[1:] == [200 + rest.DELAY]


def test_in_between_where_calls_never_end() -> None:
    reactor, one, given = shim_at_rest()
    for tenth in range(310):
        reactor.go_to(100 + tenth / 10)
        one.worked()
    assert len(given) == 2
    assert given[0] == 100 + rest.MOST
