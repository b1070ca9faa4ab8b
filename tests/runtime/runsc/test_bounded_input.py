"""What a pod or its image may choose, a MiB of it: nothing that looks at it takes longer for that.

Time is the thread's own, so that a busy machine makes no difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import RuntimeFault
from runtime.bundle import executable, volumes
from runtime.bundle.process_spec import parse_process
from runtime.bundle.spec import parse_spec, sandbox_to_join
from runtime.cgroups import placement
from runtime.host.fds import FdSet
from runtime.runsc.config import RunscConfig
from runtime.runsc.flags import read_settings
from runtime.sandbox import cgroup_mounts, prepare_spec
from runtime.sandbox.gofer_mounts import mount_hints, plan_mounts, shared_sources
from runtime.state.writer import absolute
from tests.fakes.generations import GENERATIONS

MIB = 1 << 20
#: Of the thread's processor time; what is quadratic takes minutes to hours.
SECONDS = 1.0
KUBE = {
    "io.kubernetes.cri.container-type": "sandbox",
    "io.kubernetes.cri.sandbox-id": "s",
    "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/a_b_uid",
}


def filled(piece: str) -> str:
    return piece * (MIB // len(piece))


def pieces(make: Callable[[int], str]) -> list[str]:
    """So many different texts that they are a MiB."""
    return [make(number) for number in range(MIB // len(make(1 << 16)))]


def bind(destination: str, source: str = "/proc", *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "ro", *options],
    }


def spec(**changes: Any) -> dict[str, Any]:
    process = {"args": ["sh"], "cwd": "/", "env": ["PATH=/bin"], **changes.pop("process", {})}
    linux = {
        "cgroupsPath": "/kubepods/podX/s",
        "maskedPaths": ["/proc/kcore", "/srv/a", "/deep/a"],
        "readonlyPaths": ["/proc/sys", "/deep/b"],
        **changes.pop("linux", {}),
    }
    annotations = {**KUBE, **changes.pop("annotations", {})}
    return {"process": process, "linux": linux, "annotations": annotations, **changes}


HINT = "dev.gvisor.spec.mount."

INPUTS: dict[str, dict[str, Any]] = {
    "cwd": spec(process={"cwd": filled("/a/..")}),
    "cwd of slashes": spec(process={"cwd": filled("/")}),
    "program": spec(process={"args": [filled("/a/..")]}),
    "program of one part": spec(process={"args": [filled("x")]}),
    "arguments": spec(process={"args": pieces(lambda n: f"x{n}")}),
    "PATH": spec(process={"env": ["PATH=" + filled(":/a/..")]}),
    "PATH of the root": spec(process={"env": ["PATH=" + filled(":/")]}),
    "PATH of long entries": spec(process={"env": ["PATH=" + filled(":" + "/deep/.." * 500)]}),
    "PATH of what is not there": spec(process={"env": ["PATH=" + filled(":/x" + "/y" * 2000)]}),
    "PATH and a long program": spec(
        process={"env": ["PATH=" + filled(":/a")], "args": [filled("x")]}
    ),
    "environment": spec(process={"env": pieces(lambda n: f"V{n}=")}),
    "limits": spec(process={"rlimits": [{"type": f"RLIMIT_{n}"} for n in range(20_000)]}),
    "a destination": spec(mounts=[bind(filled("/a/.."))]),
    "destinations": spec(mounts=[bind(f"/mnt/{n}") for n in range(20_000)]),
    "long destinations": spec(mounts=[bind(f"/deep/{'../deep/' * 480}{n}") for n in range(250)]),
    "a destination many times": spec(mounts=[bind("/mnt") for _ in range(2_000)]),
    "options": spec(mounts=[bind("/mnt", "/proc", *pieces(lambda n: f"o{n}"))]),
    "annotations": spec(annotations={key: "x" for key in pieces(lambda n: f"annotation-{n:08}")}),
    "an annotation": spec(annotations={"k": filled("x")}),
    "hints": spec(
        annotations={
            f"{HINT}v{n}.{name}": value
            for n in range(8_000)
            for name, value in (("type", "tmpfs"), ("share", "pod"), ("source", f"/v/{n}"))
        }
    ),
    "a cgroup": spec(annotations={placement.CGROUP_PARENT: filled("/a")}),
    "a slice": spec(annotations={placement.CGROUP_PARENT: filled("a-") + "a.slice"}),
    "a scope": spec(annotations={placement.CGROUP_PARENT: filled("a-") + "a.slice:b:c"}),
    "a flag": spec(annotations={"dev.gvisor.flag.debug": filled("x")}),
    "flags": spec(
        annotations={f"dev.gvisor.flag.{key}": "x" for key in pieces(lambda n: f"no-flag-{n:08}")}
    ),
    "a log directory": spec(
        annotations={
            "io.kubernetes.cri.sandbox-log-directory": filled("_a/"),
            f"{HINT}v.type": "tmpfs",
        }
    ),
    "a host's name": spec(hostname=filled("x")),
    "a profile": spec(
        linux={
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["ptrace", "clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
                ]
                * 10_000,
            }
        }
    ),
}


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """With a directory that is deep, and links that make more of a path."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").touch(0o755)
    (root / "srv").symlink_to("/deep/" + "../deep/" * 500)
    (root / "a").mkdir()
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=place)
        below = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    yield root
    # Python's own removal, as pytest's at the end, gives up below so many.
    subprocess.run(["rm", "-r", root / "deep"], check=True)


