from __future__ import annotations

import _socket
import errno
import json
import os
import queue
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    SandboxGone,
    Unreachable,
)
from runtime.bundle.process_spec import ProcessSpec
from runtime.bundle.spec import load_spec
from runtime.host import children, linux
from runtime.host.fds import own_stdio
from runtime.host.reactor import Reactor
from runtime.network.setup import NetworkSetup
from runtime.runsc.config import RunscConfig
from runtime.runsc.control_address import abstract_address, control_address, control_addresses
from runtime.sandbox import exits
from runtime.sandbox.exits import ExitInfo
from runtime.sandbox.sandbox import BootParams, Sandbox
from tests.fakes import runsc
from tests.fakes.driver import Unprivileged
from tests.fakes.generations import GENERATIONS

TIMEOUT = 10.0


class Exit:
    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[ExitInfo, str]] = queue.Queue()
        self.calls = 0

    def __call__(self, info: ExitInfo) -> None:
        self.calls += 1
        self._queue.put((info, threading.current_thread().name))

    def get(self) -> ExitInfo:
        info, thread = self._queue.get(timeout=TIMEOUT)
        assert thread == "reactor"
        return info


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.binary = runsc.install(str(folder))
        self.reactor = Reactor()
        self.reactor.start()
        self.config = RunscConfig(root=str(self.state), flags={"network": "none"})
        self.sandboxes: list[Sandbox] = []
        (folder / "root").mkdir()

    def boot(
        self, *args: str, timeout: float = TIMEOUT, network: Any = None, config: Any = None
    ) -> tuple[Sandbox, Exit]:
        spec = {"process": {"args": args, "env": ["SECRET=1"]}, "root": {"path": "root"}}
        (self.folder / "config.json").write_text(json.dumps(spec))
        null = os.open(os.devnull, os.O_RDWR)
        try:
            sandbox = Sandbox.boot(
                BootParams(
                    id="one",
                    bundle=str(self.folder),
                    spec=load_spec(str(self.folder)),
                    config=config or self.config,
                    driver=Unprivileged(
                        GENERATIONS[2022].replace(binary=self.binary, boot_binary=self.binary)
                    ),
                    stdio=(null,) * 3,
                ),
                reactor=self.reactor,
                network=network,
                deadline=time.monotonic() + timeout,
            )
        finally:
            os.close(null)
        self.sandboxes.append(sandbox)
        ended = Exit()
        sandbox.on_init_exit(ended)
        return sandbox, ended

    def start(self, *args: str, **more: Any) -> tuple[Sandbox, Exit]:
        sandbox, ended = self.boot(*args, **more)
        sandbox.start_root(time.monotonic() + TIMEOUT)
        return sandbox, ended


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    before = len(os.listdir("/proc/self/fd"))
    lab = Lab(tmp_path)
    yield lab
    for sandbox in lab.sandboxes:
        sandbox.destroy(TIMEOUT)
    lab.reactor.stop()
    assert not children._children, "a process is left"
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left"
    assert not lab.state.exists() or not list(lab.state.iterdir()), "a socket is left"


# -- start ---------------------------------------------------------------------------------------


def test_start_and_exit(lab: Lab) -> None:
    sandbox, ended = lab.start("exit", "7")
    assert ended.get() == ExitInfo(status=7, raw=0x700)
    sandbox.destroy(TIMEOUT)
    assert ended.calls == 1


def test_gofer_that_fails_is_quoted(lab: Lab) -> None:
    """And not the sentry, which only finds that it has ended."""
    with pytest.raises(Failed) as caught:
        lab.boot("gofer-fails")
    assert str(caught.value) == "start sandbox: gofer: error setting up FS: no such file"


def test_sentry_that_fails(lab: Lab) -> None:
    with pytest.raises(Failed, match=r"^start sandbox: sentry: unknown platform: zork$"):
        lab.boot("boot-fails")


def test_sentry_that_is_never_ready(lab: Lab) -> None:
    with pytest.raises(DeadlineExceeded, match="start of the sentry on platform ptrace"):
        lab.boot("boot-hangs", timeout=0.5)


