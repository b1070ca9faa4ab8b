"""When the node is looked at, and which page a scrape gets, by a clock of the tests' own."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from runtime.cli.exporter import pages
from runtime.cli.exporter.pages import GIVEN_AGE, MAX_AGE, MAX_LOOKS, REST, Pages, Schedule

WAIT = 20.0


class Simulation:
    """Scrapes at given times, looks that take some seconds, and how old the page was each time."""

    def __init__(self, took: float = 1.2) -> None:
        self.schedule = Schedule()
        self.took = took
        self.looks: list[float] = []
        #: Of each scrape: the page's age, or None if it had to wait for a look.
        self.ages: list[float | None] = []

    def run(self, scrapes: list[float]) -> None:
        for at in scrapes:
            self._looks_until(at)
            self.schedule.scraped(at)
            done = [look for look in self.looks if look + self.took <= at]
            if done and at - done[-1] <= MAX_AGE:
                self.ages.append(at - done[-1])
            else:
                self.ages.append(None)
                self._look(at, True)

    def _looks_until(self, at: float) -> None:
        while (due := self.schedule.due()) is not None and due < at:
            self._look(due, False)

    def _look(self, at: float, waited: bool) -> None:
        self.looks.append(at)
        self.schedule.looked(at, at + self.took, waited)

    def idle(self) -> int:
        """How many looks there are when nobody scrapes any more."""
        before = len(self.looks)
        self._looks_until(float("inf"))
        return len(self.looks) - before


def every(interval: float, start: float = 1000.0, count: int = 20) -> list[float]:
    return [start + interval * number for number in range(count)]


@pytest.mark.parametrize("interval", [6.0, 10.0, 15.0, 30.0, 60.0, 240.0])
@pytest.mark.parametrize("took", [0.01, 0.3, 1.2, 1.9])
def test_one_look_for_each_scrape_shortly_before_it(interval: float, took: float) -> None:
    simulation = Simulation(took)
    simulation.run(every(interval))
    # The first two can't be expected.
    assert simulation.ages[:2] == [None, None]
    assert all(age is not None and age <= 1.5 * took + 0.5 + 1e-6 for age in simulation.ages[2:])
    assert len(simulation.looks) == 20


@pytest.mark.parametrize("offset", [1.5, 2.0, 5.0, 7.4, 13.0])
def test_two_servers_with_one_interval(offset: float) -> None:
    simulation = Simulation()
    simulation.run(sorted([*every(15.0), *every(15.0, 1000.0 + offset)]))
    assert None not in simulation.ages[4:]
    assert len(simulation.looks) <= 1.3 * 40


def test_two_that_scrape_at_once_are_one() -> None:
    simulation = Simulation()
    simulation.run(sorted([*every(15.0), *every(15.0, 1000.4)]))
    assert None not in simulation.ages[4:] and len(simulation.looks) <= 22


def test_one_that_comes_a_bit_early_or_late() -> None:
    jitter = [0.2, -0.2, 0.0, 0.15, -0.1] * 4
    simulation = Simulation()
    simulation.run([at + late for at, late in zip(every(15.0), jitter, strict=True)])
    assert simulation.ages.count(None) <= 3 and len(simulation.looks) <= 35


def test_scrapes_as_fast_as_looks_are_given_what_there_is() -> None:
    simulation = Simulation(0.3)
    simulation.run(every(1.0, count=60))
    assert None not in simulation.ages[2:]
    gaps = [after - before for before, after in itertools.pairwise(simulation.looks)]
    assert min(gaps[3:]) >= REST + 0.3 - 1e-6


def test_nobody_scrapes_nobody_is_asked() -> None:
    assert Schedule().due() is None
    simulation = Simulation()
    assert simulation.idle() == 0
    simulation.run([1000.0])
    assert simulation.idle() == 0, "one scrape tells nothing of the next"
    simulation.run(every(15.0, 1015.0))
    assert simulation.idle() == MAX_LOOKS


def test_after_a_pause_the_past_is_forgotten() -> None:
    simulation = Simulation()
    simulation.run([*every(15.0), *every(15.0, 1000.0 + 20 * 15 + 3600)])
    assert simulation.ages[20:22] == [None, None] and None not in simulation.ages[22:]
    assert len(simulation.looks) == 40 + MAX_LOOKS


class Clock:
    """The clock of Pages, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Made:
    """Pages that are numbered looks."""

    def __init__(self) -> None:
        self.looks = 0
        self.waited: list[bool] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.pages = Pages(self._make)

    def _make(self, waited: bool) -> bytes:
        self.looks += 1
        self.waited.append(waited)
        number = self.looks
        self.begun.release()
        assert self.go_on.wait(WAIT)
        if self.failure is not None:
            raise self.failure
        return b"%d" % number

    def get_later(self) -> Callable[[], tuple[bytes, float]]:
        found: list[tuple[bytes, float]] = []
        thread = threading.Thread(target=lambda: found.append(self.pages.get()))
        thread.start()

        def result() -> tuple[bytes, float]:
            thread.join(WAIT)
            return found[0]

        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pages, "now", clock)
    monkeypatch.setattr(pages, "WAIT", WAIT)  # a busy machine is no late look
    return clock


