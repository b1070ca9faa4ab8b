import ast
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import bootstrap_pb2
from runtime.base import signals
from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest
from shim import bootstrap, daemon
from shim.base import sockets
from shim.daemon_args import DaemonArgs
from shim.ttrpc import protobuf
from shim.ttrpc.protobuf import any_message, bytes_field
from tests.shim.process import CRASHING_DAEMON, Shim, ask, quit_daemon, what_daemon_saw

OPTIONS = ("runtimeoptions.v1.Options", bytes_field(3, b'log_level = "debug"\n'))


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    shim = Shim(tmp_path)
    yield shim
    shim.close()


def pod(sandbox_id: str, kind: str = "container") -> dict[str, object]:
    return {
        "annotations": {
            "io.kubernetes.cri.sandbox-id": sandbox_id,
            "io.kubernetes.cri.container-type": kind,
        }
    }


def params(**fields: object) -> bootstrap_pb2.BootstrapParams:
    message = bootstrap_pb2.BootstrapParams(instance_id="c1", namespace="ns")
    for name, value in fields.items():
        setattr(message, name, value)
    return message


# -- whole processes ------------------------------------------------------------------------


def test_first_member_gets_a_daemon(shim: Shim) -> None:
    bundle = shim.bundle("c1", {"annotations": {}})
    shim.environment = {"NOTIFY_SOCKET": "/x", "LISTEN_FDS": "1", "GOMAXPROCS": "2"}
    result = shim.start("c1", bundle, None, "-publish-binary", "/bin/containerd", "-debug")
    digest = hashlib.sha256(b"/run/x.sock/ns/c1").hexdigest()
    address = f"unix://{shim.sockets}/{digest}"
    assert (result.returncode, result.stdout, result.stderr) == (0, address.encode(), b"")
    assert (bundle / "address").read_bytes() == address.encode()
    seen = what_daemon_saw(bundle)
    assert (bundle / "shim.pid").read_text() == str(seen["pid"])
    assert seen["sid"] == seen["pid"]
    assert seen["cwd"] == str(bundle)
    assert seen["comm"] == "containerd-shim"
    assert seen["ignored"] == [signal.SIGPIPE]
    assert seen["blocked"] == sorted(bootstrap.HELD_BACK)
    assert seen["id"] == "c1"
    assert seen["namespace"] == "ns"
    assert seen["address"] == "/run/x.sock"
    assert seen["ttrpc_address"] == "/run/x.sock.ttrpc"
    assert seen["publish_binary"] == "/bin/containerd"
    assert seen["log_level"] == "debug"
    assert seen["options"] == ["", ""]
    environment = seen["environment"]
    assert isinstance(environment, list)
    assert "GOMAXPROCS" in environment
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & set(environment)
    fds = seen["fds"]
    assert isinstance(fds, dict)
    listener = str(seen["listener_fd"])
    assert {fds.pop(n) for n in "012"} == {"/dev/null"}
    assert fds.pop(listener).startswith("socket:")
    assert not [f for f in fds.values() if not f.startswith("/proc/")], fds


def test_member_joins_and_leaves_no_process(shim: Shim) -> None:
    first, second = shim.bundle("c1", pod("c1", "sandbox")), shim.bundle("c2", pod("c1"))
    one, two = shim.start("c1", first), shim.start("c2", second)
    assert one.stdout == two.stdout != b""
    assert (second / "address").read_bytes() == one.stdout
    assert not (second / "shim.pid").exists()
    assert not (second / "daemon.json").exists()


