"""What reads input from outside, one function for each kind: bytes in, nothing but declared errors.

Each target raises only for a flaw.  Where something else reads the same format, the two have to
agree.  ``guided.py`` feeds them by coverage, ``tests/test_fuzz.py`` with mutations of the seeds.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from protos import bootstrap_pb2, task_pb2
from runtime.base import fastjson, json_fields, toml_subset
from runtime.base.errors import InvalidRequest, NotFound, RuntimeFault
from runtime.bundle import hook_spec, mount_options, spec, volumes
from runtime.bundle.process_spec import parse_process
from runtime.cgroups import paths, placement
from runtime.cgroups import resources as cgroup_resources
from runtime.cgroups import settings as cgroup_limits
from runtime.cli.insight import redacted
from runtime.host import dbus, mountinfo
from runtime.network import argument, restored
from runtime.runsc import (
    control,
    control_errors,
    control_results,
    flags,
    trace_session,
    urpc,
)
from runtime.runsc.config import RunscConfig
from runtime.sandbox import (
    cgroup_mounts,
    checkpoint_image,
    gofer_mounts,
    inside_files,
    prepare_spec,
)
from runtime.state import runsc_state, shim_record
from shim import bootstrap
from shim.base import convert, options
from shim.ttrpc import connection, envelope, frames, protobuf
from shim.ttrpc.errors import RemoteProtocolError
from shim.ttrpc.protobuf import bytes_field, number_field
from tests.fakes.generations import GENERATIONS


class Target(NamedTuple):
    """``seeds`` are whole inputs of its kind; the first is one that is accepted."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def pieces(data: bytes) -> list[bytes]:
    """The bytes cut where the last of them says, as a socket may."""
    size = data[-1] % 13 + 1 if data else 1
    return [data[at : at + size] for at in range(0, len(data), size)]


# -- ttrpc -------------------------------------------------------------------------------------


def ttrpc_frames(data: bytes) -> None:
    """Frames come out alike however the bytes are cut."""
    buffer = frames.FrameBuffer()
    whole = [_frame(each) for each in frames.FrameBuffer().feed(data)]
    cut = [_frame(each) for piece in pieces(data) for each in buffer.feed(piece)]
    assert whole == cut


def _frame(each: frames.Frame | frames.Oversized) -> tuple[object, ...]:
    rest = each.body if isinstance(each, frames.Frame) else each.length
    return (each.stream_id, each.type, each.flags, rest)


def ttrpc_server(data: bytes) -> None:
    """A server's side takes any bytes: it answers, refuses, or hangs up."""
    server = connection.ServerConnection()
    try:
        for piece in pieces(data):
            for event in server.receive_data(piece):
                if isinstance(event, connection.RequestReceived):
                    request = event.request
                    again = envelope.decode_request(envelope.encode_request(request))
                    assert _request(again) == _request(request)
                    if not event.streaming:
                        server.send_response(event.stream_id, b"")
    except RemoteProtocolError:
        return


def _request(each: envelope.Request) -> tuple[object, ...]:
    return (each.service, each.method, each.payload, each.timeout_nano, dict(each.metadata))


def ttrpc_client(data: bytes) -> None:
    """A client's side, with calls and a stream open."""
    client = connection.ClientConnection()
    for streaming in (False, True, False):
        client.send_request("s", "m", b"", streaming=streaming)
    try:
        for piece in pieces(data):
            list(client.receive_data(piece))
    except RemoteProtocolError:
        return


def ttrpc_response(data: bytes) -> None:
    """A response's status and payload."""
    try:
        status, payload = envelope.decode_response(data)
    except protobuf.Malformed:
        return
    again = envelope.decode_response(envelope.encode_response(status, payload))
    assert again[1] == payload
    assert (again[0] is None) == (status is None)


# -- protobuf by hand --------------------------------------------------------------------------


def any_message(data: bytes) -> None:
    """google.protobuf.Any, as protobuf itself has it."""
    try:
        found = protobuf.parse_any(data)
    except protobuf.Malformed:
        return
    try:
        wanted = any_pb2.Any.FromString(data)
    except DecodeError:
        return
    if _plain(data, set(), 2):
        assert found == (wanted.type_url, wanted.value)


