"""GPUs as far as that goes without one: device files of our own making.

The control device is that of FUSE, which takes part in polling, as the sentry wants it, and knows
none of NVIDIA's calls: what the program in the container gets is the host's driver's own refusal.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.base.done import Done
from integration.harness.clients.gvctl import Shop

pytestmark = pytest.mark.gvisor
PROGRAM = Path(__file__).parent / "programs" / "nvidia.c"
NEW = next((g for g in peers.RUNSCS if g >= "2023"), peers.RUNSCS[-1])
NODES = ("nvidiactl", "nvidia-uvm", "nvidia0")
DEVICES = [
    {"path": f"/dev/{name}", "type": "c", "major": 195, "minor": minor, "fileMode": 0o666}
    for name, minor in zip(NODES, (255, 0, 0), strict=True)
]
#: What the kernel says to a call that a driver doesn't know.
REFUSED = "driver: Inappropriate ioctl for device\n"


class Machine:
    """A mount namespace in which the host has a GPU, and gvctl there."""

    def __init__(self, folder: Path) -> None:
        commands = (
            f"mkdir {folder}/dev",
            f"mount -t tmpfs dev {folder}/dev",
            *(f"mknod -m 666 {folder}/dev/{name} c 10 229" for name in NODES),
            *(f"touch {folder}/dev/{name}" for name in ("null", "zero", "urandom", "full", "tty")),
            f"for n in null zero urandom full tty; do mount --bind /dev/$n {folder}/dev/$n; done",
            f"mount --rbind {folder}/dev /dev",
            "echo ready; exec cat",
        )
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"
        self.shop = Shop(NEW, folder)
        pid = str(self.holder.pid)
        self.shop.gvctl.command = ["nsenter", "-t", pid, "-m", *self.shop.gvctl.command]
        program = self.shop.rootfs / "bin" / "nvidia"
        subprocess.run(["gcc", "-static", "-o", program, PROGRAM], check=True, timeout=60)

    def run(self, name: str, *flags: str, **spec: Any) -> Done:
        """A container with the GPU, to its end."""
        bundle = self.shop.bundle(name, "nvidia", linux=linux(self.shop, name), **spec)
        words = [word for flag in flags for word in ("--flag", flag)]
        return self.shop.gvctl(*words, "run", "--bundle", bundle, name)

    def close(self) -> None:
        self.shop.close()
        self.holder.communicate(timeout=20)


@pytest.fixture
def machine(tmp_path: Path, short_folder: Path) -> Iterator[Machine]:
    folder = short_folder / "gpu"
    folder.mkdir(mode=0o755)
    machine = Machine(folder)
    yield machine
    machine.close()
    for each in Path("/sys/fs/cgroup").glob(f"*/{machine.shop.cgroup}"):
        each.rmdir()


def linux(shop: Shop, name: str) -> dict[str, Any]:
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return {
        "cgroupsPath": f"/{shop.cgroup}/{name}",
        "namespaces": [{"type": kind} for kind in kinds],
        "devices": DEVICES,
    }


def test_the_sentry_reaches_the_driver(machine: Machine) -> None:
    """Of a container, and of one in a pod whose sandbox was made for it; else it is told."""
    latest = "nvproxy-driver-version=latest"
    done = machine.run("one", latest)
    assert (done.out, done.code) == (REFUSED, 2), done

    kind, of = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    command = machine.shop.gvctl.command
    command += ["--flag", latest, "--flag", "overlay2=none"]
    for pod, asked in (("pod", {"dev.gvisor.internal.nvproxy": "true"}), ("plain", {})):
        machine.shop.run(pod, "sleep", "1000", annotations={kind: "sandbox", of: pod, **asked})
        done = machine.run(f"in-{pod}", annotations={kind: "container", of: pod})
        if asked:
            assert (done.out, done.code) == (REFUSED, 2), done
        else:
            assert done.code and "sandbox was made without: annotate the pod" in done.err, done
    del command[-4:]

    done = machine.run("two", "nvproxy-driver-version=1.2.3")
    assert done.code and "NVIDIA driver 1.2.3 is none that runsc" in done.err, done
    done = machine.run("three")
    assert done.code and "no NVIDIA driver: there is no /proc/driver/nvidia/version" in done.err
