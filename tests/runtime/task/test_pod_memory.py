"""Who is ended and who is blamed, on a host and a sentry whose figures a test decides."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.base.errors import (
    DeadlineExceeded,
    Failed,
    NotFound,
    ResourceExhausted,
    SandboxGone,
    Unsupported,
)
from runtime.cgroups.metrics import MemoryUse
from runtime.task.pod_memory import PodMemory
from tests.fakes.sandbox import FakeCgroup, FakeMark

MIB = 1 << 20


class FakeMember:
    def __init__(self, id: str, limit: int | None = None, *, pause: bool = False) -> None:
        self.id = id
        self.memory_limit = limit
        self.is_pause = pause
        self.runs = True
        self.gofer_killed = False
        self.ooms: list[bool] = []

    def out_of_memory(self, kill: bool) -> None:
        self.ooms.append(kill)
        self.runs = not kill


class Here:
    """Does at once what is submitted, and later what is due later."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []
        self.looks = 0

    def submit(self, fn: Callable[[], object]) -> bool:
        self.looks += 1
        fn()
        return True

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Here:
        assert 0 < seconds <= 1.0
        self.due.append(fn)
        return self

    def cancel(self) -> None: ...

    def run_due(self) -> None:
        due, self.due = self.due, []
        for fn in due:
            fn()


class Scene:
    def __init__(self, *members: FakeMember, limit: int | None = None) -> None:
        self.host = FakeCgroup()
        self.host.limit = limit
        self.here = Here()
        self.members = {member.id: member for member in members}
        self.used: dict[str, int | MemoryUse] = {}
        self.asked: list[str] = []
        self.files = 0
        self.after_an_answer: list[Callable[[], None]] = []
        self.now = 100.0
        self.calls: list[str] = []
        self.refuses: dict[str, list[Exception]] = {"hold": [], "release": []}
        sentry: Any = SimpleNamespace(
            memory=self.measure,
            file_memory=lambda timeout: self.files,
            hold=self.hold,
            release=self.release,
        )
        self.memory = PodMemory(
            "s",
            self.host,
            sentry,
            self.here,  # type: ignore[arg-type]
            self.here,
            clock=lambda: self.now,
        )
        self.memory.open()
        for member in members:
            self.memory.add(member)

    def measure(self, id: str, timeout: float) -> MemoryUse:
        self.asked.append(id)
        self.calls.append(id)
        used = self.used.get(id)
        if used is None:
            raise NotFound("container", id)
        if self.after_an_answer:
            self.after_an_answer.pop()()
        return used if isinstance(used, MemoryUse) else MemoryUse(bytes=used, exact=True)

    def hold(self, timeout: float) -> None:
        self.calls.append("hold")
        if self.refuses["hold"]:
            raise self.refuses["hold"].pop()

    def release(self, timeout: float) -> None:
        self.calls.append("release")
        if self.refuses["release"]:
            raise self.refuses["release"].pop()

    def uses(self, **used: int | MemoryUse) -> None:
        """The host sees the sum of it; a mark that this passes is told of."""
        self.used.update(used)
        self.host.used = sum(u.bytes if isinstance(u, MemoryUse) else u for u in self.used.values())
        mark = self.mark
        if mark is not None and not mark.low < self.host.used < mark.high:
            mark.callback()
            self.here.run_due()

    @property
    def mark(self) -> FakeMark | None:
        standing = [mark for mark in self.host.marks if not mark.cancelled]
        assert len(standing) <= 1
        return standing[0] if standing else None

    def killed(self, count: int = 1) -> None:
        self.host.kills = count
        self.host.tell_of_kills(count)


def pause() -> FakeMember:
    return FakeMember("pause", pause=True)


# -- looking ---------------------------------------------------------------------------------


def test_a_container_alone_is_never_looked_at() -> None:
    """The kernel's limit is its own."""
    scene = Scene(FakeMember("a", 64 * MIB), limit=64 * MIB)
    assert scene.here.looks == 0 and scene.mark is None
    scene = Scene(pause(), FakeMember("a"), FakeMember("b"))
    assert scene.here.looks == 0 and scene.mark is None


def test_a_pod_that_stands_still_is_not_looked_at_again() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB))
    looks = scene.here.looks
    mark = scene.mark
    assert mark is not None and (mark.low, mark.high) == (0, 64 * MIB)
    scene.uses(a=60 * MIB)
    assert scene.here.looks == looks and scene.here.due == []


