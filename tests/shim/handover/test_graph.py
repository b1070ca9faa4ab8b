"""What is written down and made again, kind by kind, with the real classes of a shim."""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
import struct
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.base import log
from runtime.base.constant import Constant
from runtime.base.record import Record
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.task.events import TaskExited, TaskOOM
from runtime.task.lifecycle import Op, State
from runtime.task.process import Exit, IORequest, Process
from shim.daemon import Daemon
from shim.daemon_args import DaemonArgs
from shim.events import Publisher, Undelivered, encode
from shim.forkserver import preload
from shim.handover import shapes
from shim.handover.names import NotHandedOver
from shim.handover.pack import GLOBALS, VALUES, pack
from shim.handover.unpack import unpack
from shim.observe.counters import Counters
from shim.ttrpc.client import Client
from shim.ttrpc.envelope import Request, encode_request
from shim.ttrpc.errors import StatusError
from shim.ttrpc.frames import REQUEST
from shim.ttrpc.frames import encode as frame
from tests.shim.handover import pinned
from tests.shim.stdio.test_process_io import WAIT, fifo, open_io, read_some

#: What has been handed over within this process: its descriptors are another's now, and must not
#: be closed by its end.
_gone: list[object] = []


def handed_over(value: Any) -> Any:
    """The copy that another process would have."""
    _gone.append(value)
    return unpack(pack(value, {})).root


def edited(value: object, edit: Callable[[dict[str, Any]], None]) -> bytes:
    graph = json.loads(pack(value, {}))
    edit(graph)
    return json.dumps(graph).encode()


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, 2: None, True: -(2**70), ("b", 1.5): "\udc80é"},
        [b"\0\xff", bytearray(b"xy"), 0.1, float("inf")],
        [(), ((1,), ((2, 3),)), frozenset({"a", 1}), {1, "b"}],
        deque([1, 2], maxlen=5),
        types.MappingProxyType({"a": [1]}),
        [int, Process, os.close, State.RUNNING, Op.EXIT, len, Exit, log.get_logger],
        IORequest(stdin="in", terminal=True),
        [TaskOOM(container_id="c"), Exit(status=3, at=1.25)],
    ],
)
def test_values(value: Any) -> None:
    found = handed_over(value)
    assert found == value and type(found) is type(value)
    if isinstance(value, deque):
        assert found.maxlen == value.maxlen


def test_what_is_one_thing_stays_one_thing() -> None:
    shared = [1]
    ring: list[Any] = [shared, {"again": shared}]
    ring.append(ring)
    found = handed_over(ring)
    assert found[2] is found and found[1]["again"] is found[0] == [1]
    lock = threading.Lock()
    a, b = threading.Condition(lock), threading.Condition(lock)
    first, second, same = handed_over([a, b, lock])
    assert first._lock is second._lock is same and not same.locked()
    done = threading.Event()
    done.set()
    assert [each.is_set() for each in handed_over([done, threading.Event()])] == [True, False]


def test_callbacks_are_those_of_what_was_handed_over() -> None:
    counters = Counters()
    method, bound, same = handed_over([counters.took, partial(counters.took, "boot"), counters])
    method("boot", 1.0)
    bound(2.0)
    assert same.snapshot()["stages"]["boot"] == [2, 3.0, 2.0]
    assert counters.snapshot()["stages"] == {}
    # A closure, with its cell; and one with a default of the source.
    told: list[Any] = []
    process = Process("c", "", IORequest(), told.append)
    process.commit(Op.CREATED)
    process.wait(told.append)
    publisher = Publisher(None)
    found, heard, others = handed_over([process, told, publisher])
    found.exited(Exit(status=7, at=2.0))
    assert [type(each) for each in heard] == [TaskExited, Exit] and told == []
    with others._changed:
        others._sleep(others._changed, 0.001)
    # A lambda in a class's own body can't be told from others.
    with pytest.raises(NotHandedOver, match=r"Workers\.<lambda> is unknown"):
        pack(Workers(), {})


def test_what_is_not_known_is_refused_by_name_and_place() -> None:
    class Foreign:
        pass

    counters = Counters()
    counters._names["c"] = Foreign()  # type: ignore[assignment]
    with pytest.raises(NotHandedOver, match=r"Foreign can't be handed over, at .*_names\.c"):
        pack({"counters": counters}, {})
    for value, why in (
        ((n for n in ()), "generator"),
        (lambda: 1, "can't be handed over"),
        (threading.Thread(), "Thread"),
        (json.dumps, "json"),
        (open, ""),
    ):
        if why:
            with pytest.raises(NotHandedOver, match=why):
                pack([value], {})
        else:
            assert handed_over([value]) == [value]
    lock = threading.Lock()
    with lock, pytest.raises(NotHandedOver, match="a lock is held"):
        pack([lock], {})


