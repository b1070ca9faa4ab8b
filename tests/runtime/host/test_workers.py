"""Worker threads: no queueing behind a hung call, reuse, and what happens to exceptions."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from runtime.base.errors import ResourceExhausted
from runtime.host.workers import MAX_IDLE, RETRY, Workers

WAIT = 5.0


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers("test-worker")
    yield workers
    workers.stop()
    for thread in alive():
        thread.join(WAIT)


def alive() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("test-worker")]


def test_hung_calls_do_not_hold_up_others(workers: Workers) -> None:
    gate = threading.Event()
    for _ in range(20):
        workers.submit(lambda: gate.wait(WAIT))
    ran = threading.Event()
    workers.submit(ran.set)
    assert ran.wait(WAIT)
    assert not workers.drain(0)
    gate.set()
    assert workers.drain(WAIT)


def test_idle_threads_are_reused_and_bounded(workers: Workers) -> None:
    gate = threading.Event()
    together = threading.Barrier(9)
    for _ in range(8):
        workers.submit(lambda: (together.wait(WAIT), gate.wait(WAIT)))
    together.wait(WAIT)
    gate.set()
    assert workers.drain(WAIT)
    for thread in alive()[:]:
        thread.join(0.2) if len(alive()) > MAX_IDLE else None
    assert len(alive()) <= MAX_IDLE
    names: set[str] = set()
    for _ in range(50):
        workers.submit(lambda: names.add(threading.current_thread().name))
        assert workers.drain(WAIT)
    assert workers._started <= 8 + 50
    assert len(alive()) <= MAX_IDLE + 1


def test_sequential_calls_need_no_new_threads(workers: Workers) -> None:
    parked = threading.Event()
    workers.submit(lambda: None)
    while workers._parked != 1:
        parked.wait(0.001)
    for _ in range(20):
        workers.submit(lambda: None)
        assert workers.drain(WAIT)
        while workers._parked != 1:
            parked.wait(0.001)
    assert workers._started == 1


def test_one_parked_thread_is_not_given_two_calls(workers: Workers) -> None:
    pause = threading.Event()
    for _ in range(30):
        workers.submit(lambda: None)
        assert workers.drain(WAIT)
        while not workers._parked:
            pause.wait(0.001)
        # Each waits for the other, so that they have to run at the same time.
        meeting = threading.Barrier(workers._parked + 1)
        for _ in range(meeting.parties):
            workers.submit(lambda meeting=meeting: meeting.wait(WAIT))
        assert workers.drain(WAIT)
        assert not meeting.broken


def test_exception_is_contained(workers: Workers) -> None:
    workers.submit(lambda: 1 / 0)
    assert workers.drain(WAIT)
    ran = threading.Event()
    workers.submit(ran.set)
    assert ran.wait(WAIT)


def test_parked_thread_keeps_nothing_of_its_last_call(workers: Workers) -> None:
    class Thing:
        def call(self) -> None:
            pass

    thing = Thing()
    gone = weakref.ref(thing)
    workers.submit(thing.call)
    assert workers.drain(WAIT)
    del thing
    gc.collect()
    assert gone() is None


def test_calls_may_submit_calls(workers: Workers) -> None:
    done = threading.Event()

    def chain(left: int) -> None:
        if left:
            workers.submit(lambda: chain(left - 1))
        else:
            done.set()

    workers.submit(lambda: chain(30))
    assert done.wait(WAIT)
    assert workers.drain(WAIT)


def test_submit_from_many_threads_runs_each_once(workers: Workers) -> None:
    lock = threading.Lock()
    counts: dict[int, int] = {}

    def note(number: int) -> None:
        with lock:
            counts[number] = counts.get(number, 0) + 1

    def submitter(base: int) -> None:
        for number in range(base, base + 100):
            workers.submit(lambda number=number: note(number))

    threads = [threading.Thread(target=submitter, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert workers.drain(WAIT)
    assert counts == dict.fromkeys(range(400), 1)


def test_stop_releases_parked_threads() -> None:
    workers = Workers("test-worker")
    workers.submit(lambda: None)
    assert workers.drain(WAIT)
    workers.stop()
    for thread in alive():
        thread.join(WAIT)
    assert not alive()
    ran = threading.Event()
    workers.submit(ran.set)
    assert ran.wait(WAIT)


# -- no thread to be had -------------------------------------------------------------------------


class Limit:
    """How many more threads the host gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.later: list[Callable[[], None]] = []
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("test-worker"):
                if not self.left:
                    raise RuntimeError("can't start new thread")
                self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        assert seconds == RETRY
        self.later.append(fn)

    def retry(self) -> None:
        later, self.later = self.later, []
        for fn in later:
            fn()


def test_who_may_not_fail_waits_for_a_thread(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Limit(monkeypatch)
    workers._call_later = limit.call_later
    ran: queue.Queue[int] = queue.Queue()
    with pytest.raises(ResourceExhausted):
        workers.submit_now(lambda: None)
    for number in range(3):
        assert not workers.submit(lambda number=number: ran.put(number))
    assert not workers.drain(0.01), "they count as running"
    limit.retry()
    limit.retry()
    assert ran.empty() and len(limit.later) == 1
    limit.left = 1
    limit.retry()
    # The one thread takes all that waits.
    assert [ran.get(timeout=WAIT) for _ in range(3)] == [0, 1, 2]
    assert workers.drain(WAIT)
    limit.retry()
    assert not limit.later


def test_a_thread_that_becomes_free_takes_what_waits(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ran = threading.Event(), threading.Event()
    limit = Limit(monkeypatch)
    limit.left = 1
    assert workers.submit(lambda: gate.wait(WAIT))
    assert not workers.submit(ran.set)
    gate.set()
    assert ran.wait(WAIT) and workers.drain(WAIT)
