"""Spans: whose children they are, how long they last, and what is passed on."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.base import stages
from runtime.base.stages import stage
from shim.observe.counters import Counters
from shim.observe.tracing import Sampler, Span, Tracer, parse_parent
from shim.ttrpc.call import Call
from shim.ttrpc.envelope import Request
from shim.ttrpc.errors import StatusError

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


class Port:
    """Takes answers."""

    def respond(self, *_: object) -> bool:
        return True

    def fail(self, *_: object) -> None: ...
    def data(self, *_: object) -> None: ...
    def end(self, *_: object) -> None: ...
    def drop(self, *_: object) -> None: ...


def call(method: str = "Create", **metadata: str) -> Call:
    told = {key: (value,) for key, value in metadata.items()}
    return Call(Port(), 1, Request("containerd.task.v2.Task", method, b"", 0, told))


class Traced:
    def __init__(self, sampler: Sampler | None = None) -> None:
        self.spans: list[Span] = []
        self.counters = Counters()
        self.tracer = Tracer(self.spans.append, self.counters, sampler)

    def run(self, handle: Any, made: Call | None = None) -> Any:
        stages.observe(self.tracer)
        try:
            return self.tracer.traced(handle)(made or call(traceparent=GOOD))
        finally:
            stages.observe(None)


def test_stages_are_below_the_call_that_is_below_its_caller() -> None:
    traced = Traced()

    def create(_: Call) -> bytes:
        with stage("rootfs"):
            pass
        with stage("boot"), stage("gofer"):
            pass
        return b"x"

    assert traced.run(create) == b"x"
    rootfs, gofer, boot, rpc = traced.spans
    assert [each.name for each in traced.spans] == [
        *("rootfs", "gofer", "boot", "containerd.task.v2.Task/Create"),
    ]
    assert {each.trace.hex() for each in traced.spans} == {TRACE}
    assert rpc.parent.hex() == PARENT and rpc.remote and rpc.kind == 2
    assert rootfs.parent == boot.parent == rpc.id and gofer.parent == boot.id
    assert rpc.start <= boot.start <= gofer.start <= gofer.end <= boot.end <= rpc.end
    assert len({each.id for each in traced.spans}) == 4
    assert rpc.attributes["rpc.method"] == "Create"
    assert rpc.attributes["rpc.ttrpc.status_code"] == 0 and rpc.code == 0
    # They are counted all the same.
    assert set(traced.counters.snapshot()["stages"]) == {"rootfs", "boot", "gofer"}


def test_a_call_that_fails() -> None:
    traced = Traced()

    def fail(_: Call) -> bytes:
        try:
            with stage("boot"):
                raise ValueError("no such luck")
        except ValueError:
            raise StatusError(5, "not found " + "x" * 10_000) from None

    with pytest.raises(StatusError):
        traced.run(fail)
    boot, rpc = traced.spans
    assert (boot.code, boot.message) == (2, "ValueError: no such luck")
    assert rpc.code == 2 and rpc.attributes["rpc.ttrpc.status_code"] == 5
    assert len(rpc.message) < 1000
    assert traced.tracer.context() == {}, "the thread's next call is not in this trace"


def test_a_late_answer_ends_its_span_and_no_other() -> None:
    traced = Traced()
    wait, gone, answered = (call(m, traceparent=GOOD) for m in ("Wait", "Wait", "Shutdown"))
    assert traced.run(lambda _: None, wait) is None
    assert traced.run(lambda _: None, gone) is None
    assert traced.spans == []
    for hook in gone.cancel("the connection is lost"):
        hook()
    threading.Thread(target=lambda: wait.reply(b"")).run()
    traced.run(lambda call: call.reply(b""), answered)
    codes = [each.attributes["rpc.ttrpc.status_code"] for each in traced.spans]
    assert codes == [1, 0, 0]
    assert [each.name[-8:] for each in traced.spans] == ["ask/Wait", "ask/Wait", "Shutdown"]


def test_stages_of_no_call_make_no_span() -> None:
    traced = Traced()
    stages.observe(traced.tracer)
    try:
        with stage("network"):
            pass
    finally:
        stages.observe(None)
    assert traced.spans == [] and "network" in traced.counters.snapshot()["stages"]


def test_what_is_passed_on() -> None:
    traced = Traced()
    seen: list[Any] = []

    def look(_: Call) -> bytes:
        seen.append(traced.tracer.context())
        with stage("boot"):
            seen.append(traced.tracer.context())
        return b""

    traced.run(look, call(traceparent=GOOD, tracestate="a=1", baggage="k=v"))
    boot, rpc = traced.spans
    for context, span in zip(seen, (rpc, boot), strict=True):
        assert context == {
            "traceparent": (f"00-{TRACE}-{span.id.hex()}-01",),
            "tracestate": ("a=1",),
            "baggage": ("k=v",),
        }


def test_a_call_without_a_parent_begins_a_trace() -> None:
    traced = Traced()
    traced.run(lambda _: b"", call())
    traced.run(lambda _: b"", call())
    first, second = traced.spans
    assert first.trace != second.trace and len(first.trace) == 16 and first.parent == b""


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", GOOD.upper(), GOOD[:-1], GOOD + "0", GOOD.replace("-", "_"), GOOD + "-x"),
        *(f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01"),
        *(f"00-{TRACE}-{PARENT}-0g", "00-" + "é" * 32 + f"-{PARENT}-01", GOOD * 100),
    ],
)
def test_a_parent_that_is_none_is_no_error(text: str) -> None:
    assert parse_parent({"traceparent": (text,)}) is None
    assert parse_parent({"traceparent": (GOOD, GOOD)}) is None
    traced = Traced()
    traced.run(lambda _: b"", call(traceparent=text))
    assert traced.spans[0].parent == b""


def test_a_later_version_of_the_header_is_read() -> None:
    parent = parse_parent({"traceparent": (f"01-{TRACE}-{PARENT}-ff-more",)})
    assert parent is not None and parent.flags == 1


@pytest.mark.parametrize(
    ("name", "argument", "parent", "recorded"),
    [
        *(("", "", None, True), ("", "", 1, True), ("", "", 0, False)),
        *(("always_on", "", 0, True), ("always_off", "", 1, False)),
        *(("parentbased_always_off", "", None, False), ("parentbased_always_off", "", 1, True)),
        *(("traceidratio", "0", 1, False), ("traceidratio", "1", 0, True)),
        *(("traceidratio", "nonsense", None, True), ("jaeger_remote", "", None, True)),
    ],
)
def test_samplers(name: str, argument: str, parent: int | None, recorded: bool) -> None:
    traced = Traced(Sampler(name, argument))
    metadata = {} if parent is None else {"traceparent": f"{GOOD[:-1]}{parent}"}
    seen: list[Any] = []

    def look(_: Call) -> bytes:
        seen.append(traced.tracer.context()["traceparent"][0][-2:])
        return b""

    traced.run(look, call(**metadata))
    assert bool(traced.spans) is recorded
    assert seen == ["01" if recorded else "00"]


def test_a_ratio_is_of_traces() -> None:
    sampler = Sampler("traceidratio", "0.25")
    taken = sum(sampler.flags(n.to_bytes(8, "big") * 2, None) for n in range(0, 1 << 64, 1 << 54))
    assert taken == 256