def test_modern_reply_and_parameters(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    directory = shim.sockets / "other"
    message = params(
        containerd_version="2.3.1",
        containerd_ttrpc_address="/t",
        containerd_grpc_address="/g",
        containerd_binary="/b",
        socket_dir=str(directory),
        log_level=-4,
    )
    message.extensions.add().value.type_url = "some.other.Extension"
    options = message.extensions.add().value
    options.type_url, options.value = OPTIONS
    result = shim.run(
        ["-namespace", "ns", "-id", "c1", "start"], bundle, message.SerializeToString()
    )
    assert (result.returncode, result.stderr) == (0, b"")
    reply = bootstrap_pb2.BootstrapResult.FromString(result.stdout)
    assert (reply.version, reply.protocol) == (3, "ttrpc")
    assert reply.address == (bundle / "address").read_text()
    assert reply.address.startswith(f"unix://{directory}/")
    seen = what_daemon_saw(bundle)
    assert (seen["ttrpc_address"], seen["address"], seen["publish_binary"]) == ("/t", "/g", "/b")
    assert seen["log_level"] == "debug"
    assert seen["options"] == [OPTIONS[0], OPTIONS[1].decode()]
    assert protobuf.parse_any((bundle / bootstrap.OPTIONS_FILE).read_bytes()) == OPTIONS


def test_the_newest_parameters_in_bytes(shim: Shim) -> None:
    """As 2.4.0-beta.0 writes them, with shorter paths, and with what a later release may add."""
    directory = str(shim.sockets / "s").encode()
    text = (
        b'\n\x02c1\x12\x02ns\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01"\x0dv2.4.0-beta.0'
        b"*\x0e/run/c.s.ttrpc2\x08/run/c.s:\x0f/bin/containerd"
        # Each extension is an Any of its own: here those of a pod, and the runtime's options.
        b"B\x2a\n\x28\n\x1fcontainerd.types.PodNewerThings\x12\x05\x0a\x03a/b"
        b"B\x35\n\x33\n\x19runtimeoptions.v1.Options\x12\x16\x1a\x14"
        b'log_level = "debug"\n'
    )
    text += b"J" + bytes([len(directory)]) + directory + b"R\x02ab\xa8\x06\x07"
    bundle = shim.bundle("c1")
    result = shim.run(["-namespace", "ns", "-id", "c1", "start"], bundle, text)
    assert (result.returncode, result.stderr) == (0, b"")
    address = (bundle / "address").read_bytes()
    assert address.startswith(b"unix://" + directory + b"/")
    assert result.stdout == b"\x08\x03\x12" + bytes([len(address)]) + address + b"\x1a\x05ttrpc"
    seen = what_daemon_saw(bundle)
    assert (seen["ttrpc_address"], seen["address"]) == ("/run/c.s.ttrpc", "/run/c.s")
    assert (seen["publish_binary"], seen["log_level"]) == ("/bin/containerd", "debug")
    assert seen["options"] == [OPTIONS[0], OPTIONS[1].decode()]


def test_options_alone_get_the_plain_reply(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    result = shim.start("c1", bundle, any_message(*OPTIONS))
    assert result.stdout.startswith(b"unix:///")
    seen = what_daemon_saw(bundle)
    assert seen["options"] == [OPTIONS[0], OPTIONS[1].decode()]
    fds = seen["fds"]
    assert isinstance(fds, dict)
    assert fds["0"] == "/dev/null"


def test_no_annotations_no_json(shim: Shim) -> None:
    # The daemon shares the memory of `start`: what that imports, every pod pays for.
    bundle = shim.bundle("c1", pod("c1"))
    shim.start("c1", bundle, any_message(*OPTIONS))
    modules = what_daemon_saw(bundle)["modules"]
    assert isinstance(modules, list)
    heavy = {"json", "re", "enum", "socket", "signal", "tomllib", "typing", "hashlib", "google"}
    assert not heavy & set(modules)


def test_closed_descriptors(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    shim.extra = "import os; os.close(0)"
    result = shim.start("c1", bundle)
    assert result.returncode == 0
    assert what_daemon_saw(bundle)["id"] == "c1"


def test_noise_stays_out_of_the_reply(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    shim.extra = (
        "import os\nfork = os.fork\n"
        "os.fork = lambda: (print('noise', flush=True), os.write(2, b'noise'), fork())[2]"
    )
    result = shim.start("c1", bundle)
    assert (result.stdout + result.stderr) == (bundle / "address").read_bytes()


@pytest.mark.parametrize("number", bootstrap.HELD_BACK)
def test_a_signal_that_comes_too_soon_waits(shim: Shim, number: int) -> None:
    """`pkill -HUP containerd-shim` asks for an upgrade, and must not end who is just starting."""
    assert {*bootstrap.HELD_BACK, signal.SIGCHLD} == {*signals.HANDLED}
    bundle = shim.bundle("c1")
    kill = f"fork() or os.kill(os.getpid(), {number}) or 0"
    shim.extra = f"import os\nfork = os.fork\nos.fork = lambda: {kill}"
    assert shim.start("c1", bundle).returncode == 0
    assert what_daemon_saw(bundle)["pending"] == [number]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-id", "c1", "start"], "-namespace: cannot be empty"),
        (["-namespace", "ns", "start"], "-id: cannot be empty"),
        (["-namespace", "ns", "-id", "../c1", "start"], "-id: '../c1' is not an identifier"),
        (["-namespace", "ns", "-id"], "-id: needs an argument"),
        (["-namespace", "ns", "-id", "c1", "stop"], "action: 'stop' is neither start nor delete"),
        (["-id", "c1"], "-namespace: cannot be empty"),
        (["-namespace", "ns", "-id", "c1"], "no listening socket: neither -socket nor descriptor"),
    ],
)
def test_one_clean_line(shim: Shim, arguments: list[str], message: str) -> None:
    result = shim.run(arguments, shim.bundle("c1"))
    assert result.returncode == 1
    assert result.stdout == b""
    text = result.stderr.decode()
    assert text.startswith(f"containerd-shim-gvisor-v2: {message}")
    assert text.count("\n") == 0


@pytest.mark.parametrize(
    ("spec", "stdin", "message"),
    [
        ('{"annotations": {', b"", "config.json: is not JSON"),
        ('{"annotations":{"io.containerd.runc.v2.group":"../x/y"}}', b"", "is not an identifier"),
        ("{}", b"\xff\xff", "stdin: neither bootstrap parameters nor options"),
        (
            "{}",
            any_message("runtimeoptions.v1.Options", bytes_field(2, "/no/such.toml")),
            "/no/such.toml: no such file",
        ),
        (
            "{}",
            any_message("containerd.runc.v1.Options", bytes_field(3, "/no/such/cgroup")),
            "join cgroup /no/such/cgroup: no such cgroup",
        ),
    ],
)
def test_failure_leaves_nothing(shim: Shim, spec: str, stdin: bytes, message: str) -> None:
    bundle = shim.bundle("c1")
    (bundle / "config.json").write_text(spec)
    result = shim.start("c1", bundle, stdin)
    assert result.returncode == 1
    assert result.stdout == b""
    assert message in result.stderr.decode()
    assert result.stderr.count(b"\n") == 0
    assert not list(shim.sockets.glob("*"))


def test_failure_after_the_fork_kills_the_daemon(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    (bundle / "shim.pid").mkdir()
    result = shim.start("c1", bundle)
    assert result.returncode == 1
    assert b"shim.pid" in result.stderr
    assert not list(shim.sockets.glob("*"))
    if (bundle / "daemon.json").exists():
        pid = json.loads((bundle / "daemon.json").read_text())["pid"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_crashed_daemon_leaves_no_socket(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR)
    shim.daemon = CRASHING_DAEMON
    result = shim.start("c1", bundle)
    assert result.returncode == 0
    line = os.read(log, 4096).decode()
    os.close(log)
    assert 'msg="daemon.crashed"' in line
    assert "no such luck" in line
    path = Path(result.stdout.decode().removeprefix("unix://"))
    deadline = time.monotonic() + 5
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not path.exists()


def test_simultaneous_members_share_one_daemon(shim: Shim) -> None:
    # A dead daemon's socket, which each of them finds stale.
    label: dict[str, object] = {"annotations": {"io.containerd.runc.v2.group": "c0"}}
    bundles = [shim.bundle(f"c{n}", label) for n in range(4)]
    path = sockets.socket_path(str(shim.sockets), "/run/x.sock", "ns", "c0")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    results: list[subprocess.CompletedProcess[bytes]] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(shim.start(f"c{n}", bundles[n])))  # type: ignore[misc]
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.stdout for r in results} == {f"unix://{path}".encode()}
    assert len([b for b in bundles if (b / "shim.pid").exists()]) == 1
    assert ask(f"unix://{path}", b"?") == b"."


def test_a_container_of_a_pod_whose_shim_is_gone_gets_none_of_its_own(shim: Shim) -> None:
    bundle = shim.bundle("c1", pod("c0"))
    path = sockets.socket_path(str(shim.sockets), "/run/x.sock", "ns", "c0")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    result = shim.start("c1", bundle)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"the shim of pod c0 is gone" in result.stderr
    assert not (bundle / "shim.pid").exists()


def test_staleness_is_judged_under_the_lock(shim: Shim) -> None:
    shim.extra = "from runtime.base import files; files._LOCK_TIMEOUT = 0.02"
    holder = os.open(shim.sockets, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    result = shim.start("c1", shim.bundle("c1"))
    os.close(holder)
    assert result.returncode == 1
    assert b"lock " in result.stderr
    assert not list(shim.sockets.glob("*"))


def test_core_scheduling_is_no_requirement(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    shim.environment = {"SCHED_CORE": "1"}
    assert shim.start("c1", bundle).returncode == 0
    assert what_daemon_saw(bundle)["id"] == "c1"


def test_daemon_directly_on_a_socket_path(shim: Shim) -> None:
    bundle = shim.bundle("c1", pod("c1"))
    (bundle / bootstrap.OPTIONS_FILE).write_bytes(any_message(*OPTIONS))
    path = shim.sockets / "direct"
    done: list[int] = []
    arguments = [*shim.flags("c1"), "-socket", str(path)]
    thread = threading.Thread(target=lambda: done.append(shim.run(arguments, bundle).returncode))
    thread.start()
    deadline = time.monotonic() + 10
    while not sockets.is_served(str(path)) and time.monotonic() < deadline:
        time.sleep(0.005)
    ask(f"unix://{path}", b"?")
    seen = json.loads((bundle / "daemon.json").read_text())
    quit_daemon(f"unix://{path}")
    thread.join()
    assert done == [0]
    assert seen["socket_address"] == f"unix://{path}"
    assert seen["options"] == [OPTIONS[0], OPTIONS[1].decode()]


# -- its parts ------------------------------------------------------------------------------


def test_bare_options_are_not_parameters() -> None:
    # An Any decodes as BootstrapParams, with the type as id: id and namespace must match.
    data = any_message("c1", b"other")
    parsed = bootstrap.parse_stdin(data, "c1", "ns")
    assert not parsed.modern
    assert parsed.options == ("c1", b"other")
    assert bootstrap.parse_stdin(any_message("c1", b"ns"), "c1", "ns").modern


@given(st.binary())
def test_any_stdin_is_parameters_options_or_refused(data: bytes) -> None:
    try:
        bootstrap.parse_stdin(data, "c1", "ns")
    except InvalidRequest:
        pass


def test_no_stdin() -> None:
    assert bootstrap.parse_stdin(b"", "c1", "ns") == bootstrap.Params()


def test_stdin_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 100)
    monkeypatch.setattr(bootstrap, "MAX_STDIN", 99)
    with open(big) as file, pytest.raises(InvalidRequest, match="larger"):
        bootstrap.read_stdin(file.fileno())
    monkeypatch.setattr(bootstrap, "_STDIN_TIMEOUT", 0.02)
    reader, writer = os.pipe()
    os.write(writer, b"half")
    with pytest.raises(DeadlineExceeded):
        bootstrap.read_stdin(reader)
    os.close(writer)
    assert bootstrap.read_stdin(reader) == b""
    os.close(reader)
    assert bootstrap.read_stdin(reader) == b""


def test_terminal_is_not_read() -> None:
    master, slave = os.openpty()
    assert bootstrap.read_stdin(slave) == b""
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("annotations", "grouping", "group"),
    [
        ({}, True, "me"),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, True, "pod"),
        ({"io.kubernetes.cri-o.SandboxID": "pod"}, True, "pod"),
        ({"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "p"}, True, "g"),
        ({"io.containerd.gvisor.v2.group": "o", "io.containerd.runc.v2.group": "g"}, True, "o"),
        ({"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "p"}, False, "p"),
        ({"io.containerd.runc.v2.group": "g"}, False, "me"),
        ({"io.kubernetes.cri.sandbox-id": ""}, True, "me"),
        ({"io.kubernetes.cri.sandbox-id": 7}, True, "me"),
    ],
)
def test_group(annotations: dict[str, object], grouping: bool, group: str) -> None:
    assert bootstrap.group_of(annotations, "me", grouping=grouping) == group


def test_spec_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        bootstrap.read_annotations(str(tmp_path))


def test_reply_forms() -> None:
    legacy = bootstrap.Params()
    assert bootstrap.format_reply(legacy, "unix:///a", "") == b"unix:///a"
    assert bootstrap.format_reply(legacy, "unix:///a", "2.0.5") == b"unix:///a"
    reply = json.loads(bootstrap.format_reply(legacy, "unix:///a", "2.1.9"))
    assert reply == {"version": 3, "address": "unix:///a", "protocol": "ttrpc"}


def test_join_cgroup_v2_and_v1(tmp_path: Path) -> None:
    unified = tmp_path / "v2"
    (unified / "shims").mkdir(parents=True)
    (unified / "cgroup.controllers").touch()
    (unified / "shims" / "cgroup.procs").touch()
    bootstrap.join_cgroup("/shims", str(unified))
    assert (unified / "shims" / "cgroup.procs").read_text() == "0"
    old = tmp_path / "v1"
    for name in ("memory", "cpu,cpuacct", "pids"):
        (old / name).mkdir(parents=True)
    (old / "cpu").symlink_to("cpu,cpuacct")
    for name in ("memory", "pids"):
        (old / name / "shims").mkdir()
        (old / name / "shims" / "cgroup.procs").touch()
    bootstrap.join_cgroup("shims/", str(old))
    assert (old / "pids" / "shims" / "cgroup.procs").read_text() == "0"
    assert (old / "memory" / "shims" / "cgroup.procs").read_text() == "0"
    with pytest.raises(Failed, match="no such cgroup"):
        bootstrap.join_cgroup("other", str(old))
    with pytest.raises(InvalidRequest, match=re.escape("..")):
        bootstrap.join_cgroup("a/../../b", str(old))


def test_oom_score_is_the_parents_and_one(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    shim.start("c1", bundle)
    pid = what_daemon_saw(bundle)["pid"]
    mine = int(Path("/proc/self/oom_score_adj").read_text())
    theirs = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    assert theirs == min(1000, mine + 1)


def test_all_that_the_daemon_is_told_is_read() -> None:
    read = set()
    for module in (bootstrap, daemon):
        with open(module.__file__, encoding="utf-8") as source:
            for node in ast.walk(ast.parse(source.read())):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("args"):
                    read.add(node.attr)
    assert set(DaemonArgs._fields) <= read


@pytest.mark.parametrize(
    ("number", "level"), [(-8, "trace"), (-4, "debug"), (0, "info"), (4, "warn"), (8, "error")]
)
def test_containerds_level_is_the_daemons(shim: Shim, number: int, level: str) -> None:
    bundle = shim.bundle("c1")
    message = params(containerd_version="2.3.1", log_level=number).SerializeToString()
    assert shim.run(["-namespace", "ns", "-id", "c1", "start"], bundle, message).returncode == 0
    assert what_daemon_saw(bundle)["log_level"] == level


@pytest.mark.parametrize(("level", "lines"), [("warn", ["warning"]), ("info", ["info", "warning"])])
def test_a_daemon_keeps_to_its_level(tmp_path: Path, level: str, lines: list[str]) -> None:
    program = (
        "import os, sys\n"
        "from shim import daemon; from runtime.base import log\n"
        "os.chdir(sys.argv[1]); daemon._open_log(sys.argv[2])\n"
        "log.get_logger('x').info('a.done'); log.get_logger('x').warning('b.done')\n"
    )
    (tmp_path / "log").touch()
    subprocess.run([sys.executable, "-c", program, tmp_path, level], check=True)
    written = (tmp_path / "log").read_text().splitlines()
    assert [line.split("level=")[1].split()[0] for line in written] == lines


def test_the_shim_goes_before_its_parent() -> None:
    program = "from shim.bootstrap import raise_oom_score; raise_oom_score()"
    program += "; print(open('/proc/self/oom_score_adj').read())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        assert int(done.stdout) == min(1000, int(file.read()) + 1)
