"""The image of deploy/Dockerfile: built by Docker, and run as the DaemonSet's pod runs it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.host.bare_root import BareRoot
from integration.harness.host.docker import Docker
from integration.nodes.machine import Machine
from integration.test_docker import run_docker

BASE, IMAGE = "busybox", "gvisor-shim:test"


@pytest.fixture(scope="module")
def docker(short_folder: Path) -> Iterator[Docker]:
    yield from run_docker(short_folder, "28", "i")


@pytest.fixture
def installed_on(short_folder: Path) -> Iterator[Machine]:
    """A machine on which containerd doesn't run."""
    folder = short_folder / "mi"
    folder.mkdir()
    machine = Machine(folder, "2.1", 91)
    machine.make()
    yield machine
    machine.remove()


def _import_base(docker: Docker) -> None:
    """A shell, and nothing else."""
    base, archive = docker.folder / "base", docker.folder / "base.tar"
    BareRoot(base, glibc=False).make()
    with tarfile.open(archive, "w") as out:
        out.add(base, ".")
    docker.ok("import", "--change", "ENV PATH=/bin", str(archive), BASE)


def _context(folder: Path, bundle: Path) -> Path:
    """A checkout after `make bundle`, as far as the Dockerfile sees it."""
    (folder / "dist/runsc").mkdir(parents=True)
    shutil.copytree(bundle, folder / "dist/gvisor-shim-0.1.0-amd64", symlinks=True)
    shutil.copy(peers.runsc("20240729"), folder / "dist/runsc/runsc")
    shutil.copytree(peers.CHECKOUT / "deploy", folder / "deploy")
    return folder


def test_the_image_installs_and_uninstalls(
    docker: Docker, installed_on: Machine, bundle: Path, short_folder: Path
) -> None:
    _import_base(docker)
    context = _context(short_folder / "context", bundle)
    build = ("build", "-f", str(context / "deploy/Dockerfile"), "--build-arg", f"BASE={BASE}")
    done = docker(*build, "-t", IMAGE, str(context), timeout=300)
    assert done.code == 0, done.err
    before = installed_on.snapshot()
    run = short_folder / "done"
    run.mkdir()
    (short_folder / "host-run").mkdir()
    places = {"/host": installed_on.root.folder, "/run/gvisor-node": run}
    places |= {f"/host{name}": Path(name) for name in ("/proc", "/sys", "/dev", "/tmp")}
    # Its own, as others' pods are no pods of this node.
    places["/host/run"] = short_folder / "host-run"
    places[f"/host{peers.PEERS}"] = peers.PEERS
    volumes = [word for inside, path in places.items() for word in ("-v", f"{path}:{inside}")]
    for verb, words in (("install", "a sandbox was started"), ("uninstall", "is uninstalled")):
        options = ["--runtime", "runc", "--privileged", "--pid", "host", "--net", "none", *volumes]
        docker.ok("run", "-d", "--name", verb, *options, IMAGE, verb)
        running = ("inspect", "--format", "{{.State.Running}}", verb)
        until(
            lambda: (run / "done").exists() or docker.ok(*running) == "false",  # noqa: B023
            120,
            f"{verb} is done",
        )
        said = docker("logs", verb)
        docker.ok("rm", "-f", verb)
        assert (run / "done").exists() and words in said.out, said
        assert installed_on.path("/opt/gvisor-shim/current").is_symlink() == (verb == "install")
        (run / "done").unlink()
    assert installed_on.snapshot() == before