def test_growth_during_a_look_is_not_missed() -> None:
    hog, other = FakeMember("hog", 64 * MIB), FakeMember("other", 64 * MIB)
    scene = Scene(pause(), hog, other)
    scene.uses(hog=10 * MIB, other=1 * MIB)

    def grow() -> None:
        scene.used["hog"] = 100 * MIB
        scene.host.used = 101 * MIB

    scene.after_an_answer = [grow]
    scene.memory.refresh()
    assert hog.ooms == [], "the answer was from before"
    scene.here.run_due()
    assert hog.ooms == [True] and other.ooms == []


def test_a_container_over_its_own_limit_is_ended_and_the_others_are_not() -> None:
    hog, other = FakeMember("hog", 64 * MIB), FakeMember("other", 64 * MIB)
    scene = Scene(pause(), hog, other)
    scene.uses(hog=10 * MIB, other=40 * MIB)
    for used in (30, 50, 63, 66):
        scene.uses(hog=used * MIB)
    assert hog.ooms == [True] and other.ooms == []
    assert scene.asked.count("pause") == 0


def test_files_are_not_held_against_a_container() -> None:
    hog = FakeMember("hog", 64 * MIB)
    scene = Scene(pause(), hog)
    scene.files = 50 * MIB
    scene.uses(hog=100 * MIB)
    assert hog.ooms == []
    assert scene.mark is not None and scene.mark.high == 114 * MIB
    scene.memory.note("hog", MemoryUse(bytes=110 * MIB, exact=True))
    assert hog.ooms == []
    scene.uses(hog=116 * MIB)
    assert hog.ooms == [True]


def test_the_nearest_limit_counts() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB), FakeMember("b", 32 * MIB))
    assert scene.mark is not None and scene.mark.high == 32 * MIB


def test_a_newcomer_costs_no_look_while_a_nearer_mark_stands() -> None:
    scene = Scene(pause(), FakeMember("a", 32 * MIB))
    scene.uses(a=20 * MIB)
    looks = scene.here.looks
    scene.memory.add(FakeMember("roomy", 64 * MIB))
    scene.memory.add(FakeMember("unlimited"))
    assert scene.here.looks == looks
    scene.memory.add(FakeMember("tight", 8 * MIB))
    assert scene.here.looks == looks + 1
    assert scene.mark is not None and scene.mark.high == 28 * MIB
    scene.memory.remove("tight")
    assert scene.here.looks == looks + 1


def test_marks_come_nearer_as_a_container_nears_its_limit() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB))
    scene.uses(a=64 * MIB)
    assert scene.mark is not None and scene.mark.high == 65 * MIB
    assert scene.members["a"].ooms == []  # not more than it may
    scene.uses(a=65 * MIB)
    assert scene.members["a"].ooms == [True]


def test_what_others_free_is_noticed_too() -> None:
    """One that grows while another shrinks leaves the sum where it was, but not for long."""
    hog, other = FakeMember("hog", 64 * MIB), FakeMember("other")
    scene = Scene(pause(), hog, other)
    scene.uses(hog=4 * MIB, other=400 * MIB)
    scene.uses(hog=100 * MIB, other=200 * MIB)
    assert hog.ooms == [True]


def test_a_raised_limit_is_honoured_and_a_lowered_one_at_once() -> None:
    hog = FakeMember("hog", 64 * MIB)
    scene = Scene(pause(), hog)
    hog.memory_limit = 256 * MIB
    scene.memory.refresh()
    scene.uses(hog=200 * MIB)
    assert hog.ooms == []
    hog.memory_limit = 100 * MIB
    scene.memory.refresh()
    assert hog.ooms == [True]


def test_use_that_moves_during_a_look_is_looked_at_once_more() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB))
    counts = iter([64 * MIB, 80 * MIB, 80 * MIB, 80 * MIB])
    scene.used["a"] = 10 * MIB
    scene.host.memory_usage = lambda: next(counts)  # type: ignore[method-assign]
    scene.memory.refresh()
    assert scene.here.due == [] and scene.mark is not None
    scene.host.memory_usage = lambda: 0  # type: ignore[method-assign]


def test_shares_of_the_sandboxs_memory_end_nobody_but_one_that_is_alone() -> None:
    def share(mib: int) -> MemoryUse:
        return MemoryUse(bytes=mib * MIB, exact=False)

    alone = FakeMember("a", 64 * MIB)
    scene = Scene(pause(), alone)
    scene.uses(a=share(70))
    assert alone.ooms == [True]
    two = FakeMember("a", 64 * MIB), FakeMember("b")
    scene = Scene(pause(), *two)
    scene.uses(a=share(70), b=share(70))
    assert [m.ooms for m in two] == [[], []]


