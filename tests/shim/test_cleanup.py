import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import task_pb2
from runtime.bundle import hooks
from runtime.host import pids
from runtime.state import shim_record
from runtime.state.lock import StateLock
from runtime.state.shim_record import ContainerRecord, Pinned
from runtime.task.acquired import Holdings
from shim.base import sockets
from tests.shim.process import Shim, ask


class Node(Shim):
    """A host with records of containers and processes that stand in for theirs."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.children: list[subprocess.Popen[bytes]] = []

    def process(self) -> Pinned:
        child = subprocess.Popen([sys.executable, "-IS", "-c", "import _signal; _signal.pause()"])
        self.children.append(child)
        return Pinned(pid=child.pid, start_time=pids.start_time(child.pid))

    def alive(self, process: Pinned) -> bool:
        return next(c for c in self.children if c.pid == process.pid).poll() is None

    def record(self, name: str, **fields: object) -> Path:
        bundle = self.bundle(name)
        values = {"id": name, "sandbox_id": "c1", "is_root": name == "c1", "bundle": str(bundle)}
        record = ContainerRecord(**{**values, **fields})  # type: ignore[arg-type]
        shim_record.save(str(self.root / "ns"), record)
        return bundle

    def records(self) -> list[str]:
        return [r.id for r in shim_record.list_all(str(self.root / "ns"))[0]]

    def close(self) -> None:
        super().close()
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def answer(result: subprocess.CompletedProcess[bytes]) -> task_pb2.DeleteResponse:
    assert (result.returncode, result.stderr) == (0, b"")
    return task_pb2.DeleteResponse.FromString(result.stdout)


def test_nothing_left(node: Node) -> None:
    reply = answer(node.delete("c1", node.bundle("c1")))
    assert (reply.pid, reply.exit_status) == (0, 137)
    assert abs(reply.exited_at.seconds - time.time()) < 30
    bundle = node.bundle("c2")
    (bundle / "init.pid").write_text("77")
    assert answer(node.delete("c2", bundle)).pid == 77


def test_bundle_that_is_gone(node: Node) -> None:
    arguments = [*node.flags("c1"), "-bundle", str(node.directory / "gone"), "delete"]
    assert answer(node.run(arguments, node.directory)).exit_status == 137


def test_bundle_is_the_working_directory(node: Node) -> None:
    bundle = node.bundle("c1")
    (bundle / "init.pid").write_text("5")
    assert answer(node.run([*node.flags("c1"), "delete"], bundle)).pid == 5


def test_dead_pod(node: Node) -> None:
    boot, gofer = node.process(), node.process()
    node.root = node.directory / "elsewhere"  # found by the bundle's locator, not by default
    bundle = node.record("c1", boot=boot, shim_address="unix:///no/such/socket")
    node.record("a1", gofers=(gofer,))
    recorded_in = node.root
    node.root = node.directory / "default"
    reply = answer(node.delete("c1", bundle))
    assert (reply.pid, reply.exit_status) == (boot.pid, 137)
    assert not node.alive(boot) and not node.alive(gofer)
    node.root = recorded_in
    assert node.records() == []
    assert answer(node.delete("c1", bundle)).exit_status == 137


def test_what_a_creation_left_before_its_record(node: Node) -> None:
    node.root = node.directory / "elsewhere"
    bundle = node.record("c1")
    root = node.root / "ns"
    # A member's, for which containerd 2 runs no delete; half a record; and another sandbox's.
    left = ["a1_sandbox:c1.lock", ".a1_sandbox:c1.shim.json.77", "a2_sandbox:c2.lock"]
    for name in left:
        (root / name).touch()
    with StateLock(str(root), "a3", "c1").acquire():  # somebody is just making it
        answer(node.delete("c1", bundle))
        assert {path.name for path in root.iterdir()} == {left[2], "a3_sandbox:c1.lock"}


def test_a_creation_that_only_took_its_id(node: Node) -> None:
    node.root = node.directory / "elsewhere"
    bundle, root = node.bundle("c1"), str(node.root / "ns")
    holdings = Holdings("c1", str(bundle), "ns", "unix:///no/such/socket")
    holdings.reserve(root, "c1")
    assert holdings.keeper is not None
    holdings.keeper.lock.release()  # as at the shim's death
    node.root = node.directory / "default"
    answer(node.delete("c1", bundle))
    assert os.listdir(root) == []


def test_member_of_a_dead_pod(node: Node) -> None:
    boot, gofer, sibling = node.process(), node.process(), node.process()
    node.record("c1", boot=boot)
    bundle = node.record("a1", gofers=(gofer,))
    node.record("a2", gofers=(sibling,))
    answer(node.delete("a1", bundle))
    # Its processes run in the sentry.  The others' records are for their own deletes.
    assert not node.alive(boot) and not node.alive(gofer)
    assert node.alive(sibling)
    assert node.records() == ["a2", "c1"]


def test_member_of_a_living_pod_is_left_alone(node: Node) -> None:
    boot, gofer = node.process(), node.process()
    first = node.bundle("c1")
    address = node.start("c1", first).stdout.decode()
    node.record("c1", boot=boot, shim_address=address)
    bundle = node.record("a1", gofers=(gofer,), shim_address=address)
    assert answer(node.delete("a1", bundle)).exit_status == 137
    assert node.alive(boot) and node.alive(gofer)
    assert node.records() == ["a1", "c1"]
    assert ask(address, b"?") == b"."


def test_member_whose_shim_is_just_ending(node: Node) -> None:
    # Its socket is unlinked already.
    boot, shim = node.process(), node.process()
    node.record("c1", boot=boot)
    pin = {"shim_pid": shim.pid, "shim_start_time": shim.start_time}
    bundle = node.record("a1", shim_address="unix:///no/such/socket", **pin)
    answer(node.delete("a1", bundle))
    assert node.alive(boot) and node.alive(shim)


def test_first_container_ends_a_shim_that_lost_its_containerd(node: Node) -> None:
    boot = node.process()
    first = node.bundle("c1")
    address = node.start("c1", first).stdout.decode()
    pid = int((first / "shim.pid").read_text())
    handle = os.pidfd_open(pid)
    node.record("c1", boot=boot, shim_address=address, shim_pid=pid)
    answer(node.delete("c1", first))
    assert not node.alive(boot)
    assert pids.wait_exit(handle, 5)
    os.close(handle)
    assert not os.path.exists(sockets.path_of(address))


def test_shim_with_a_second_sandbox_is_kept(node: Node) -> None:
    boot, shim = node.process(), node.process()
    bundle = node.record("c1", boot=boot, shim_pid=shim.pid)
    node.record("c2", sandbox_id="c2", is_root=True, shim_pid=shim.pid)
    answer(node.delete("c1", bundle))
    assert not node.alive(boot)
    assert node.alive(shim)
    assert node.records() == ["c2"]


def test_known_exit_is_reported(node: Node) -> None:
    bundle = node.record("c1", pid=9, exit_status=3, exited_at=1_700_000_000.25)
    reply = answer(node.delete("c1", bundle))
    assert (reply.pid, reply.exit_status) == (9, 3)
    assert (reply.exited_at.seconds, reply.exited_at.nanos) == (1_700_000_000, 250_000_000)
    bundle = node.record("c2", sandbox_id="c2", exit_status=0, exited_at=5.0)
    assert answer(node.delete("c2", bundle)).exit_status == 0


def test_stale_socket_of_a_killed_shim(node: Node) -> None:
    bundle = node.bundle("c1")
    path = Path(node.start("c1", bundle).stdout.decode().removeprefix("unix://"))
    handle = os.pidfd_open(int((bundle / "shim.pid").read_text()))
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    assert pids.wait_exit(handle, 5)
    os.close(handle)
    member = node.bundle("c2")
    (member / "address").write_text(f"unix://{path}")
    answer(node.delete("c2", member))
    assert path.exists()  # a member has no say in it
    answer(node.delete("c1", bundle))
    assert not path.exists()


def test_living_socket_stays(node: Node) -> None:
    bundle = node.bundle("c1")
    address = node.start("c1", bundle).stdout.decode()
    answer(node.delete("c1", bundle))
    assert ask(address, b"?") == b"."


def test_corrupt_record_is_a_warning(node: Node) -> None:
    bundle = node.record("c1")
    (node.root / "ns" / "c1_sandbox:c1.shim.json").write_text("{")
    result = node.delete("c1", bundle)
    assert result.returncode == 0
    assert task_pb2.DeleteResponse.FromString(result.stdout).exit_status == 137
    assert result.stderr.count(b"\n") == 1
    assert b"state file" in result.stderr


def test_failure_is_one_line_and_no_reply(node: Node) -> None:
    node.extra = (
        "from runtime.bundle import rootfs as mounts\n"
        "def busy(path): raise OSError(16, 'Device busy', path)\n"
        "mounts.unmount_all = busy"
    )
    bundle = node.record("c1")
    result = node.delete("c1", bundle)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.count(b"\n") == 0
    assert node.records() == ["c1"]


def test_socket_path_is_not_taken_from_an_abstract_address(node: Node) -> None:
    bundle = node.bundle("c1")
    (bundle / "shim.pid").write_text("1")
    victim = node.directory / "victim"
    victim.touch()
    (bundle / "address").write_text(str(victim))
    answer(node.delete("c1", bundle))
    assert victim.exists()
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError):
        probe.connect(str(victim))


# -- poststop hooks -----------------------------------------------------------------------------


def owed(node: Node, name: str, **fields: object) -> tuple[Path, Path]:
    """A recorded container whose poststop hook, which is still to be run, writes a file."""
    out = node.directory / f"{name}-hook"
    text = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    hook = {"path": os.path.realpath(sys.executable), "args": ["hook", "-ISc", text]}
    spec = {"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "hooks": {"poststop": [hook]}}
    node.bundle(name, spec)
    bundle = node.record(name, **fields)
    (bundle / hooks.OWED).touch()
    return bundle, out


def test_poststop_hooks_of_a_dead_shims_container_run_once(node: Node) -> None:
    boot = node.process()
    bundle, out = owed(node, "c1", boot=boot)
    for _ in range(2):
        answer(node.delete("c1", bundle))
        assert json.loads(out.read_text())["id"] == "c1"
    assert not (bundle / hooks.OWED).exists()


def test_poststop_hooks_of_a_living_shims_container_are_its_own(node: Node) -> None:
    first = node.bundle("c1")
    address = node.start("c1", first).stdout.decode()
    node.record("c1", boot=node.process(), shim_address=address)
    bundle, out = owed(node, "a1", shim_address=address)
    answer(node.delete("a1", bundle))
    assert not out.exists() and (bundle / hooks.OWED).exists()


def test_a_failing_poststop_hook_and_a_lost_spec_only_warn(node: Node) -> None:
    bundle, _ = owed(node, "c1")
    config = json.loads((bundle / "config.json").read_text())
    config["hooks"]["poststop"][0]["path"] = "/no/such"
    (bundle / "config.json").write_text(json.dumps(config))
    result = node.delete("c1", bundle)
    assert result.returncode == 0 and b"poststop hook 0 (/no/such)" in result.stderr
    bundle, _ = owed(node, "c1")
    (bundle / "config.json").unlink()
    result = node.delete("c1", bundle)
    assert result.returncode == 0 and b"poststop hooks: config.json" in result.stderr
