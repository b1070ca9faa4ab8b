"""On which combinations of containerd and runsc a test runs, as the command line has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.harness import peers

#: A containerd and a runsc; the latter is empty for runtimes that know none.
Pair = tuple[str, str]


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
) -> None:
    """Give a test with ``fixture`` its machines: the first of ``every``, or all for ``core``."""
    if fixture not in metafunc.fixturenames:
        return
    config = metafunc.config
    version, made = config.getoption("--containerd"), config.getoption("--runsc")
    pairs = [
        pair
        for pair in every(config)
        if version in (None, pair[0]) and (made in (None, pair[1]) or not pair[1])
    ]
    if not metafunc.definition.get_closest_marker("core") and not config.getoption("--all"):
        pairs = pairs[:1]
    names = ["-".join(filter(None, pair)) for pair in pairs]
    metafunc.parametrize(machine, pairs, ids=names, indirect=True, scope="session")