def test_figures_of_others_count() -> None:
    hog = FakeMember("hog", 64 * MIB)
    scene = Scene(pause(), hog, FakeMember("b"))
    scene.memory.note("hog", MemoryUse(bytes=64 * MIB, exact=True))
    assert hog.ooms == []
    scene.memory.note("hog", MemoryUse(bytes=65 * MIB, exact=True))
    assert hog.ooms == [True]
    scene.memory.note("unknown", MemoryUse(bytes=65 * MIB, exact=True))


def test_a_host_without_marks_is_borne() -> None:
    scene = Scene(pause(), FakeMember("a"))

    def refuse() -> None:
        raise Unsupported("no marks")

    scene.host.refuse_mark = refuse
    scene.memory.add(FakeMember("b", 64 * MIB))
    assert scene.mark is None and scene.here.due == []


LACKS = [ResourceExhausted("too many open files"), OSError(errno.EMFILE, ""), MemoryError()]


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("step", ["mark", "total", "measure", "measure_files"])
def test_a_limit_binds_again_after_a_lack_of_anything(lack: Exception, step: str) -> None:
    hog = FakeMember("hog", 64 * MIB)
    scene = Scene(pause(), FakeMember("a"))
    short = [True]

    def refuse(*_: object) -> Any:
        if short:
            raise lack
        return 0

    usage = scene.host.memory_usage
    if step == "mark":
        scene.host.refuse_mark = refuse
    elif step == "total":
        scene.host.memory_usage = lambda: None if short else usage()  # type: ignore[method-assign]
    elif step == "measure":
        measure = scene.memory._measure
        scene.memory._measure = lambda cid, t: refuse() or measure(cid, t)
    else:
        scene.memory._measure_files = refuse
    scene.used["hog"] = 0 if step == "mark" else 65 * MIB
    scene.memory.add(hog)
    for _ in range(3):
        scene.here.run_due()
    assert step == "total" or hog.ooms == []
    short.clear()
    scene.used["hog"] = 65 * MIB
    if scene.mark is not None:
        scene.mark.callback()
    scene.here.run_due()
    assert hog.ooms == [True]


def test_nothing_stands_after_the_end() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB))
    scene.memory.close()
    scene.memory.close()
    assert scene.mark is None
    scene.memory.remove("a")
    scene.memory.refresh()
    assert scene.mark is None


def test_the_last_container_takes_the_mark_with_it() -> None:
    scene = Scene(pause(), FakeMember("a", 64 * MIB))
    scene.memory.remove("a")
    assert scene.mark is None


# -- growing fast ----------------------------------------------------------------------------


def fast() -> tuple[Scene, FakeMember, FakeMember]:
    """Two of 64 MiB each in a pod of 128, one of which has just been seen to have 10."""
    one, two = FakeMember("one", 64 * MIB), FakeMember("two", 64 * MIB)
    scene = Scene(pause(), one, two, limit=128 * MIB)
    scene.uses(one=10 * MIB, two=MIB, rest=30 * MIB)
    scene.memory.refresh()
    scene.calls.clear()
    return scene, one, two


def test_what_grows_fast_is_held_while_it_is_looked_at() -> None:
    """Without delay; then it goes on, or has ended.  Slow growth holds nobody."""
    scene, one, two = fast()
    scene.now += 0.01
    scene.uses(one=40 * MIB)
    assert scene.calls == ["hold", "one", "two", "release"]
    assert one.runs and not scene.here.due
    scene.now += 0.01
    scene.uses(one=70 * MIB)
    assert scene.calls[4:] == ["hold", "one", "two", "release"]
    assert one.ooms == [True] and two.ooms == []
    scene, one, _ = fast()
    scene.now += 10
    scene.uses(one=40 * MIB)
    assert scene.calls == ["one", "two"]


def test_nobody_is_held_where_only_the_pods_limit_binds() -> None:
    one, two = FakeMember("one"), FakeMember("two")
    scene = Scene(pause(), one, two, limit=128 * MIB)
    scene.uses(one=10 * MIB, two=MIB)
    scene.memory.refresh()
    scene.now += 0.001
    scene.uses(one=60 * MIB)
    assert "one" in scene.calls and "hold" not in scene.calls


@pytest.mark.parametrize("fault", [Failed("no"), DeadlineExceeded("pause", 2.0)])
def test_what_could_not_be_held_is_looked_at_and_let_go(fault: Exception) -> None:
    """After a deadline nobody knows whether it is held."""
    scene, one, _ = fast()
    scene.refuses["hold"] = [fault]
    scene.now += 0.01
    scene.uses(one=70 * MIB)
    assert one.ooms == [True]
    assert scene.calls.count("release") == isinstance(fault, DeadlineExceeded)


