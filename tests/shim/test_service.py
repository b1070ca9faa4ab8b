"""The task service over a real connection, on a pod whose creations a test controls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protos import task_pb2 as pb
from protos.wkt_pb2 import Any as AnyMessage
from runtime.base.errors import Failed
from runtime.host.workers import Workers
from runtime.task.pod import Pod
from shim.bundles import Bundles
from shim.service import READER_PATIENCE, READING_TIMEOUT, SERVICES, TaskService
from shim.ttrpc.call import Call
from shim.ttrpc.client import Client
from shim.ttrpc.errors import StatusError
from shim.ttrpc.server import Server
from tests.fakes.sandbox import Bench, FakeIO

WAIT = 20.0


class Shim:
    """A service on a socket.  ``make`` stands in for the creation of a container."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.bench = Bench()
        self.bench.container.settled.set()
        self.make: Callable[[Any], int] = lambda container: 4711
        self.stopped = threading.Event()
        self.asked: list[str] = []
        self.pod = Pod(self.bench.context)
        monkeypatch.setattr("runtime.task.pod.create", lambda container, *_: self.make(container))
        service = TaskService(
            self.pod,
            options=self.options,  # type: ignore[arg-type]  # nobody looks
            metrics=lambda figures: ("m", b"x"),
            shutdown=self.stopped.set,
            bundles=Bundles("unix:///run/s/1"),
        )
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.workers = Workers()
        self.server = Server(
            listener, service.handle, submit=self.workers.submit_now, on_idle=service.idle
        )
        self.server.start()

    def options(self, _: str, __: bytes, container_id: str) -> None:
        self.asked.append(container_id)

    def client(self) -> Client:
        return Client(self.path)

    def adopt(self) -> None:
        """Put the bench's container into the pod."""
        self.pod._containers["c"] = self.bench.container

    def close(self) -> None:
        self.server.stop(1)
        self.workers.stop()
        self.bench.workers.stop()


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    shim = Shim(str(tmp_path / "s"), monkeypatch)
    yield shim
    shim.close()


def call(client: Client, method: str, message: Any = None, service: str = SERVICES[0]) -> bytes:
    payload = message.SerializeToString() if message is not None else b""
    return client.call(service, method, payload, timeout=WAIT)


def refusal(client: Client, method: str, message: Any = None, **given: str) -> tuple[int, str]:
    with pytest.raises(StatusError) as caught:
        call(client, method, message, **given)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("service", SERVICES)
def test_both_versions_are_served_alike(shim: Shim, service: str) -> None:
    shim.adopt()
    with shim.client() as client:
        reply = call(client, "State", pb.StateRequest(id="c"), service)
    state = pb.StateResponse.FromString(reply)
    assert (state.id, state.status, state.pid) == ("c", pb.CREATED, shim.bench.sandbox.pid)
    assert state.exited_at.seconds == -62135596800


def test_an_id_is_checked_before_the_options_make_a_path_of_it(shim: Shim) -> None:
    with shim.client() as client:
        code, message = refusal(client, "Create", pb.CreateTaskRequest(id="../x", bundle="/b"))
    assert (code, shim.asked) == (3, []) and "container id" in message


def test_unknown_services_and_methods_are_unimplemented(shim: Shim) -> None:
    with shim.client() as client:
        assert refusal(client, "State", service="containerd.task.v9.Task")[0] == 12
        assert refusal(client, "Fly")[0] == 12


def test_garbage_in_a_request_is_an_invalid_argument(shim: Shim) -> None:
    with shim.client() as client, pytest.raises(StatusError) as caught:
        client.call(SERVICES[0], "State", b"\xff\xff\xff", timeout=WAIT)
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "method", ["State", "Start", "Delete", "Pids", "Pause", "Resume", "Kill", "Wait", "Stats"]
)
def test_unknown_containers_are_not_found(shim: Shim, method: str) -> None:
    with shim.client() as client:
        code, message = refusal(client, method, pb.StateRequest(id="other"))
    assert code == 5
    assert "other" in message


