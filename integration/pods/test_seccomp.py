"""The node's default profile of system calls, against a program that wants to get around it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.nodes.pods import PodNode
from runtime.runsc.config import RunscConfig
from runtime.runsc.driver import find_driver

pytestmark = pytest.mark.gvisor

SOURCE = Path(__file__).parents[1] / "programs" / "filtered.c"
EPERM, ENOSYS = 1, 38
REFUSED = {
    # A C library makes threads all the same.
    "thread": "ended with 0",
    "unshare": f"ended with {EPERM}",
    "clone3": f"ended with {ENOSYS}",
    "event": f"options refused {EPERM}",
    "seize": f"options refused {EPERM}",
    "event of its own filter": f"options refused {EPERM}",
    "entry": f"request refused {EPERM}",
    "plain": "ended with 0",
}


def _told(output: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in output.splitlines())


@pytest.mark.without_pause
@pytest.mark.core
def test_no_way_around_the_default_profile(pods: PodNode, tmp_path: Path) -> None:
    """Neither by a tracer nor, where the sentry filters them, by an exec; though the pause
    container has no profile."""
    program = tmp_path / "filtered"
    subprocess.run(["gcc", "-static", "-pthread", "-o", program, SOURCE], check=True)
    mounts = [{"container_path": "/filtered", "host_path": str(program), "readonly": True}]
    profile = {"security_context": {"seccomp": {"profile_type": 0}}}
    pod = pods.pod()
    container = pod.start(
        "sh", "-c", "/filtered; echo over: now; sleep 1000", mounts=mounts, linux=profile
    )
    told = _told(pod.wait_log(container, "over: now", 30))
    assert told.pop("over") == "now" and told == REFUSED
    binary = str(peers.runsc(pods.daemon.generation))
    generation = find_driver(RunscConfig(binary=binary, root="/"), str(tmp_path)).generation
    executed = _told(pods.exec(container, "/filtered").out)
    log = pods.daemon.log.read_text(errors="replace")
    assert ("no filter for execs" in log) is not generation.filters_execs
    if generation.filters_execs:
        assert executed == REFUSED
    else:
        assert executed["unshare"] == "ended with 0", "mend the note and the README"
