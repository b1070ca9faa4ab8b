"""The reactor: dispatch, cancellation, reuse of descriptor numbers, timers, idle wake-ups."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.base.errors import Failed
from runtime.host.reactor import Reactor

WAIT = 5.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    reactor.start()
    yield reactor
    reactor.stop()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def turn(reactor: Reactor) -> None:
    """Return once the reactor has gone through a whole turn that began after this call."""
    for _ in range(2):
        passed = threading.Event()
        reactor.call_soon(passed.set)
        assert passed.wait(WAIT)


def test_reports_readiness_until_it_is_consumed(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    done = threading.Event()

    def readable(mask: int) -> None:
        assert mask & select.EPOLLIN
        got.append(ours.recv(1))
        if len(got) == 3:
            done.set()

    reactor.watch(ours.fileno(), select.EPOLLIN, readable)
    theirs.send(b"abc")
    assert done.wait(WAIT)
    assert got == [b"a", b"b", b"c"]


def test_watch_added_before_start() -> None:
    reactor = Reactor()
    reader, writer = os.pipe()
    seen = threading.Event()
    reactor.watch(reader, select.EPOLLIN, lambda mask: (os.read(reader, 9), seen.set()))
    os.write(writer, b"x")
    reactor.start()
    assert seen.wait(WAIT)
    reactor.stop()
    os.close(reader)
    os.close(writer)


def test_modify_changes_what_is_reported(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    masks: list[int] = []
    seen = threading.Event()

    def ready(mask: int) -> None:
        masks.append(mask)
        watch.modify(0)
        seen.set()

    watch = reactor.watch(ours.fileno(), select.EPOLLIN, ready)
    turn(reactor)
    assert not masks
    watch.modify(select.EPOLLOUT)
    assert seen.wait(WAIT)
    theirs.send(b"x")
    turn(reactor)
    assert masks == [select.EPOLLOUT]


def test_nothing_is_called_after_cancel(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    calls: list[int] = []
    watch = reactor.watch(ours.fileno(), select.EPOLLIN, calls.append)
    watch.cancel()
    watch.cancel()
    theirs.send(b"x")
    turn(reactor)
    assert not calls


def test_event_of_a_cancelled_watch_does_not_reach_the_heir_of_its_number(
    reactor: Reactor,
) -> None:
    """The callback that runs first cancels the second watch, whose event was already fetched,
    and watches an idle descriptor under the same number."""
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    idle, idle_peer = socket.socketpair()
    victims: dict[int, object] = {}
    heir_calls: list[int] = []
    victim_calls: list[int] = []
    swapped = threading.Event()

    def swap(number: int) -> None:
        if swapped.is_set():
            return
        other = second if number == first.fileno() else first
        watches[other.fileno()].cancel()
        victims[other.fileno()] = other
        os.dup2(idle.fileno(), other.fileno())
        reactor.watch(other.fileno(), select.EPOLLIN, heir_calls.append)
        watches[number].cancel()
        victim_calls.append(number)
        swapped.set()

    watches = {}
    gate = threading.Event()
    reactor.call_soon(lambda: gate.wait(WAIT))
    for each in (first, second):
        number = each.fileno()
        watches[number] = reactor.watch(number, select.EPOLLIN, lambda _m, n=number: swap(n))
    first_peer.send(b"x")
    second_peer.send(b"x")
    gate.set()
    assert swapped.wait(WAIT)
    turn(reactor)
    assert heir_calls == []
    assert len(victim_calls) == 1
    for each in (first, first_peer, second, second_peer, idle, idle_peer):
        each.close()


def test_number_reused_without_cancel(reactor: Reactor) -> None:
    """An owner that closed without cancelling loses its watch to the number's new owner."""
    old, old_peer = socket.socketpair()
    number = old.fileno()
    forgotten = reactor.watch(number, select.EPOLLIN, lambda mask: None)
    old.close()
    new, new_peer = socket.socketpair()
    if new.fileno() != number:
        os.dup2(new.fileno(), number)
    seen = threading.Event()
    watch = reactor.watch(number, select.EPOLLIN, lambda mask: (watch.cancel(), seen.set()))
    forgotten.cancel()
    new_peer.send(b"x")
    assert seen.wait(WAIT)
    if new.fileno() != number:
        os.close(number)
    for each in (old_peer, new, new_peer):
        each.close()


