"""Random calls, ends, deaths and broken connections at a whole shim, checked against the table.

The shim is all of it but the programs: the ttrpc server, the task service, pod, containers, the
reactor, the workers and the publisher.  The sentry is a process that does as it is told
(``tests/fakes/directed.py``), and containerd a server that writes down what it is sent.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from protos import events_pb2, runc_pb2
from protos import task_pb2 as pb
from protos.wkt_pb2 import Any as AnyMessage
from runtime.base import log
from runtime.base.errors import InvalidState, RuntimeFault
from runtime.host import children
from runtime.runsc.config import RunscConfig
from runtime.runsc.control_address import control_address
from runtime.runsc.urpc import call as sentry_call
from runtime.task.lifecycle import Op, State, step
from runtime.task.process import OpenStdio
from shim import service as task_service
from shim.base import status
from shim.bundles import Bundles
from shim.events import ForwardTransport, Publisher
from shim.stdio.process_io import ProcessIO
from shim.ttrpc.client import Client
from shim.ttrpc.errors import ConnectionLost, StatusError, TtrpcError
from shim.ttrpc.server import Server
from tests.runtime.leaks import open_fds, our_children
from tests.runtime.task.test_create_faults import NullIO, Plant

if TYPE_CHECKING:
    from runtime.task.process import IO

CONTAINERS = ("root", "a", "b")
EXECS = ("e1", "e2")
LANES = 3
#: Seconds in which each call has to be answered, and everything has to be taken down.
ANSWER, END = 60.0, 60.0
_SLOW = 9.0
_KILLED = 137
#: How a Kill may be refused: no such signal, or process any more, or it is still being created.
_OF_KILL = (status.INVALID_ARGUMENT, status.NOT_FOUND, status.FAILED_PRECONDITION)
#: Statuses by which a process may end that nobody told to: signals of ours, a start that failed.
_UNTOLD = frozenset({_KILLED, 143, 129, 128})
_METHODS = (
    "StartRoot",
    "StartSubcontainer",
    "CreateSubcontainer",
    "DestroySubcontainer",
    "Signal",
    "ExecuteAsync",
    "Wait",
    "WaitPID",
    "Processes",
)
_SPEC = AnyMessage(type_url="Process", value=b'{"args":["x"],"cwd":"/","user":{"uid":0,"gid":0}}')


def stdio(seed: int) -> str:
    """What stdio is in the script of that seed."""
    return STDIO[seed % len(STDIO)]


class Action(NamedTuple):
    """What one lane does next.  ``leaves``: its caller goes away before the answer."""

    lane: int
    what: str
    cid: str
    exec_id: str
    number: int
    leaves: bool

    def __str__(self) -> str:
        exec_id = f"/{self.exec_id}" if self.exec_id else ""
        return f"{self.lane}:{self.what} {self.cid}{exec_id} {self.number}{'!' * self.leaves}"


_WEIGHTS = {
    "create": 14,
    "start": 14,
    "exec": 8,
    "start exec": 8,
    "kill": 8,
    "kill exec": 4,
    "delete": 10,
    "delete exec": 4,
    "pause": 3,
    "resume": 3,
    "wait": 8,
    "wait exec": 4,
    "state": 4,
    "connect": 1,
    "close io": 2,
    "resize": 1,
    "update": 2,
    "pids": 2,
    "stats": 1,
    "checkpoint": 2,
    "shutdown": 1,
    "exit": 8,
    "exit exec": 5,
    "sentry dies": 3,
    "gofer dies": 2,
    "fault": 4,
    "break": 2,
    "containerd stops": 2,
    "containerd starts": 2,
    "rest": 6,
}


def script(seed: int, length: int = 40) -> list[Action]:
    """What is done, the same for the same seed."""
    dice = random.Random(f"calls-{seed}")
    lanes = dice.choice((1, 2, LANES))
    found = [Action(0, "create", "root", "", 0, False), Action(0, "start", "root", "", 0, False)]
    if dice.random() < 0.2:
        found.clear()
    names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    for _ in range(length):
        what = dice.choices(names, weights)[0]
        found.append(
            Action(
                dice.randrange(lanes),
                what,
                dice.choice(CONTAINERS),
                dice.choice(EXECS) if "exec" in what else "",
                dice.randrange(100),
                what not in ("wait", "wait exec") and dice.random() < 0.06,
            )
        )
    return found


class Containerd:
    """Takes events while it is up, and writes them down in the order in which they come."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.events: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        self._server: Server | None = None
        self.start()

    def start(self) -> None:
        with self._lock:
            if self._server is None:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(self.path)
                listener.listen(8)
                self._server = Server(listener, self._handle)
                self._server.start()

    def stop(self) -> None:
        with self._lock:
            server, self._server = self._server, None
            if server is not None:
                os.unlink(self.path)
                server.stop(2)

    def _handle(self, call: Any) -> bytes:
        envelope = events_pb2.ForwardRequest.FromString(call.payload).envelope
        kind = getattr(events_pb2, envelope.event.type_url.rpartition(".")[2])
        self.events.append((envelope.topic, kind.FromString(envelope.event.value)))
        return b""


