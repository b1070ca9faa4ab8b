"""gvctl install, upgrade and uninstall on machines with a real containerd."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.clients.daemon_api import Refused
from integration.nodes.machine import Machine, another_version
from runtime.base.version import VERSION

_numbers = itertools.count()
RUNSC = peers.runsc("20240729")
SHIM = "/opt/gvisor-shim/current/bin/containerd-shim-gvisor-v2"


def _machine(short_folder: Path, version: str) -> Machine:
    number = next(_numbers)
    folder = short_folder / f"m{number}"
    folder.mkdir()
    machine = Machine(folder, version, number)
    machine.make()
    return machine


@pytest.fixture(params=["2.1", "1.7"])
def machine(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Machine]:
    """A machine that runs pods by runc alone."""
    machine = _machine(short_folder, request.param)
    yield machine
    machine.remove()


def installed(machine: Machine, bundle: Path, *words: str | Path, verb: str = "install") -> str:
    runsc = () if verb == "uninstall" else ("--runsc", RUNSC)
    done = machine.gvctl(bundle, verb, *runsc, *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def versions(machine: Machine) -> list[str]:
    return sorted(path.name for path in machine.path("/opt/gvisor-shim/versions").iterdir())


def test_a_life(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    machine.start()
    machine.import_images()
    before = machine.snapshot()
    with pytest.raises(Refused, match="gvisor"):
        machine.run_pod()

    said = installed(machine, bundle, "--dry-run")
    assert "/opt/gvisor-shim" in said and machine.snapshot() == before
    said = installed(machine, bundle)
    assert "a sandbox was started" in said and "all else as before" in said
    assert "no systemd runs here: restart" in said
    first = versions(machine)
    assert len(first) == 1 and os.readlink(machine.path("/opt/gvisor-shim/current"))
    settled = machine.snapshot()
    assert "nothing was restarted" in installed(machine, bundle)
    assert machine.snapshot() == settled

    machine.restart()
    old_pod, old_container = machine.run_pod()
    assert machine.exec(old_container, "uname", "-r") == "4.4.0\n"
    assert first[0] in machine.shim_of(old_pod)
    plain, _ = machine.run_pod("runc")
    machine.remove_pod(plain)

    # The next version, without a restart and with the pod running on the one before.
    newer = another_version(bundle, tmp_path)
    said = installed(machine, newer, verb="upgrade")
    assert f"kept version {first[0]}" in said and "the configuration is the same" in said
    second = next(name for name in versions(machine) if name not in first)
    assert second.startswith("99.0-")
    new_pod, new_container = machine.run_pod()
    assert second in machine.shim_of(new_pod) and first[0] in machine.shim_of(old_pod)
    for container in (old_container, new_container):
        assert machine.exec(container, "uname", "-r") == "4.4.0\n"

    done = machine.gvctl(newer, "uninstall")
    assert (done.returncode, done.stdout) == (1, "")
    shown = ", ".join(sorted((old_pod[:13], new_pod[:13])))
    assert f"2 pods run with it: {shown};" in done.stderr, done.stderr
    assert len(versions(machine)) == 2
    # Only this takes a running pod along, by the link that leads to the newer version now.
    done = machine.gvctl(newer, "upgrade", "--running", old_container)
    assert done.stdout == f"{old_pod}: handed over from {VERSION} to {VERSION}\n", done
    assert second in machine.shim_of(old_pod)
    assert machine.exec(old_container, "uname", "-r") == "4.4.0\n"
    # Its sandbox goes on by the runsc of the version that it was made with.
    assert f"kept version {first[0]}" in installed(machine, newer)
    machine.remove_pod(old_pod)
    assert f"removed version {first[0]}" in installed(machine, newer)
    assert versions(machine) == [second]
    assert machine.exec(new_container, "uname", "-r") == "4.4.0\n"
    machine.remove_pod(new_pod)

    assert "uninstalled" in installed(machine, newer, verb="uninstall")
    assert machine.snapshot() == before
    machine.restart()
    with pytest.raises(Refused, match="gvisor"):
        machine.run_pod()
    assert "no runtime gvisor is installed" in installed(machine, newer, verb="uninstall")


@pytest.fixture(scope="module")
def idle(short_folder: Path) -> Iterator[Machine]:
    """A machine on which containerd doesn't run; tests leave it as it was."""
    machine = _machine(short_folder, "2.1")
    yield machine
    machine.remove()


