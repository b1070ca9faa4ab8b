from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unsupported,
)
from runtime.bundle.process_spec import ProcessSpec
from runtime.host import forward_program
from runtime.host.pids import start_time
from runtime.sandbox import forward_mount
from runtime.state import shim_record, writer
from runtime.state.loaded import StoredContainer
from runtime.state.lock import StateLock
from runtime.state.shim_record import ContainerRecord, Pinned
from tests.fakes.sentry import FakeSentry, SentryError
from tests.fakes.state_files import Helpers, runsc_state, write

STATE = "containerManager.ContainerRuntimeState"


class Scene:
    """A root directory, a sentry that answers, and the process that it seems to be."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"
        self.bundle = tmp_path / "bundle"
        (self.bundle / "rootfs").mkdir(parents=True)
        self.socket = str(tmp_path / "s")
        self.sentry = FakeSentry.at(self.socket)
        self.helpers = Helpers()
        self.process = self.helpers.spawn("runsc-sandbox", "c1")
        self.verdict = 2
        self.sentry.handlers[STATE] = lambda cid: self.verdict

    def write(self, name: str = "c1", **fields: Any) -> Path:
        fields = {"pid": self.process.pid, "socket": self.socket, **fields}
        return write(self.root, runsc_state(self.bundle, name, **fields))

    def load(self, name: str = "c1", **fields: Any) -> StoredContainer:
        self.write(name, **fields)
        return StoredContainer.load(str(self.root), name)

    def answer(self, method: str, result: Any = None) -> list[Any]:
        """Have the sentry answer so; what it was asked."""
        asked: list[Any] = []

        def handler(argument: Any) -> Any:
            asked.append(argument)
            if isinstance(result, Exception):
                raise result
            return result

        self.sentry.handlers[method] = handler
        return asked

    def end_sandbox(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.helpers.close()
        self.sentry.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def status_of(scene: Scene, **fields: Any) -> str:
    return scene.load(**fields).status()


# -- what is read ---------------------------------------------------------------------------


def test_what_a_state_file_tells(scene: Scene) -> None:
    gofer = scene.helpers.spawn("runsc-gofer", f"--bundle={scene.bundle}")
    found = scene.load(gofer=gofer.pid)
    assert (found.id, found.sandbox_id, found.is_root) == ("c1", "c1", True)
    assert found.bundle == str(scene.bundle) and found.rootfs == f"{scene.bundle}/rootfs"
    assert (found.created_at[:4], found.owner) == ("2026", "root")
    assert found.spec.process.args == ("/bin/true",) and found.annotations == {"a": "b"}
    assert found.control_socket == scene.socket
    assert (found.sandbox_pid, found.gofer_pid) == (scene.process.pid, gofer.pid)
    assert found.oci_state() == {
        "ociVersion": "1.1.0",
        "id": "c1",
        "status": "running",
        "pid": scene.process.pid,
        "bundle": str(scene.bundle),
        "annotations": {"a": "b"},
    }
    scene.end_sandbox()
    assert found.sandbox_pid == -1 and found.oci_state()["pid"] == 0


def test_old_releases_listen_on_an_abstract_name(scene: Scene) -> None:
    assert scene.load(socket=None).control_socket == "\0runsc-sandbox.c1\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"id":"c1"}',
        *(
            json.dumps({**runsc_state(Path("/b")), **changes}).encode()
            for changes in (
                {"id": "other"},
                {"status": "lost"},
                {"spec": None},
                {"goferPid": "x"},
                {"sandbox": []},
                {"sandbox": {"controlSocketPath": "relative"}},
                {"goferMountConfs": [{"upper": "x"}]},
            )
        ),
    ],
)
def test_a_corrupt_file_is_named_and_harms_no_other(scene: Scene, data: bytes) -> None:
    path = scene.write()
    path.write_bytes(data)
    scene.write("c2", sandbox="c2")
    with pytest.raises(Failed, match=r"state file .*/c1_sandbox:c1\.state: "):
        StoredContainer.load(str(scene.root), "c1")
    found, problems = StoredContainer.list(str(scene.root))
    assert [each.id for each in found] == ["c2"]
    assert len(problems) == 1 and "c1_sandbox:c1.state" in problems[0]


@pytest.mark.parametrize("what", ["state", "record", "root"])
def test_what_others_can_write_is_not_believed(scene: Scene, what: str) -> None:
    """It would name processes to kill, files to remove and programs to start."""
    state = scene.write()
    assert StoredContainer.load(str(scene.root), "c1").id == "c1"
    record = scene.root / "c1_sandbox:c1.shim.json"
    record.write_text("{}")
    path = {"state": state, "record": record, "root": scene.root}[what]
    path.chmod(0o777)
    match = f"{path} is not believed: others can write it"
    with pytest.raises(Failed, match=match):
        StoredContainer.load(str(scene.root), "c1")
    found, problems = StoredContainer.list(str(scene.root))
    assert found == [] and match in problems[0]
    if what == "root":
        with pytest.raises(Failed, match=match):
            StateLock(str(scene.root), "c2", "c2").acquire_for_new()
    if os.geteuid() == 0:
        path.chmod(0o700)
        os.chown(path, 1000, 0)
        with pytest.raises(Failed, match="owner 1000, mode 0700"):
            StoredContainer.load(str(scene.root), "c1")
        os.chown(path, 0, 0)


def test_a_file_that_is_being_written_is_waited_for(scene: Scene) -> None:
    """runsc writes in place, under the lock."""
    path = scene.write()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    lock = StateLock(str(scene.root), "c1", "c1").acquire()
    found: list[str] = []
    reader = threading.Thread(
        target=lambda: found.append(StoredContainer.load(str(scene.root), "c1").id)
    )
    reader.start()
    path.write_bytes(whole)
    lock.release()
    reader.join(5)
    assert found == ["c1"]


def test_containers_that_only_the_shim_wrote_down(scene: Scene) -> None:
    config = runsc_state(scene.bundle)["spec"]
    (scene.bundle / "config.json").write_text(json.dumps(config))
    record = ContainerRecord(
        id="c1",
        sandbox_id="c1",
        is_root=True,
        bundle=str(scene.bundle),
        boot=Pinned(pid=scene.process.pid, start_time=start_time(scene.process.pid)),
        control_socket=scene.socket,
    )
    shim_record.save(str(scene.root), record)
    found = StoredContainer.load(str(scene.root), "c")
    assert found.status() == "running" and found.spec.process.args == ("/bin/true",)
    scene.verdict = 1
    assert found.status() == "created"
    shim_record.save(str(scene.root), record.replace(boot_id="another boot"))
    assert found.reload().status() == "stopped"


def test_not_found(scene: Scene) -> None:
    with pytest.raises(NotFound):
        StoredContainer.load(str(scene.root), "c1")
    found = scene.load()
    shim_record.remove(str(scene.root), "c1")
    with pytest.raises(NotFound):
        found.reload()


# -- status ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "verdict", "status"),
    [
        ("created", 1, "created"),
        ("created", 2, "running"),
        ("created", 3, "stopped"),
        ("running", 1, "created"),
        ("running", 2, "running"),
        ("running", 3, "stopped"),
        ("running", 0, "stopped"),
        ("paused", 2, "paused"),
        ("paused", 3, "stopped"),
        ("stopped", 2, "stopped"),
    ],
)
def test_status_is_what_lives(scene: Scene, written: str, verdict: int, status: str) -> None:
    scene.verdict = verdict
    assert status_of(scene, status=written) == status


@pytest.mark.parametrize("written", ["created", "running", "paused", "creating"])
def test_without_a_sandbox_it_has_stopped(scene: Scene, written: str) -> None:
    scene.end_sandbox()
    found = scene.load(status=written)
    assert found.status() == "stopped" and found.sandbox_pid == -1


def test_a_number_that_became_another_processs_is_no_sandbox(scene: Scene) -> None:
    other = scene.helpers.spawn("runsc-sandbox", "c9")
    assert status_of(scene, pid=other.pid) == "stopped"
    assert status_of(scene, pid=os.getpid()) == "stopped"


def test_one_of_which_only_its_creator_knows_yet(scene: Scene) -> None:
    record = ContainerRecord(id="c1", sandbox_id="c1", is_root=True, bundle=str(scene.bundle))
    with StateLock(str(scene.root), "c1", "c1").acquire_for_new() as lock:
        shim_record.save(str(scene.root), record)
        found = StoredContainer.load(str(scene.root), "c1")
        assert found.status() == "creating"
    assert found.status() == "stopped", "its creator died"
    os.unlink(lock.path)
    assert found.status() == "stopped"
    assert not os.path.exists(lock.path)


def test_one_that_is_being_created(scene: Scene) -> None:
    with StateLock(str(scene.root), "c1", "c1").acquire_for_new():
        assert status_of(scene, status="creating", pid=0) == "creating"
    assert status_of(scene, status="creating", pid=0) == "stopped"


def test_a_sentry_that_does_not_answer_is_believed_to_be_what_is_written(scene: Scene) -> None:
    scene.answer(STATE, SentryError("strange"))
    assert status_of(scene, status="paused") == "paused"


def test_old_releases_are_asked_by_signal(scene: Scene) -> None:
    del scene.sentry.handlers[STATE]
    scene.answer("containerManager.Signal")
    assert status_of(scene) == "running"
    scene.answer("containerManager.Signal", SentryError("no such process"))
    assert status_of(scene) == "stopped"


# -- operations -----------------------------------------------------------------------------

NULL = (0, 1, 2)
TRUE = ProcessSpec(args=("true",))
#: Operation, the states in which it is legal, and how errors call it.
RULES: list[tuple[Any, str, str]] = [
    (lambda c: c.processes(), "running paused", "get processes of"),
    (lambda c: c.event(), "created running paused", "get events for"),
    (lambda c: c.execute(TRUE, NULL, False), "created running", "execute in"),
    (lambda c: c.signal(15), "created running paused", "signal"),
    (lambda c: c.signal_process(1, 15), "running paused", "signal a process inside"),
    (lambda c: c.signal_foreground(1, 15), "running paused", "signal a process inside"),
    (lambda c: c.signal_process_group(1, 15), "running paused", "signal a process group inside"),
    (lambda c: c.pause(), "created running", "pause"),
    (lambda c: c.resume(), "paused", "resume"),
    (lambda c: c.usage(), "created running paused", "get usage of"),
    (lambda c: c.usage_fd(), "created running paused", "get usage of"),
    (lambda c: c.reduce(), "created running paused", "reduce memory of"),
    (lambda c: c.port_forward(80, 0), "running", "port forward"),
    (lambda c: c.tar_root(0), "running paused", "archive the root file system of"),
    (lambda c: c.destroy(), "created stopped", "delete"),
]


@pytest.mark.parametrize("written", ["created", "running", "paused", "stopped"])
@pytest.mark.parametrize(("operation", "allowed", "name"), RULES, ids=[r[2] for r in RULES])
def test_permitted_states(
    scene: Scene, operation: Any, allowed: str, name: str, written: str
) -> None:
    scene.verdict = {"created": 1, "stopped": 3}.get(written, 2)
    found = scene.load(status=written, pid=scene.process.pid)
    if written in allowed.split():
        try:
            operation(found)
        except InvalidState as fault:
            pytest.fail(str(fault))
        except RuntimeFault:
            pass  # the sentry's own answer
        return
    with pytest.raises(InvalidState) as caught:
        operation(found)
    assert str(caught.value) == f'cannot {name} container "c1" in state {written}'


def test_execute_and_wait(scene: Scene) -> None:
    asked = scene.answer("containerManager.ExecuteAsync", 7)
    waits = scene.answer("containerManager.WaitPID", 3 << 8)
    found = scene.load()
    assert found.execute(TRUE, NULL, False) == 7
    assert asked[0]["argv"] == ["true"] and asked[0]["ContainerID"] == "c1"
    assert found.wait_pid(7) == 3
    assert scene.load("c2").wait_root_pid(9) == 3
    assert waits == [{"PID": 7, "CID": "c1"}, {"PID": 9, "CID": "c1"}]
    scene.answer("containerManager.WaitPID", SentryError("no such process"))
    with pytest.raises(NotFound):
        found.wait_pid(7)
    scene.end_sandbox()
    with pytest.raises(SandboxGone, match='sandbox "c1" is not running'):
        found.wait_pid(7)


def test_wait(scene: Scene) -> None:
    gate = scene.sentry.gates["containerManager.Wait"] = threading.Event()
    scene.answer("containerManager.Wait", 9)
    found = scene.load("c2")
    with pytest.raises(DeadlineExceeded):
        found.wait(0.05)
    gate.set()
    assert found.wait() == 128 + 9
    scene.sentry.dropped.add("containerManager.Wait")
    scene.end_sandbox()
    with pytest.raises(SandboxGone):
        found.wait()


@pytest.mark.parametrize("method", ["Wait", "WaitPID"])
def test_an_exit_is_asked_for_until_it_is_told(scene: Scene, method: str) -> None:
    """By a sentry that lives and closes connections, as one does that restores."""
    scene.answer("containerManager." + method, 7 << 8)
    scene.sentry.broken["containerManager." + method] = 2
    found = scene.load("c2")
    assert (found.wait() if method == "Wait" else found.wait_pid(7)) == 7
    scene.sentry.dropped.add("containerManager." + method)
    with pytest.raises(DeadlineExceeded):
        found.wait(0.6) if method == "Wait" else found.wait_pid(7, 0.6)


def test_a_sentry_that_breaks_off_has_not_stopped(scene: Scene) -> None:
    """And is asked again to end a container, which may run on."""
    scene.sentry.dropped.add(STATE)
    found = scene.load("c2", sandbox="c1")
    assert found.status() == "running"
    with pytest.raises(InvalidState):
        found.destroy()
    destroy = "containerManager.DestroySubcontainer"
    scene.answer(destroy, {})
    scene.sentry.broken[destroy] = 1
    found.destroy(force=True)
    assert scene.sentry.methods().count(destroy) == 2


def test_a_wait_that_is_over_does_not_hold_the_sentry_up(scene: Scene) -> None:
    """It waits for idle connections when it wants to exit."""
    scene.answer("containerManager.Wait", 0)
    found = scene.load()
    done = threading.Event()

    def wait() -> None:
        with found.open_wait() as pending:
            pending.result()
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert scene.sentry.closed_by_peer.acquire(timeout=5), "while the process lives on"
    assert not done.is_set()
    scene.end_sandbox()
    assert done.wait(5)
    thread.join()


def test_the_exit_that_the_shim_wrote_down_outlives_the_sentry(scene: Scene) -> None:
    found = scene.load(socket="/nowhere")
    scene.end_sandbox()
    record = ContainerRecord(
        id="c1", sandbox_id="c1", is_root=True, bundle=str(scene.bundle), exit_status=42
    )
    shim_record.save(str(scene.root), record)
    assert found.wait() == 42


def test_signals(scene: Scene) -> None:
    asked = scene.answer("containerManager.Signal")
    found = scene.load("c2")
    found.signal(15)
    found.signal(9, everyone=True)
    found.signal_process(5, 10)
    found.signal_foreground(6, 2)
    assert [(a["Signo"], a["PID"], a["Mode"]) for a in asked] == [
        (15, 0, 0),
        (9, 0, 1),
        (10, 5, 0),
        (2, 6, 2),
    ]
    scene.verdict = 3
    found.signal(9, everyone=True)  # what a stopped init left
    assert len(asked) == 5


def test_a_mode_that_would_kill_the_sentry_is_not_tried(scene: Scene) -> None:
    asked = scene.answer("containerManager.Signal")
    with pytest.raises(Unsupported):
        scene.load().signal_process_group(3, 2)
    body = runsc_state(scene.bundle, pid=scene.process.pid, socket=scene.socket)
    body["sandbox"]["metricMetadata"] = {"version": "release-20260817.0-70-g3c5eee17d"}
    write(scene.root, body)
    StoredContainer.load(str(scene.root), "c1").signal_process_group(3, 2)
    assert [(a["PID"], a["Mode"]) for a in asked] == [(3, 3)]


def test_a_created_container_ends_by_a_signal(scene: Scene) -> None:
    scene.verdict = 1
    destroyed = scene.answer("containerManager.DestroySubcontainer")
    found = scene.load("c2", status="created")
    found.signal(17)
    assert destroyed == []
    found.signal(15)
    assert destroyed == ["c2"]
    root = scene.load(status="created")
    root.signal(15)
    assert scene.process.wait(5) == -9


def test_a_frozen_sandbox_is_killed_from_outside(scene: Scene) -> None:
    scene.load(status="paused").signal(9)
    assert scene.process.wait(5) == -9


def test_pause_and_resume_are_written_down(scene: Scene) -> None:
    scene.answer("containerManager.Pause")
    scene.answer("containerManager.Resume")
    found = scene.load(extra={"kept": [1]})
    found.pause()
    path = scene.root / "c1_sandbox:c1.state"
    assert found.status() == "paused"
    assert json.loads(path.read_text())["status"] == "paused"
    assert json.loads(path.read_text())["extra"] == {"kept": [1]}
    found.resume()
    assert found.status() == json.loads(path.read_text())["status"] == "running"


def test_an_old_release_has_other_names(scene: Scene) -> None:
    scene.answer("Lifecycle.Pause")
    found = scene.load(socket=None)
    control = found.control()
    control.address = scene.socket
    control.pause(5.0)
    assert scene.sentry.methods() == ["Lifecycle.Pause"]


def test_usage(scene: Scene) -> None:
    asked = scene.answer("Usage.Collect", {"System": 1, "Anonymous": 2, "Total": 3})
    usage = scene.load().usage(full=True)
    assert (usage.system, usage.anonymous, usage.total, usage.mapped) == (1, 2, 3, 0)
    assert asked == [{"Full": True}]
    for bad in ([], {"Total": -1}, {"Total": "x"}):
        scene.answer("Usage.Collect", bad)
        with pytest.raises(Failed, match="malformed"):
            scene.load().usage()
    scene.answer("Usage.UsageFD", {})
    with pytest.raises(Failed, match="0 descriptors"):
        scene.load().usage_fd()


def test_usage_files(tmp_path: Path) -> None:
    from runtime.runsc.usage import UsageFiles

    stats, memory = (os.memfd_create(name) for name in ("stats", "memory"))
    os.write(stats, struct.pack("<Q", 4096))
    os.write(memory, b"x" * 8192)
    with UsageFiles(stats, memory) as files:
        usage = files.read()
    assert (usage.mapped, usage.unknown, usage.total) == (4096, 8192, 12288)


def test_small_calls(scene: Scene) -> None:
    found = scene.load()
    scene.answer("debug.Stacks", "goroutine 1")
    reduced = scene.answer("Usage.Reduce", {})
    forwarded = scene.answer("containerManager.PortForward", {})
    assert found.stacks() == "goroutine 1"
    found.reduce(wait=True)
    assert reduced == [{"wait": True}]
    with open(os.devnull) as null:
        found.port_forward(80, null.fileno())
    assert forwarded == [{"ContainerID": "c1", "Port": 80}]
    assert len(scene.sentry.requests[-1].files) == 1
    archived = scene.answer("Fs.TarRootfsUpperLayer", {})
    with open(os.devnull) as null:
        found.tar_root(null.fileno())
    assert archived == [{"ContainerID": "c1"}] and len(scene.sentry.requests[-1].files) == 1
    for port in (0, 65536):
        with pytest.raises(InvalidRequest):
            found.port_forward(port, 0)


@pytest.mark.parametrize(
    ("root", "mounts", "program"),
    [
        (forward_program.FOLDERS[0], [], "/forward"),
        ("/b", [(forward_mount.FOLDER, forward_program.FOLDERS[1])], forward_mount.PROGRAM),
        ("/b", [(forward_mount.FOLDER, "/elsewhere"), ("/x", forward_program.FOLDERS[0])], ""),
    ],
)
def test_forwarding_by_the_program_of_the_pod(
    scene: Scene, root: str, mounts: list[tuple[str, str]], program: str
) -> None:
    """Whichever of its containers is named, it is run in the first one and reaped."""
    spec = runsc_state(scene.bundle)["spec"]
    spec["root"] = {"path": root}
    spec["mounts"] = [
        {"destination": there, "source": source, "type": "bind", "options": ["bind"]}
        for there, source in mounts
    ]
    scene.write(spec=spec)
    found = scene.load("c2")
    assert found.forward_program() == program
    run = scene.answer("containerManager.ExecuteAsync", 7)
    waits = scene.answer("containerManager.WaitPID", 1 << 8)
    with pytest.raises(Failed, match="port 80: connection refused"):
        found.dial(forward_mount.PROGRAM, 80)  # the sentry closes what it is given
    assert run[0]["argv"] == [forward_mount.PROGRAM, "80"] and run[0]["ContainerID"] == "c1"
    deadline = time.monotonic() + 10
    while not waits and time.monotonic() < deadline:
        time.sleep(0.01)
    assert waits == [{"PID": 7, "CID": "c1"}]
    with pytest.raises(InvalidRequest):
        found.dial(forward_mount.PROGRAM, 65536)


def test_events_split_the_hosts_cpu_time(scene: Scene) -> None:
    usage = {"containerUsage": {"c1": 10, "c2": 30}, "event": {"data": {"pids": {"current": 3}}}}
    asked = scene.answer("containerManager.Event", usage)
    scene.load("c2", sandbox="c1")
    metrics = scene.load().event()
    assert metrics.pids == 3 and asked == ["c1"]


# -- destroy --------------------------------------------------------------------------------


def test_destroy_of_a_sandbox_that_runsc_made(scene: Scene) -> None:
    gofer = scene.helpers.spawn("runsc-gofer", f"--bundle={scene.bundle}")
    kept = scene.bundle / "rootfs" / "kept"
    kept.touch()
    store = scene.bundle / "rootfs" / ".gvisor.filestore.c1"
    store.touch()
    body = runsc_state(scene.bundle, pid=scene.process.pid, gofer=gofer.pid, socket=scene.socket)
    body["goferMountConfs"] = [{"lower": 1, "upper": 2}]
    write(scene.root, body)
    found = StoredContainer.load(str(scene.root), "c1")
    with pytest.raises(InvalidState):
        found.destroy()
    found.destroy(force=True)
    assert (scene.process.wait(5), gofer.wait(5)) == (-9, -9)
    assert os.listdir(scene.root) == [] and not os.path.exists(scene.socket)
    assert kept.exists() and not store.exists()
    found.destroy()
    assert os.listdir(scene.root) == []


def test_destroy_of_one_container_leaves_the_sandbox(scene: Scene) -> None:
    destroyed = scene.answer("containerManager.DestroySubcontainer")
    gofer = scene.helpers.spawn("runsc-gofer", f"--bundle={scene.bundle}")
    scene.write()
    scene.load("c2", gofer=gofer.pid).destroy(force=True)
    assert destroyed == ["c2"] and gofer.wait(5) == -9
    assert scene.process.poll() is None
    assert "c1_sandbox:c1.state" in os.listdir(scene.root)
    assert not [name for name in os.listdir(scene.root) if name.startswith("c2")]


def test_destroy_goes_on_past_failures_and_names_them(scene: Scene) -> None:
    scene.answer("containerManager.DestroySubcontainer", SentryError("stuck"))
    gofer = scene.helpers.spawn("runsc-gofer", f"--bundle={scene.bundle}")
    with pytest.raises(Failed, match=r'destroy container "c2": end container "c2": .*stuck'):
        scene.load("c2", gofer=gofer.pid).destroy(force=True)
    assert gofer.wait(5) == -9
    assert not [name for name in os.listdir(scene.root) if name.startswith("c2")]


def test_cgroups_of_runsc_in_our_form(tmp_path: Path) -> None:
    from runtime.state.runsc_state import cgroup_json
    from runtime.state.runsc_state import own_cgroup_json as _cgroup

    v1 = {"cgroupv1": {"name": "/a/b", "parents": None, "own": {"cpu": True, "memory": False}}}
    assert _cgroup(v1) == {"mode": "v1", "own": {"cpu": ["/sys/fs/cgroup/cpu/a/b"]}}
    relative = {"cgroupv1": {"name": "b", "parents": {"cpu": "/u"}, "own": {"cpu": True}}}
    assert _cgroup(relative) == {"mode": "v1", "own": {"cpu": ["/sys/fs/cgroup/cpu/u/b"]}}
    v2 = {"cgroupv2": {"mountpoint": "/sys/fs/cgroup", "path": "/a", "own": ["/sys/fs/cgroup/a"]}}
    assert _cgroup(v2) == {"mode": "v2", "own": {"": ["/sys/fs/cgroup/a"]}}
    assert _cgroup({"cgroupunknown": None}) is None
    ours = {"mode": "v1", "path": "/a", "own": {"cpu": ["/sys/fs/cgroup/cpu/a"], "memory": []}}
    assert cgroup_json(ours) == {"cgroupv1": {"name": "/a", "parents": None, "own": {"cpu": True}}}
    assert cgroup_json(None) == {"cgroupunknown": None}


def test_a_state_file_is_replaced_whole(scene: Scene) -> None:
    found = scene.load()
    assert found.stored is not None
    before = os.stat(scene.root / "c1_sandbox:c1.state").st_ino
    with StateLock(str(scene.root), "c1", "c1").acquire() as lock:
        assert writer.rewrite(lock, found.stored, "paused").status == "paused"
    after = os.stat(scene.root / "c1_sandbox:c1.state")
    assert after.st_ino != before and after.st_mode & 0o777 == 0o640


def test_a_container_of_an_earlier_release_keeps_its_id(scene: Scene) -> None:
    from runtime.task.acquired import Holdings

    boot = Pinned(pid=scene.process.pid, start_time=start_time(scene.process.pid))
    record = ContainerRecord(
        id="c1", sandbox_id="c1", is_root=True, bundle=str(scene.bundle), boot=boot
    )
    shim_record.save(str(scene.root), record)
    holdings = Holdings("c1", str(scene.bundle), "ns", "")
    with pytest.raises(AlreadyExists):
        holdings.reserve(str(scene.root), "c1")
    holdings.release()
    assert shim_record.load(str(scene.root), "c1") is not None
    scene.end_sandbox()
    holdings.reserve(str(scene.root), "c1")
    holdings.release()
    assert os.listdir(scene.root) == []
