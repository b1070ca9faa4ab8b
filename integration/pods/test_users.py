"""User namespaces of pods (``hostUsers: false``), and volumes whose owners are mapped.

containerd 2.1's CRI plugin insists on giving runc's options to such a container, whatever its
runtime, and fails where the runtime has others (client/task.go, getRuncOptions): a runtime for
such pods has no options in containerd's configuration, and the shim's own file has them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.harness.clients.gvctl import Gvctl
from integration.harness.host import footprint
from integration.harness.nodes.pods import Pod, PodNode

FIRST, COUNT = 200_000, 65_536
MAPS = [{"host_id": FIRST, "container_id": 0, "length": COUNT}]
SECURITY = {
    "security_context": {"namespace_options": {"userns_options": {"uids": MAPS, "gids": MAPS}}}
}


def _owner(pid: int) -> int:
    """The user that a process is on the host."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


def _volume(pods: PodNode, name: str, owner: int) -> dict[str, Any]:
    """A volume that nobody but its owner can look into."""
    folder = pods.daemon.folder / f"private-{name}"
    volume = folder / "volume"
    volume.mkdir(parents=True)
    (volume / "file").write_text(f"{name}\n")
    for path in (volume / "file", volume):
        os.chown(path, owner, owner)
        path.chmod(0o700)
    folder.chmod(0o700)
    mount: dict[str, Any] = {"container_path": f"/{name}", "host_path": str(volume)}
    if owner < FIRST:
        mount |= {"uidMappings": MAPS, "gidMappings": MAPS}
    return mount


#: As root of a process's user namespace: take the flags off its mounts of a file system.
_REMOUNT = """
import os, sys
from runtime.base.errors import reason
from runtime.host import linux
pid, name = sys.argv[1:]
user, mounts = (os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt"))
root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
lines = [line.split() for line in open(f"/proc/{pid}/mountinfo")]
linux.setns(user)
linux.setns(mounts)
os.fchdir(root)
os.chroot(".")
for line in lines:
    if name not in line:
        continue
    try:
        linux.mount("", line[4], "", linux.MS_REMOUNT | linux.MS_BIND)
        print("lifted", line[4])
    except OSError as error:
        print(reason(error), *sorted({"ro", "nodev", "nosuid"} & {*line[5].split(",")}))
"""


@pytest.mark.gvisor
def test_flags_of_a_volume_of_the_host_are_locked(pods: PodNode) -> None:
    """Whoever takes a gofer over is root of its user namespace, and gets no further by that."""
    volume = pods.daemon.folder / "locked-volume"
    volume.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,nodev,nosuid", "locked-flags", str(volume)]
    subprocess.run(command, check=True)
    try:
        pod = pods.pod(variant="plain", linux=dict(SECURITY))
        mounts = [{"container_path": "/volume", "host_path": str(volume)}]
        container = pod.start("sleep", "1000", mounts=mounts, linux=SECURITY)
        assert pods.exec(container, "ls", "/volume").out == ""
        tried = subprocess.run(
            [sys.executable, "-c", _REMOUNT, str(pod.gofer(container)), "locked-flags"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert set(tried.stdout.splitlines()) == {"operation not permitted nodev nosuid ro"}
    finally:
        subprocess.run(["umount", str(volume)], check=True)
    _removed(pods, pod)


@pytest.mark.without_pause
@pytest.mark.core
@pytest.mark.gvisor
def test_user_namespace(pods: PodNode, tmp_path: Path) -> None:
    """Root inside is nobody on the host, and gets at its files and volumes none the less."""
    pod = pods.pod(variant="plain", linux=dict(SECURITY))
    volumes = [_volume(pods, "own", FIRST)]
    if pods.daemon.release >= (2, 0):
        volumes.append(_volume(pods, "mapped", 0))  # the older CRI plugin refuses these
    one, two = (pod.start("sleep", "1000", mounts=volumes, linux=SECURITY) for _ in range(2))
    if pods.daemon.generation > "2023":
        assert _owner(pod.sentry()) == FIRST
    for gofer in (*pod.own_gofers(), pod.gofer(one), pod.gofer(two)):
        assert _owner(gofer) == FIRST
    for mount in volumes:
        path, folder = mount["container_path"], Path(mount["host_path"])
        script = f"""
            stat -c '%u %g' {path}/file; cat {path}/file
            echo new > {path}/new && chown 7:8 {path}/new && chmod 644 {path}/new
        """
        done = pods.exec(one, "sh", "-c", script)
        assert done.out == f"0 0\n{path[1:]}\n", done
        assert pods.exec(two, "stat", "-c", "%u %g", f"{path}/new").out == "7 8\n"
        base = 0 if "uidMappings" in mount else FIRST
        found = (folder / "new").stat()
        assert (found.st_uid, found.st_gid) == (base + 7, base + 8)
    script = "id -u; stat -c %u /bin /; touch /fresh && stat -c %u /fresh; cat /etc/hostname"
    assert pods.exec(one, "sh", "-c", script).out == f"0\n0\n0\n0\n{pod.name}\n"
    ping = ("ping", "-c", "1", "-W", "5", pods.network.host4)
    assert " 0% packet loss" in pods.exec(two, *ping).out
    # Files are copied as root inside sees them, and are root's there; nothing of the map shows.
    roots = ((), ("--root", str(pods.daemon.folder / "runsc" / "k8s.io")))
    ctl = next(each for each in (Gvctl(*root) for root in roots) if not each("state", one).code)
    ctl.ok("cp", "-a", f"{one}:/own/new", str(tmp_path / "new"))
    assert ((tmp_path / "new").stat().st_uid, (tmp_path / "new").stat().st_gid) == (7, 8)
    ctl.ok("cp", "-a", str(tmp_path / "new"), f"{two}:/own/again")
    ctl.ok("cp", str(tmp_path / "new"), f"{two}:/own/roots")
    script = "cd /own; stat -c '%u %g' again roots"
    assert pods.exec(one, "sh", "-c", script).out == "7 8\n0 0\n"
    assert (Path(volumes[0]["host_path"]) / "again").stat().st_uid == FIRST + 7
    # What was made for the gofers is theirs alone.
    assert "sources /" not in Path("/proc/self/mounts").read_text()
    _removed(pods, pod)


def _removed(pods: PodNode, pod: Pod) -> None:
    below = [pod.shim, *footprint.descendants(pod.shim)]
    pod.remove()
    pods.assert_clean()
    assert not [pid for pid in below if footprint.alive(pid)]