def test_binary_that_can_not_be_executed(lab: Lab) -> None:
    Path(lab.binary).write_text("nonsense")
    with pytest.raises(Failed, match=r"spawn .*runsc"):
        lab.boot("exit", "0")


def test_state_directory_that_can_not_be_made(lab: Lab) -> None:
    lab.state.write_text("a file")
    with pytest.raises(Failed, match="bind control socket"):
        lab.boot("exit", "0")
    lab.state.unlink()


def test_start_that_fails(lab: Lab) -> None:
    sandbox, ended = lab.boot("start-fails", "/x: no such file or directory")
    with pytest.raises(InvalidRequest, match="failed to load /x: no such file"):
        sandbox.start_root(time.monotonic() + TIMEOUT)
    sandbox.kill()
    assert ended.get() == ExitInfo(status=137, sentry_died=True)


def test_sentry_that_ends_after_a_start_that_failed(lab: Lab) -> None:
    sandbox, ended = lab.boot("start-fails", "/x: no such file or directory", "128")
    with pytest.raises(InvalidRequest):
        sandbox.start_root(time.monotonic() + TIMEOUT)
    info = ended.get()
    assert (info.status, info.sentry_died) == (137, True)
    assert info.detail == "sentry ended with status 128"


def test_panic_during_the_start(lab: Lab) -> None:
    sandbox, ended = lab.boot("panics")
    with pytest.raises(SandboxGone, match="'one' is gone: panic: index out of range"):
        sandbox.start_root(time.monotonic() + TIMEOUT)
    info = ended.get()
    assert (info.status, info.sentry_died) == (137, True)
    assert "sentry panicked: panic: index out of range" in info.detail


def test_control_socket(lab: Lab) -> None:
    sandbox, _ = lab.boot("wait")
    address = sandbox.control_address
    assert address == str(lab.state / "runsc-one.sock")
    assert stat.S_IMODE(os.stat(address).st_mode) == 0o600
    with pytest.raises(AlreadyExists):
        lab.boot("wait")
    assert os.path.exists(address), "the living one's socket was removed"
    sandbox.destroy(TIMEOUT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address)
    lab.start("exit", "0")