def test_connect_never_fails(shim: Shim) -> None:
    shim.adopt()
    with shim.client() as client:
        known = pb.ConnectResponse.FromString(call(client, "Connect", pb.ConnectRequest(id="c")))
        other = pb.ConnectResponse.FromString(call(client, "Connect", pb.ConnectRequest(id="o")))
    assert known.task_pid == shim.bench.sandbox.pid
    assert other.task_pid == 0
    assert known.shim_pid == other.shim_pid > 0


def test_wait_is_answered_when_the_task_ends_and_holds_nothing_up(shim: Shim) -> None:
    shim.adopt()
    shim.bench.run()
    replies: list[bytes] = []
    with shim.client() as waiting, shim.client() as client:
        thread = threading.Thread(
            target=lambda: replies.append(call(waiting, "Wait", pb.WaitRequest(id="c")))
        )
        thread.start()
        call(client, "State", pb.StateRequest(id="c"))
        shim.bench.sandbox.end(7)
        thread.join(WAIT)
        again = call(client, "Wait", pb.WaitRequest(id="c"))
    assert pb.WaitResponse.FromString(replies[0]).exit_status == 7
    assert pb.WaitResponse.FromString(again).exit_status == 7


def test_a_slow_creation_blocks_no_other_call(shim: Shim) -> None:
    shim.adopt()
    entered, go_on = threading.Event(), threading.Event()

    def slow(container: Any) -> int:
        entered.set()
        assert go_on.wait(WAIT)
        return 1

    shim.make = slow
    with shim.client() as client:
        request = pb.CreateTaskRequest(id="new", bundle="/b")
        thread = threading.Thread(target=lambda: call(client, "Create", request))
        thread.start()
        assert entered.wait(WAIT)
        call(client, "State", pb.StateRequest(id="c"))
        assert refusal(client, "State", pb.StateRequest(id="new"))[0] == 9
        assert refusal(client, "Create", request)[0] == 6
        go_on.set()
        thread.join(WAIT)


def test_a_bundle_without_start_gets_our_address(shim: Shim, tmp_path: Path) -> None:
    # containerd 1.x, put back in place of 2.x, finds its tasks by nothing else.
    with shim.client() as client:
        call(client, "Create", pb.CreateTaskRequest(id="c", bundle=str(tmp_path)), SERVICES[1])
    assert (tmp_path / "address").read_text() == "unix:///run/s/1"


def test_a_bundle_that_no_path_can_name_is_refused(shim: Shim) -> None:
    with shim.client() as client:
        request = pb.CreateTaskRequest(id="new", bundle="/a\0b")
        assert refusal(client, "Create", request) == (
            3,
            "bundle: contains a NUL character (code 3)",
        )


def test_an_exec_spec_that_is_no_json_is_refused(shim: Shim) -> None:
    shim.adopt()
    shim.bench.run()
    spec = AnyMessage(type_url="Process", value=b"{")
    with shim.client() as client:
        code, message = refusal(
            client, "Exec", pb.ExecProcessRequest(id="c", exec_id="e", spec=spec)
        )
    assert code == 3
    assert "exec spec" in message


def test_a_checkpoint_of_what_does_not_run_is_refused(shim: Shim) -> None:
    shim.adopt()
    with shim.client() as client:
        assert refusal(client, "Checkpoint", pb.CheckpointTaskRequest(id="other"))[0] == 5
        code, message = refusal(client, "Checkpoint", pb.CheckpointTaskRequest(id="c", path="/i"))
        assert (code, "in state created" in message) == (9, True)


# -- the end of the shim ----------------------------------------------------------------------


def test_shutdown_ends_an_empty_shim_only(shim: Shim) -> None:
    shim.adopt()
    with shim.client() as client:
        call(client, "Shutdown", pb.ShutdownRequest(id="c"))
        assert not shim.stopped.is_set()
        call(client, "State", pb.StateRequest(id="c"))
        call(client, "Delete", pb.DeleteRequest(id="c"))
        call(client, "Shutdown", pb.ShutdownRequest(id="c"))
        assert shim.stopped.wait(WAIT)


