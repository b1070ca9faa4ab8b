"""The nodes that the tests of whole pods work with: containerd with its CRI plugin."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from integration.harness.base import combinations, peers
from integration.harness.nodes.pods import PodNode

#: What every test runs on, and what those marked `core` run on besides.
_COMBINATIONS = (("2.1", "20240729"), ("1.7", "20240729"), ("2.1", "20221219"))
#: Of the option `--sandboxer`: the shim makes gVisor's pods.
SHIM = "shim"
#: The same, and their containers have streams for stdio.
STREAMS = "streams"
_numbers = itertools.count()


def _combinations(config: pytest.Config) -> list[combinations.Pair]:
    generations = combinations.generations(config)
    versions = [version for version in peers.CONTAINERDS if version != "1.6"]
    sandboxer = str(config.getoption("--sandboxer"))
    shim = sandboxer in (SHIM, STREAMS)
    if shim:
        versions = [version for version in versions if peers.daemon_generation(version) >= (2, 1)]
    every = [(version, made) for version in versions for made in generations]
    if "custom" not in (*versions, *generations):
        wanted = [(version, made if generations[0] else "") for version, made in _COMBINATIONS]
        every.sort(key=lambda pair: wanted.index(pair) if pair in wanted else len(wanted))
        if not config.getoption("--all"):
            every = [pair for pair in every if pair in wanted]
    return [(*pair, sandboxer) for pair in every] if shim else list(every)


def _marked(config: pytest.Config) -> dict[str, list[combinations.Pair]]:
    """Tests marked so run without a pause container as well."""
    version, made = _COMBINATIONS[0]
    known = version in peers.CONTAINERDS and made in combinations.generations(config)
    chosen = config.getoption("--sandboxer") in (SHIM, STREAMS) or not known
    return {"without_pause": [] if chosen else [(version, made, SHIM)]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    combinations.parametrize(metafunc, "pods", "pod_machine", _combinations, _marked)


@pytest.fixture(scope="session")
def pod_machine(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[PodNode]:
    """A running daemon with CRI for one combination of containerd and runsc."""
    version, generation, *sandboxer = request.param
    number = next(_numbers)
    folder = short_folder / f"p{number}"
    runtime = combinations.runtime(request.config)
    node = PodNode(
        folder,
        version,
        generation,
        runtime,
        number,
        without_pause=bool(sandboxer),
        streams=sandboxer == [STREAMS],
    )
    # Both ways of starting a shim, without a test more.
    node.daemon.fork_server = version != "1.7"
    try:
        node.start()
        yield node
        node.clean()
        node.assert_clean()
    finally:
        node.remove()


@pytest.fixture
def pods(pod_machine: PodNode) -> Iterator[PodNode]:
    """The daemon of this combination; whatever a test leaves there makes the test fail."""
    yield pod_machine
    pod_machine.clean()
    pod_machine.assert_clean()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of containerd's log with a failure."""
    report = yield
    node = getattr(item, "funcargs", {}).get("pods")
    if report.failed and isinstance(node, PodNode):
        report.sections.append(("containerd's log", node.daemon.log_tail(40)))
    return report
