"""Which process runs which tests, where pytest-xdist has several of them.

Processes are given units: the tests of one file on one combination of containerd and runsc.  The
groups of xdist itself (``--dist loadgroup``) are no help: with pytest 9.2 it forms none, and says
nothing (pytest-dev/pytest-xdist#1386).
"""

from __future__ import annotations

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from integration.harness.base import peers

#: What takes minutes: begun last, it would be waited for alone.  In this order, so that guests
#: boot, which takes all of a processor, beside what doesn't strike at single moments.
LONG = ("integration/test_vm.py", "integration/pods/test_soak.py", "integration/nodes/")
_COMBINATION = re.compile(
    rf"\b({'|'.join(map(re.escape, peers.CONTAINERDS))})"
    rf"-({'|'.join(map(re.escape, (peers.APART, *peers.RUNSCS)))})(-shim|-streams)?\b"
)


def combination(test: str) -> str:
    """The daemon that a test works with, by its id; empty for one that has none of the matrix."""
    found = _COMBINATION.search(test.partition("[")[2])
    return found[0] if found else ""


def unit(test: str) -> str:
    """What one process runs as a whole, by a test's id.

    The tests of nodes are one unit: they share a bundle, and what one of their machines has
    installed would be found on another, since it is looked for by its path.
    """
    if test.startswith("integration/nodes/"):
        return "integration/nodes/"
    path = test.partition("::")[0]
    daemon = combination(test)
    return f"{path}[{daemon}]" if daemon else path


class Distribution(LoadScopeScheduling):
    """Long units come first; then a process keeps its daemon as long as there are tests for it."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        last = [combination(next(reversed(work), "")) for work in self.assigned_work.values()]
        mine = combination(next(reversed(self.assigned_work[node]), ""))

        def rank(name: str) -> int:
            daemon = combination(name)
            for place, long in enumerate(LONG):
                if name.startswith(long):
                    return place
            after = len(LONG)
            if not daemon:
                return after + 3  # short, unit tests for the most part: at the end nobody is idle
            return after if daemon == mine else after + 1 if daemon not in last else after + 2

        self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Distribution:
    """See integration/conftest.py, which has pytest find this."""
    return Distribution(config, log)
