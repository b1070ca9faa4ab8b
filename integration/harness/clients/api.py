"""The parts of containerd's API that the tests speak, as tables.

Field numbers are those of api/services/*, api/types/* and api/runtime/task/* in containerd.
"""

from __future__ import annotations

from integration.harness.clients.wire import Msg, Schema

Empty = Schema("")
Any_ = Schema("type_url:1 value:2:bytes")
Timestamp = Schema("seconds:1:int nanos:2:int")
Mount = Schema("type:1 source:2 target:3 options:4*")
Status = Schema("code:1:int message:2")

# The daemon's services (gRPC): request and reply of each method.
_PROCESS = Schema(
    "container_id:1 id:2 pid:3:uint status:4:uint stdin:5 stdout:6 stderr:7 terminal:8:bool"
    " exit_status:9:uint exited_at:10:@",
    Timestamp,
)
_PROCESS_INFO = Schema("pid:1:uint info:2:@", Any_)
_DELETED = Schema("id:1 pid:2:uint exit_status:3:uint exited_at:4:@", Timestamp)
_WAITED = Schema("exit_status:1:uint exited_at:2:@", Timestamp)
_ONE = Schema("container_id:1")
_PAIR = Schema("container_id:1 exec_id:2")
_RUNTIME = Schema("name:1 options:2:@", Any_)
_CONTAINER = Schema(
    "id:1 labels:2:map image:3 runtime:4:@ spec:5:@ snapshotter:6 snapshot_key:7 sandbox:11",
    _RUNTIME,
    Any_,
)
_METRIC = Schema("timestamp:1:@ id:2 data:3:@", Timestamp, Any_)
Envelope = Schema("timestamp:1:@ namespace:2 topic:3 event:4:@", Timestamp, Any_)

_T = "containerd.services.tasks.v1.Tasks"
_C = "containerd.services.containers.v1.Containers"
_S = "containerd.services.snapshots.v1.Snapshots"
DAEMON: dict[str, tuple[Schema, Schema]] = {
    f"{_T}/Create": (
        Schema(
            "container_id:1 rootfs:3:@* stdin:4 stdout:5 stderr:6 terminal:7:bool options:9:@"
            " runtime_path:10",
            Mount,
            Any_,
        ),
        Schema("container_id:1 pid:2:uint"),
    ),
    f"{_T}/Start": (_PAIR, Schema("pid:1:uint")),
    f"{_T}/Delete": (_ONE, _DELETED),
    f"{_T}/DeleteProcess": (_PAIR, _DELETED),
    f"{_T}/Get": (_PAIR, Schema("process:1:@", _PROCESS)),
    f"{_T}/List": (Schema("filter:1"), Schema("tasks:1:@*", _PROCESS)),
    f"{_T}/Kill": (Schema("container_id:1 exec_id:2 signal:3:uint all:4:bool"), Empty),
    f"{_T}/Exec": (
        Schema("container_id:1 stdin:2 stdout:3 stderr:4 terminal:5:bool spec:6:@ exec_id:7", Any_),
        Empty,
    ),
    f"{_T}/ResizePty": (Schema("container_id:1 exec_id:2 width:3:uint height:4:uint"), Empty),
    f"{_T}/CloseIO": (Schema("container_id:1 exec_id:2 stdin:3:bool"), Empty),
    f"{_T}/Pause": (_ONE, Empty),
    f"{_T}/Resume": (_ONE, Empty),
    f"{_T}/ListPids": (_ONE, Schema("processes:1:@*", _PROCESS_INFO)),
    f"{_T}/Checkpoint": (
        Schema("container_id:1 parent_checkpoint:2 options:3:@", Any_),
        Schema("descriptors:1:bytes*"),
    ),
    f"{_T}/Update": (
        Schema("container_id:1 resources:2:@ annotations:3:map", Any_),
        Empty,
    ),
    f"{_T}/Metrics": (Schema("filters:1*"), Schema("metrics:1:@*", _METRIC)),
    f"{_T}/Wait": (_PAIR, _WAITED),
    f"{_C}/Create": (Schema("container:1:@", _CONTAINER), Schema("container:1:@", _CONTAINER)),
    f"{_C}/Get": (Schema("id:1"), Schema("container:1:@", _CONTAINER)),
    f"{_C}/List": (Schema("filters:1*"), Schema("containers:1:@*", _CONTAINER)),
    f"{_C}/Delete": (Schema("id:1"), Empty),
    f"{_S}/Prepare": (
        Schema("snapshotter:1 key:2 parent:3 labels:4:map"),
        Schema("mounts:1:@*", Mount),
    ),
    f"{_S}/Remove": (Schema("snapshotter:1 key:2"), Empty),
}
SUBSCRIBE = "containerd.services.events.v1.Events/Subscribe"
Subscribe = Schema("filters:1*")

