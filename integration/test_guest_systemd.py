"""Containers in systemd's slices and scopes: see `integration/vm --systemd`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from integration.guest import scene
from integration.harness.nodes.node import Node

pytestmark = pytest.mark.skipif(
    bool(scene.lacking()) or not scene.systemd_booted(), reason="needs a guest with systemd"
)

LIMIT = 256 << 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pairs = scene.pairs(metafunc.config)[:1]
    names = ["-".join(pair) for pair in pairs]
    metafunc.parametrize("machine", pairs, ids=names, indirect=True, scope="session")


@pytest.fixture
def host(machine: Node) -> Iterator[Node]:
    yield machine
    machine.clean()
    machine.assert_clean(30)


def in_a_scope(host: Node) -> tuple[str, str]:
    """A running container with limits in a scope of system.slice: its id and cgroup."""
    name = host.new_id()
    options = ["--cgroup", f"system.slice:ctr:{name}", "--memory-limit", str(LIMIT)]
    host.run_detached("sleep", "1000", options=[*options, "--cpus", "0.5"], container=name)
    return name, f"/system.slice/ctr-{name}.scope"


def in_shell(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_container_in_a_scope(host: Node) -> None:
    """It is in the scope that the path names, and stays there with its limits."""
    name, cgroup = in_a_scope(host)
    sandbox = host.descendants(host.shim_pid(name))
    for command in (
        (),
        ("systemctl", "daemon-reload"),
        # A unit that comes and goes beside it makes systemd go over the slice.
        ("systemd-run", "--scope", "--quiet", "-p", "MemoryMax=64M", "true"),
    ):
        if command:
            in_shell(*command)
        assert {scene.cgroup_of(pid) for pid in sandbox} == {cgroup}, command
        assert scene.text(cgroup, "memory.max") == str(LIMIT), command
        assert scene.text(cgroup, "cpu.max") == "50000 100000", command
    host.delete(name)
    assert not scene.exists(cgroup)


def test_systemd_knows_the_scope(host: Node) -> None:
    name, cgroup = in_a_scope(host)
    properties = ("ActiveState", "ControlGroup", "MemoryMax", "Delegate")
    command = ["systemctl", "show", "--value", *(f"--property={p}" for p in properties)]
    seen = [in_shell(*command[:3], option, f"ctr-{name}.scope").strip() for option in command[3:]]
    assert seen == ["active", cgroup, str(LIMIT), "yes"]