#: What stdio is: nothing, pipes as containerd's clients have them, or terminals.
STDIO = ("null", "pipes", "terminals")


class Whole(Plant):
    """The shim, its containerd and the clients of the lanes."""

    def __init__(self, folder: Path, stdio: str) -> None:
        super().__init__(folder)
        self.stdio = stdio
        self._lock = threading.Lock()
        self._pipes: dict[str, int] = {}  # guarded by _lock; the clients' ends
        self.containerd = Containerd(str(folder / "events"))
        self.publisher = Publisher(ForwardTransport(self.containerd.path, "ns"))
        self.pod.context = self.pod.context.replace(
            emit=self.publisher.publish, open_io=self._open, shim_address=f"unix://{folder}/s"
        )
        self.stopped = threading.Event()
        self.crashes: list[str] = []
        config = RunscConfig(binary=self.binary, root=str(self.state), flags={"network": "none"})
        self.service = task_service.TaskService(
            self.pod,
            options=lambda *_: config,
            metrics=lambda figures: ("m", b""),
            shutdown=self.stopped.set,
            bundles=Bundles(self.pod.context.shim_address),
        )
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "s"))
        listener.listen(16)
        self.server = Server(
            listener,
            self.service.handle,
            submit=self.workers.submit_now,
            on_error=lambda call, error: self.crashes.append(f"{call.method}: {error!r}"),
            on_idle=self.service.idle,
        )
        self.server.start()
        self.requests = {
            cid: self.bundle(cid, "directed", member=cid != "root") for cid in CONTAINERS
        }

    def client(self) -> Client:
        return Client(str(self.folder / "s"))

    def _open(self, wanted: OpenStdio) -> IO:
        """Stdio whose client takes its time, as threads come: none, or some."""
        time.sleep(random.choice((0, 0, 0.05)))
        if self.stdio == "null":
            return NullIO()
        owner = (os.geteuid(), os.getegid())
        return ProcessIO.open(wanted.replace(owner=owner), "ns", self.reactor)

    def pipes(self, name: str) -> dict[str, Any]:
        """The fields of a request that say where its stdio is; the pipes are there, and read."""
        terminal = self.stdio == "terminals"
        kinds = () if self.stdio == "null" else ("stdin", "stdout", "stderr")[: 3 - terminal]
        with self._lock:
            for kind in kinds:
                path = str(self.folder / f"{name}.{kind}")
                if path not in self._pipes:
                    os.mkfifo(path)
                    self._pipes[path] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        paths = {kind: str(self.folder / f"{name}.{kind}") for kind in kinds}
        return {**paths, "terminal": terminal}

    def hang_up(self) -> None:
        """The clients close their ends."""
        with self._lock:
            for fd in self._pipes.values():
                os.close(fd)
            self._pipes.clear()

    def close(self) -> None:
        self.hang_up()
        self.server.stop(2)
        self.publisher.close()
        self.containerd.stop()
        self.workers.stop()
        self.reactor.stop()