def _plain(data: bytes, numbers: set[int], last: int) -> bool:
    """Whether each field up to ``last`` has its own wire type: protobuf passes over others."""
    return all(
        number > last or isinstance(value, int) == (number in numbers)
        for number, value in protobuf.fields(data)
    )


def bootstrap_stdin(data: bytes) -> None:
    """What containerd writes to ``start``: parameters, bare options, or nothing."""
    try:
        params = bootstrap.parse_stdin(data, "c", "ns")
    except InvalidRequest:
        return
    if params.modern:
        try:
            wanted = bootstrap_pb2.BootstrapParams.FromString(data)
        except DecodeError:
            return
        if _plain(data, {3}, 9):
            assert (wanted.instance_id, wanted.namespace) == ("c", "ns")
            assert params.ttrpc_address == wanted.containerd_ttrpc_address
            assert params.socket_dir == wanted.socket_dir


def runtime_options(data: bytes) -> None:
    """Options of a request: CRI's message with TOML in it, or runc's; the first byte chooses."""
    kinds = ("runtimeoptions.v1.Options", "containerd.runc.v1.Options", "other")
    kind, value = kinds[data[0] % 3 if data else 0], data[1:]
    body = bytes_field(3, value) if data[:1] == b"\0" else value
    for read in (
        lambda: options.start_options(kind, body),
        lambda: options.decode(kind, body, "ns", container_id="c"),
    ):
        try:
            read()
        except InvalidRequest:
            continue


# -- text --------------------------------------------------------------------------------------


def toml(data: bytes) -> None:
    """What our reader of TOML takes, the real one reads alike."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    found = toml_subset.parse(text)
    if found is not None:
        assert found == tomllib.loads(text)


def json_value(data: bytes) -> None:
    """Our way to JSON and json's agree, on values and on what is none."""

    def refuse(name: str) -> float:
        raise ValueError(name)

    try:
        wanted = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        wanted = ValueError
    try:
        found = fastjson.loads(data)
    except ValueError:
        found = ValueError
    assert repr(found) == repr(wanted)
    if found is not ValueError:
        try:
            text = fastjson.dumps(found)
        except (ValueError, RecursionError):
            return  # a number beyond all bounds became an infinity
        assert repr(json.loads(text)) == repr(found)


def urpc_reply(data: bytes) -> None:
    """A sentry's reply, whole and in pieces, and all that is made of its result."""
    decoder, reply = urpc.ReplyDecoder(), None
    try:
        for piece in pieces(data):
            reply = reply or decoder.feed(piece)
    except urpc.ProtocolError:
        return
    if reply is None:
        return
    try:
        whole = urpc.ReplyDecoder().feed(data)
    except urpc.ProtocolError:
        return  # more came at once than a reply
    assert whole is not None
    assert repr(whole.result) == repr(reply.result)
    if not reply.success:
        control_errors.translate(reply.error, "start", "c", 3, ["sh"])
        return
    for read in (
        lambda: control.wait_status(reply),
        lambda: control_results.stats(reply.result),
        lambda: control_results.processes(reply.result),
    ):
        try:
            read()
        except RuntimeFault:
            continue


# -- what a pod's author writes ----------------------------------------------------------------


def config_json(data: bytes) -> None:
    """A container's config.json, and everything that is decided by it."""
    try:
        found = spec.parse_spec(data, "/nonexistent/bundle")
    except InvalidRequest:
        return
    for generation in GENERATIONS.values():
        config = RunscConfig(binary="/nonexistent", root="/r", flags={"overlay2": "none"})
        try:
            spec.sandbox_to_join(found)
            read = flags.read_settings(config, generation, found)
            prepared = cgroup_mounts.prepare(
                volumes.prepare(found, generation.knows_volume_options, None), generation
            )
            done = prepare_spec.prepare(prepared, config, generation, None)
            placement.place(done.spec, "c", "v1", lambda path: True)
            gofer_mounts.mount_hints(done.spec.annotations)
            assert isinstance(read, flags.Settings)
            for mount in done.spec.mounts:
                mount_options.parse_options(mount.options)
            fastjson.dumps(done.spec.raw)
        except RuntimeFault:
            continue