def test_a_shutdown_after_every_task_ends_no_pod(shim: Shim, tmp_path: Path) -> None:
    """Releases of containerd after 2.4.0-beta.0 send one for each task that they delete."""
    member = Bench()
    member.container.settled.set()
    try:
        shim.adopt()
        shim.pod._containers["member"] = member.container
        with shim.client() as client:
            call(client, "Delete", pb.DeleteRequest(id="member"))
            call(client, "Shutdown", pb.ShutdownRequest(id="member"))
            assert not shim.stopped.is_set()
            call(client, "State", pb.StateRequest(id="c"))
            assert call(client, "Create", pb.CreateTaskRequest(id="new", bundle=str(tmp_path)))
            call(client, "Delete", pb.DeleteRequest(id="c"))
            call(client, "Shutdown", pb.ShutdownRequest(id="c"))
            assert not shim.stopped.is_set()
    finally:
        member.workers.stop()


def test_a_shutdown_that_comes_during_a_deletion_counts_once_all_have_left(shim: Shim) -> None:
    shim.adopt()
    with shim.client() as client:
        call(client, "Shutdown", pb.ShutdownRequest(id="pod"))
    with shim.client() as client:
        assert not shim.stopped.is_set(), "there is a container left"
        call(client, "Delete", pb.DeleteRequest(id="c"))
        assert not shim.stopped.is_set(), "somebody may make another"
    assert shim.stopped.wait(WAIT)


def test_an_end_is_kept_back_while_its_output_is_being_read(shim: Shim) -> None:
    shim.adopt()
    io = FakeIO()
    shim.bench.container.init.attach(io)
    shim.bench.run()
    with shim.client() as client:
        call(client, "State", pb.StateRequest(id="c"))
        assert io.awaited == [], "it runs"
        shim.bench.sandbox.end(7)
        call(client, "Wait", pb.WaitRequest(id="c"))
        call(client, "State", pb.StateRequest(id="c"))
    assert io.awaited == [(READER_PATIENCE, READING_TIMEOUT)]


def test_a_shutdown_that_comes_during_a_creation_counts_once_that_fails(shim: Shim) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def fail(container: Any) -> int:
        entered.set()
        assert go_on.wait(WAIT)
        raise Failed("no rootfs")

    shim.make = fail
    with shim.client() as client:
        thread = threading.Thread(
            target=lambda: refusal(client, "Create", pb.CreateTaskRequest(id="new"))
        )
        thread.start()
        assert entered.wait(WAIT)
        call(client, "Shutdown", pb.ShutdownRequest(id="new"))
        assert not shim.stopped.is_set()
        go_on.set()
        thread.join(WAIT)
        assert shim.stopped.wait(WAIT)


def test_a_creation_whose_caller_has_gone_is_given_up_and_with_it_the_shim(shim: Shim) -> None:
    entered = threading.Event()
    told: list[bool] = []

    def give_up(container: Any) -> int:
        entered.set()
        told.append(container.abandoned.wait(WAIT))
        raise Failed("given up")

    shim.make = give_up
    client = shim.client()

    def create() -> None:
        with pytest.raises(Exception, match=r"."):
            call(client, "Create", pb.CreateTaskRequest(id="new"))

    thread = threading.Thread(target=create)
    thread.start()
    assert entered.wait(WAIT)
    client.close()
    thread.join(WAIT)
    assert shim.stopped.wait(2 * WAIT)
    assert told == [True]