def test_weak_references_lead_to_what_was_handed_over_or_nowhere() -> None:
    counters = Counters()
    found, same, gone = handed_over([weakref.ref(counters), counters, weakref.ref(Counters())])
    assert found() is same and gone() is None


def test_errors_are_handed_over() -> None:
    found = handed_over(StatusError(5, "not there"))
    assert isinstance(found, StatusError) and (found.code, found.message) == (5, "not there")
    assert handed_over(OSError(2, "no")).args == (2, "no")
    assert handed_over(Undelivered("no", refused=True)).refused is True


# -- other versions -------------------------------------------------------------------------


def _another_format(graph: dict[str, Any]) -> None:
    graph["format"] += 1


def _with_attribute(graph: dict[str, Any]) -> None:
    graph["shapes"]["runtime.task.process:Process"].append("_mood")


def _without_attribute(graph: dict[str, Any]) -> None:
    graph["shapes"]["runtime.task.process:Process"].remove("_exit")


def _record_with_field(graph: dict[str, Any]) -> None:
    graph["shapes"]["runtime.task.process:IORequest"].append("colour")


def _unknown_class(graph: dict[str, Any]) -> None:
    graph["shapes"]["runtime.task.process:Thread"] = []


def _unknown_module(graph: dict[str, Any]) -> None:
    graph["shapes"]["runtime.task.nothing:Thread"] = []


def _unknown_value(graph: dict[str, Any]) -> None:
    graph["values"]["runtime.host.spawn:_forker"] = None


def _unknown_global(graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node[0] == "global")[1] = "os:environ"


def _unknown_kind(graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node[0] == "object")[0] = "dance"


def _no_nodes(graph: dict[str, Any]) -> None:
    del graph["nodes"][5:]


def _method(graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node[0] == "method")[2] = "vanish"


def _closure(graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node[0] == "function")[4] = 7


def _other_closure(graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node[0] == "function")[6] = [["mood", None]]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_another_format, "format 2 of version .* is not 1"),
        (_with_attribute, "Process of the other version has unknown _mood"),
        (_without_attribute, "Process of the other version lacks _exit"),
        (_record_with_field, "IORequest of the other version has unknown colour"),
        (_unknown_class, "Thread is unknown"),
        (_unknown_module, "runtime.task.nothing"),
        (_unknown_value, "keeps more in its modules"),
        (_unknown_global, "os:environ is unknown"),
        (_unknown_kind, "kind 'dance' is unknown"),
        (_no_nodes, "can't be read"),
        (_method, "has no method vanish"),
        (_closure, "there are 1 and not 7"),
        (_other_closure, "is another one in this version"),
    ],
)
def test_what_this_version_can_not_take_over_is_refused(
    edit: Callable[[dict[str, Any]], None], why: str
) -> None:
    value = [Process("c", "", IORequest(), print), Publisher(None), Counters().took]
    assert unpack(edited(value, lambda _: None), dry=True).root[0].container_id == "c"
    with pytest.raises(NotHandedOver, match=why):
        unpack(edited(value, edit), dry=True)


def test_rubbish_is_refused() -> None:
    for data in (b"", b"[]", b"{}", b'{"format":1}', b"\xff"):
        with pytest.raises(NotHandedOver, match="can't be read"):
            unpack(data, dry=True)


def test_what_a_later_version_has_added_or_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(graph: dict[str, Any]) -> None:
        graph["shapes"]["runtime.task.process:Process"].remove("_size")
        for node in graph["nodes"]:
            if node[0] == "object" and node[1] == "runtime.task.process:Process":
                del node[2]["_size"]
        text = json.dumps(graph).replace("runtime.task.process:Process", "runtime.old:Program")
        graph.clear()
        graph.update(json.loads(text))

    data = edited(Process("c", "", IORequest(), print), older)
    with pytest.raises(NotHandedOver):
        unpack(data, dry=True)
    monkeypatch.setattr(shapes, "MOVED", {"runtime.old:Program": "runtime.task.process:Process"})
    monkeypatch.setattr(shapes, "ADDED", {"runtime.task.process:Process": {"_size": (1, 2)}})
    found = unpack(data, dry=True).root
    assert type(found) is Process and found._size == (1, 2)


def test_what_a_later_version_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(graph: dict[str, Any]) -> None:
        for name, attribute in (("process:Process", "_mood"), ("process:IORequest", "colour")):
            graph["shapes"][f"runtime.task.{name}"].append(attribute)
            for node in graph["nodes"]:
                if node[0] == "object" and node[1] == f"runtime.task.{name}":
                    node[2][attribute] = "blue"

    data = edited(Process("c", "", IORequest(stdin="in"), print), older)
    dropped = {"runtime.task.process:Process": ["_mood"]}
    monkeypatch.setattr(shapes, "DROPPED", dropped)
    with pytest.raises(NotHandedOver, match="IORequest of the other version has unknown colour"):
        unpack(data, dry=True)
    dropped["runtime.task.process:IORequest"] = ["colour"]
    found = unpack(data, dry=True).root
    assert not hasattr(found, "_mood") and found.io_request == IORequest(stdin="in")


