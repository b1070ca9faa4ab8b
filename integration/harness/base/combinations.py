"""On which combinations of containerd and runsc a test runs, as the command line has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.harness.base import peers

#: A containerd and a runsc; the latter is empty for runtimes that know none.  For pods also who
#: makes them, if that is not containerd.
Pair = tuple[str, ...]


def runtime(config: pytest.Config) -> str:
    """The name by which containerd knows the runtime that is tested."""
    name = str(config.getoption("--runtime"))
    return {"gvisor": peers.GVISOR, "runc": peers.RUNC}.get(name, name)


def generations(config: pytest.Config) -> tuple[str, ...]:
    """The runscs that the runtime can be tested with."""
    return tuple(peers.RUNSCS) if "runc" not in runtime(config) else ("",)


def parametrize(
    metafunc: pytest.Metafunc,
    fixture: str,
    machine: str,
    every: Callable[[pytest.Config], list[Pair]],
    marked: Callable[[pytest.Config], dict[str, list[Pair]]] = lambda _: {},
) -> None:
    """Give a test with ``fixture`` its machines: the first of ``every``, or all for ``core``.

    ``marked`` are what those get besides that have a mark of that name.
    """
    if fixture not in metafunc.fixturenames:
        return
    config = metafunc.config
    version, made = config.getoption("--containerd"), config.getoption("--runsc")

    def wanted(pairs: list[Pair]) -> list[Pair]:
        return [
            pair
            for pair in pairs
            if version in (None, pair[0]) and (made in (None, pair[1]) or not pair[1])
        ]

    pairs = wanted(every(config))
    if not metafunc.definition.get_closest_marker("core") and not config.getoption("--all"):
        pairs = pairs[:1]
    for mark, more in marked(config).items():
        if metafunc.definition.get_closest_marker(mark):
            pairs += wanted(more)
    names = ["-".join(filter(None, pair)) for pair in pairs]
    metafunc.parametrize(machine, pairs, ids=names, indirect=True, scope="session")
