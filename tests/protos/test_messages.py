"""Messages against bytes written out by hand, so that a wrong field number cannot hide."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from protos import (
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    events_pb2,
    introspection_pb2,
    rpc_pb2,
    runc_pb2,
    runtimeoptions_pb2,
    sandbox_pb2,
    streaming_pb2,
    task_pb2,
    wkt_pb2,
)

ZERO_TIME = wkt_pb2.Timestamp(seconds=-62135596800)
ZERO_TIME_HEX = "08 8092b8c398feffffff01"
WHEN = wkt_pb2.Timestamp(seconds=1, nanos=2)
ANY = wkt_pb2.Any(type_url="t", value=b"v")
MOUNT = task_pb2.Mount(type="bind", source="/s", target="t", options=["ro", "rbind"])
MOUNT_HEX = "0a04 62696e64 1202 2f73 1a01 74 2202 726f 2205 7262696e64"

GOLDEN: list[tuple[Any, str]] = [
    (ZERO_TIME, ZERO_TIME_HEX),
    (wkt_pb2.Timestamp(seconds=1, nanos=2), "0801 1002"),
    (ANY, "0a01 74 1201 76"),
    (wkt_pb2.Empty(), ""),
    (MOUNT, MOUNT_HEX),
    (
        task_pb2.CreateTaskRequest(
            id="i",
            bundle="b",
            rootfs=[MOUNT],
            terminal=True,
            stdin="0",
            stdout="1",
            stderr="2",
            checkpoint="c",
            parent_checkpoint="p",
            options=ANY,
        ),
        f"0a01 69 1201 62 1a18 {MOUNT_HEX} 2001 2a01 30 3201 31 3a01 32 4201 63 4a01 70"
        " 5206 0a01 74 1201 76",
    ),
    (task_pb2.CreateTaskResponse(pid=300), "08 ac02"),
    (task_pb2.StartRequest(id="i", exec_id="e"), "0a01 69 1201 65"),
    (task_pb2.StartResponse(pid=1), "0801"),
    (task_pb2.DeleteRequest(id="i", exec_id="e"), "0a01 69 1201 65"),
    (
        task_pb2.DeleteResponse(pid=7, exit_status=137, exited_at=WHEN),
        "0807 10 8901 1a04 0801 1002",
    ),
    (
        task_pb2.ExecProcessRequest(
            id="i", exec_id="e", terminal=True, stdin="0", stdout="1", stderr="2", spec=ANY
        ),
        "0a01 69 1201 65 1801 2201 30 2a01 31 3201 32 3a06 0a01 74 1201 76",
    ),
    (
        task_pb2.ResizePtyRequest(id="i", exec_id="e", width=80, height=24),
        "0a01 69 1201 65 1850 2018",
    ),
    (task_pb2.StateRequest(id="i", exec_id="e"), "0a01 69 1201 65"),
    (
        task_pb2.StateResponse(
            id="i",
            bundle="b",
            pid=7,
            status=task_pb2.STOPPED,
            stdin="0",
            stdout="1",
            stderr="2",
            terminal=True,
            exit_status=9,
            exited_at=ZERO_TIME,
            exec_id="e",
        ),
        f"0a01 69 1201 62 1807 2003 2a01 30 3201 31 3a01 32 4001 4809 520b {ZERO_TIME_HEX} 5a01 65",
    ),
    (
        task_pb2.KillRequest(id="i", exec_id="e", signal=15, all=True),
        "0a01 69 1201 65 180f 2001",
    ),
    (task_pb2.CloseIORequest(id="i", exec_id="e", stdin=True), "0a01 69 1201 65 1801"),
    (task_pb2.PidsRequest(id="i"), "0a01 69"),
    (
        task_pb2.PidsResponse(processes=[task_pb2.ProcessInfo(pid=1, info=ANY)]),
        "0a0a 0801 1206 0a01 74 1201 76",
    ),
    (task_pb2.PauseRequest(id="i"), "0a01 69"),
    (task_pb2.ResumeRequest(id="i"), "0a01 69"),
    (
        task_pb2.CheckpointTaskRequest(id="i", path="p", options=ANY),
        "0a01 69 1201 70 1a06 0a01 74 1201 76",
    ),
    (
        task_pb2.UpdateTaskRequest(id="i", resources=ANY, annotations={"k": "v"}),
        "0a01 69 1206 0a01 74 1201 76 1a06 0a01 6b 1201 76",
    ),
    (task_pb2.WaitRequest(id="i", exec_id="e"), "0a01 69 1201 65"),
    (task_pb2.WaitResponse(exit_status=1, exited_at=WHEN), "0801 1204 0801 1002"),
    (task_pb2.StatsRequest(id="i"), "0a01 69"),
    (task_pb2.StatsResponse(stats=ANY), "0a06 0a01 74 1201 76"),
    (task_pb2.ConnectRequest(id="i"), "0a01 69"),
    (task_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="3"), "0801 1002 1a01 33"),
    (task_pb2.ShutdownRequest(id="i", now=True), "0a01 69 1001"),
    (
        events_pb2.TaskCreate(
            container_id="c",
            bundle="b",
            rootfs=[MOUNT],
            io=events_pb2.TaskIO(stdin="0", stdout="1", stderr="2", terminal=True),
            checkpoint="k",
            pid=7,
        ),
        f"0a01 63 1201 62 1a18 {MOUNT_HEX} 220b 0a01 30 1201 31 1a01 32 2001 2a01 6b 3007",
    ),
    (events_pb2.TaskStart(container_id="c", pid=7), "0a01 63 1007"),
    (
        events_pb2.TaskDelete(container_id="c", pid=7, exit_status=1, exited_at=WHEN, id="e"),
        "0a01 63 1007 1801 2204 0801 1002 2a01 65",
    ),
    (
        events_pb2.TaskExit(container_id="c", id="e", pid=7, exit_status=1, exited_at=WHEN),
        "0a01 63 1201 65 1807 2001 2a04 0801 1002",
    ),
    (events_pb2.TaskOOM(container_id="c"), "0a01 63"),
    (events_pb2.TaskExecAdded(container_id="c", exec_id="e"), "0a01 63 1201 65"),
    (
        events_pb2.TaskExecStarted(container_id="c", exec_id="e", pid=7),
        "0a01 63 1201 65 1807",
    ),
    (events_pb2.TaskPaused(container_id="c"), "0a01 63"),
    (events_pb2.TaskResumed(container_id="c"), "0a01 63"),
    (events_pb2.TaskCheckpointed(container_id="c", checkpoint="k"), "0a01 63 1201 6b"),
    (
        events_pb2.ForwardRequest(
            envelope=events_pb2.Envelope(timestamp=WHEN, namespace="n", topic="/t", event=ANY)
        ),
        "0a15 0a04 0801 1002 1201 6e 1a02 2f74 2206 0a01 74 1201 76",
    ),
    (
        runtimeoptions_pb2.Options(type_url="t", config_path="p", config_body=b"\x00\xff"),
        "0a01 74 1201 70 1a02 00ff",
    ),
    (
        runc_pb2.Options(
            no_pivot_root=True,
            no_new_keyring=True,
            shim_cgroup="s",
            io_uid=1,
            io_gid=2,
            binary_name="b",
            root="r",
            systemd_cgroup=True,
            criu_image_path="i",
            criu_work_path="w",
            task_api_address="a",
            task_api_version=3,
        ),
        "0801 1001 1a01 73 2001 2802 3201 62 3a01 72 4801 5201 69 5a01 77 6201 61 6803",
    ),
    (
        runc_pb2.CheckpointOptions(
            exit=True,
            open_tcp=True,
            external_unix_sockets=True,
            terminal=True,
            file_locks=True,
            empty_namespaces=["n"],
            cgroups_mode="m",
            image_path="i",
            work_path="w",
            parent_path="p",
        ),
        "0801 1001 1801 2001 2801 3201 6e 3a01 6d 4201 69 4a01 77 5201 70",
    ),
    (runc_pb2.ProcessDetails(exec_id="e"), "0a01 65"),
    (
        introspection_pb2.RuntimeInfo(
            name="n",
            version=introspection_pb2.RuntimeVersion(version="1", revision="2"),
            options=ANY,
            features=ANY,
            annotations={"k": "v"},
        ),
        "0a01 6e 1206 0a01 31 1201 32 1a06 0a01 74 1201 76 2206 0a01 74 1201 76"
        " 2a06 0a01 6b 1201 76",
    ),
    (
        bootstrap_pb2.BootstrapParams(
            instance_id="i",
            namespace="n",
            log_level=bootstrap_pb2.LOG_LEVEL_DEBUG,
            containerd_version="v",
            containerd_ttrpc_address="t",
            containerd_grpc_address="g",
            containerd_binary="b",
            extensions=[bootstrap_pb2.Extension(value=ANY)],
            socket_dir="d",
        ),
        "0a01 69 1201 6e 18 fcffffffffffffffff01 2201 76 2a01 74 3201 67 3a01 62"
        " 4208 0a06 0a01 74 1201 76 4a01 64",
    ),
    (
        bootstrap_pb2.BootstrapResult(
            version=3, address="a", protocol="p", capabilities=[1], metadata={"k": "v"}
        ),
        "0803 1201 61 1a01 70 2201 01 2a06 0a01 6b 1201 76",
    ),
    (
        sandbox_pb2.CreateSandboxRequest(
            sandbox_id="s",
            bundle_path="b",
            rootfs=[MOUNT],
            options=ANY,
            netns_path="n",
            annotations={"k": "v"},
        ),
        f"0a01 73 1201 62 1a18 {MOUNT_HEX} 2206 0a01 74 1201 76 2a01 6e 3206 0a01 6b 1201 76",
    ),
    (
        sandbox_pb2.StartSandboxResponse(pid=7, created_at=WHEN, spec=ANY),
        "0807 1204 0801 1002 1a06 0a01 74 1201 76",
    ),
    (
        sandbox_pb2.PlatformResponse(
            platform=sandbox_pb2.Platform(os="o", architecture="a", variant="v")
        ),
        "0a09 0a01 6f 1201 61 1a01 76",
    ),
    (sandbox_pb2.StopSandboxRequest(sandbox_id="s", timeout_secs=5), "0a01 73 1005"),
    (sandbox_pb2.WaitSandboxResponse(exit_status=1, exited_at=WHEN), "0801 1204 0801 1002"),
    (sandbox_pb2.SandboxStatusRequest(sandbox_id="s", verbose=True), "0a01 73 1001"),
    (
        sandbox_pb2.SandboxStatusResponse(
            sandbox_id="s",
            pid=7,
            state="r",
            info={"k": "v"},
            created_at=WHEN,
            exited_at=WHEN,
            extra=ANY,
        ),
        "0a01 73 1007 1a01 72 2206 0a01 6b 1201 76 2a04 0801 1002 3204 0801 1002"
        " 3a06 0a01 74 1201 76",
    ),
    (
        sandbox_pb2.SandboxMetricsResponse(
            metrics=sandbox_pb2.Metric(timestamp=WHEN, id="i", data=ANY)
        ),
        "0a11 0a04 0801 1002 1201 69 1a06 0a01 74 1201 76",
    ),
    (streaming_pb2.StreamInit(id="i"), "0a01 69"),
    (streaming_pb2.Data(data=b"d"), "0a01 64"),
    (streaming_pb2.WindowUpdate(update=65536), "08 808004"),
    (rpc_pb2.Status(code=5, message="m", details=[ANY]), "0805 1201 6d 1a06 0a01 74 1201 76"),
    (
        cgroups_v1_pb2.Metrics(
            hugetlb=[cgroups_v1_pb2.HugetlbStat(usage=1, max=2, failcnt=3, pagesize="p")],
            pids=cgroups_v1_pb2.PidsStat(current=1, limit=2),
            cpu=cgroups_v1_pb2.CPUStat(
                usage=cgroups_v1_pb2.CPUUsage(total=1, kernel=2, user=3, per_cpu=[4, 5]),
                throttling=cgroups_v1_pb2.Throttle(
                    periods=1, throttled_periods=2, throttled_time=3
                ),
            ),
            memory=cgroups_v1_pb2.MemoryStat(
                cache=1,
                rss=2,
                total_rss=3,
                total_pg_fault=4,
                total_pg_maj_fault=5,
                total_inactive_file=6,
                usage=cgroups_v1_pb2.MemoryEntry(limit=1, usage=2, max=3, failcnt=4),
                kernel_tcp=cgroups_v1_pb2.MemoryEntry(limit=(1 << 64) - 1),
            ),
            memory_oom_control=cgroups_v1_pb2.MemoryOomControl(
                oom_kill_disable=1, under_oom=2, oom_kill=3
            ),
        ),
        "0a09 0801 1002 1803 2201 70"
        " 1204 0801 1002"
        " 1a14 0a0a 0801 1002 1803 2202 0405 1206 0801 1002 1803"
        " 2229 0801 1002 980103 d00104 d80105 f00106 8a0208 0801 1002 1803 2004"
        " a2020b 08 ffffffffffffffffff01"
        " 4a06 0801 1002 1803",
    ),
    (
        cgroups_v1_pb2.Metrics(
            blkio=cgroups_v1_pb2.BlkIOStat(
                io_service_bytes_recursive=[
                    cgroups_v1_pb2.BlkIOEntry(op="r", device="d", major=1, minor=2, value=3)
                ]
            ),
            network=[cgroups_v1_pb2.NetworkStat(name="e", rx_bytes=1, tx_bytes=6, tx_dropped=9)],
        ),
        "2a0e 0a0c 0a01 72 1201 64 1801 2002 2803 3a09 0a01 65 1001 3006 4809",
    ),
    (
        cgroups_v2_pb2.Metrics(
            pids=cgroups_v2_pb2.PidsStat(current=1, limit=2),
            cpu=cgroups_v2_pb2.CPUStat(
                usage_usec=1,
                user_usec=2,
                system_usec=3,
                nr_periods=4,
                nr_throttled=5,
                throttled_usec=6,
                psi=cgroups_v2_pb2.PSIStats(
                    some=cgroups_v2_pb2.PSIData(avg10=1.0, total=4),
                    full=cgroups_v2_pb2.PSIData(avg300=2.0),
                ),
            ),
            memory=cgroups_v2_pb2.MemoryStat(
                anon=1,
                file=2,
                inactive_file=13,
                pgfault=18,
                pgmajfault=19,
                usage=32,
                usage_limit=33,
                swap_usage=34,
                swap_limit=35,
                max_usage=36,
                swap_max_usage=37,
            ),
            io=cgroups_v2_pb2.IOStat(
                usage=[cgroups_v2_pb2.IOEntry(major=1, minor=2, rbytes=3, wbytes=4, rios=5, wios=6)]
            ),
            memory_events=cgroups_v2_pb2.MemoryEvents(
                low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6
            ),
            network=[cgroups_v2_pb2.NetworkStat(name="e", rx_bytes=1, tx_bytes=6)],
        ),
        "0a04 0801 1002"
        " 1226 0801 1002 1803 2004 2805 3006"
        " 3a18 0a0b 09 000000000000f03f 2004 1209 19 0000000000000040"
        " 221e 0801 1002 680d 900112 980113 800220 880221 900222 980223 a00224 a80225"
        " 320e 0a0c 0801 1002 1803 2004 2805 3006"
        " 420c 0801 1002 1803 2004 2805 3006"
        " 4a07 0a01 65 1001 3006",
    ),
]


@pytest.mark.parametrize(("message", "encoded"), GOLDEN, ids=[type(m).__name__ for m, _ in GOLDEN])
def test_golden_bytes(message: Any, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert message.SerializeToString(deterministic=True).hex() == data.hex()
    assert type(message).FromString(data) == message


def test_type_names_are_those_that_any_carries() -> None:
    names: dict[Any, str] = {
        events_pb2.TaskExit: "containerd.events.TaskExit",
        runtimeoptions_pb2.Options: "runtimeoptions.v1.Options",
        runc_pb2.Options: "containerd.runc.v1.Options",
        runc_pb2.CheckpointOptions: "containerd.runc.v1.CheckpointOptions",
        runc_pb2.ProcessDetails: "containerd.runc.v1.ProcessDetails",
        cgroups_v1_pb2.Metrics: "io.containerd.cgroups.v1.Metrics",
        cgroups_v2_pb2.Metrics: "io.containerd.cgroups.v2.Metrics",
        streaming_pb2.StreamInit: "containerd.services.streaming.v1.StreamInit",
        streaming_pb2.Data: "containerd.types.transfer.Data",
        streaming_pb2.WindowUpdate: "containerd.types.transfer.WindowUpdate",
        wkt_pb2.Any: "google.protobuf.Any",
    }
    assert {cls.DESCRIPTOR.full_name for cls in names} == set(names.values())


def test_unknown_fields_survive() -> None:
    data = bytes.fromhex("0a01 69 9a06 03 616263 a00601")
    request = task_pb2.PidsRequest.FromString(data)
    assert request.id == "i"
    assert request.SerializeToString() == data


def test_zero_time_is_not_an_absent_time() -> None:
    response = task_pb2.StateResponse(exited_at=ZERO_TIME)
    parsed = task_pb2.StateResponse.FromString(response.SerializeToString())
    assert parsed.HasField("exited_at")
    assert parsed.exited_at.seconds == -62135596800
    assert not task_pb2.StateResponse().HasField("exited_at")


def test_status_values() -> None:
    values = (
        task_pb2.UNKNOWN,
        task_pb2.CREATED,
        task_pb2.RUNNING,
        task_pb2.STOPPED,
        task_pb2.PAUSED,
        task_pb2.PAUSING,
    )
    assert values == (0, 1, 2, 3, 4, 5)


def test_unknown_enum_values_pass() -> None:
    assert bootstrap_pb2.BootstrapParams.FromString(b"\x18\x63").log_level == 99
    assert bootstrap_pb2.LOG_LEVEL_TRACE == -8


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05a", b"\x0a\x01\xff", b"\x0a"])
def test_bad_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError):
        task_pb2.CreateTaskRequest.FromString(data)


def test_names_of_other_files_are_the_same_classes() -> None:
    assert task_pb2.Mount is events_pb2.Mount is sandbox_pb2.Mount
    assert type(task_pb2.CreateTaskRequest().options) is wkt_pb2.Any
    with pytest.raises(AttributeError):
        _ = task_pb2.NoSuchMessage  # type: ignore[attr-defined]
