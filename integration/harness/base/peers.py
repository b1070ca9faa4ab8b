"""Where the programs under test and their peers lie.

Peers come from `integration/peers`; these environment variables name others:

  GVISOR_SHIM_PEERS   the folder that `integration/peers` fills
  CONTAINERD_BIN      a folder with containerd and ctr, tested in place of the fetched versions
  RUNSC               a runsc binary, tested in place of the fetched generations
  GVISOR_SHIM_BIN     the folder that holds our containerd-shim-gvisor-v2 (default: that of the
                      Python that runs the tests)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
PEERS = Path(os.environ.get("GVISOR_SHIM_PEERS") or "/var/cache/containerd-shim-gvisor/peers")

GVISOR = "io.containerd.gvisor.v2"
RUNC = "io.containerd.runc.v2"

CONTAINERDS = ("custom",) if os.environ.get("CONTAINERD_BIN") else ("1.6", "1.7", "2.1")
RUNSCS = ("custom",) if os.environ.get("RUNSC") else ("20221219", "20240729")
#: A runsc that boots nothing itself, with its sentry beside it, as releases have it since 2026.
APART = "20240729-apart"
PRIMARY = (
    "custom" if "custom" in CONTAINERDS else "1.7",
    "custom" if "custom" in RUNSCS else "20240729",
)


def containerd_bin(version: str) -> Path:
    """The folder of containerd and ctr of one version."""
    if version == "custom":
        return Path(os.environ["CONTAINERD_BIN"])
    return PEERS / f"containerd-{version}" / "bin"


def runsc(generation: str) -> Path:
    """The runsc binary of one generation."""
    if generation == "custom":
        return Path(os.environ["RUNSC"])
    return PEERS / f"runsc-{generation}" / "bin" / "runsc"


def runc_bin() -> Path:
    return PEERS / "runc" / "bin"


def criu() -> Path:
    """Which containerd wants to be there for a checkpoint, whatever the runtime."""
    return PEERS / "criu" / "bin" / "criu"


def busybox() -> Path:
    return PEERS / "busybox" / "bin" / "busybox"


def shim_bin() -> Path:
    """The folder of our shim's launcher."""
    named = os.environ.get("GVISOR_SHIM_BIN")
    return Path(named) if named else Path(sys.executable).parent


def shim_path(runtime: str, version: str) -> Path:
    """The shim binary that containerd runs for a runtime's name, or a path given as the name."""
    if runtime.startswith("/"):
        return Path(runtime)
    kind, generation = runtime.split(".")[-2:]
    name = f"containerd-shim-{kind}-{generation}"
    for folder in (shim_bin(), containerd_bin(version)):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no {name} in {shim_bin()} or {containerd_bin(version)}")


def daemon_generation(version: str) -> tuple[int, int]:
    """Major and minor of the containerd that stands behind `version`."""
    text = subprocess.run(
        [containerd_bin(version) / "containerd", "--version"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    number = text.split()[2].lstrip("v").split(".")
    return int(number[0]), int(number[1])


def missing() -> list[str]:
    """The peers that are not there: empty when the tests can run."""
    wanted = [busybox(), criu(), runc_bin() / "runc"]
    wanted += [containerd_bin(version) / "containerd" for version in CONTAINERDS]
    wanted += [runsc(generation) for generation in RUNSCS]
    if "custom" not in RUNSCS:
        wanted += [runsc(APART), runsc(APART).parent / "gvisor-bin" / "gvisor_sentry"]
    return [str(path) for path in wanted if not path.exists()]
