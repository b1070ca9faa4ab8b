"""What containers leave on a machine: processes, mounts, cgroups, sockets, state files.

Everything is told apart by the daemon's folder and namespace, which are its own, so that other
containers on the machine do not disturb a check.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from integration.harness.base.linux import unmount
from integration.harness.base.waiting import until
from integration.harness.host.containerd import Containerd

SOCKETS = Path("/run/containerd/s")
_CGROUPS = Path("/sys/fs/cgroup")
_STATES = (Path("/run/containerd/runsc"), Path("/run/containerd/runc"))


def of(daemon: Containerd, ids: Iterable[str]) -> list[str]:
    """One line for each thing that stands."""
    found = [f"process {pid}: {_command_line(pid)[:200]}" for pid in processes(daemon)]
    found += [f"fork server {pid} without containerd" for pid in fork_servers() if not owner(pid)]
    found += [f"mount {target}" for target in mounts(daemon)]
    found += [f"cgroup {path}" for path in cgroups(daemon)]
    found += [f"socket or lock {path}" for path in sockets(daemon, ids)]
    found += [f"state {path}" for path in states(daemon)]
    return found


def purge(daemon: Containerd, ids: Iterable[str]) -> None:
    """Take away what `of` found, so that one failure is not blamed on the tests after it."""
    for pid in processes(daemon):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    with suppress(AssertionError):
        until(lambda: not processes(daemon), 5, "killed processes are gone")
    for target in reversed(mounts(daemon)):
        unmount(target)
    for path in sockets(daemon, ids):
        path.unlink(missing_ok=True)
    for path in states(daemon):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    remove_cgroups(daemon)


def processes(daemon: Containerd) -> list[int]:
    """Live processes of the daemon's containers, shims included, the daemon itself not."""
    folder, namespace = str(daemon.folder).encode(), f"/{daemon.namespace}/"
    own = {os.getpid(), daemon.process.pid if daemon.process else 0}
    found = []
    for pid in _pids():
        if pid in own:
            continue
        try:
            base = Path("/proc", str(pid))
            if base.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            marks = base.joinpath("cmdline").read_bytes() + base.joinpath("environ").read_bytes()
            cgroup = base.joinpath("cgroup").read_text()
        except OSError:
            continue
        if folder in marks or namespace in cgroup:
            found.append(pid)
    return found


def fork_servers(containerd: int = 0) -> list[int]:
    """The pids of all fork servers, or of those of one containerd."""
    return [
        pid
        for pid in _pids()
        if name_of(pid) == "gvisor-forksrv"
        and alive(pid)
        and containerd in (0, owner(pid, alive_only=False))
    ]


def is_forked_by(server: int, shim: int) -> bool:
    """Whether a shim has the layout of addresses of a fork server.

    One that was started while the server wasn't listening yet has not.
    """

    def heap(pid: int) -> str:
        with open(f"/proc/{pid}/maps") as lines:
            return next((line.split("-")[0] for line in lines if "[heap]" in line), "")

    return heap(server) == heap(shim) != ""


def owner(server: int, *, alive_only: bool = True) -> int:
    """The containerd that a fork server says that it is for; 0 if that is gone."""
    words = command_line(server)
    pid = int(words[-1]) if words and words[-1].isdigit() else 0
    return pid if pid and (alive(pid) or not alive_only) else 0


def mounts(daemon: Containerd) -> list[str]:
    """Mount points inside the daemon's folder, and those that name its namespace."""
    found = []
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            target = line.split()[4]
            if target.startswith(f"{daemon.folder}/") or f"/{daemon.namespace}/" in target:
                found.append(target)
    return found


def cgroups(daemon: Containerd) -> list[Path]:
    """Directories below the namespace's own one, in every hierarchy."""
    return [path for top in _tops(daemon) for path in _walk(top)]


def remove_cgroups(daemon: Containerd, below: str = "") -> None:
    """Remove the namespace's cgroups, or one below it; those that hold a process stay."""
    for top in [base / below for base in _tops(daemon)]:
        for path in [*reversed(list(_walk(top))), top]:
            try:
                path.rmdir()
            except OSError:
                continue


def sockets(daemon: Containerd, ids: Iterable[str]) -> list[Path]:
    """Files in containerd's socket folder that belong to one of `ids`."""
    found: list[Path] = []
    for name in ids:
        key = f"{daemon.address}/{daemon.namespace}/{name}"
        for suffix in ("", "/debug"):
            prefix = hashlib.sha256((key + suffix).encode()).hexdigest()
            found += SOCKETS.glob(prefix + "*")
    return found


def socket_of(daemon: Containerd, container: str) -> Path:
    """Where a container's shim listens, when it is alone in its group."""
    key = f"{daemon.address}/{daemon.namespace}/{container}"
    return SOCKETS / hashlib.sha256(key.encode()).hexdigest()


def states(daemon: Containerd) -> list[Path]:
    """Bundles and the runtime's own state, in the folders that are the namespace's."""
    tops = [base / daemon.namespace for base in _STATES]
    for base in (daemon.state, daemon.root):
        tops.append(base / "io.containerd.runtime.v2.task" / daemon.namespace)
    return [path for top in tops if top.is_dir() for path in top.iterdir()]


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        try:
            stat = Path(f"/proc/{other}/stat").read_text()
        except OSError:
            continue
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(other)
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(0), [])
        found += below
        todo += below
    return found


def command_line(pid: int) -> list[str]:
    """The argument vector of a process; empty when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace") for word in raw.split(b"\0")[:-1]]


def name_of(pid: int) -> str:
    """The name of a process's program; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _command_line(pid: int) -> str:
    return " ".join(command_line(pid))


def _tops(daemon: Containerd) -> list[Path]:
    hierarchies = [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir())]
    names = (daemon.namespace, f"{daemon.namespace}.slice")
    tops = [base / name for base in hierarchies for name in names]
    return [top for top in tops if top.is_dir()]


def _walk(top: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(top):
        for name in below:
            yield Path(folder, name)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def idle_size(pid: int) -> tuple[int, int] | None:
    """`size` of a process that does nothing at the moment, else None."""
    first = size(pid)
    time.sleep(0.3)
    return first if size(pid) == first else None


def wait_gone(daemon: Containerd, container: str, timeout: float = 10) -> None:
    """Wait until no process and no socket of a container is left."""
    until(lambda: not (processes(daemon) or sockets(daemon, [container])), timeout, "it is gone")


def cgroup_files(controller: str, path: str, name: str) -> list[str]:
    """The content of a file in a cgroup: one string, or none when there is no such cgroup.

    On a cgroup v2 host the controller does not matter.
    """
    base = _CGROUPS if (_CGROUPS / "cgroup.controllers").exists() else _CGROUPS / controller
    file = base / path.lstrip("/") / name
    return [file.read_text().strip()] if file.exists() else []


def size(pid: int) -> tuple[int, int]:
    """Descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
