"""Pages that are ready when they are asked for: when to look, and what may be given to whom.

A look waits for the slowest sentry of the node, which a busy node may have wait for its turn, so a
scrape doesn't wait for a look: the next one is expected, and the node looked at shortly before.  A
page says how old it is.  One that is older than :data:`MAX_AGE` is given only if the look for a
fresh one, which then is begun, takes longer than a scrape should; one that is older than
:data:`GIVEN_AGE` never: then a scrape waits, as the first ones do.  Who isn't scraped doesn't look.

There are no timestamps at samples: Prometheus would ignore that a series has ended, and refuse what
two servers read in another order (cAdvisor's issues 2526, 3217).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after which what a page tells is too old to be given, by the begin of its look.
MAX_AGE = 5.0
#: Seconds that a scrape waits for the fresh page at first, and the age of what it gets then.
WAIT, GIVEN_AGE = 0.1, 15.0
#: Seconds between looks that nobody waits for; scrapes so close to each other count as one.
REST = 1.0
#: Seconds by which a look is begun earlier than it has to be, and at most.
SLACK, MAX_LEAD = 0.5, 3.0
#: Looks for a scrape that doesn't come.
MAX_LOOKS = 3
#: Seconds without a scrape after which the last ones tell nothing of the next.
FORGOTTEN = 300.0
#: Scrapers with one interval that are told apart, and by how much they may be early or late:
#: seconds, or this part of the interval.
_MAX_SCRAPERS, _JITTER, _JITTER_PART = 4, 0.5, 0.1


def now() -> float:
    """Seconds that never go back, and go on while the machine is suspended, as pages get old."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Schedule:
    """Guesses when the next scrape comes, by the last ones.  Pure, and for one thread at a time."""

    def __init__(self) -> None:
        self._scrapes: deque[float] = deque(maxlen=_MAX_SCRAPERS + 2)
        self._took: deque[float] = deque(maxlen=3)
        self._began = self._ended = 0.0
        self._looks = 0  # since the last scrape

    def scraped(self, at: float) -> None:
        """Somebody asked for a page."""
        since = at - self._scrapes[-1] if self._scrapes else FORGOTTEN
        if since >= FORGOTTEN:
            self._scrapes.clear()
        if since >= REST:
            self._scrapes.append(at)
            self._looks = 0

    def looked(self, began: float, ended: float, waited: bool) -> None:
        """A look is done, or has failed; ``waited`` if it was for a scrape that was there."""
        self._began, self._ended = began, ended
        self._took.append(ended - began)
        self._looks += not waited

    def expected(self) -> float | None:
        """When the next scrape should come; it may have passed.  None if nothing is known.

        Several servers with one interval ask in turn, so what is looked for is a scrape after
        which it was as long as now before: the last but one, but two and so on.
        """
        times = list(self._scrapes)
        for turns in range(1, _MAX_SCRAPERS + 1):
            if len(times) < turns + 2:
                break
            last, before = times[-1] - times[-1 - turns], times[-2] - times[-2 - turns]
            if abs(last - before) <= max(_JITTER, _JITTER_PART * last):
                return times[-turns] + min(last, before)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return times[-1] + min(gaps) if gaps else None

    def due(self) -> float | None:
        """When to look next without being asked; None for not at all."""
        expected = self.expected()
        if expected is None or self._looks >= MAX_LOOKS:
            return None
        lead = min(1.5 * max(self._took, default=0.0) + SLACK, MAX_LEAD)
        start = expected - lead
        if self._looks:
            # The scrape is late: the page that waits for it is made anew before it is too old.
            start = max(expected, self._began + MAX_AGE - lead)
        return max(start, self._ended + REST)


class Pages:
    """The page of now.  Thread-safe; a thread of its own makes them."""

    def __init__(self, make: Callable[[bool], bytes]) -> None:
        """``make`` is told whether somebody waits; what it raises is raised for who waits."""
        self._make = make
        lock = threading.Lock()
        self._asked, self._made = threading.Condition(lock), threading.Condition(lock)
        self._schedule = Schedule()  # guarded by the lock, as all that follows
        self._page: bytes | None = None
        self._began = 0.0  # the look of _page
        self._failure: tuple[float, Exception] | None = None  # and when its look began
        self._waiting = 0
        self._wanted = self._tried = 0.0  # when one was asked for last, the begin of the last look
        self._closed = False
        threading.Thread(target=self._run, daemon=True, name="looks").start()

    def get(self) -> tuple[bytes, float]:
        """A page and its age in seconds, by the begin of its look.  Raises what making it raises.

        One that is older than :data:`GIVEN_AGE` was looked for since this was called.
        """
        asked, late = now(), False
        with self._asked:
            self._schedule.scraped(asked)
            self._wanted = max(self._wanted, asked)
            self._waiting += 1
            self._asked.notify()
            try:
                while True:
                    age = now() - self._began
                    if self._page is not None and (age <= MAX_AGE or self._began >= asked):
                        return self._page, age
                    if self._page is not None and late and age <= GIVEN_AGE:
                        return self._page, age
                    if self._failure is not None and self._failure[0] >= asked:
                        raise self._failure[1]
                    if self._closed:
                        raise RuntimeError("the exporter ends")
                    late = not self._made.wait(None if late else WAIT) or late
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """No more pages.  A look that is under way is not waited for."""
        with self._asked:
            self._closed = True
            self._asked.notify()
            self._made.notify_all()

    def _run(self) -> None:
        while True:
            with self._asked:
                while not self._closed and not self._is_due():
                    due = self._schedule.due()
                    self._asked.wait(None if due is None else max(due - now(), 0.0))
                if self._closed:
                    return
                waited = self._waiting > 0
            self._look(waited)

    def _is_due(self) -> bool:
        due = self._schedule.due()
        return self._is_lacking() or (due is not None and now() >= due)

    def _is_lacking(self) -> bool:
        """Whether somebody waits whom the last look doesn't help."""
        if not self._waiting or self._wanted <= self._tried:
            return False
        return self._page is None or now() - self._began > MAX_AGE

    def _look(self, waited: bool) -> None:
        began = now()
        page = failure = None
        try:
            page = self._make(waited)
        except Exception as error:
            failure = error
        with self._made:
            self._tried = began
            # Also one for a scrape that has made do with the last page meanwhile.
            self._schedule.looked(began, now(), waited or self._waiting > 0)
            if page is not None:
                self._page, self._began = page, began
            if failure is not None:
                self._failure = began, failure
            self._made.notify_all()
