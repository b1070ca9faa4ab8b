"""A kernel's cgroup file systems over plain directories.

Directories are real and empty, so that mkdir and rmdir behave; the files in them are kept here,
appear with their directory, and follow the kernel's rules where these decide an order of writes.
"""

from __future__ import annotations

import errno
import os

from runtime.cgroups.hierarchy import CgroupRoot

V1_FILES = {
    "cpu": {
        "cpu.shares": "1024",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_burst_us": "0",
        "cpu.idle": "0",
    },
    "cpuacct": {},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.soft_limit_in_bytes": "9223372036854771712",
        "memory.swappiness": "60",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
        "memory.usage_in_bytes": "4096",
    },
    "pids": {"pids.max": "max"},
    "blkio": {
        "blkio.weight": "500",
        "blkio.throttle.read_bps_device": "8:0 100",
        "blkio.throttle.write_bps_device": "",
    },
}
V2_FILES = {
    "cpu": {"cpu.weight": "100", "cpu.max": "max 100000", "cpu.max.burst": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "0-3"},
    "memory": {
        "memory.max": "max",
        "memory.low": "0",
        "memory.high": "max",
        "memory.swap.max": "max",
        "memory.current": "4096",
    },
    "pids": {"pids.max": "max"},
    "io": {"io.weight": "default 100", "io.max": "8:0 rbps=5 wbps=max riops=max wiops=max"},
    "hugetlb": {"hugetlb.2MB.max": "max"},
}


class FakeHost(CgroupRoot):
    """``writes`` is what was written, as (path below the root, value), refusals included.

    ``refuse`` maps a path below the root to the errno that a write of it gives.
    """

    def __init__(self, base: str, mode: str, *, membership: str = "") -> None:
        path, proc = f"{base}/cgroup", f"{base}/proc"
        os.makedirs(f"{proc}/self")
        os.makedirs(path)
        lines = [f"30 1 0:1 / {path} rw - tmpfs tmpfs rw", "31 1 0:2 / /proc rw - proc proc rw"]
        if mode == "v2":
            with open(f"{path}/cgroup.controllers", "w") as file:
                file.write(" ".join(V2_FILES))
            lines = [f"30 1 0:1 / {path} rw - cgroup2 cgroup2 rw"]
        else:
            for i, name in enumerate(sorted(V1_FILES.keys() - {"cpuacct", "cpu"})):
                lines.append(f"4{i} 30 0:4{i} / {path}/{name} rw - cgroup cgroup rw,{name}")
            lines.append(f"50 30 0:50 / {path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct")
            lines.append(f"51 30 0:51 / {path}/systemd rw - cgroup cgroup rw,name=systemd")
            for line in lines[2:]:
                os.mkdir(line.split(" ")[4])
        with open(f"{proc}/self/mountinfo", "w") as file:
            file.write("\n".join(lines) + "\n")
        with open(f"{proc}/self/cgroup", "w") as file:
            file.write(membership)
        super().__init__(path, proc=proc, systemd=f"{base}/systemd")
        self.files: dict[str, str] = {}
        self.writes: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}
        if mode == "v1":
            self.set("cpuset/cpuset.cpus", "0-3")
            self.set("cpuset/cpuset.mems", "0")

    def get(self, path: str) -> str:
        """A file by its path below the root."""
        return self.read(f"{self.path}/{path}")

    def set(self, path: str, value: str) -> None:
        """Change a file behind the runtime's back."""
        self.files[f"{self.path}/{path}"] = value

    def read(self, path: str) -> str:
        directory, _, name = path.rpartition("/")
        if not os.path.isdir(directory):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        present = self._defaults(directory)
        if name not in present and path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.files.get(path, present.get(name, ""))

    def write(self, path: str, value: str) -> None:
        below = path[len(self.path) + 1 :]
        self.read(path)
        self.writes.append((below, value))
        directory, _, name = path.rpartition("/")
        if below in self.refuse:
            code = self.refuse[below]
            raise OSError(code, os.strerror(code), path)
        if not self._allowed(directory, name, value):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if name == "cgroup.subtree_control":
            added = [word[1:] for word in value.split()]
            value = " ".join(dict.fromkeys([*self.read(path).split(), *added]))
        self.files[path] = self._stored(path, name, value)

    def _stored(self, path: str, name: str, value: str) -> str:
        key, blank, rest = value.partition(" ")
        if name == "memory.oom_control":
            return f"oom_kill_disable {value}\nunder_oom 0\noom_kill 0"
        if ":" not in key or not blank:
            return f"default {value}" if name == "io.weight" and key != "default" else value
        lines = dict(line.split(" ", 1) for line in self.read(path).splitlines())
        if name == "io.max":
            values = dict.fromkeys(("rbps", "wbps", "riops", "wiops"), "max")
            values |= dict(p.split("=") for p in lines.get(key, "").split())
            values |= dict(p.split("=") for p in rest.split())
            rest = " ".join(f"{k}={v}" for k, v in values.items())
            if set(values.values()) == {"max"}:
                rest = "0"
        lines[key] = rest
        return "\n".join(f"{k} {v}" for k, v in lines.items() if v != "0")

    def _allowed(self, directory: str, name: str, value: str) -> bool:
        def number(file: str) -> int:
            return int(self.read(f"{directory}/{file}"))

        if name == "memory.limit_in_bytes":
            return int(value) <= number("memory.memsw.limit_in_bytes")
        if name == "memory.memsw.limit_in_bytes":
            return int(value) >= number("memory.limit_in_bytes")
        if name == "cpu.cfs_burst_us":
            return 0 < int(value) <= number("cpu.cfs_quota_us")
        if name == "cpu.cfs_quota_us":
            return int(value) < 0 or int(value) >= number("cpu.cfs_burst_us")
        return True

    def _defaults(self, directory: str) -> dict[str, str]:
        found = {"cgroup.procs": ""}
        below = directory[len(self.path) + 1 :]
        if self.mode == "v1":
            for name in below.split("/")[0].split(","):
                found |= V1_FILES.get(name, {})
            return found
        parent = directory.rpartition("/")[0]
        handed_down = (
            self.read(f"{parent}/cgroup.subtree_control").split() if below else list(V2_FILES)
        )
        found |= {
            "cgroup.controllers": " ".join(handed_down),
            "cgroup.subtree_control": "",
            "cgroup.kill": "",
        }
        for name in handed_down if below else ():
            found |= V2_FILES[name]
        return found