def create_request(data: bytes) -> None:
    """What containerd says of a container: bundle, pipes, mounts, checkpoint's options."""
    try:
        request = task_pb2.CreateTaskRequest.FromString(data)
    except DecodeError:
        return
    try:
        convert.io_request(request)
        convert.rootfs(request)
        spec.validate_id("container", request.id)
        spec.load_spec(convert.text("bundle", request.bundle))
    except RuntimeFault:
        return


def exec_spec(data: bytes) -> None:
    """The process of an exec."""
    try:
        parse_process(data, "exec spec")
    except InvalidRequest:
        return


def hooks(data: bytes) -> None:
    """The hooks of a spec."""
    try:
        hook_spec.read_hooks(json_fields.Fields(json_fields.parse_object(data, "h", 1 << 20), "h"))
    except InvalidRequest:
        return


def _current(name: str) -> str:
    """What stands in a file of a cgroup so far."""
    return "max 100000" if name == "cpu.max" else "max"


def resources(data: bytes) -> None:
    """An update's resources, as the files of both versions of cgroups."""
    value = any_pb2.Any(type_url="x/LinuxResources", value=data)
    try:
        parsed = cgroup_resources.parse(convert.resources(value))
        cgroup_limits.v1_settings(parsed)
        cgroup_limits.v2_settings(parsed, _current)
    except RuntimeFault:
        return


def paths_of_cgroups(data: bytes) -> None:
    """cgroupsPath, in all its forms."""
    text = data.decode("utf-8", "replace")
    for systemd in (False, True):
        try:
            location = paths.locate(text, systemd=systemd)
            assert "/../" not in f"/{location.directory}/"
        except InvalidRequest:
            continue
    list(mountinfo.parse(data))
    paths.parse_memberships(text)


# -- files and peers on the host ---------------------------------------------------------------


def d_bus(data: bytes) -> None:
    """Messages of systemd's, whole and in pieces."""
    outcomes = []
    for parts in ([data], pieces(data)):
        protocol = dbus.Protocol(0)
        found: list[str] = []
        try:
            for part in parts:
                found += map(repr, protocol.receive(part))
        except RuntimeFault:
            found.append("fault")
        outcomes.append(found)
    whole, cut = outcomes
    # A whole read that fails has told nothing of the messages before.
    assert whole == cut or (whole == ["fault"] and cut[-1:] == ["fault"])


def state_record(data: bytes) -> None:
    """Our own record of a container."""
    try:
        record = shim_record._decode(data)
    except (ValueError, InvalidRequest):
        return
    assert shim_record._decode(shim_record._encode(record)) == record


def runsc_file(data: bytes) -> None:
    """runsc's state file."""
    try:
        found = runsc_state.decode(data, "state")
    except InvalidRequest:
        return
    fastjson.dumps(found.raw)
    runsc_state.own_cgroup_json(found.raw)


def checkpoint(data: bytes) -> None:
    """An image: our description of it, then what the sentry wrote in front of its state."""
    about, _, head = data.partition(b"\xff\xff")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, checkpoint_image.ABOUT).write_bytes(about)
        Path(folder, checkpoint_image.STATE).write_bytes(head)
        try:
            checkpoint_image.load(folder, "r1").close()
        except (InvalidRequest, NotFound):
            pass
    try:
        found, _ = checkpoint_image._decode("/i", json.loads(about))
    except (ValueError, RuntimeFault, RecursionError):
        return
    kept_network(json.dumps(found.network).encode())


def kept_network(data: bytes) -> None:
    """What a sandbox was told of its network, in an image or a record."""
    try:
        kept = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(kept, dict):
        return
    link = argument.Link(name="eth0", index=2, mtu=1500, address="0a0b0c0d0e0f")
    try:
        links = restored.give_back((link,), kept)
        argument.plan(links, argument.read_options({}))
    except RuntimeFault:
        return