def look(document: dict[str, Any], root: Path) -> float:
    """All that a creation does with a spec before anything is started; the seconds it takes."""
    data = json.dumps({**document, "root": {"path": str(root)}}).encode()
    started = time.thread_time()
    try:
        _look(data, root)
    except RuntimeFault as fault:
        assert len(str(fault)) < 2_000, "it is told to containerd, and logged"
    return time.thread_time() - started


def _look(data: bytes, root: Path) -> None:
    read = parse_spec(data, str(root.parent))
    sandbox_to_join(read)
    generation = GENERATIONS[2024]
    config = RunscConfig(root="/run/x")
    executable.find_executable(read.root_path, read)
    read = cgroup_mounts.prepare(
        volumes.prepare(read, generation.knows_volume_options, None), generation
    )
    volumes.prepare(read, generation.knows_volume_options, read.annotations)
    prepared = prepare_spec.prepare(read, config, generation)
    settings = read_settings(prepared.config, generation, prepared.spec)
    placement.place(read, "s", "v2")
    absolute(prepared.spec)
    mount_hints(read.annotations)
    shared_sources(read.annotations)
    with FdSet() as fds:
        plan_mounts(
            prepared.spec.replace(root_readonly=True),
            settings,
            generation,
            "s",
            read.annotations,
            fds,
        )


@pytest.mark.parametrize("name", INPUTS)
def test_a_mebibyte_of(name: str, rootfs: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert look(INPUTS[name], rootfs) < SECONDS
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "name", [name for name, value in INPUTS.items() if value["process"] != spec()["process"]]
)
def test_an_exec_of(name: str) -> None:
    data = json.dumps(INPUTS[name]["process"]).encode()
    started = time.thread_time()
    try:
        parse_process(data, "exec spec")
    except RuntimeFault as fault:
        assert len(str(fault)) < 2_000
    assert time.thread_time() - started < SECONDS


@pytest.mark.parametrize(
    "path",
    ["/deep" * 700, "/a/.." * 700, "/" + "a/../" * 818, "/srv/" + "../srv/" * 30],
)
def test_a_path_that_is_as_long_as_it_may_be(path: str, rootfs: Path) -> None:
    """One within the kernel's bounds is understood."""
    started = time.thread_time()
    executable.resolve(str(rootfs), path)
    assert time.thread_time() - started < SECONDS


def test_paths_are_as_long_as_the_kernel_has_them(rootfs: Path) -> None:
    def told(**process: Any) -> str:
        body = {**spec(process=process), "root": {"path": str(rootfs)}}
        try:
            _look(json.dumps(body).encode(), rootfs)
        except RuntimeFault as fault:
            return str(fault)
        return ""

    assert "cwd: is longer than 4095 bytes" in told(cwd="/" * 4096)
    assert "longer" not in told(cwd="/" * 4095)
    assert "file name too long" in told(args=["/" * 4095 + "x"])
    assert "not found in $PATH" in told(args=["x" * 256])