def test_control_socket_under_an_abstract_name(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # The name is one for the whole network namespace: another test run may have it.
    name = abstract_address("one")
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.bind(name)
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
        monkeypatch.setattr(Unprivileged, "abstract_sockets", True)
        sandbox, _ = lab.start("wait")
        assert sandbox.control_address == str(lab.state / "runsc-one.sock")


def test_socket_path_that_is_something_else(lab: Lab) -> None:
    lab.state.mkdir()
    path = lab.state / "runsc-one.sock"
    path.write_text("precious")
    with pytest.raises(AlreadyExists):
        lab.boot("wait")
    assert path.read_text() == "precious"
    path.unlink()


def test_control_socket_is_for_its_owner_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the release looks for, unless the operator wants an abstract name."""
    monkeypatch.setattr(Unprivileged, "abstract_sockets", True)
    sandbox, _ = lab.start("wait")
    assert sandbox.control_address == str(lab.state / "runsc-one.sock")
    assert stat.S_IMODE(os.stat(sandbox.control_address).st_mode) == 0o600
    assert stat.S_IMODE(lab.state.stat().st_mode) == 0o711


def test_control_addresses() -> None:
    assert control_addresses("/r", "a", False) == ("/r/runsc-a.sock",)
    assert control_addresses("/r", "a", True) == ("\0runsc-sandbox.a\0", "/r/runsc-a.sock")
    assert control_addresses("/r", "a" * 93, True)[0].startswith("/r/"), "of no room for it"
    assert control_address("/r", "a" * 68) == f"/r/runsc-{'a' * 68}.sock"
    long = {os.path.basename(control_address("/r", "a" * 199 + end)) for end in "xy"}
    assert len(long) == 2
    assert all(len(name) <= 80 for name in long)


def test_environment_and_log_stay_private(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIM_SECRET", "1")
    sandbox, _ = lab.boot("wait")
    assert Path(f"/proc/{sandbox.pid}/environ").read_bytes() == b""


def test_log_files(lab: Lab) -> None:
    flags = {
        "network": "none",
        "debug-log": str(lab.folder / "logs") + "/",
        "debug-command": "boot",
    }
    lab.boot("wait", config=lab.config.replace(flags=flags))
    (found,) = (lab.folder / "logs").iterdir()
    assert found.name.startswith("runsc.log.") and found.name.endswith(".boot.txt")


# -- exits ---------------------------------------------------------------------------------------


def test_status_of_the_sentry_fills_in_for_a_lost_reply(lab: Lab) -> None:
    _, ended = lab.start("ends-silently", "9")
    assert ended.get() == ExitInfo(status=9)


@pytest.mark.parametrize("how", ["breaks", "refuses", "rambles"])
def test_an_exit_is_asked_for_until_it_is_told(lab: Lab, how: str) -> None:
    """What keeps the sentry from answering is no end of what it runs."""
    sandbox, ended = lab.start(how, "Wait", "WaitPID")
    exec_ended, member_ended = Exit(), Exit()
    sandbox.wait_pid("one", 5, exec_ended)
    sandbox.wait_container("two", member_ended)
    # The pauses before a fourth time.
    time.sleep(0.05 + 0.1 + 0.2 + 0.3)
    assert (ended.calls, exec_ended.calls, member_ended.calls) == (0, 0, 0)
    assert sandbox.child.poll() is None
    sandbox.signal("one", 15)
    for each in (ended, exec_ended, member_ended):
        assert each.get() == ExitInfo(status=143, raw=15)


def test_a_lack_of_descriptors_is_no_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox, ended = lab.start("wait")
    refused = threading.Semaphore(0)

    def exhausted(*_: object) -> None:
        refused.release()
        raise OSError(errno.EMFILE, "")

    exec_ended = Exit()
    with monkeypatch.context() as patch:
        patch.setattr(_socket, "socket", exhausted)
        sandbox.wait_pid("one", 5, exec_ended)
        assert refused.acquire(timeout=TIMEOUT) and refused.acquire(timeout=TIMEOUT)
    assert exec_ended.calls == 0
    sandbox.signal("one", 15)
    assert exec_ended.get() == ExitInfo(status=143, raw=15)
    assert ended.get().status == 143


def test_a_process_that_the_sentry_does_not_know_is_lost(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so twice, to two questions."""
    monkeypatch.setattr(exits, "_EXIT_TIMEOUT", 0.5)
    sandbox, ended = lab.start("forgot")
    exec_ended = Exit()
    sandbox.wait_pid("one", 5, exec_ended)
    assert exec_ended.get() == ExitInfo(status=137, sentry_died=True)
    # Without its init, a sentry has to end; the status of one that doesn't is not init's.
    info = ended.get()
    assert (info.status, info.sentry_died) == (137, True)
    assert sandbox.child.poll() is not None


def test_a_socket_that_was_removed_ends_nothing(lab: Lab) -> None:
    sandbox, ended = lab.start("breaks", "Wait")
    os.rename(sandbox.control_address, sandbox.control_address + "~")
    with pytest.raises(Unreachable):
        sandbox.processes("one")
    assert ended.calls == 0 and sandbox.child.poll() is None
    os.rename(sandbox.control_address + "~", sandbox.control_address)
    sandbox.signal("one", 15)
    assert ended.get().status == 143


def test_a_sentry_at_whose_socket_nobody_listens_has_a_time_to_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "_EXIT_TIMEOUT", 0.2)
    sandbox, ended = lab.start("breaks", "Wait")
    os.unlink(sandbox.control_address)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(sandbox.control_address)
    info = ended.get()
    assert (info.status, info.sentry_died) == (137, True)


def test_every_exit_is_told_whatever_a_callback_raises(lab: Lab) -> None:
    sandbox, ended = lab.start("wait")

    def broken(_: object) -> None:
        raise OSError(errno.EMFILE, "")

    after, deaths = Exit(), queue.Queue[int]()
    sandbox.wait_pid("one", 5, broken)
    sandbox.wait_pid("one", 6, after)
    sandbox.on_init_exit(broken)
    sandbox.on_death(broken)
    sandbox.on_death(deaths.put)
    os.kill(sandbox.pid, signal.SIGKILL)
    assert ended.get().status == after.get().status == 137
    assert deaths.get(timeout=TIMEOUT) == signal.SIGKILL
    sandbox.destroy(TIMEOUT)