def network_dump(data: bytes) -> None:
    """The kernel's tables of a pod's network namespace."""
    from runtime.network import helper

    class Kernel:
        """Answers every dump with the same bytes, under its number."""

        def __init__(self) -> None:
            self.last = b""

        def sendall(self, request: bytes) -> None:
            self.last = request

        def recv(self, size: int) -> bytes:
            kind = int.from_bytes(self.last[4:6], "little") - 2
            body = kind.to_bytes(2, "little") + b"\2\0" + self.last[8:12] + bytes(4) + data
            found = (len(body) + 4).to_bytes(4, "little") + body + bytes(-len(body) % 4)
            return found + b"\x10\0\0\0\3\0\2\0" + self.last[8:12] + bytes(4)

    kernel: Any = Kernel()
    logging.disable()  # the library tells of what it can't decode
    try:
        helper.Rtnetlink(kernel).scan()
    except Exception as fault:
        # Whatever it is, the helper tells it in one line, and ends.
        assert helper._describe(fault)
    finally:
        logging.disable(logging.NOTSET)
        # A bare package stands in for pyroute2 by now; nobody else should meet it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
            del sys.modules[name]


def network_flags(data: bytes) -> None:
    """runsc's flags about the network, one ``name=value`` a line."""
    lines = data.decode("utf-8", "replace").split("\n")
    try:
        argument.read_options(dict(line.split("=", 1) for line in lines if "=" in line))
    except RuntimeFault:
        return


_SPEC = (
    b'{"ociVersion":"1.0","process":{"args":["sh"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,'
    b'"gid":0},"capabilities":{"bounding":["CAP_CHOWN"]},"rlimits":[{"type":"RLIMIT_NOFILE",'
    b'"hard":9,"soft":9}]},"root":{"path":"rootfs","readonly":true},"hostname":"h","mounts":[{'
    b'"destination":"/proc","type":"proc","source":"proc","options":["nosuid","rro"]},{'
    b'"destination":"/m","type":"bind","source":"/tmp","options":["rbind","idmap"],"uidMappings":['
    b'{"containerID":0,"hostID":1,"size":1}]}],"annotations":{"io.kubernetes.cri.container-type":'
    b'"sandbox","io.kubernetes.cri.sandbox-id":"s","dev.gvisor.spec.mount.v.type":"tmpfs",'
    b'"dev.gvisor.spec.mount.v.share":"pod","dev.gvisor.spec.mount.v.source":"/v",'
    b'"dev.gvisor.flag.debug":"true"},"linux":{"cgroupsPath":"/a/b","resources":{"memory":{"limit":'
    b'1}},"namespaces":[{"type":"network","path":"/n"},{"type":"pid"}],"maskedPaths":["/proc/kcore"'
    b'],"readonlyPaths":["/proc/sys"],"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","architectures":['
    b'"SCMP_ARCH_X86_64"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index"'
    b':0,"value":1,"op":"SCMP_CMP_EQ"}]}]},"sysctl":{"net.ipv4.ip_forward":"1"}},"hooks":{'
    b'"prestart":[{"path":"/h","args":["h"],"env":["A=b"],"timeout":5}]}}'
)
_NETWORK = (
    b'{"FDBasedLinks":[{"Name":"eth0","LinkAddress":"CgsMDQ4P","Addresses":[{"Address":"10.0.0.2",'
    b'"PrefixLen":24}],"Routes":[{"Destination":{"IP":"10.0.0.0","Mask":"////AA=="},"Gateway":"",'
    b'"MTU":1400}],"Neighbors":[{"IP":"10.0.0.9","HardwareAddr":"CgsMDQ4P"}]}],"Defaultv4Gateway":{'
    b'"Name":"eth0","Route":{"Destination":{"IP":"0.0.0.0","Mask":"AAAAAA=="},"Gateway":"10.0.0.1"}}'
    b',"Defaultv6Gateway":{"Name":"","Route":{}}}'
)
_ABOUT = (
    b'{"format":1,"runsc":"r1","compression":"none","sandbox":"s","containers":[{"name":"n","args":'
    b'["sh"],"mounts":[],"terminal":false}],"files":{"checkpoint.img":{"size":1,"crc32":2}},'
    b'"network":' + _NETWORK + b"}"
)
_RECORD = shim_record._encode(
    shim_record.ContainerRecord(
        id="c", sandbox_id="c", is_root=True, namespace="n", bundle="/b", network={"a": 1}
    )
)
_RUNSC = (
    b'{"id":"c","spec":' + _SPEC + b',"bundleDir":"/b","status":"running","goferPid":3,"sandbox":{'
    b'"id":"c","pid":2,"controlSocketPath":"/r/c.sock","cgroup":{"cgroupv1":{"name":"/a","own":{'
    b'"cpu":true}}},"mountHints":{"mounts":[]}},"saver":{"id":{}}}'
)
_EVENT = (
    b'{"success":true,"err":"","result":{"event":{"data":{"cpu":{"usage":{"total":5}},"memory":{'
    b'"usage":{"usage":6}},"pids":{"current":1},"network_interfaces":[{"Name":"eth0","RxBytes":1'
    b'}]}},"containerUsage":{"c":7}}}'
)
_PROCESSES = (
    b'{"success":true,"err":"","result":[{"pid":1,"ppid":0,"uid":0,"threads":[1],"c":0,"tty":"?",'
    b'"stime":"now","time":"0","cmd":"sh"}]}'
)
_REQUEST = frames.encode(
    1, frames.REQUEST, 0, envelope.encode_request(envelope.Request("s", "m", b"p"))
)
_RESPONSE = frames.encode(
    1, frames.RESPONSE, 0, envelope.encode_response(envelope.Status(5, "no", (b"d",)), b"p")
)
_TOML = b'# c\nroot = "/r"\nio_uid = 5\ngrouping = true\n[runsc_config]\nplatform = "systrap" # x\n'
_BOOTSTRAP = bytes_field(1, "c") + bytes_field(2, "ns") + number_field(3, 4)
_DBUS = b"OK 0123\r\n" + dbus.encode_call(1, "o.f.D", "/a/b", "a.b", "M", "sa(sv)", ("x", []))
_LINK = (
    bytes(2) + b"\1\0" + (2).to_bytes(4, "little") + b"\1\0\0\0" + bytes(4)
    + b"\x09\0\3\0eth0\0\0\0\0" + b"\x0a\0\1\0\1\2\3\4\5\6\0\0"
)  # fmt: skip