def test_it_is_let_go_once() -> None:
    """Tried again only where the sentry has not heard of it: it would end by one too many."""
    for fault, times in (
        (ResourceExhausted("no descriptors"), 2),
        (SandboxGone(1), 1),
        (DeadlineExceeded("resume", 5.0), 1),
    ):
        scene, _, _ = fast()
        scene.refuses["release"] = [fault]
        scene.now += 0.01
        scene.uses(one=40 * MIB)
        scene.here.run_due()
        assert scene.calls.count("release") == times


# -- blame -----------------------------------------------------------------------------------


def test_the_one_that_used_the_most_is_blamed() -> None:
    small, big = FakeMember("small"), FakeMember("big")
    scene = Scene(pause(), small, big, limit=100 * MIB)
    scene.uses(small=20 * MIB, big=60 * MIB)
    scene.killed()
    assert (small.ooms, big.ooms) == ([], [False])
    assert scene.memory.claims("big") and not scene.memory.claims("small")
    scene.killed()
    assert big.ooms == [False, False]  # the container publishes it once


def test_growth_after_the_last_look_counts() -> None:
    steady, hog = FakeMember("steady"), FakeMember("hog")
    scene = Scene(pause(), steady, hog, limit=128 * MIB)
    scene.uses(steady=50 * MIB, hog=1 * MIB)
    scene.uses(steady=50 * MIB, hog=30 * MIB)
    scene.uses(hog=40 * MIB)  # 90 of 128 MiB: what is still to come must be the hog's
    scene.killed()
    assert (steady.ooms, hog.ooms) == ([], [False])


def test_a_kill_that_hit_a_gofer_is_put_down_to_the_container_that_it_ends() -> None:
    small, big = FakeMember("small"), FakeMember("big")
    scene = Scene(pause(), small, big, limit=100 * MIB)
    scene.uses(small=20 * MIB, big=60 * MIB)
    small.gofer_killed = True
    scene.killed()
    assert (small.ooms, big.ooms) == ([False], [])


def test_a_kill_that_only_the_count_shows_is_attributed_when_an_exit_is_told() -> None:
    small, big = FakeMember("small"), FakeMember("big")
    scene = Scene(pause(), small, big, limit=100 * MIB)
    scene.uses(small=20 * MIB, big=60 * MIB)
    scene.host.kills = 1
    assert not scene.memory.claims("pause")
    assert not scene.memory.claims("small")
    assert scene.memory.claims("big")


def test_one_that_has_ended_is_not_blamed() -> None:
    ended, living = FakeMember("ended"), FakeMember("living")
    scene = Scene(pause(), ended, living, limit=100 * MIB)
    scene.uses(ended=60 * MIB, living=10 * MIB)
    ended.runs = False
    scene.killed()
    assert (ended.ooms, living.ooms) == ([], [False])


def test_of_unknown_ones_the_unlimited_and_the_youngest_is_blamed() -> None:
    limited, old, young = FakeMember("limited", 64 * MIB), FakeMember("old"), FakeMember("young")
    scene = Scene(pause(), old, young, limited)
    scene.killed()
    assert (limited.ooms, old.ooms, young.ooms) == ([], [], [False])


def test_what_nobody_is_known_to_have_had_an_unknown_one_had() -> None:
    known, unknown = FakeMember("known"), FakeMember("unknown")
    scene = Scene(pause(), unknown, known, limit=100 * MIB)
    scene.uses(known=30 * MIB)
    scene.killed()
    assert (known.ooms, unknown.ooms) == ([], [False])
    known, unknown = FakeMember("known"), FakeMember("unknown")
    scene = Scene(pause(), unknown, known, limit=100 * MIB)
    scene.uses(known=70 * MIB)
    scene.killed()
    assert (known.ooms, unknown.ooms) == ([False], [])


def test_a_share_taken_for_ones_own_is_forgotten_when_another_comes() -> None:
    first, second = FakeMember("first", 90 * MIB), FakeMember("second")
    scene = Scene(pause(), first, limit=100 * MIB)
    scene.uses(first=MemoryUse(bytes=30 * MIB, exact=False))
    scene.memory.add(second)
    scene.uses(second=MemoryUse(bytes=30 * MIB, exact=False))
    scene.killed()
    assert (first.ooms, second.ooms) == ([], [False])


def test_the_pause_container_is_blamed_only_where_there_is_no_other() -> None:
    only = pause()
    scene = Scene(only)
    scene.killed()
    assert only.ooms == [False]


