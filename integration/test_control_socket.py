"""Who can reach a sandbox's control socket."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from integration.harness.nodes.node import Node
from runtime.state.loaded import StoredContainer

pytestmark = pytest.mark.gvisor


def _abstract() -> set[str]:
    """The abstract names of sandboxes that anybody in the network namespace can connect to."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[-1] for line in lines if "@runsc-sandbox." in line}


@pytest.mark.core
def test_a_control_socket_is_roots_alone(node: Node) -> None:
    """On every release: one without a path has an abstract name, which every local user reaches,
    and whose sandbox lets them run programs as root."""
    name = node.run_detached("sleep", "1000")
    assert not [each for each in _abstract() if name in each]
    container = StoredContainer.load(f"/run/containerd/runsc/{node.daemon.namespace}", name)
    path = Path(container.control_socket)
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & ~0o711 == 0
    assert container.processes()