def refused(machine: Machine, bundle: Path, *words: str | Path, verb: str = "install") -> str:
    """A call that fails in one line and changes nothing; what it says."""
    before = machine.snapshot()
    done = machine.gvctl(bundle, verb, *words)
    assert done.returncode == 1, done
    assert machine.snapshot() == before
    assert done.stderr.startswith("gvctl: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_runsc_that_does_not_work_is_not_registered(idle: Machine, bundle: Path) -> None:
    assert "the node has no runsc: name one" in refused(idle, bundle)
    assert "No such file" in refused(idle, bundle, "--runsc", "/nowhere")
    busybox = "/bin/busybox"
    assert "the self-test's sandbox: " in refused(idle, bundle, "--runsc", busybox)
    page = idle.path("/root/runsc")
    page.write_text("<html>404</html>")
    page.chmod(0o755)
    assert "is no program, its first bytes are b'<htm'" in refused(
        idle, bundle, "--runsc", "/root/runsc"
    )
    page.unlink()


def test_a_configuration_that_is_not_understood_is_left_alone(idle: Machine, bundle: Path) -> None:
    text = idle.config.read_text()
    cases = {
        text + "[plugins\n": "is no TOML",
        text.replace("version = 3", "version = 9"): "containerd refuses its configuration",
        text
        + '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.gvisor]\n'
        + '  runtime_type = "io.containerd.runsc.v1"\n': "has a runtime gvisor already",
    }
    for wrong, words in cases.items():
        idle.config.write_text(wrong)
        assert words in refused(idle, bundle, "--runsc", RUNSC), words
    idle.config.write_text(text)
    options = idle.path("/etc/containerd/gvisor.toml")
    options.write_text('binary_name = "/usr/bin/another"\n')
    assert "is yours and names the runsc '/usr/bin/another'" in refused(
        idle, bundle, "--runsc", RUNSC
    )
    options.unlink()


def test_what_can_not_be_is_said(idle: Machine, bundle: Path, tmp_path: Path) -> None:
    assert "use gvctl install" in refused(idle, bundle, "--runsc", RUNSC, verb="upgrade")
    assert "there is no k3s on this node, but containerd" in refused(
        idle, bundle, "--distro", "k3s", "--runsc", RUNSC
    )
    assert "Talos has a root" in refused(idle, bundle, "--distro", "talos", "--runsc", RUNSC)
    assert "is no name of a RuntimeClass" in refused(idle, bundle, "--name", "A/B")
    damaged = another_version(bundle, tmp_path)
    (damaged / "share/doc/README.md").write_text("other")
    assert "README.md is damaged" in refused(idle, damaged, "--runsc", RUNSC)
    # Not of a bundle: the gvctl of a virtual environment.
    done = subprocess.run(
        [peers.shim_bin() / "gvctl", "install"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "isn't part of a bundle" in done.stderr


def test_from_a_container_that_sees_the_node(idle: Machine, bundle: Path) -> None:
    """As the DaemonSet does: by a root that isn't its own, with a tarball of gVisor's release."""
    before = idle.snapshot()
    apart = peers.runsc(peers.APART).parent
    tarball = idle.path("/root/gvisor.tar")
    subprocess.run(
        ["tar", "-cf", tarball, "-C", apart, "runsc", "gvisor-bin"], check=True, timeout=120
    )
    command = [bundle / "bin/gvctl", "install", "--root", idle.root.folder, "--no-self-test"]
    done = subprocess.run(
        [*command, "--runsc", tarball], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    tarball.unlink()
    assert "containerd reads the runtime" in done.stdout
    folder = idle.path("/opt/gvisor-shim/versions")
    (version,) = folder.iterdir()
    for name in ("runsc", "gvisor-bin/gvisor_sentry"):
        assert (version / "runsc" / name).read_bytes() == (apart / name).read_bytes()
    assert (
        "/opt/gvisor-shim/current/runsc/runsc"
        in idle.path("/etc/containerd/gvisor.toml").read_text()
    )
    command[1] = "uninstall"
    done = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert idle.snapshot() == before
