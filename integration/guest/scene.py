"""What the tests for a guest look at: the real cgroup v2 hierarchy and processes in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
SYS_RESOURCE = 24

#: containerd with runsc: each generation of both, in as few combinations as there are.
PAIRS = (("1.7", "20240729"), ("2.1", "20221219"))


def pairs(config: pytest.Config) -> list[tuple[str, str]]:
    """The combinations that the command line leaves."""
    version, generation = config.getoption("--containerd"), config.getoption("--runsc")
    return [pair for pair in PAIRS if version in (None, pair[0]) and generation in (None, pair[1])]


def lacking() -> str:
    """What keeps this machine from running the tests; empty in a guest."""
    if not (CGROUPS / "cgroup.controllers").exists():
        return "needs cgroup v2"
    missing = {"cpu", "io", "memory", "pids"} - set(text("/", "cgroup.subtree_control").split())
    if missing:
        return f"needs the controllers {', '.join(sorted(missing))}"
    status = Path("/proc/self/status").read_text().split()
    if not int(status[status.index("CapEff:") + 1], 16) >> SYS_RESOURCE & 1:
        return "needs CAP_SYS_RESOURCE"
    return ""


def systemd_booted() -> bool:
    return Path("/run/systemd/system").is_dir()


def text(cgroup: str, name: str) -> str:
    """The content of a file of a cgroup; empty when it is not there."""
    file = CGROUPS / cgroup.strip("/") / name
    return file.read_text().strip() if file.exists() else ""


def make(cgroup: str) -> None:
    """A cgroup with every controller, as the kubelet makes it, and those above it."""
    folder = CGROUPS
    for part in cgroup.strip("/").split("/"):
        words = (folder / "cgroup.controllers").read_text().split()
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{word}" for word in words))
        folder /= part
        folder.mkdir(exist_ok=True)


def write(cgroup: str, name: str, value: str) -> None:
    (CGROUPS / cgroup.strip("/") / name).write_text(value)


def exists(cgroup: str) -> bool:
    return (CGROUPS / cgroup.strip("/")).is_dir()


def members(cgroup: str) -> set[int]:
    return {int(word) for word in text(cgroup, "cgroup.procs").split()}


def children(pid: int) -> list[int]:
    """The processes that a process has started itself."""
    words: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        words += (task / "children").read_text().split()
    return [int(word) for word in words]


def cgroup_of(pid: int) -> str:
    line = next(
        line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line[:3] == "0::"
    )
    return line[3:]


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def own_cgroup() -> str:
    return cgroup_of(os.getpid())