# The shim's task service (ttrpc).
TASK_SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
_SHIM_DELETED = Schema("pid:1:uint exit_status:2:uint exited_at:3:@", Timestamp)
_SHIM_ONE = Schema("id:1")
_SHIM_PAIR = Schema("id:1 exec_id:2")
TASK: dict[str, tuple[Schema, Schema]] = {
    "Create": (
        Schema(
            "id:1 bundle:2 rootfs:3:@* terminal:4:bool stdin:5 stdout:6 stderr:7 checkpoint:8"
            " parent_checkpoint:9 options:10:@",
            Mount,
            Any_,
        ),
        Schema("pid:1:uint"),
    ),
    "Start": (_SHIM_PAIR, Schema("pid:1:uint")),
    "Delete": (_SHIM_PAIR, _SHIM_DELETED),
    "Exec": (
        Schema("id:1 exec_id:2 terminal:3:bool stdin:4 stdout:5 stderr:6 spec:7:@", Any_),
        Empty,
    ),
    "ResizePty": (Schema("id:1 exec_id:2 width:3:uint height:4:uint"), Empty),
    "CloseIO": (Schema("id:1 exec_id:2 stdin:3:bool"), Empty),
    "Kill": (Schema("id:1 exec_id:2 signal:3:uint all:4:bool"), Empty),
    "State": (
        _SHIM_PAIR,
        Schema(
            "id:1 bundle:2 pid:3:uint status:4:uint stdin:5 stdout:6 stderr:7 terminal:8:bool"
            " exit_status:9:uint exited_at:10:@ exec_id:11",
            Timestamp,
        ),
    ),
    "Pids": (_SHIM_ONE, Schema("processes:1:@*", _PROCESS_INFO)),
    "Pause": (_SHIM_ONE, Empty),
    "Resume": (_SHIM_ONE, Empty),
    "Checkpoint": (Schema("id:1 path:2 options:3:@", Any_), Empty),
    "Update": (Schema("id:1 resources:2:@ annotations:3:map", Any_), Empty),
    "Wait": (_SHIM_PAIR, _WAITED),
    "Stats": (_SHIM_ONE, Schema("stats:1:@", Any_)),
    "Connect": (_SHIM_ONE, Schema("shim_pid:1:uint task_pid:2:uint version:3")),
    "Shutdown": (Schema("id:1 now:2:bool"), Empty),
}
Deleted = _SHIM_DELETED

# Task events, by type name; `exited_at` and the like are left out where no test asks for them.
EVENTS: dict[str, Schema] = {
    "containerd.events.TaskCreate": Schema("container_id:1 bundle:2 pid:6:uint"),
    "containerd.events.TaskStart": Schema("container_id:1 pid:2:uint"),
    "containerd.events.TaskDelete": Schema(
        "container_id:1 pid:2:uint exit_status:3:uint exited_at:4:@ id:5", Timestamp
    ),
    "containerd.events.TaskExit": Schema(
        "container_id:1 id:2 pid:3:uint exit_status:4:uint exited_at:5:@", Timestamp
    ),
    "containerd.events.TaskOOM": Schema("container_id:1"),
    "containerd.events.TaskExecAdded": Schema("container_id:1 exec_id:2"),
    "containerd.events.TaskExecStarted": Schema("container_id:1 exec_id:2 pid:3:uint"),
    "containerd.events.TaskPaused": Schema("container_id:1"),
    "containerd.events.TaskResumed": Schema("container_id:1"),
    "containerd.events.TaskCheckpointed": Schema("container_id:1 checkpoint:2"),
}

# Metrics of a cgroup v1 host (io.containerd.cgroups.v1.Metrics), the fields that tests look at.
_ENTRY = Schema("limit:1:uint usage:2:uint max:3:uint failcnt:4:uint")
METRICS_V1 = "io.containerd.cgroups.v1.Metrics"
MetricsV1 = Schema(
    "pids:2:@ cpu:3:@ memory:4:@ memory_oom_control:9:@",
    Schema("current:1:uint limit:2:uint"),
    Schema(
        "usage:1:@ throttling:2:@",
        Schema("total:1:uint kernel:2:uint user:3:uint"),
        Schema("periods:1:uint throttled_periods:2:uint throttled_time:3:uint"),
    ),
    Schema(
        "cache:1:uint rss:2:uint total_rss:19:uint total_inactive_file:29:uint"
        " usage:33:@ swap:34:@",
        _ENTRY,
        _ENTRY,
    ),
    Schema("oom_kill_disable:1:uint under_oom:2:uint oom_kill:3:uint"),
)
METRICS_V2 = "io.containerd.cgroups.v2.Metrics"
MetricsV2 = Schema(
    "pids:1:@ cpu:2:@ memory:4:@",
    Schema("current:1:uint limit:2:uint"),
    Schema("usage_usec:1:uint user_usec:2:uint system_usec:3:uint"),
    Schema("anon:1:uint file:2:uint inactive_file:13:uint usage:32:uint usage_limit:33:uint"),
)

STATUS_NAMES = ("UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING")


class Code:
    """The gRPC status codes that the tests name."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


def process_spec(spec: object) -> dict[str, object]:
    """The Any in which containerd's clients send an exec's OCI process."""
    return packed("types.containerd.io/opencontainers/runtime-spec/1/Process", spec)


def packed(type_url: str, value: object) -> dict[str, object]:
    """An Any of `value`: bytes as they are, anything else as JSON."""
    import json

    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {"type_url": type_url, "value": body}


def event_of(envelope: Msg) -> tuple[str, Msg]:
    """Topic and decoded event of an envelope; the event is empty when its type is not ours."""
    schema = EVENTS.get(envelope.event.type_url.rpartition("/")[2])
    return envelope.topic, schema.decode(envelope.event.value) if schema else Msg()