@pytest.fixture
def made(clock: Clock) -> Iterator[Made]:
    made = Made()
    yield made
    made.pages.close()


def test_a_page_is_given_until_it_is_too_old_and_says_how_old_it_is(
    made: Made, clock: Clock
) -> None:
    assert made.pages.get() == (b"1", 0.0)
    clock.time += MAX_AGE
    assert made.pages.get() == (b"1", MAX_AGE)
    clock.time += 0.001
    assert made.pages.get() == (b"2", 0.0), "a page that is too old was given"
    assert made.waited == [True, True]


def test_a_look_that_took_long_is_given_to_who_waited_for_it(made: Made, clock: Clock) -> None:
    made.go_on.clear()
    first = made.get_later()
    assert made.begun.acquire(timeout=WAIT)
    clock.time += 100
    late = made.get_later()  # the look that is under way is too old for this one
    made.go_on.set()
    assert first()[1] >= 0 and first()[0] in (b"1", b"2")
    assert late() == (b"2", 0.0)


def test_a_page_that_is_being_made_anew_is_given_meanwhile(made: Made, clock: Clock) -> None:
    for _ in range(3):
        made.pages.get()
        clock.time += 15.0
    made.go_on.clear()
    last = made.get_later()  # the fourth, which makes the looker look at its schedule
    assert made.begun.acquire(timeout=WAIT)
    made.go_on.set()
    assert last()[1] == 0.0


def test_a_look_that_takes_too_long_leaves_scrapes_the_last_page_for_a_while(
    made: Made, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.pages.get() == (b"1", 0.0)
    monkeypatch.setattr(pages, "WAIT", 0.01)
    made.go_on.clear()
    clock.time += GIVEN_AGE
    assert made.pages.get() == (b"1", GIVEN_AGE)
    assert made.begun.acquire(timeout=WAIT) and made.begun.acquire(timeout=WAIT)
    clock.time += 0.001
    late = made.get_later()  # that page is too old for anybody by now
    made.go_on.set()
    assert late()[0] in (b"2", b"3") and made.pages.get()[0] != b"1"


def test_a_scrape_that_got_the_last_page_is_no_scrape_that_did_not_come(
    made: Made, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next page is ready in time again, and not always as old as the last scrape."""
    schedule = made.pages._schedule
    for number in (1, 2):
        assert made.pages.get()[0] == b"%d" % number
        assert made.begun.acquire(timeout=WAIT)
        clock.time += 12.0
    made.go_on.clear()
    monkeypatch.setattr(pages, "WAIT", 0.01)
    assert made.pages.get() == (b"2", 12.0)
    assert made.begun.acquire(timeout=WAIT)
    made.go_on.set()
    monkeypatch.setattr(pages, "WAIT", WAIT)
    clock.time += 1.0
    until = time.monotonic() + WAIT
    while schedule._ended < clock.time - 1.0 and time.monotonic() < until:
        time.sleep(0.001)
    due = schedule.due()
    assert due is not None and due < clock.time - 1.0 + 12.0, "the look comes with the scrape"


def test_pages_are_never_older_than_the_last_one(made: Made, clock: Clock) -> None:
    seen = []
    for _ in range(50):
        seen.append(int(made.pages.get()[0]))
        clock.time += 1.7
    assert seen == sorted(seen)


def test_a_failed_look_is_told_to_who_waited_and_made_again_for_the_next(
    made: Made, clock: Clock
) -> None:
    made.failure = ValueError("no such luck")
    with pytest.raises(ValueError, match="no such luck"):
        made.pages.get()
    clock.time += 0.001
    made.failure = None
    assert made.pages.get()[0] == b"2" and made.looks == 2


def test_a_failed_look_takes_no_page_away_that_is_fresh(made: Made, clock: Clock) -> None:
    assert made.pages.get()[0] == b"1"
    made.failure = ValueError("no such luck")
    clock.time += 1.0
    assert made.pages.get()[0] == b"1"
    clock.time += MAX_AGE
    with pytest.raises(ValueError, match="no such luck"):
        made.pages.get()


def test_an_exporter_that_ends_lets_nobody_wait(made: Made) -> None:
    made.go_on.clear()
    told = []

    def ask() -> None:
        with pytest.raises(RuntimeError) as caught:
            made.pages.get()
        told.append(caught.value)

    waiting = threading.Thread(target=ask)
    waiting.start()
    assert made.begun.acquire(timeout=WAIT)
    made.pages.close()
    waiting.join(WAIT)
    assert told
    made.go_on.set()