def test_cancel_races_with_dispatch(reactor: Reactor) -> None:
    """After cancel() and one more turn, no run of the callback begins."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    runs = 0

    def ready(mask: int) -> None:
        nonlocal runs
        runs += 1

    for _ in range(300):
        reactor.watch(reader, select.EPOLLIN, ready).cancel()
        turn(reactor)
        before = runs
        turn(reactor)
        assert runs == before
    os.close(reader)
    os.close(writer)


def test_callback_that_raises_loses_its_watch_and_nothing_else(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    calls: list[int] = []

    def broken(mask: int) -> None:
        calls.append(mask)
        raise ValueError("broken")

    reactor.watch(ours.fileno(), select.EPOLLIN, broken)
    theirs.send(b"x")
    deadline = time.monotonic() + WAIT
    while not calls and time.monotonic() < deadline:
        turn(reactor)
    turn(reactor)
    assert len(calls) == 1
    reactor.call_soon(lambda: 1 / 0)
    turn(reactor)


def test_watch_errors(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    reactor.watch(ours.fileno(), select.EPOLLIN, lambda mask: None)
    with pytest.raises(FileExistsError):
        reactor.watch(ours.fileno(), select.EPOLLIN, lambda mask: None)
    with open(__file__, "rb") as regular, pytest.raises(PermissionError):
        reactor.watch(regular.fileno(), select.EPOLLIN, lambda mask: None)
    with pytest.raises(ValueError, match="level-triggered"):
        reactor.watch(ours.fileno(), select.EPOLLIN | select.EPOLLET, lambda mask: None)


def test_timers_run_in_order_of_time(reactor: Reactor) -> None:
    order: list[str] = []
    done = threading.Event()
    reactor.call_later(0.03, lambda: (order.append("late"), done.set()))
    reactor.call_later(0.01, lambda: order.append("early"))
    reactor.call_later(-1.0, lambda: order.append("past"))
    cancelled = reactor.call_later(0.02, lambda: order.append("cancelled"))
    cancelled.cancel()
    cancelled.cancel()
    assert done.wait(WAIT)
    assert order == ["past", "early", "late"]


def test_timer_never_runs_early(reactor: Reactor) -> None:
    done = threading.Event()
    begin = time.monotonic()
    reactor.call_later(0.02, done.set)
    assert done.wait(WAIT)
    assert time.monotonic() - begin >= 0.02


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    # Deadlines far away that are nearly always cancelled are the normal use.
    for _ in range(5000):
        reactor.call_later(3600, lambda: None).cancel()
    keep = [reactor.call_later(3600, lambda: None) for _ in range(10)]
    for _ in range(5000):
        reactor.call_later(7200, lambda: None).cancel()
    assert len(reactor._timers) < 200
    for timer in keep:
        timer.cancel()
    assert reactor._timers == []
    assert reactor._dead_timers == 0


def test_call_soon_keeps_the_order(reactor: Reactor) -> None:
    order: list[int] = []
    for number in range(200):
        reactor.call_soon(lambda number=number: order.append(number))
    turn(reactor)
    assert order == list(range(200))


def test_calls_from_callbacks(reactor: Reactor) -> None:
    done = threading.Event()
    inside: list[bool] = []

    def chain(left: int) -> None:
        inside.append(reactor.inside())
        if left:
            reactor.call_soon(lambda: reactor.call_later(0, lambda: chain(left - 1)))
        else:
            done.set()

    chain_outside = reactor.inside()
    reactor.call_soon(lambda: chain(5))
    assert done.wait(WAIT)
    assert not chain_outside
    assert all(inside)


def test_idle_reactor_does_not_wake(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair
    reactor.watch(ours.fileno(), select.EPOLLIN, lambda mask: None)
    reactor.call_later(60, lambda: None).cancel()
    tid: list[int] = []
    reactor.call_soon(lambda: tid.append(threading.get_native_id()))
    turn(reactor)

    def switches() -> str:
        with open(f"/proc/self/task/{tid[0]}/status") as status:
            return "".join(line for line in status if "ctxt_switches" in line)

    def asleep() -> bool:
        with open(f"/proc/self/task/{tid[0]}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1].startswith("S")

    deadline = time.monotonic() + WAIT
    while not asleep() and time.monotonic() < deadline:
        os.sched_yield()
    # The cancelled timer may still end the poll that was begun for it, but only when due.
    before = switches()
    threading.Event().wait(0.2)
    assert switches() == before


def test_stop_ends_everything() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    reactor = Reactor()
    reactor.start()
    reader, writer = os.pipe()
    watch = reactor.watch(reader, select.EPOLLIN, lambda mask: None)
    timer = reactor.call_later(60, lambda: None)
    reactor.stop()
    reactor.stop()
    watch.modify(select.EPOLLOUT)
    watch.cancel()
    timer.cancel()
    reactor.call_soon(lambda: None)
    reactor.call_later(0, lambda: None).cancel()
    with pytest.raises(Failed):
        reactor.watch(reader, select.EPOLLIN, lambda mask: None)
    os.close(reader)
    os.close(writer)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_stop_without_start_and_from_a_callback() -> None:
    Reactor().stop()
    reactor = Reactor()
    reactor.start()
    reactor.call_soon(reactor.stop)
    thread = reactor._thread
    assert thread is not None
    thread.join(WAIT)
    assert not thread.is_alive()


def test_many_threads(reactor: Reactor) -> None:
    """Watches come and go on shared numbers from several threads; every byte is seen once."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                ours, theirs = socket.socketpair()
                seen = threading.Event()
                watch = reactor.watch(ours.fileno(), select.EPOLLIN, lambda mask, s=seen: s.set())
                theirs.send(b"x")
                assert seen.wait(WAIT)
                watch.cancel()
                ours.close()
                theirs.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert not reactor._watches