_CREATE = task_pb2.CreateTaskRequest(
    id="c",
    bundle="/nonexistent",
    rootfs=[task_pb2.Mount(type="bind", source="/a", options=["ro"])],
    stdin="/i",
).SerializeToString()


# -- what looks into a sandbox -----------------------------------------------------------------


def inside_answers(data: bytes) -> None:
    """What a program inside answers is names of a directory, a file's status, or an error."""
    for call in (
        lambda files: [inside_files.checked_name(each) for each in files.names(3)],
        lambda files: files.stat(3, b"name"),
        lambda files: files.readlink(3, b"name"),
    ):
        answers, writer = os.pipe()
        reader, calls = os.pipe()
        os.write(writer, struct.pack("<Q", 1 << 40) + data[:60_000])
        os.close(writer)
        with inside_files.InsideFiles(calls, answers) as files:
            try:
                call(files)
            except (RuntimeFault, OSError):
                pass
        os.close(reader)


def trace_config(data: bytes) -> None:
    """A trace session, of which the sentry gets what can be written as JSON."""
    try:
        session = trace_session.parse(data, "x")
    except InvalidRequest:
        return
    json.dumps(session.value)
    assert all(bool(sink.endpoint) == (sink.name == "remote") for sink in session.sinks)


def trace_list(data: bytes) -> None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        trace_session.sessions(found)
    except RuntimeFault:
        return


def report_text(data: bytes) -> None:
    """However a log is made up, a known secret isn't left in it, whole."""
    text = data.decode("utf-8", "replace")
    assert "s3cret-value" not in redacted.text(text, ["s3cret-value"])
    try:
        value = json_fields.parse_object(data, "x", 1 << 20)
    except InvalidRequest:
        return
    found = json.dumps(redacted.spec(value))
    for secret in redacted.secrets_of([value]):
        assert len(secret) >= 5
    assert found