def test_death_by_a_signal_from_outside(lab: Lab) -> None:
    sandbox, ended = lab.start("wait")
    deaths: queue.Queue[int] = queue.Queue()
    sandbox.on_death(deaths.put)
    exec_ended, late = Exit(), Exit()
    sandbox.wait_pid("one", 5, exec_ended)
    os.kill(sandbox.pid, signal.SIGTERM)
    assert deaths.get(timeout=TIMEOUT) == signal.SIGTERM
    info = ended.get()
    assert (info.status, info.sentry_died, info.detail) == (137, True, "sentry killed by signal 15")
    assert exec_ended.get() == ExitInfo(status=137, sentry_died=True)
    sandbox.wait_pid("one", 5, late)
    assert late.get().sentry_died
    sandbox.on_init_exit(late)
    assert late.get() == info
    with pytest.raises(SandboxGone) as caught:
        sandbox.processes("one")
    assert caught.value.status == signal.SIGTERM


def test_signal_and_exec(lab: Lab) -> None:
    sandbox, ended = lab.start("wait")
    null = os.open(os.devnull, os.O_RDWR)
    owner = os.stat(os.devnull)
    spec = ProcessSpec(args=("x",))
    assert sandbox.execute("one", spec, (null,) * 3, False, time.monotonic() + TIMEOUT) == 5
    os.close(null)
    assert os.stat(os.devnull).st_uid == owner.st_uid
    exec_ended = Exit()
    sandbox.wait_pid("one", 5, exec_ended)
    sandbox.signal("one", 15)
    assert ended.get() == ExitInfo(status=143, raw=15)
    assert exec_ended.get().status == 143


def test_kill_before_start(lab: Lab) -> None:
    sandbox, ended = lab.boot("wait")
    sandbox.kill()
    assert ended.get() == ExitInfo(status=137, sentry_died=True)
    with pytest.raises(SandboxGone):
        sandbox.start_root(time.monotonic() + TIMEOUT)


def test_destroy_tells_the_exit_and_may_be_repeated(lab: Lab) -> None:
    sandbox, ended = lab.start("wait")
    sandbox.destroy(TIMEOUT)
    assert ended.calls == 1
    sandbox.destroy(TIMEOUT)
    sandbox.kill()
    assert ended.calls == 1


def test_destroy_without_a_reactor(lab: Lab) -> None:
    sandbox, ended = lab.start("wait")
    lab.reactor.stop()
    sandbox.destroy(0.5)
    assert ended.calls == 1


def test_destroy_goes_on_past_failures(lab: Lab) -> None:
    sandbox, _ = lab.start("wait")
    os.unlink(sandbox.control_address)
    os.mkdir(sandbox.control_address)
    with pytest.raises(Failed, match="remove control socket"):
        sandbox.destroy(TIMEOUT)
    assert sandbox.child.poll() is not None
    assert sandbox.gofer_child.poll() is not None
    os.rmdir(sandbox.control_address)


@pytest.mark.parametrize(
    ("raw", "facts", "status", "died"),
    [
        (0x700, {}, 7, False),
        (0x8900, {}, 137, False),
        (0x200, {}, 2, False),
        (0x200, {"panic": "panic: x"}, 137, True),
        (0x8000, {}, 128, False),
        (0x8000, {"words": "error"}, 137, True),
        (9, {}, 137, True),
        (9, {"killed": True}, 137, True),
        (0x700, {"killed": True}, 7, False),
        (0x8B, {}, 137, True),
        (0, {"started": False}, 137, True),
    ],
)
def test_judging_the_sentrys_status(
    raw: int, facts: dict[str, Any], status: int, died: bool
) -> None:
    defaults: dict[str, Any] = {"started": True, "killed": False, "panic": "", "words": ""}
    info = exits.exit_of_sentry(raw, **{**defaults, **facts})
    assert (info.status, info.sentry_died) == (status, died)


# -- network and stdio ---------------------------------------------------------------------------