def test_what_is_added_is_each_instances_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(graph: dict[str, Any]) -> None:
        graph["shapes"]["shim.observe.counters:Counters"].remove("_ooms")
        for node in graph["nodes"]:
            if node[0] == "object" and node[1] == "shim.observe.counters:Counters":
                del node[2]["_ooms"]

    monkeypatch.setattr(shapes, "ADDED", {"shim.observe.counters:Counters": {"_ooms": {}}})
    first, second = unpack(edited([Counters(), Counters()], older)).root
    first._ooms["c"] = 1
    assert second._ooms == {} and shapes.ADDED["shim.observe.counters:Counters"]["_ooms"] == {}


# -- shapes that are pinned -----------------------------------------------------------------


def test_a_changed_class_is_one_that_shims_which_run_can_hand_over() -> None:
    against, same = pinned.judged()
    todo = "\n".join(
        [
            *against,
            "Shims that run hand over instances as they were. If they can't be taken over, count"
            " FORMAT in shim/handover/shapes.py up.",
            "Then: python -m tests.shim.handover.pinned --write",
        ]
    )
    assert same and not against, todo


def test_what_is_said_of_a_changed_class(monkeypatch: pytest.MonkeyPatch) -> None:
    process, request = "runtime.task.process:Process", "runtime.task.process:IORequest"
    now = {process: ["_exit", "_new"], request: ["colour", "stdin"]}
    before = {process: ["_exit", "_old"], request: ["stdin"], "runtime.old:Thing": ["a"]}
    assert [each.partition(":")[0] for each in pinned.problems(before, now)] == [
        "runtime.task.process",
        "runtime.task.process",
        "runtime.task.process",
        "runtime.old",
    ]
    told = "\n".join(pinned.problems(before, now))
    for words in (
        f"{process} has _new: put into ADDED",
        f"{process} has no _old any more: put it into DROPPED",
        f"{request} has colour: put into ADDED",
        "runtime.old:Thing is gone",
    ):
        assert words in told
    # A field that has a default needs no word.
    assert pinned.problems({request: ["stdin"]}, {request: ["stdin", "terminal"]}) == []
    monkeypatch.setattr(shapes, "ADDED", {process: {"_new": 1}, request: {"colour": ""}})
    monkeypatch.setattr(shapes, "DROPPED", {process: ["_old"]})
    monkeypatch.setattr(shapes, "MOVED", {"runtime.old:Thing": request})
    before["runtime.old:Thing"] = ["stdin"]
    assert pinned.problems(before, now) == []


def test_all_that_modules_keep_is_handed_over_or_known_to_be_new() -> None:
    #: Made anew by the new process, or no longer so after it.
    anew = {
        "runtime.host.children:_births",
        "runtime.sandbox.gofer:_watching",
        "runtime.host.spawn:_forker",
        "runtime.host.forkservers:ours",
        "shim.forkserver.caller:launched_by",
        "shim.forkserver.caller:fork_server",
        "runtime.host.linux:ffi",
        "runtime.host.spawn:ffi",
    }
    found = set()
    for name in preload.of_a_shim():
        if name.startswith("protos"):
            continue
        for key, value in vars(importlib.import_module(name)).items():
            if key.upper() == key or key.startswith("__") or isinstance(value, type):
                continue
            if isinstance(value, (types.ModuleType, log.Logger, Constant, Record)):
                continue
            if not callable(value) and key not in ("annotations", "TYPE_CHECKING"):
                found.add(f"{name}:{key}")
    # Imported from where it is at home.
    homes = {each for each in found if each.split(":")[1] in {g.split(":")[1] for g in GLOBALS}}
    assert found - homes - anew - set(VALUES) == set()
    assert homes >= set(GLOBALS)


# -- what moves -----------------------------------------------------------------------------


@pytest.fixture
def reactor() -> Reactor:
    """One that runs, and that the test hands over: what is left of it is stopped there."""
    reactor = Reactor()
    reactor.start()
    return reactor