_NAMES = (
    struct.pack("<q", 24) + struct.pack("<QqHB", 1, 1, 24, 8) + b"name\0" + struct.pack("<q", 0)
)

TARGETS: dict[str, Target] = {
    "inside-files": Target(inside_answers, (_NAMES, struct.pack("<q", 0) + bytes(256))),
    "trace-session": Target(
        trace_config,
        (
            b'{"name":"Default","points":[{"name":"a","optional_fields":["b"]}],"sinks":'
            b'[{"name":"remote","config":{"endpoint":"/s"},"ignore_setup_error":true}]}',
        ),
    ),
    "trace-list": Target(
        trace_list, (b'[{"name":"Default","sinks":[{"name":"null","status":{"DroppedCount":1}}]}]',)
    ),
    "report": Target(
        report_text,
        (
            b'{"process":{"env":["A=s3cret-value"],"args":["a","s3cret-value"]}}',
            b'I1 "args": [\n "s3cret-value"\n],\n[ 1: 1] x E write(0x1, "s3cret-value")\n',
        ),
    ),
    "ttrpc-frames": Target(ttrpc_frames, (_REQUEST + _RESPONSE, b"\xff" * 12)),
    "ttrpc-server": Target(ttrpc_server, (_REQUEST, _REQUEST + _REQUEST)),
    "ttrpc-client": Target(ttrpc_client, (_RESPONSE,)),
    "ttrpc-response": Target(ttrpc_response, (_RESPONSE[10:],)),
    "any": Target(any_message, (protobuf.any_message("t", b"v"),)),
    "bootstrap": Target(bootstrap_stdin, (_BOOTSTRAP, protobuf.any_message("t", b"v"))),
    "options": Target(
        runtime_options,
        (
            b"\0" + _TOML,
            b"\1" + bytes_field(6, "runsc"),
            b"\2x",
            b"\3" + bytes_field(2, "/no\0such"),
        ),
    ),
    "toml": Target(toml, (_TOML, b"a = 'x'\r\nb = 0 # y")),
    "json": Target(json_value, (b'{"a":[1,-2.5e3,"\\u00e9",null,true]}', b"NaN", b"[" * 50)),
    "urpc": Target(
        urpc_reply,
        (
            _EVENT,
            _PROCESSES,
            b'{"success":false,"err":"container \\"c\\" not found"}',
            b'{"success":true,"err":"","result":256}',
        ),
    ),
    "spec": Target(config_json, (_SPEC,)),
    "create": Target(create_request, (_CREATE,)),
    "exec": Target(exec_spec, (b'{"args":["x"],"cwd":"/","user":{"uid":0,"gid":0}}',)),
    "hooks": Target(hooks, (b'{"prestart":[{"path":"/h","args":["h"],"env":[],"timeout":5}]}',)),
    "resources": Target(
        resources,
        (
            b'{"memory":{"limit":1,"swap":2},"cpu":{"shares":2,"quota":1,"period":1000,"cpus":"0-1"},'
            b'"pids":{"limit":1},"blockIO":{"weight":10},"unified":{"memory.high":"1"}}',
        ),
    ),
    "cgroups": Target(paths_of_cgroups, (b"/a/b", b"system.slice:cri:x")),
    "dbus": Target(d_bus, (_DBUS,)),
    "record": Target(state_record, (_RECORD,)),
    "runsc-state": Target(runsc_file, (_RUNSC,)),
    "checkpoint": Target(checkpoint, (_ABOUT + b"\xff\xff\0\0\0\0",)),
    "kept-network": Target(kept_network, (_NETWORK,)),
    "network-dump": Target(network_dump, (_LINK,)),
    "network-flags": Target(
        network_flags, (b"qdisc=tbf:1:2\ngvisor-gro=200us\nnum-network-channels=2",)
    ),
}


def descriptors() -> int:
    """How many files are open: a target leaves none."""
    return len(os.listdir("/proc/self/fd"))
