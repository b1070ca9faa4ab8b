"""Domain values in protobuf's clothes."""

from __future__ import annotations

import pytest

from protos import task_pb2 as pb
from protos.wkt_pb2 import Any
from runtime.base.errors import InvalidRequest
from runtime.task.lifecycle import State
from runtime.task.process import Exit, IORequest, Snapshot
from shim.base import convert


def test_no_exit_is_gos_zero_time() -> None:
    assert convert.timestamp(None).seconds == -62135596800


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, (0, 0)), (1.25, (1, 250_000_000)), (-0.5, (-1, 500_000_000))],
)
def test_times_split_into_seconds_and_nanoseconds(
    seconds: float, expected: tuple[int, int]
) -> None:
    stamp = convert.timestamp(seconds)
    assert (stamp.seconds, stamp.nanos) == expected


@pytest.mark.parametrize("state", [s for s in State.members if s is not State.CREATING])
def test_every_state_that_can_be_seen_has_a_status(state: State) -> None:
    assert convert.STATUS[state] in range(1, 6)


def test_the_state_of_an_exec_carries_its_id_twice() -> None:
    snapshot = Snapshot(
        state=State.STOPPED, pid=7, exit=Exit(status=3, at=2.0), io=IORequest(stdout="/o")
    )
    reply = pb.StateResponse.FromString(convert.state_response(snapshot, "c", "e", "/b"))
    assert (reply.id, reply.exec_id, reply.bundle, reply.pid) == ("e", "e", "/b", 7)
    assert (reply.status, reply.exit_status, reply.stdout) == (pb.STOPPED, 3, "/o")
    assert reply.exited_at.seconds == 2


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "missing"),
        (Any(type_url="x/LinuxResources", value=b"{"), "not JSON"),
        (Any(type_url="x/LinuxResources", value=b"[]"), "not a JSON object"),
        (Any(type_url="x/WindowsResources", value=b"{}"), "WindowsResources"),
    ],
)
def test_bad_resources_say_what_is_wrong(value: Any | None, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        convert.resources(value)


def test_resources_are_the_json_object() -> None:
    value = Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=b'{"memory":{"limit":1}}',
    )
    assert convert.resources(value) == {"memory": {"limit": 1}}


@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
def test_pipes_that_no_path_can_name_are_refused(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}: contains a NUL"):
        convert.io_request(pb.ExecProcessRequest(**{field: "/a\0b"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mount",
    [pb.Mount(type="\0"), pb.Mount(source="\0"), pb.Mount(target="\0"), pb.Mount(options=["\0"])],
)
def test_mounts_that_no_word_can_name_are_refused(mount: pb.Mount) -> None:
    with pytest.raises(InvalidRequest, match=r"rootfs: .*NUL"):
        convert.rootfs(pb.CreateTaskRequest(rootfs=[mount]))
