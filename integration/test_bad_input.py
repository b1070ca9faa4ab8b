"""Input that is wrong: each gives one clear error that names the thing, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.api import TASK, Code, packed, process_spec
from integration.harness.clients.ttrpc import Client, Lost, Refused, frame
from integration.harness.clients.wire import Schema
from integration.harness.host import footprint
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import Bundle, Started, outcome

VAGUE = {Code.INTERNAL}


def _refused(bundle: Bundle, **values: Any) -> str:
    """Start the shim and have Create refused, then do what containerd does; the error's text.

    The shim may refuse at `start` already.
    """
    try:
        client = bundle.start()
    except Started as err:
        text = str(err)
    else:
        pid = client.call("Connect", id=bundle.id).shim_pid
        with pytest.raises(Refused) as refused:
            bundle.create(**values)
        text = refused.value.message
        assert refused.value.code not in VAGUE, refused.value
        assert outcome(client, "Delete", id=bundle.id) == Code.NOT_FOUND or not bundle.node.gvisor
        with contextlib.suppress(Lost):
            outcome(client, "Shutdown", id=bundle.id)
        if bundle.node.gvisor:
            until(lambda: not footprint.alive(pid), 5, "the shim has ended")
    assert "Traceback" not in text
    if bundle.node.gvisor:
        assert len(text.strip().splitlines()) == 1, text
        assert len(text) < 1000, text
    return text


def _without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    def change(spec: dict[str, Any]) -> Any:
        for key in keys:
            del spec[key]
        return spec

    return change


def _with(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(spec: dict[str, Any]) -> Any:
        *parents, last = path.split(".")
        place = spec
        for key in parents:
            place = place[key]
        place[last] = value
        return spec

    return change


_SPECS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda spec: None, "config.json"),
    "empty": (lambda spec: b"", "config.json"),
    "not JSON": (lambda spec: b"{nonsense", "config.json"),
    "a list": (lambda spec: [1, 2], "config.json"),
    "20 MiB": (lambda spec: json.dumps(spec).encode() + b" " * (20 << 20), "config.json"),
    "deep": (lambda spec: b"[" * 200_000 + b"]" * 200_000, "config.json"),
    "not UTF-8": (lambda spec: b'{"ociVersion": "\xff\xfe"}', "config.json"),
    "without process": (_without("process"), "process"),
    "without root": (_without("root"), "root"),
    "args empty": (_with("process.args", []), "args"),
    "args of wrong type": (_with("process.args", "sleep"), "args"),
    "cwd of wrong type": (_with("process.cwd", 7), "cwd"),
    "env of wrong type": (_with("process.env", {"A": "b"}), "env"),
    "uid of wrong type": (_with("process.user", {"uid": "root"}), "uid"),
    "mounts of wrong type": (_with("mounts", "none"), "mounts"),
    "mount without destination": (_with("mounts", [{"type": "tmpfs"}]), "destination"),
    "annotations of wrong type": (_with("annotations", [1]), "annotations"),
    "process of wrong type": (_with("process", 3), "process"),
    "linux of wrong type": (_with("linux", "linux"), "linux"),
}


@pytest.mark.gvisor
@pytest.mark.parametrize("case", _SPECS)
def test_bad_spec(node: Node, case: str) -> None:
    change, named = _SPECS[case]
    with Bundle(node) as bundle:
        spec = change(bundle.spec("sleep", "1000"))
        if spec is not None:
            bundle.write(spec)
        assert named in _refused(bundle)


@pytest.mark.parametrize("name", ["../escape", "a/b", "x" * 300, "white space", "nul\x01"])
@pytest.mark.gvisor
def test_bad_id(node: Node, name: str) -> None:
    """containerd checks ids itself; a shim must not rely on it."""
    with Bundle(node, name) as bundle:
        bundle.write(bundle.spec("true"))
        assert "id" in _refused(bundle)


def test_id_that_is_taken(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        with pytest.raises(Refused) as refused:
            bundle.create()
        if node.gvisor:
            assert refused.value.code == Code.ALREADY_EXISTS
        assert client.call("State", id=bundle.id).status == 1


def test_source_of_the_root_is_missing(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        mount = {"type": "bind", "source": "/no/such/folder", "options": ["rbind"]}
        text = _refused(bundle, rootfs=[mount])
        assert "/no/such/folder" in text or not node.gvisor


def test_root_is_missing(node: Node) -> None:
    with Bundle(node) as bundle:
        spec = bundle.spec("true")
        spec["root"] = {"path": "/no/such/root"}
        bundle.write(spec)
        assert "/no/such/root" in _refused(bundle, rootfs=[])


def test_unknown_kind_of_root(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        mount = {"type": "no-such-fs", "source": "none", "options": []}
        assert "no-such-fs" in _refused(bundle, rootfs=[mount]) or not node.gvisor


@pytest.mark.core
def test_bind_source_is_missing(node: Node) -> None:
    option = "type=bind,src=/no/such/source,dst=/mnt,options=rbind:ro"
    done = node.run("true", options=["--mount", option])
    assert done.code == 1
    assert "/no/such/source" in done.err, done


@pytest.mark.core
def test_program_is_missing(node: Node) -> None:
    done = node.run("/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err, done


@pytest.mark.parametrize("program", ["/etc/notice", "/bin/not-executable", "/etc"])
def test_program_cannot_be_run(node: Node, program: str) -> None:
    done = node.run(program)
    assert done.code != 0
    assert program in done.err, done


def test_working_directory_is_missing(node: Node) -> None:
    """A runtime may make it (runc does); else the error names it."""
    done = node.run("pwd", options=["--cwd", "/no/such/place"])
    assert done.out == "/no/such/place\n" or "/no/such/place" in done.err, done


def test_working_directory_is_a_file(node: Node) -> None:
    done = node.run("pwd", options=["--cwd", "/etc/notice"])
    assert done.code != 0
    assert "/etc/notice" in done.err, done


def test_user_that_the_image_has_not(node: Node) -> None:
    """A number is enough to run as."""
    assert node.run("id", "-u", options=["--user", "4242"]).out.strip() == "4242"


@pytest.mark.gvisor
def test_exec_with_a_bad_spec(node: Node) -> None:
    process = node.api.spec("true")["process"]
    kind = process_spec({})["type_url"]
    bad: list[dict[str, object]] = [
        packed(str(kind), b"not JSON"),
        packed(str(kind), b""),
        packed(str(kind), [1]),
        process_spec({**process, "args": []}),
        process_spec({**process, "args": "true"}),
        process_spec({**process, "cwd": 1}),
    ]
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        client.call("Start", id=bundle.id)
        for number, spec in enumerate(bad):
            codes = (Code.INVALID_ARGUMENT,)
            code = outcome(client, "Exec", id=bundle.id, exec_id=f"x{number}", spec=spec)
            assert code in codes, (number, code)
            seen = outcome(client, "State", id=bundle.id, exec_id=f"x{number}")
            assert seen == Code.NOT_FOUND
        for name in ("../x", "x" * 300, "a/b", ""):
            code = outcome(client, "Exec", id=bundle.id, exec_id=name, spec=process_spec(process))
            assert code in (Code.INVALID_ARGUMENT, Code.ALREADY_EXISTS), (name, code)
        assert client.call("State", id=bundle.id).status == 2


@pytest.mark.gvisor
def test_signals_and_sizes(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        client.call("Start", id=bundle.id)
        assert outcome(client, "Kill", id=bundle.id, signal=0) == Code.OK
        for signal in (65, 9999, (1 << 32) - 1):
            assert outcome(client, "Kill", id=bundle.id, signal=signal) == Code.INVALID_ARGUMENT
        for width, height in ((0, 0), (70000, 70000), (1, 65535)):
            code = outcome(client, "ResizePty", id=bundle.id, width=width, height=height)
            assert code in (Code.OK, Code.INVALID_ARGUMENT), (width, height, code)
        assert client.call("State", id=bundle.id).status == 2


def test_sizes_of_a_terminal(node: Node) -> None:
    with Bundle(node) as bundle:
        spec = bundle.spec("sleep", "1000")
        spec["process"]["terminal"] = True
        bundle.write(spec)
        client = bundle.start()
        fifo, reader = _fifo(bundle, "out")
        try:
            bundle.create(terminal=True, stdout=str(fifo))
            client.call("Start", id=bundle.id)
            for width, height in ((0, 0), (70000, 70000), (1, 65535)):
                code = outcome(client, "ResizePty", id=bundle.id, width=width, height=height)
                assert code in (Code.OK, Code.INVALID_ARGUMENT), (width, height, code)
            assert client.call("State", id=bundle.id).status == 2
        finally:
            os.close(reader)


@pytest.mark.gvisor
def test_fifo_is_missing(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        assert "/no/such/fifo" in _refused(bundle, stdout="/no/such/fifo")


@pytest.mark.gvisor
def test_fifo_that_nobody_reads(node: Node) -> None:
    """Create and Start answer, the task fills the pipe and blocks, and can be killed."""
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("cat", "/dev/zero"))
        client = bundle.start()
        paths: dict[str, Any] = {}
        for stream in ("stdin", "stdout", "stderr"):
            paths[stream] = str(bundle.path / stream)
            os.mkfifo(paths[stream])
        began = time.monotonic()
        bundle.create(**paths)
        client.call("Start", id=bundle.id)
        assert client.call("State", id=bundle.id).status == 2
        client.call("Kill", id=bundle.id, signal=9)
        assert client.call("Wait", id=bundle.id).exit_status == 137
        client.call("Delete", id=bundle.id, timeout=15)
        assert time.monotonic() - began < 15


@pytest.mark.gvisor
@pytest.mark.parametrize("uri", ["binary:///no/such/logger", "binary://", "gopher://x", "file://"])
def test_bad_log_uri(node: Node, uri: str) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("true"))
        text = _refused(bundle, stdout=uri, stderr=uri)
        assert "stdout" in text or "/no/such/logger" in text


@pytest.mark.gvisor
def test_update_with_bad_resources(node: Node) -> None:
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        client.call("Start", id=bundle.id)
        kind = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
        for value in (b"", b"nonsense", b"[]", b'{"memory": {"limit": "much"}}', b'{"memory": 3}'):
            resources = {"type_url": kind, "value": value}
            code = outcome(client, "Update", id=bundle.id, resources=resources)
            assert code == Code.INVALID_ARGUMENT, value
        assert outcome(client, "Update", id=bundle.id) == Code.INVALID_ARGUMENT
        assert client.call("State", id=bundle.id).status == 2


@pytest.fixture
def idle(node: Node) -> Any:
    """A bundle whose shim serves one running container."""
    with Bundle(node) as bundle:
        bundle.write(bundle.spec("sleep", "1000"))
        client = bundle.start()
        bundle.create()
        client.call("Start", id=bundle.id)
        yield bundle
        assert client.call("State", id=bundle.id).status == 2


def test_request_that_is_too_large(idle: Bundle) -> None:
    """It is refused on its own stream, and the connection goes on."""
    with _another(idle) as client:
        payload = TASK["State"][0].encode(id=idle.id, exec_id="x" * (5 << 20))
        answer = client.raw(client.service, "State", payload)
        if idle.node.gvisor:
            with pytest.raises(Refused) as refused:
                answer()
            assert refused.value.code == Code.RESOURCE_EXHAUSTED
            assert client.call("State", id=idle.id).status == 2


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
        os.urandom(4096),
        b"\xff" * 4096,
        frame(b"\xff\xff\xff not protobuf", 1),
        frame(b"", 2) * 10,
        frame(b"", 1, kind=77),
        frame(b"", 1) + frame(b"", 1),
    ],
    ids=["http", "random", "ones", "body", "even stream", "kind", "same stream"],
)
def test_garbage(idle: Bundle, data: bytes) -> None:
    """Whatever one connection says, the others are served."""
    with _connected(idle) as rude:
        rude.sendall(data)
        with _another(idle) as client:
            assert client.call("State", id=idle.id).status == 2


def test_unknown_service_and_method(idle: Bundle) -> None:
    with _another(idle) as client:
        for service, method in (("no.such.Service", "State"), (client.service, "NoSuchMethod")):
            with pytest.raises(Refused) as refused:
                client.raw(service, method, b"")()
            assert refused.value.code == Code.UNIMPLEMENTED
        with pytest.raises(Refused):
            client.raw(client.service, "State", b"\x0a\xff")()
        assert client.call("State", id=idle.id).status == 2


def test_half_a_frame(idle: Bundle) -> None:
    with _connected(idle) as slow, _another(idle) as client:
        slow.sendall(frame(b"x" * 100, 1)[:60])
        assert client.call("State", id=idle.id).status == 2


def test_a_thousand_connections(idle: Bundle) -> None:
    """Idle ones cost little, and are given back."""
    pid = _shim_pid(idle)
    before = footprint.size(pid)
    open_ones = []
    try:
        for _ in range(1000):
            open_ones.append(_connected(idle))
        with _another(idle) as client:
            assert client.call("State", id=idle.id).status == 2
    finally:
        for connection in open_ones:
            connection.close()
    until(lambda: footprint.size(pid)[0] <= before[0] + 5, 10, "descriptors are given back")
    with _another(idle) as client:
        assert client.call("State", id=idle.id).status == 2


def test_client_that_never_reads(idle: Bundle) -> None:
    """Replies pile up for one client only."""
    request = TASK["State"][0].encode(id=idle.id)
    with _connected(idle) as mute, _another(idle) as client:
        sender = threading.Thread(target=_flood, args=(mute, client.service, request), daemon=True)
        sender.start()
        for _ in range(20):
            assert client.call("State", id=idle.id).status == 2
        mute.shutdown(socket.SHUT_RDWR)
        sender.join(10)


def test_calls_of_a_client_that_went_away(idle: Bundle) -> None:
    """A hundred waits whose client is gone cost nothing afterwards."""
    pid = _shim_pid(idle)
    before = footprint.size(pid)
    for _ in range(10):
        with _another(idle) as client:
            for _ in range(10):
                client.call_later("Wait", id=idle.id)
            client.call("State", id=idle.id)
    until(lambda: footprint.size(pid)[0] <= before[0] + 5, 10, "descriptors are given back")
    if idle.node.gvisor:
        until(lambda: footprint.size(pid)[1] <= before[1] + 5, 10, "threads are given back")


def _shim_pid(bundle: Bundle) -> int:
    assert bundle.client is not None
    return int(bundle.client.call("Connect", id=bundle.id).shim_pid)


def _fifo(bundle: Bundle, name: str) -> tuple[Path, int]:
    path = bundle.path / name
    os.mkfifo(path)
    return path, os.open(path, os.O_RDWR | os.O_NONBLOCK)


def _another(bundle: Bundle) -> Client:
    """One more connection to a bundle's shim."""
    assert bundle.client is not None
    path = Path(str(bundle.client.socket.getpeername()))
    return Client(path, bundle.client.service)


def _connected(bundle: Bundle) -> socket.socket:
    assert bundle.client is not None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    for _ in range(100):
        try:
            connection.connect(bundle.client.socket.getpeername())
        except BlockingIOError:  # the backlog is full for a moment
            time.sleep(0.01)
        else:
            return connection
    raise AssertionError("the shim takes no connection")


def _flood(connection: socket.socket, service: str, payload: bytes) -> None:
    request = Schema("service:1 method:2 payload:3:bytes")
    body = request.encode(service=service, method="State", payload=payload)
    try:
        for number in range(20000):
            connection.sendall(frame(body, 2 * number + 1))
    except OSError:
        return