def test_network_set_up_is_handed_on_and_its_descriptors_closed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "disabled_ring", _refused)
    reader, writer = os.pipe()
    asked = []

    def network(pid: int) -> NetworkSetup:
        asked.append(pid)
        return NetworkSetup(argument={"PCAP": False}, fds=(writer,))

    config = lab.config.replace(flags={"network": "sandbox"})
    sandbox, _ = lab.boot("wait", network=network, config=config)
    assert sandbox.network_argument is None
    sandbox.start_root(time.monotonic() + TIMEOUT)
    assert asked == [sandbox.pid]
    assert sandbox.network_argument == {"PCAP": False}
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b"", "the descriptor is still open"
    os.close(reader)


def _refused() -> NoReturn:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_the_kernel_lets_go_of_the_networks_sockets(lab: Lab) -> None:
    """So they are held until the sentry has ended, which would wait for that."""
    try:
        os.close(linux.disabled_ring())
    except OSError as error:
        pytest.skip(f"needs io_uring: {error}")
    reader, writer = os.pipe()

    def network(_: int) -> NetworkSetup:
        return NetworkSetup(argument={"PCAP": False}, fds=(writer,))

    config = lab.config.replace(flags={"network": "sandbox"})
    sandbox, ended = lab.boot("wait", network=network, config=config)
    sandbox.start_root(time.monotonic() + TIMEOUT)
    assert not select.select([reader], [], [], 0)[0]
    sandbox.kill()
    ended.get()
    assert select.select([reader], [], [], TIMEOUT)[0] and os.read(reader, 1) == b""
    os.close(reader)


class Taken:
    """Notes what becomes of addresses that were taken."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def keep(self) -> None:
        self.calls.append("keep")

    def cancel(self) -> None:
        self.calls.append("cancel")


def test_addresses_are_kept_once_init_runs(lab: Lab) -> None:
    taken = Taken()
    setup = NetworkSetup(argument={"PCAP": False}, taken=taken)
    config = lab.config.replace(flags={"network": "sandbox"})
    sandbox, _ = lab.boot("wait", network=lambda _: setup, config=config)
    assert taken.calls == []
    sandbox.start_root(time.monotonic() + TIMEOUT)
    assert taken.calls == ["keep"]


def test_addresses_are_put_back_when_init_can_not_run(lab: Lab) -> None:
    taken = Taken()

    def network(_: int) -> NetworkSetup:
        sandbox.kill()
        return NetworkSetup(argument={"PCAP": False}, taken=taken)

    config = lab.config.replace(flags={"network": "sandbox"})
    sandbox, _ = lab.boot("wait", network=network, config=config)
    with pytest.raises(SandboxGone):
        sandbox.start_root(time.monotonic() + TIMEOUT)
    assert taken.calls == ["cancel"]


def test_network_that_fails(lab: Lab) -> None:
    def network(_: int) -> NetworkSetup:
        raise Failed("no link")

    config = lab.config.replace(flags={"network": "sandbox"})
    sandbox, _ = lab.boot("wait", network=network, config=config)
    with pytest.raises(Failed, match="no link"):
        sandbox.start_root(time.monotonic() + TIMEOUT)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(True, ""), (False, "has no files for container"), (Failed("I/O error"), "I/O error")],
)
def test_a_start_waits_for_files_that_are_restored(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, answer: bool | Failed, words: str
) -> None:
    sandbox, _ = lab.boot("wait")
    asked = []

    def wait(container_id: str, _: float) -> bool:
        asked.append(container_id)
        if isinstance(answer, Failed):
            raise answer
        return answer

    monkeypatch.setattr(sandbox.control, "wait_files_restored", wait)
    sandbox._params = sandbox._params.replace(restored_files=(1,))
    if words:
        with pytest.raises(Failed, match=words):
            sandbox.start_root(time.monotonic() + TIMEOUT)
    else:
        sandbox.start_root(time.monotonic() + TIMEOUT)
    assert asked == [sandbox.id]


def test_stdio_is_owned_except_shared_devices(tmp_path: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = os.fstat(null).st_ctime_ns
    reader, writer = os.pipe()
    own_stdio((null, reader, writer), os.getuid(), os.getgid())
    assert os.fstat(writer).st_uid == os.getuid()
    assert os.fstat(null).st_ctime_ns == before, "it was given away"
    for fd in (null, reader, writer):
        os.close(fd)