class Trial:
    """One script at one shim.  ``flaws`` is what was wrong."""

    def __init__(self, folder: Path, stdio: str) -> None:
        self.flaws: list[str] = []
        self.calls = 0
        #: Calls that took seconds, which they may.
        self.slow: list[str] = []
        self._whole = Whole(folder, stdio)
        self._lock = threading.Lock()
        #: Exit statuses that a container or an exec of it was told to end with.
        self._told: dict[str, set[int]] = {cid: set() for cid in CONTAINERS}
        #: Whether the sentry was told to answer with errors.
        self._faulty = False
        #: What each Wait was answered, by container and exec.
        self._waits: list[tuple[str, str, int]] = []
        self._waiters: list[threading.Thread] = []
        self._waiting = self._whole.client()

    @property
    def events(self) -> int:
        """How many events containerd was told."""
        return len(self._whole.containerd.events)

    # -- the run ----------------------------------------------------------------------------

    def run(self, actions: Sequence[Action]) -> None:
        """Do it all, take everything down, and look at what there was."""
        lanes = [
            threading.Thread(target=self._lane, args=([a for a in actions if a.lane == lane],))
            for lane in range(LANES)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join(ANSWER * 2)
            if lane.is_alive():
                self.flaw("a lane hangs")
        self._take_down()
        self._look_at_events()

    def flaw(self, text: str) -> None:
        with self._lock:
            self.flaws.append(text)

    def _lane(self, actions: Sequence[Action]) -> None:
        client = self._whole.client()
        try:
            for action in actions:
                if action.what == "break":
                    client.close()
                    client = self._whole.client()
                else:
                    self._do(client, action)
        except OSError as error:
            if not self._whole.stopped.is_set():
                self.flaw(f"lane: {error!r}")
        finally:
            client.close()

    def _do(self, client: Client, action: Action) -> None:
        outside = {
            "exit": self._exit,
            "exit exec": self._exit,
            "sentry dies": self._sentry_dies,
            "gofer dies": self._gofer_dies,
            "fault": self._fault,
            "containerd stops": lambda _: self._whole.containerd.stop(),
            "containerd starts": lambda _: self._whole.containerd.start(),
            "rest": lambda each: time.sleep(each.number / 2000),
        }
        if action.what in outside:
            outside[action.what](action)
        elif action.what.startswith("wait"):
            thread = threading.Thread(target=self._wait, args=(action.cid, action.exec_id))
            self._waiters.append(thread)
            thread.start()
        elif action.leaves:
            self._leave(action)
        else:
            self._call(client, *_request(action, self._whole))

    def _leave(self, action: Action) -> None:
        """Make a call, and go away before its answer."""
        client = self._whole.client()
        request = _request(action, self._whole)
        caller = threading.Thread(target=self._call, args=(client, *request, True))
        caller.start()
        caller.join(action.number / 1000)
        client.close()
        caller.join(ANSWER)

    def _call(self, client: Client, method: str, message: Any, leaves: bool = False) -> bytes:
        self.calls += 1
        service = task_service.SERVICES[self.calls % 2]
        began = time.monotonic()
        try:
            return client.call(service, method, message.SerializeToString(), timeout=ANSWER)
        except StatusError as refused:
            if method == "Kill" and refused.code not in _OF_KILL and not self._faulty:
                # containerd fails a stop for any other.
                self.flaw(f"Kill {message.id}: {refused}")
        except ConnectionLost:
            if not leaves and not self._whole.stopped.is_set():
                self.flaw(f"{method}: the shim hung up")
        except (TimeoutError, TtrpcError) as error:
            self.flaw(f"{method}: {error!r} after {time.monotonic() - began:.1f} s")
        finally:
            if (took := time.monotonic() - began) > _SLOW:
                self.slow.append(f"{method} {message.id} took {took:.1f} s")
        return b""

    def _wait(self, cid: str, exec_id: str) -> None:
        message = pb.WaitRequest(id=cid, exec_id=exec_id).SerializeToString()
        try:
            reply = self._waiting.call(task_service.SERVICES[0], "Wait", message, timeout=None)
        except (StatusError, ConnectionLost):
            return
        code = pb.WaitResponse.FromString(reply).exit_status
        with self._lock:
            self._waits.append((cid, exec_id, code))

    # -- what happens of itself -------------------------------------------------------------

    def _sentry(self, method: str, argument: object) -> None:
        address = control_address(str(self._whole.state), "root")
        try:
            sentry_call(address, method, argument, (), 5)
        except Exception:
            return  # there is no sandbox just now

    def _exit(self, action: Action) -> None:
        code = action.number % 100
        self._told[action.cid].add(code)
        if action.cid == "root":
            for cid in CONTAINERS:
                self._told[cid].add(code)
        pid = -1 if action.exec_id else 0
        argument = {"cid": action.cid, "pid": pid, "status": code}
        self._sentry("Test.Exit", argument)

    def _fault(self, action: Action) -> None:
        self._faulty = True
        method = _METHODS[action.number % len(_METHODS)]
        kind = ("error", "slow", "drop")[action.number % 3]
        argument = {"method": f"containerManager.{method}", "kind": kind}
        self._sentry("Test.Fault", argument)

    def _sentry_dies(self, action: Action) -> None:
        self._strike("root", lambda sandbox, cid: sandbox.child)

    def _gofer_dies(self, action: Action) -> None:
        self._strike(action.cid, lambda sandbox, cid: sandbox.gofer_of(cid).child)
        # As a sentry, which loses a container with its gofer.
        self._sentry("Test.Exit", {"cid": action.cid, "pid": 0, "status": _KILLED})

    def _strike(self, cid: str, find: Callable[[Any, str], Any]) -> None:
        try:
            container = self._whole.pod.container(cid)
            find(container.sandbox, cid).kill(9)
        except RuntimeFault:
            return  # it isn't there

    # -- the end ----------------------------------------------------------------------------

    def _take_down(self) -> None:
        whole = self._whole
        whole.containerd.start()
        limit = time.monotonic() + END
        while left := sorted(whole.pod.all(), key=lambda each: each.id == "root"):
            if time.monotonic() > limit:
                states = [f"{each.id} is {each.init.state.value}" for each in left]
                self.flaw(f"can't be taken down: {', '.join(states)}")
                break
            for container in left:
                self._end(container.id)
        if not whole.publisher.flush(10):
            self.flaw("events are left in the queue")
        if not whole.stopped.is_set():
            with whole.client() as client:
                self._call(client, "Shutdown", pb.ShutdownRequest(id="root"))
            if not whole.stopped.wait(5):
                self.flaw("Shutdown of an empty shim doesn't end it")
        if not whole.workers.drain(30):
            self.flaw("a worker hangs")
        for waiter in self._waiters:
            waiter.join(0 if self.flaws else 10)
            if waiter.is_alive():
                self.flaw("a Wait was never answered")
        self._waiting.close()
        whole.close()
        children.reap_orphans()
        self.flaws += whole.crashes

    def _end(self, cid: str) -> None:
        with self._whole.client() as client:
            for method, message in (
                ("Resume", pb.ResumeRequest(id=cid)),
                ("Kill", pb.KillRequest(id=cid, signal=9, all=True)),
            ):
                self._call(client, method, message)
            try:
                service = task_service.SERVICES[0]
                wait = pb.WaitRequest(id=cid).SerializeToString()
                if self._state(client, cid) not in (pb.CREATED, None):
                    client.call(service, "Wait", wait, timeout=20)
            except TimeoutError:
                self.flaw(f"SIGKILL doesn't end {cid}")
            except (StatusError, TtrpcError):
                pass
            self._call(client, "Delete", pb.DeleteRequest(id=cid))

    def _state(self, client: Client, cid: str) -> int | None:
        try:
            request = pb.StateRequest(id=cid).SerializeToString()
            reply = client.call(task_service.SERVICES[0], "State", request, timeout=ANSWER)
        except (StatusError, TtrpcError):
            return None
        return int(pb.StateResponse.FromString(reply).status)

    # -- what was told ----------------------------------------------------------------------

    def _look_at_events(self) -> None:
        ends: dict[tuple[str, str], set[int]] = {}
        for cid in CONTAINERS:
            told = [(t, e) for t, e in self._whole.containerd.events if e.container_id == cid]
            self.flaws += event_flaws(cid, told)
            for topic, event in told:
                if topic == "/tasks/exit":
                    exec_id = "" if event.id == cid else event.id
                    ends.setdefault((cid, exec_id), set()).add(event.exit_status)
                    if event.exit_status not in self._told[cid] | _UNTOLD:
                        self.flaw(f"{cid}: {event.id} ended with {event.exit_status}, of nobody")
        for cid, exec_id, code in self._waits:
            known = ends.get((cid, exec_id), set())
            # What becomes of an exec that never ran is told to its waiters alone.
            if code not in known and not (exec_id and code in (0, 128, _KILLED)):
                self.flaw(f"Wait for {cid}/{exec_id}: {code}, but its exits are {known}")


#: What each event says of its process, as operations of the table.
_INIT: dict[str, tuple[Op, ...]] = {
    "/tasks/create": (Op.CREATED,),
    "/tasks/start": (Op.START, Op.STARTED),
    "/tasks/paused": (Op.PAUSE, Op.PAUSED),
    "/tasks/resumed": (Op.RESUME, Op.RESUMED),
    "/tasks/checkpointed": (Op.CHECKPOINT, Op.CHECKPOINTED),
    "/tasks/exit": (Op.EXIT,),
    "/tasks/delete": (Op.DELETE, Op.DELETED),
}
_EXEC: dict[str, tuple[Op, ...]] = {
    "/tasks/exec-added": (Op.CREATED,),
    "/tasks/exec-started": (Op.START, Op.STARTED),
    "/tasks/exit": (Op.EXIT,),
}


def event_flaws(cid: str, told: Sequence[tuple[str, Any]]) -> list[str]:
    """What the transition table has against the events of a container and its execs."""
    flaws = []
    init = State.DELETED
    execs: dict[str, State] = {}
    seen = []
    for topic, event in told:
        exec_id = getattr(event, "exec_id", "") or (
            event.id if topic == "/tasks/exit" and event.id != cid else ""
        )
        seen.append(topic.removeprefix("/tasks/") + (f" {exec_id}" if exec_id else ""))
        trace = f"{cid}: {', '.join(seen)}"
        try:
            if exec_id:
                before = State.CREATING if topic == "/tasks/exec-added" else None
                state = before or execs.get(exec_id, State.DELETED)
                # One that never ran may be killed in the moment of init's end.
                late = state is not State.CREATED or topic != "/tasks/exit"
                if init in (State.STOPPED, State.DELETED) and late and state is not before:
                    flaws.append(f"after init's end: {trace}")
                for op in _EXEC[topic]:
                    state = step(state, op)
                execs[exec_id] = state
            else:
                if topic == "/tasks/create" and init is State.DELETED:
                    init, execs = State.CREATING, {}
                if topic == "/tasks/exit" and State.RUNNING in execs.values():
                    flaws.append(f"init's exit before an exec's: {trace}")
                for op in _INIT[topic]:
                    init = step(init, op)
        except (InvalidState, KeyError) as fault:
            flaws.append(f"{fault!r}: {trace}")
    if init is not State.DELETED:
        flaws.append(f"{cid} ends {init.value}: {', '.join(seen)}")
    return flaws


def _request(action: Action, whole: Whole) -> tuple[str, Any]:
    """The method and message of an action."""
    cid, exec_id, number = action.cid, action.exec_id, action.number
    signal = (9, 15, 15, 0, 1, 99)[number % 6]
    options = runc_pb2.CheckpointOptions(exit=bool(number % 2))
    makers: dict[str, Callable[[], tuple[str, Any]]] = {
        "create": lambda: (
            "Create",
            pb.CreateTaskRequest(id=cid, bundle=whole.requests[cid].bundle, **whole.pipes(cid)),
        ),
        "start": lambda: ("Start", pb.StartRequest(id=cid)),
        "exec": lambda: (
            "Exec",
            pb.ExecProcessRequest(
                id=cid, exec_id=exec_id, spec=_SPEC, **whole.pipes(f"{cid}-{exec_id}")
            ),
        ),
        "start exec": lambda: ("Start", pb.StartRequest(id=cid, exec_id=exec_id)),
        "kill": lambda: ("Kill", pb.KillRequest(id=cid, signal=signal, all=number > 50)),
        "kill exec": lambda: ("Kill", pb.KillRequest(id=cid, exec_id=exec_id, signal=signal)),
        "delete": lambda: ("Delete", pb.DeleteRequest(id=cid)),
        "delete exec": lambda: ("Delete", pb.DeleteRequest(id=cid, exec_id=exec_id)),
        "pause": lambda: ("Pause", pb.PauseRequest(id=cid)),
        "resume": lambda: ("Resume", pb.ResumeRequest(id=cid)),
        "state": lambda: ("State", pb.StateRequest(id=cid)),
        "connect": lambda: ("Connect", pb.ConnectRequest(id=cid)),
        "close io": lambda: ("CloseIO", pb.CloseIORequest(id=cid, stdin=True)),
        "resize": lambda: ("ResizePty", pb.ResizePtyRequest(id=cid, width=number, height=9)),
        "update": lambda: (
            "Update",
            pb.UpdateTaskRequest(
                id=cid,
                resources=AnyMessage(
                    type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
                    value=b'{"memory":{"limit":%d}}' % ((number + 64) << 20),
                ),
            ),
        ),
        "pids": lambda: ("Pids", pb.PidsRequest(id=cid)),
        "stats": lambda: ("Stats", pb.StatsRequest(id=cid)),
        "checkpoint": lambda: (
            "Checkpoint",
            pb.CheckpointTaskRequest(
                id=cid,
                path=str(whole.folder / f"image-{number}"),
                options=AnyMessage(
                    type_url="containerd.runc.v1.CheckpointOptions",
                    value=options.SerializeToString(),
                ),
            ),
        ),
        "shutdown": lambda: ("Shutdown", pb.ShutdownRequest(id=cid, now=bool(number % 2))),
    }
    return makers[action.what]()


# -- trials ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What one trial was: ``flaws`` is empty if all was right."""

    flaws: list[str]
    calls: int
    events: int
    slow: list[str]


def attempt(actions: Sequence[Action], stdio: str = "null") -> Outcome:
    """Run a script at a shim of its own, with stdio of that kind."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    record = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND)
    os.close(os.open("/dev/urandom", os.O_RDONLY))
    log.configure(record, log.ERROR)
    threads, fds, kids = threading.active_count(), open_fds(), our_children()
    try:
        trial = Trial(folder, stdio)
        trial.run(actions)
        flaws = trial.flaws
        limit = time.monotonic() + 5
        while time.monotonic() < limit and threading.active_count() > threads:
            time.sleep(0.01)
        if (now := threading.active_count()) > threads:
            names = [each.name for each in threading.enumerate()]
            flaws.append(f"{now - threads} threads are left: {names}")
        if (left := open_fds()) != fds:
            flaws.append(f"descriptors are left: {sorted(set(left.items()) - set(fds.items()))}")
        # Zombies that other tests of this process have left are reaped.
        if left_kids := sorted(set(our_children()) - set(kids)):
            flaws.append(f"processes are left: {left_kids}")
        flaws += [f"left {path}" for path in _left_files(folder)]
        flaws += (folder / "log").read_text().splitlines()
    finally:
        log.configure(-1, log.ERROR)
        os.close(record)
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(flaws, trial.calls, trial.events, trial.slow)


def _left_files(folder: Path) -> list[str]:
    """State files, sockets, images, and cgroups of containers."""
    found = [str(path) for path in (folder / "state").rglob("*") if path.is_file()]
    found += [str(path) for path in (folder / "state").rglob("*.sock")]
    found += [str(path) for path in folder.glob("image-*")]
    kinds = [path for path in (folder / "host").rglob("*") if path.name in CONTAINERS]
    return found + [str(path) for path in kinds]


def shrink(
    actions: Sequence[Action], fails: Callable[[Sequence[Action]], bool], patience: int = 60
) -> list[Action]:
    """A shorter script that fails still; ``fails`` may try it several times."""
    found = list(actions)
    size = max(len(found) // 2, 1)
    while size and patience > 0:
        at = 0
        while at < len(found) and patience > 0:
            shorter = found[:at] + found[at + size :]
            patience -= 1
            if shorter and fails(shorter):
                found = shorter
            else:
                at += size
        size //= 2
    return found
