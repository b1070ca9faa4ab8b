"""What a spec asks for and gVisor lacks, leaves out or fails at: done all the same, or refused."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.api import process_spec
from integration.harness.nodes.node import Node
from integration.test_surfaces import (
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    bind,
    make_spec,
    rootfs,
    run,
)
from runtime.host.linux import MNT_DETACH, mount, umount2

__all__ = ["rootfs"]

pytestmark = pytest.mark.gvisor

SOCKET = Path(__file__).parent / "programs" / "socket.c"


def test_a_root_file_system_that_is_mounted_read_only(
    node: Node, rootfs: Path, tmp_path: Path
) -> None:
    """Its changes go to memory, for want of a place for their file."""
    view = tmp_path / "view"
    view.mkdir()
    mount(str(rootfs), str(view), "", MS_BIND, "")
    try:
        mount("", str(view), "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")
        done = run(node, make_spec(node, view, "sh", "-c", "echo x > /etc/new && cat /etc/new"))
    finally:
        umount2(str(view), MNT_DETACH)
    assert (done.out, done.code) == ("x\n", 0), done
    assert not (rootfs / "etc/new").exists()
    assert "overlay.in_memory" in node.daemon.log_tail(2000)


@pytest.mark.core
def test_special_files_are_masked_unopened(node: Node, rootfs: Path) -> None:
    os.mkfifo(rootfs / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(rootfs / "socket"))
    os.mknod(rootfs / "none", 0o666 | stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(rootfs / "disk", 0o666 | stat.S_IFBLK, os.makedev(7, 200))
    names = ("fifo", "socket", "none", "disk")
    modes = {name: (rootfs / name).stat().st_mode for name in names}
    script = (
        "for f in fifo socket none disk; do test -p $f -o -S $f -o -b $f && echo $f; done; true"
    )
    spec = make_spec(node, rootfs, "sh", "-c", script)
    spec["linux"]["maskedPaths"] = [f"/{name}" for name in names]
    done = run(node, spec)
    assert (done.out, done.code) == ("", 0), done
    spec = make_spec(node, rootfs, "sh", "-c", "echo here; chmod 777 /*")
    spec["linux"]["readonlyPaths"] = [f"/{name}" for name in names]
    assert "here" in run(node, spec).out
    assert {name: (rootfs / name).stat().st_mode for name in names} == modes


def test_a_flag_by_annotation_reaches_the_sandbox(node: Node, rootfs: Path, tmp_path: Path) -> None:
    subprocess.run(["gcc", "-static", "-o", rootfs / "bin/socket", SOCKET], check=True, timeout=60)
    volume = tmp_path / "volume"
    volume.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(volume / "socket"))
        server.listen()
        server.settimeout(20)

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"host\n")

        thread = threading.Thread(target=answer)
        thread.start()
        spec = make_spec(node, rootfs, "socket", "connect", "/volume/socket")
        spec["mounts"].append(bind("/volume", volume))
        refused = run(node, spec)
        spec["annotations"] = {"dev.gvisor.flag.host-uds": "open"}
        done = run(node, spec)
        thread.join()
    assert refused.code == 1 and "connect" in refused.err, refused
    assert (done.out, done.code) == ("host\n", 0), done


def test_mounts_that_gvisor_lacks(node: Node, rootfs: Path, tmp_path: Path) -> None:
    for type, option, why in (
        ("overlay", "rw", "mount /m: gVisor has no file system of type 'overlay'"),
        ("tmpsf", "rw", "mount /m: gVisor has no file system of type 'tmpsf'"),
        ("bind", "rshared", "mount /m: propagation 'rshared' (mountPropagation: Bidirectional)"),
    ):
        spec = make_spec(node, rootfs, "true")
        more = ["rbind"] if type == "bind" else []
        spec["mounts"].append(bind("/m", tmp_path, *more, option) | {"type": type})
        done = run(node, spec)
        assert done.code != 0 and why in done.err, done


def test_what_linux_makes_up(node: Node, rootfs: Path) -> None:
    script = (
        "hostname; stat -c %a /dev/made /tmp/made; ls /dev/null; pwd; grep CapEff /proc/1/status"
    )
    spec = make_spec(node, rootfs, "sh", "-c", script)
    spec.pop("hostname", None)
    spec["root"]["readonly"] = True
    spec["process"]["cwd"] = "/made/here"
    spec["mounts"].append({"destination": "/tmp/made", "type": "tmpfs", "source": "tmpfs"})
    spec["linux"]["devices"] = [{"path": "/dev/made", "type": "c", "major": 1, "minor": 3}]
    for names in spec["process"]["capabilities"].values():
        names[:] = ["CAP_KILL", "CAP_OF_TOMORROW"]
    done = run(node, spec)
    own = os.uname().nodename
    assert done.out.split("\n") == [
        own, "666", "1777", "/dev/null", "/made/here", "CapEff:\t0000000000000020", ""
    ], done  # fmt: skip


def test_a_bind_mounted_dev(node: Node, rootfs: Path) -> None:
    """A privileged pod that mounts the host's /dev has each of its devices in the spec, too."""
    spec = make_spec(node, rootfs, "sh", "-c", "test -c /dev/null && echo x > /dev/null && echo ok")
    spec["mounts"] = [m for m in spec["mounts"] if not m["destination"].startswith("/dev")]
    spec["mounts"].append(bind("/dev", "/dev"))
    spec["linux"]["devices"] = [
        {"path": "/dev/gvisor-shim-test", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}
    ]
    assert run(node, spec).out == "ok\n"
    assert not os.path.exists("/dev/gvisor-shim-test")


def test_a_terminal_has_the_size_that_the_spec_says(node: Node, tmp_path: Path) -> None:
    """Also where no client tells another size; of containers and execs."""
    name, log = node.new_id(), tmp_path / "log"
    sizes = ({"height": 33, "width": 101}, {"height": 34, "width": 102})
    spec = node.api.spec("sh", "-c", "stty size; exec sleep 1000", container=name)
    spec["process"] |= {"terminal": True, "consoleSize": sizes[0]}
    rootfs = node.api.make(name, node.runtime, spec)
    io = {"terminal": True, "stdout": f"file://{log}"}
    node.api.task("Create", container_id=name, rootfs=rootfs, **io)
    node.api.task("Start", container_id=name)
    until(lambda: "33 101" in log.read_text(), 10, "the container's")
    process = {**spec["process"], "args": ["stty", "size"], "consoleSize": sizes[1]}
    execed = {"container_id": name, "exec_id": "x"}
    node.api.task("Exec", spec=process_spec(process), **io, **execed)
    node.api.task("Start", **execed)
    until(lambda: "34 102" in log.read_text(), 10, "the exec's")
    node.delete(name)