def test_a_creation_whose_caller_goes_just_as_it_ends_is_undone_as_well(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing tells of the end before the answer finds that nobody is there."""
    entered, go_on = threading.Event(), threading.Event()

    def make(container: Any) -> int:
        entered.set()
        assert go_on.wait(WAIT)
        return 4711

    shim.make = make
    monkeypatch.setattr(Call, "cancelled", False)
    deleted: list[str] = []

    def delete(ident: str) -> None:
        deleted.append(ident)
        shim.pod._forget(ident)

    monkeypatch.setattr(shim.pod, "delete", delete)
    client = shim.client()

    def create() -> None:
        with pytest.raises(Exception, match=r"."):
            call(client, "Create", pb.CreateTaskRequest(id="new", bundle=str(tmp_path)))

    thread = threading.Thread(target=create)
    thread.start()
    assert entered.wait(WAIT)
    client.close()
    thread.join(WAIT)
    go_on.set()
    assert shim.stopped.wait(WAIT)
    assert deleted == ["new"]


def test_a_failed_creation_by_itself_does_not_end_the_shim(shim: Shim) -> None:
    def fail(container: Any) -> int:
        raise Failed("no rootfs")

    shim.make = fail
    with shim.client() as client:
        code, message = refusal(client, "Create", pb.CreateTaskRequest(id="new"))
        assert (code, "no rootfs" in message) == (2, True)
        assert not shim.stopped.is_set()
        call(client, "Shutdown", pb.ShutdownRequest(id="new"))
        assert shim.stopped.wait(WAIT)


# -- every Wait is answered -------------------------------------------------------------------


def test_a_wait_for_what_is_being_created_is_refused(shim: Shim) -> None:
    """Its creation may fail, and then there is never an end to tell of."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(container: Any) -> int:
        entered.set()
        assert go_on.wait(WAIT)
        raise Failed("no")

    shim.make = slow
    with shim.client() as client:
        request = pb.CreateTaskRequest(id="new", bundle="/b")
        thread = threading.Thread(target=lambda: refusal(client, "Create", request))
        thread.start()
        assert entered.wait(WAIT)
        assert refusal(client, "Wait", pb.WaitRequest(id="new"))[0] == 9
        go_on.set()
        thread.join(WAIT)


@pytest.mark.parametrize("whole", [False, True], ids=["exec", "container"])
def test_a_wait_for_an_exec_that_never_ran_is_answered_when_it_is_deleted(
    shim: Shim, whole: bool
) -> None:
    shim.adopt()
    spec = AnyMessage(type_url="Process", value=b'{"args":["x"],"cwd":"/","user":{}}')
    with shim.client() as waiting, shim.client() as client:
        if whole:
            shim.bench.run()
        call(client, "Exec", pb.ExecProcessRequest(id="c", exec_id="e", spec=spec))
        replies: list[bytes] = []
        request = pb.WaitRequest(id="c", exec_id="e")
        thread = threading.Thread(target=lambda: replies.append(call(waiting, "Wait", request)))
        thread.start()
        process = shim.bench.container.process("e")
        while not process._waiters:
            assert thread.is_alive()
            threading.Event().wait(0.005)
        if whole:
            shim.bench.sandbox.end(0)
            call(client, "Delete", pb.DeleteRequest(id="c"))
        else:
            call(client, "Delete", pb.DeleteRequest(id="c", exec_id="e"))
        thread.join(WAIT)
    assert pb.WaitResponse.FromString(replies[0]).exit_status == (137 if whole else 0)


def test_an_exec_whose_container_is_deleted_while_its_stdio_is_opened(shim: Shim) -> None:
    """Nothing of it is told, and its descriptors are closed."""
    shim.adopt()
    bench = shim.bench
    bench.run()
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert go_on.wait(WAIT)

    bench.refuse_io = slow
    spec = AnyMessage(type_url="Process", value=b'{"args":["x"],"cwd":"/","user":{}}')
    request = pb.ExecProcessRequest(id="c", exec_id="e", spec=spec)
    codes: list[int] = []
    with shim.client() as client, shim.client() as other:
        thread = threading.Thread(target=lambda: codes.append(refusal(other, "Exec", request)[0]))
        thread.start()
        assert entered.wait(WAIT)
        bench.sandbox.end(0)
        call(client, "Delete", pb.DeleteRequest(id="c"))
        go_on.set()
        thread.join(WAIT)
    assert codes == [5]
    assert all(io.closed for io in bench.io)
    assert bench.names() == ["TaskCreated", "TaskStarted", "TaskExited", "TaskDeleted"]
