"""Between protobuf messages and the domain's types, both ways.

No protobuf object passes below this module, no domain object leaves the shim but through it.
"""

from __future__ import annotations

from protos import task_pb2 as pb
from protos.wkt_pb2 import Any, Timestamp
from runtime.base import fastjson
from runtime.base.errors import InvalidRequest
from runtime.bundle.mount_options import RootfsMount
from runtime.task.lifecycle import State
from runtime.task.process import IORequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from protos.runc_pb2 import CheckpointOptions
    from runtime.task.process import Snapshot

#: Go's zero time, which clients recognise as "not exited"; 1970 would look like a date.
ZERO_TIME_SECONDS: Final = -62135596800

#: Transient states show the state that clients can act on.
STATUS: Final = {
    State.CREATED: pb.CREATED,
    State.STARTING: pb.CREATED,
    State.RUNNING: pb.RUNNING,
    State.PAUSING: pb.PAUSING,
    State.PAUSED: pb.PAUSED,
    State.RESUMING: pb.PAUSED,
    State.CHECKPOINTING: pb.RUNNING,
    State.CHECKPOINTING_PAUSED: pb.PAUSED,
    State.STOPPED: pb.STOPPED,
    State.DELETING: pb.STOPPED,
    State.DELETED: pb.STOPPED,
}


def timestamp(seconds: float | None) -> Timestamp:
    """Seconds since the epoch as a Timestamp; None is Go's zero time."""
    if seconds is None:
        return Timestamp(seconds=ZERO_TIME_SECONDS)
    whole = int(seconds // 1)
    return Timestamp(seconds=whole, nanos=min(int((seconds - whole) * 1e9), 999_999_999))


def text(field: str, value: str) -> str:
    """``value`` if the kernel can be told it, as a path or a word.  Raises InvalidRequest."""
    if "\0" in value:
        raise InvalidRequest(field, "contains a NUL character")
    return value


def io_request(
    request: pb.CreateTaskRequest | pb.ExecProcessRequest,
) -> IORequest:
    """Raises InvalidRequest."""
    return IORequest(
        stdin=text("stdin", request.stdin),
        stdout=text("stdout", request.stdout),
        stderr=text("stderr", request.stderr),
        terminal=request.terminal,
    )


def rootfs(request: pb.CreateTaskRequest) -> tuple[RootfsMount, ...]:
    """Raises InvalidRequest."""
    return tuple(
        RootfsMount(
            type=text("rootfs: type", mount.type),
            source=text("rootfs: source", mount.source),
            target=text("rootfs: target", mount.target),
            options=tuple(text("rootfs: options", each) for each in mount.options),
        )
        for mount in request.rootfs
    )


def state_response(snapshot: Snapshot, container_id: str, exec_id: str, bundle: str) -> bytes:
    """``StateResponse`` as containerd's runc shim fills it: for an exec, ``id`` is the exec's."""
    exit = snapshot.exit
    return pb.StateResponse(
        id=exec_id or container_id,
        bundle=bundle,
        pid=snapshot.pid,
        status=STATUS[snapshot.state],
        stdin=snapshot.io.stdin,
        stdout=snapshot.io.stdout,
        stderr=snapshot.io.stderr,
        terminal=snapshot.io.terminal,
        exit_status=exit.status if exit is not None else 0,
        exited_at=timestamp(exit.at if exit is not None else None),
        exec_id=exec_id,
    ).SerializeToString()


def checkpoint_options(value: Any) -> CheckpointOptions:
    """``containerd.runc.v1.CheckpointOptions``, or the defaults for options of another type."""
    from protos import runc_pb2

    if value.type_url.rsplit("/", 1)[-1] != "containerd.runc.v1.CheckpointOptions":
        return runc_pb2.CheckpointOptions()
    return runc_pb2.CheckpointOptions.FromString(value.value)


def resources(value: Any | None) -> dict[str, object]:
    """The ``LinuxResources`` of an UpdateTaskRequest, which travels as JSON.

    Raises InvalidRequest.
    """
    if value is None or not value.value:
        raise InvalidRequest("resources", "missing")
    name = value.type_url.rsplit("/", 1)[-1]
    if name != "LinuxResources":
        raise InvalidRequest("resources", f"type {value.type_url!r} is not LinuxResources")
    try:
        decoded = fastjson.loads(value.value)
    except ValueError as error:
        raise InvalidRequest("resources", f"not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise InvalidRequest("resources", "not a JSON object")
    return decoded
