"""Credentials, namespaces, limits and overlays of a sandbox."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.sandbox.lab import PROC, TIMEOUT, Lab
from runtime.base.errors import (
    Failed,
)
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="wants root")

CLONE_NEWNET = 0x4000_0000

# -- surroundings ------------------------------------------------------------------------------


def test_nothing_of_ours_is_inherited(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "sesame")
    secret = os.open(str(lab.folder), os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        run = lab.run(["sleep", "100"])
    finally:
        os.close(secret)
    for pid in (run.sandbox.pid, run.sandbox.gofer_pid):
        assert str(lab.folder) not in set(_open_files(pid))
    assert b"SECRET" not in Path(f"/proc/{run.sandbox.pid}/environ").read_bytes()


def _open_files(pid: int) -> Iterator[str]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue  # the process goes on opening and closing


def test_credentials(lab: Lab) -> None:
    run = lab.run(["sleep", "100"])
    status = Path(f"/proc/{run.sandbox.pid}/status").read_text()
    assert f"Uid:\t{65534 if lab.old else 0}\t" in status
    assert (run.sandbox.uid, run.sandbox.gid) == ((65534, 65534) if lab.old else (0, 0))
    assert "Seccomp:\t2" in status


def test_without_directfs(lab: Lab) -> None:
    if lab.old:
        pytest.skip("it has none")
    config = lab.config(directfs="false", overlay2="none")
    text, _ = lab.outcome(["ls", "/"], config=config)
    assert "bin" in text.split()


def test_user_namespace_of_the_spec(lab: Lab) -> None:
    # Ids that the root file system's owner is among.
    mapping = [{"containerID": 0, "hostID": 0, "size": 65536}]
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")],
        "uidMappings": mapping,
        "gidMappings": mapping,
    }
    run = lab.run(["sleep", "100"], linux=linux)
    assert run.execute("id")[0].startswith("uid=0 gid=0")
    host = os.readlink("/proc/self/ns/user")
    assert os.readlink(f"/proc/{run.sandbox.gofer_pid}/ns/user") != host


def test_network_of_the_host(lab: Lab) -> None:
    linux = {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]}
    run = lab.run(["sleep", "100"], config=lab.config(network="host"), linux=linux)
    assert os.readlink(f"/proc/{run.sandbox.pid}/ns/net") == os.readlink("/proc/self/ns/net")
    assert run.sandbox.network_argument is None
    assert run.execute("true")[1].status == 0


def test_network_namespace_of_the_spec(lab: Lab) -> None:
    with spawn(
        SpawnSpec(
            path=str(lab.rootfs / "bin/sleep"), argv=("sleep", "100"), namespaces=CLONE_NEWNET
        )
    ) as holder:
        path = f"/proc/{holder.pid}/ns/net"
        asked = []
        try:
            linux = {"namespaces": [{"type": "network", "path": path}]}
            run = lab.run(
                ["sleep", "100"],
                config=lab.config(network="sandbox"),
                linux=linux,
                network=lambda pid: asked.append(pid),
            )
            assert os.readlink(f"/proc/{run.sandbox.pid}/ns/net") == os.readlink(path)
            assert asked == [run.sandbox.pid]
            assert "127.0.0.1" in run.execute("ip", "addr")[0]
            lab.finish(run)
        finally:
            holder.kill(signal.SIGKILL)
            holder.wait(TIMEOUT)


def test_limits_are_told(lab: Lab) -> None:
    boot = {"cpu_count": 1, "memory_limit": 256 << 20}
    text, _ = lab.outcome(["sh", "-c", "cat /proc/meminfo; cat /proc/cpuinfo"], boot=boot)
    assert f"MemTotal:         {256 << 10} kB" in text
    assert text.count("processor") == 1


def test_long_names(lab: Lab) -> None:
    deep = lab.folder / ("d" * 80) / ("e" * 80)
    config = lab.config().replace(root=str(deep))
    name = "n" * 200
    run = lab.run(["sleep", "100"], name=name, config=config)
    assert len(run.sandbox.control_address) > 107
    assert run.execute("true")[1].status == 0
    address = run.sandbox.control_address
    lab.finish(run)
    assert not os.path.exists(address)


def test_leftover_socket_is_replaced(lab: Lab) -> None:
    run = lab.run(["true"])
    address = run.sandbox.control_address
    run.exit.get()
    lab.finish(run)
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address)
    assert lab.outcome(["true"])[1].status == 0


# -- overlays ----------------------------------------------------------------------------------


def test_overlay_modes(lab: Lab) -> None:
    store = lab.folder / "store"
    store.mkdir()
    data = lab.folder / "data"
    data.mkdir()
    bind = {"destination": "/mnt", "type": "bind", "source": str(data), "options": ["rbind", "rw"]}
    modes = {
        "none": (True, True),
        "root:memory": (False, True),
        "all:memory": (False, False),
        f"root:{'' if lab.old else 'dir='}{store}": (False, True),
        f"all:{'' if lab.old else 'dir='}{store}": (False, False),
    }
    if not lab.old:
        modes["root:self"] = (False, True)
        modes["all:self"] = (False, False)
    for mode, (root_changes, bind_changes) in modes.items():
        run = lab.run(
            ["sh", "-c", "echo x > /etc/mark; echo y > /mnt/mark; cat /etc/mark /mnt/mark"],
            config=lab.config(overlay2=mode),
            mounts=[PROC, bind],
        )
        stores = run.sandbox.filestores
        assert all(os.path.exists(path) for path in stores), mode
        # A root has none by name outside of CRI's pods, where an image may be made of it.
        assert len(stores) == {"all:self": 1}.get(mode, 0)
        assert run.read() == "x\ny\n", mode
        assert run.exit.get().status == 0
        lab.finish(run)
        for path, expected in (
            (lab.rootfs / "etc/mark", root_changes),
            (data / "mark", bind_changes),
        ):
            assert path.exists() is expected, (mode, path)
            path.unlink(missing_ok=True)
        assert not list(store.iterdir())


def test_default_overlay_and_read_only_root(lab: Lab) -> None:
    run = lab.run(["sh", "-c", "echo x > /etc/mark"])
    assert run.sandbox.filestores == ()
    run.exit.get()
    lab.finish(run)
    assert (lab.rootfs / "etc/mark").exists() is lab.old
    text, info = lab.outcome(
        ["sh", "-c", "echo x > /etc/other"], root={"path": str(lab.rootfs), "readonly": True}
    )
    assert info.status == 1
    assert "Read-only" in text


def test_failed_boot_leaves_no_filestore(lab: Lab) -> None:
    bind = {"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["rbind"]}
    with pytest.raises(Failed):
        lab.boot(["true"], mounts=[PROC, bind])
    assert not list(lab.rootfs.glob(".gvisor*"))
