"""Options, the matrix of versions, and the nodes that the tests work with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from integration.harness.base import combinations, peers
from integration.harness.base.distribution import (
    pytest_xdist_make_scheduler as pytest_xdist_make_scheduler,
)
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.nodes.node import Node
from integration.harness.nodes.pods import PodNode

#: containerd and runsc of the pods in a guest.
GUEST_PODS = ("2.1", "20240729")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("integration")
    group.addoption(
        "--runtime",
        default=os.environ.get("GVISOR_SHIM_RUNTIME", "gvisor"),
        help="gvisor (default), runc to prove the suite, a runtime's full name or a shim's path",
    )
    group.addoption(
        "--sandboxer",
        choices=("podsandbox", "shim", "streams"),
        default="podsandbox",
        help="who makes gVisor's pods: containerd with a pause container (default), or the shim,"
        " streams: the shim, and stdio are streams",
    )
    group.addoption("--containerd", help="only this version of containerd, e.g. 1.7")
    group.addoption("--runsc", help="only this generation of runsc, e.g. 20240729")
    group.addoption("--all", action="store_true", help="every test on every combination")


def _combinations(config: pytest.Config) -> list[combinations.Pair]:
    generations = combinations.generations(config)
    primary = (peers.PRIMARY[0], peers.PRIMARY[1] if generations[0] else "")
    every = [(version, made) for version in peers.CONTAINERDS for made in generations]
    if "custom" not in generations and generations[0] and "2.1" in peers.CONTAINERDS:
        every.append(("2.1", peers.APART))
    return sorted(every, key=lambda pair: pair != primary)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    combinations.parametrize(metafunc, "node", "machine", _combinations)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "runc" not in combinations.runtime(config):
        return
    skip = pytest.mark.skip(reason="about gVisor")
    for item in items:
        if item.get_closest_marker("gvisor"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    """The tests need root and the fetched peers."""
    if os.geteuid() != 0:
        pytest.exit("the integration tests need root", returncode=2)
    missing = peers.missing()
    if missing:
        pytest.exit(f"missing, run integration/setup: {', '.join(missing)}", returncode=2)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for sockets; gone at the end of the session."""
    folder = Path("/run/gvisor-shim-test", str(os.getpid()))
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.rmdir()
    except OSError:
        return  # another session is under way


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Node]:
    """A running daemon for one combination of containerd and runsc."""
    version, generation = request.param
    short = generation[:4] + ("s" if generation == peers.APART else "")
    name = "-".join(filter(None, (version, short)))
    namespace = f"t{os.getpid()}-{name.replace('.', '')}"
    node = Node(
        Containerd(version, generation, short_folder / name, namespace),
        combinations.runtime(request.config),
    )
    # Both ways of starting a shim, without a test more: with a fork server, as by default, and
    # on one release without.
    node.daemon.fork_server = version != "2.1"
    node.daemon.start()
    node.daemon.import_image()
    yield node
    try:
        node.clean()
        node.assert_clean()
    finally:
        node.close()
        node.daemon.remove()
        footprint.remove_cgroups(node.daemon)


@pytest.fixture
def node(machine: Node, request: pytest.FixtureRequest) -> Iterator[Node]:
    """The daemon of this combination; whatever a test leaves there makes the test fail."""
    yield machine
    machine.clean()
    machine.assert_clean()


@pytest.fixture(scope="session")
def guest_pod_machine(short_folder: Path) -> Iterator[PodNode]:
    """A running daemon with CRI, for the tests in a guest."""
    node = PodNode(short_folder / "pods", *GUEST_PODS, peers.GVISOR, 99)
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def guest_pods(guest_pod_machine: PodNode) -> Iterator[PodNode]:
    """The same; whatever a test leaves there makes the test fail."""
    yield guest_pod_machine
    guest_pod_machine.clean()
    guest_pod_machine.assert_clean(30)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of containerd's log with a failure."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("node")
    if report.failed and isinstance(machine, Node):
        report.sections.append(("containerd's log", machine.daemon.log_tail(25)))
    return report