def test_a_reactor_goes_on_with_what_is_watched_and_due(reactor: Reactor) -> None:
    counters = Counters()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    reactor.watch(reader, select.EPOLLIN, partial(counters.took, "watched"))
    reactor.freeze()
    assert not any(each.name == "reactor" for each in threading.enumerate())
    reactor.call_soon(partial(counters.took, "soon", 1.0))
    reactor.call_later(0.05, partial(counters.took, "later", 1.0))
    os.write(writer, b"x")
    done = threading.Event()
    reactor.call_later(0.2, done.set)
    found, same, ended = handed_over([reactor, counters, done])
    try:
        found.thaw()
        found.thaw()
        assert ended.wait(WAIT)
        stages = same.snapshot()["stages"]
        assert stages["soon"][0] == stages["later"][0] == 1 and stages["watched"][0] >= 1
        assert counters.snapshot()["stages"] == {} and not done.is_set()
    finally:
        found.stop()
        os.close(writer)
        os.close(reader)


def test_a_terminal_keeps_what_it_holds(reactor: Reactor, tmp_path: Path) -> None:
    """Output that its client has no room for, and input that the process hasn't read."""
    stdin, stdout = fifo(tmp_path, "in"), fifo(tmp_path, "out")
    io = open_io(reactor, stdin=stdin, stdout=stdout, terminal=True)
    tty = os.dup(io.sentry_fds[0])
    io.release_sentry_fds()
    keyboard = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    screen = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(tty, False)
    written = 0
    try:
        for _ in range(2000):
            try:
                written += os.write(tty, b"%-100d" % written)
            except BlockingIOError:
                reactor.call_soon(lambda: None)
                if select.select([], [tty], [], 0.3)[1]:
                    continue
                break
        console = io._console
        assert console is not None and console.waiting()
        reactor.freeze()
        os.write(keyboard, b"typed\n")
        found, other = handed_over([reactor, io])
        found.thaw()
        try:
            got = b""
            while len(got) < written:
                got += read_some(screen)
            wanted = b""
            while len(wanted) < written:
                wanted += b"%-100d" % len(wanted)
            assert got[:written] == wanted[:written]
            assert select.select([tty], [], [], WAIT)[0] and os.read(tty, 100) == b"typed\n"
        finally:
            other.close()
            found.stop()
    finally:
        for fd in (tty, keyboard, screen):
            os.close(fd)


class Refusing:
    """A transport without anybody at its end."""

    def __call__(self, item: object) -> None:
        raise Undelivered("nobody is there")

    def close(self) -> None:
        """Nothing is open."""


def test_events_wait_on_in_their_order() -> None:
    publisher = Publisher(Refusing())
    events = [TaskOOM(container_id=f"c{n}") for n in range(5)]
    for each in events[:3]:
        publisher.publish(each)
    assert publisher.freeze()
    assert not any(each.name == "publisher" for each in threading.enumerate())
    publisher.publish(events[3])
    publisher._transport = None
    found = handed_over(publisher)
    sent: list[Any] = []

    class Taking(Refusing):
        def __call__(self, item: Any) -> None:
            sent.append((item.topic, item.body))

    found._transport = Taking()
    found.publish(events[4])
    assert sent == []
    found.thaw()
    assert found.flush(WAIT)
    assert sent == [(item.topic, item.body) for item in map(encode, events)]
    assert found.counts() == (0, 0, 5)
    found.close()


def test_a_whole_shim_with_a_client_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    args = DaemonArgs(
        namespace="ns",
        id="p",
        bundle=str(tmp_path),
        address="",
        ttrpc_address="",
        publish_binary="",
        listener_fd=listener.detach(),
        socket_address=f"unix://{tmp_path}/s",
    )
    daemon = Daemon(args)
    daemon.reactor.start()
    daemon.publisher.start()
    daemon.server.start()
    request = Request("containerd.task.v2.Task", "Connect", b"")
    data = frame(1, REQUEST, 0, encode_request(request))
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(WAIT)
    client.connect(str(tmp_path / "s"))
    with Client(str(tmp_path / "s")) as other:
        other.call("containerd.task.v2.Task", "Connect", b"", timeout=WAIT)
        client.sendall(data[:15])
        while not any(each._protocol._frames.partial for each in daemon.server._peers.values()):
            other.call("containerd.task.v2.Task", "Connect", b"", timeout=WAIT)
        while daemon.freeze():
            daemon.thaw()
        assert {each.name for each in threading.enumerate()} & {"ttrpc", "reactor"} == set()
        client.sendall(data[15:])
        found = handed_over(daemon)
        found.thaw()
        try:
            head = client.recv(10, socket.MSG_WAITALL)
            length, stream, _, _ = struct.unpack(">IIBB", head)
            assert stream == 1 and len(client.recv(length, socket.MSG_WAITALL)) == length
            other.call("containerd.task.v2.Task", "Connect", b"", timeout=WAIT)
            assert found.args == args and found.server.connections == 2
            assert found.server is not daemon.server
        finally:
            client.close()
            found._close()
            found.workers.stop()