def test_a_kill_that_is_known_is_not_put_down_to_the_next() -> None:
    first, second = FakeMember("first"), FakeMember("second")
    scene = Scene(pause(), first, second, limit=100 * MIB)
    scene.uses(first=60 * MIB, second=10 * MIB)
    scene.killed(1)
    first.runs = False
    scene.memory.remove("first")
    assert not scene.memory.claims("second")
    scene.killed(2)
    assert second.ooms == [False]


# -- limits that an update asks for -----------------------------------------------------------


def test_a_limit_below_the_use_is_refused_and_the_use_named() -> None:
    scene = Scene(FakeMember("a", 128 * MIB), FakeMember("b"))
    scene.used["a"] = 50 * MIB
    with pytest.raises(Failed, match=f"limit to {MIB} .*usage: {50 * MIB}"):
        scene.memory.require_room("a", MIB)
    scene.memory.require_room("a", 50 * MIB)
    assert scene.members["a"].ooms == []


def test_files_that_the_kernel_would_drop_leave_room() -> None:
    scene = Scene(FakeMember("a", 128 * MIB), FakeMember("b"))
    scene.used["a"], scene.files = 50 * MIB, 30 * MIB
    scene.memory.require_room("a", 20 * MIB)
    with pytest.raises(Failed, match=f"usage: {20 * MIB}"):
        scene.memory.require_room("a", 20 * MIB - 1)


@pytest.mark.parametrize("exact", [True, False])
def test_a_share_of_the_sandboxs_memory_refuses_nothing(exact: bool) -> None:
    scene = Scene(FakeMember("a", 128 * MIB), FakeMember("b"))
    scene.used["a"] = MemoryUse(bytes=50 * MIB, exact=exact)
    if exact:
        with pytest.raises(Failed):
            scene.memory.require_room("a", MIB)
    else:
        scene.memory.require_room("a", MIB)


def test_one_that_isnt_running_has_room() -> None:
    member = FakeMember("a", 128 * MIB)
    scene = Scene(member, FakeMember("b"))
    scene.memory.require_room("a", MIB)  # the sentry doesn't know it
    scene.used["a"] = 50 * MIB
    member.runs = False
    scene.memory.require_room("a", MIB)


def test_a_limit_is_not_taken_while_the_use_cant_be_told() -> None:
    scene = Scene(FakeMember("a", 128 * MIB), FakeMember("b"))
    scene.used["a"] = 50 * MIB
    scene.after_an_answer.append(lambda: _raise(DeadlineExceeded("event", 5)))
    with pytest.raises(DeadlineExceeded):
        scene.memory.require_room("a", MIB)


def _raise(fault: Exception) -> None:
    raise fault


# -- what looking costs -----------------------------------------------------------------------


def test_looking_takes_a_small_part_of_a_core_in_the_long_run() -> None:
    """A burst of looks is let through with short pauses, one that goes on for minutes is not."""
    scene = Scene(pause())
    cost, looks, longest = 0.01, 0, 0.0
    with scene.memory._lock:
        first = scene.memory._pause_locked(cost)
        begin = scene.now
        while scene.now < begin + 60:
            wait = scene.memory._pause_locked(cost)
            longest, looks = max(longest, wait), looks + 1
            scene.now += cost + wait
        assert first <= 0.02 < longest <= 0.25
        assert looks * cost / 60 < 0.06
        scene.now += 60
        assert scene.memory._pause_locked(cost) <= 0.02


def test_a_long_rest_is_cut_short_by_fast_growth() -> None:
    scene, one, _ = fast()
    scene.memory._debt = 1.0
    scene.now += 10
    scene.used["one"] = 40 * MIB
    mark = scene.mark
    assert mark is not None
    with scene.memory._lock:
        scene.memory._pause = 0.9
    scene.host.used = 71 * MIB
    mark.callback()
    scene.here.run_due()
    assert scene.calls == []  # it rests
    scene.now = scene.memory._seen[0] + 0.01
    scene.used["one"] = 70 * MIB
    scene.here.run_due()
    assert scene.calls == ["hold", "one", "two", "release"]
    assert one.ooms == [True]


def test_a_mark_is_set_without_the_lock_that_the_reactor_takes() -> None:
    hog = FakeMember("hog", 64 * MIB)
    scene = Scene(pause(), limit=128 * MIB)
    scene.used["hog"] = MIB
    free: list[bool] = []
    watch = scene.host.watch_usage

    def spied(*arguments: Any) -> Any:
        free.append(scene.memory._lock.acquire(blocking=False))
        if free[-1]:
            scene.memory._lock.release()
        return watch(*arguments)

    scene.host.watch_usage = spied  # type: ignore[method-assign]
    scene.memory.add(hog)
    assert free == [True]
    assert scene.mark is not None
