"""The hooks of a spec, run for a real client: order, surroundings, failure, and a dead shim."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base.done import Done
from integration.harness.base.waiting import until
from integration.harness.nodes.node import Node
from integration.harness.nodes.shim import rootfs

ON_THE_HOST = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


class Scene:
    """A root file system, a config.json with hooks, and the file that they write to."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.log = folder / "log"
        self.hooks: dict[str, list[dict[str, Any]]] = {}
        for stage in ON_THE_HOST:
            self.add(stage, f"echo {stage} $(cat | tr -d '\\n') >>{self.log}")

    def add(self, stage: str, script: str, **fields: Any) -> None:
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
        self.hooks.setdefault(stage, []).append({**hook, **fields})

    def run(self, *command: str, detach: bool = False) -> tuple[str, Done]:
        """`ctr run --config`, as a runtime hook injector's spec reaches containerd."""
        name = self.node.new_id()
        spec = self.node.api.spec(*command, container=name)
        spec["root"] = {"path": str(rootfs(self.node))}
        spec["hooks"] = self.hooks
        config = self.folder / "config.json"
        config.write_text(json.dumps(spec))
        how = ["-d", "--null-io"] if detach else ["--rm", "--fifo-dir", str(self.node.daemon.fifos)]
        line = ["run", "--runtime", self.node.runtime, *how, "--config", str(config), name]
        return name, self.node.ctr(*line)

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """What ran, and the state that it was given."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        pairs = [line.split(" ", 1) for line in lines]
        return [(stage, json.loads(state) if state else {}) for stage, state in pairs]

    def stages(self) -> list[str]:
        return [stage for stage, _ in self.told()]


@pytest.fixture
def scene(node: Node, tmp_path: Path) -> Scene:
    return Scene(node, tmp_path)


@pytest.mark.core
def test_all_stages_in_their_order(scene: Scene) -> None:
    # The one hook whose path is the container's: it writes where init reads.
    scene.add(
        "startContainer", "cat >/tmp/state; echo $PPID $A >/tmp/mark", env=["A=in", "PATH=/bin"]
    )
    name, done = scene.run("sh", "-c", "cat /tmp/mark; cat /tmp/state; echo; dmesg | head -1")
    assert done.code == 0, done
    mark, state, kernel = done.out.splitlines()[:3]
    assert mark == "0 in"
    assert "gVisor" in kernel or "Starting" in kernel
    assert json.loads(state)["status"] == "created"
    told = scene.told()
    assert [stage for stage, _ in told] == list(ON_THE_HOST)
    by_stage = dict(told)
    statuses = [by_stage[stage]["status"] for stage in ON_THE_HOST]
    assert statuses == ["creating"] * 3 + ["running", "stopped"]
    assert {state["id"] for state in by_stage.values()} == {name}
    pids = [by_stage[stage]["pid"] for stage in ON_THE_HOST[:-1]]
    assert len(set(pids)) == 1 and "pid" not in by_stage["poststop"]
    assert by_stage["prestart"]["bundle"].endswith(f"/{name}")


@pytest.mark.parametrize("stage", ON_THE_HOST[:3])
def test_a_failure_while_creating_ends_the_creation(scene: Scene, stage: str) -> None:
    scene.add(stage, "echo no such luck >&2; exit 7")
    _, done = scene.run("true")
    assert done.code != 0
    assert f"{stage} hook 1 (/bin/sh): exit status 7: no such luck" in done.err
    before = ON_THE_HOST[: ON_THE_HOST.index(stage) + 1]
    assert scene.stages() == [*before, "poststop"]
    scene.node.assert_clean()


@pytest.mark.core
def test_a_failure_in_the_container_ends_the_start(scene: Scene) -> None:
    scene.add("startContainer", "echo not today; exit 9", env=[])
    _, done = scene.run("sh", "-c", "echo must not run")
    assert done.code != 0 and "must not run" not in done.out
    assert "startContainer hook 0 (/bin/sh): exit status 9: not today" in done.err
    until(lambda: scene.stages()[-1:] == ["poststop"], 5, "poststop hooks ran")
    assert "poststart" not in scene.stages()


def test_a_program_that_only_the_host_has_is_not_run_in_the_container(scene: Scene) -> None:
    only_here = scene.folder / "program"
    only_here.write_text(f"#!/bin/sh\ntouch {scene.folder}/ran\n")
    only_here.chmod(0o755)
    scene.hooks["startContainer"] = [{"path": str(only_here)}]
    _, done = scene.run("true")
    assert done.code != 0 and f"startContainer hook 0 ({only_here})" in done.err
    assert not (scene.folder / "ran").exists()


def test_failures_after_start_and_stop_only_warn(scene: Scene) -> None:
    for stage in ("poststart", "poststop"):
        scene.add(stage, "exit 1")
        scene.add(stage, f"echo {stage}-2 >>{scene.log}; :", path="/bin/sh")
    _, done = scene.run("sh", "-c", "echo fine")
    assert (done.code, done.out) == (0, "fine\n"), done
    stages = [line.split()[0] for line in scene.log.read_text().splitlines()]
    assert stages[-4:] == ["poststart", "poststart-2", "poststop", "poststop-2"]


def test_mounts_of_a_create_container_hook_stay_its_own(scene: Scene) -> None:
    files = rootfs(scene.node)
    scene.add(
        "createContainer",
        f"mount -t tmpfs none {files}/mnt && touch {files}/mnt/x && echo made >{files}/tmp/made",
        env=["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    )
    _, done = scene.run("sh", "-c", "cat /tmp/made; ls /mnt")
    (files / "tmp/made").unlink(missing_ok=True)
    # Its files are in the container; its mounts neither there nor on the host.
    assert (done.code, done.out) == (0, "made\n"), done
    assert str(files) not in Path("/proc/self/mountinfo").read_text()


def test_a_hook_that_takes_too_long(scene: Scene) -> None:
    scene.add("createRuntime", f"echo $$ >{scene.folder}/pid; sleep 100", timeout=1)
    _, done = scene.run("true")
    assert done.code != 0 and "no answer within 1 s" in done.err
    pid = int((scene.folder / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.core
def test_poststop_comes_once_after_the_shim_was_killed(scene: Scene) -> None:
    node = scene.node
    name, done = scene.run("sleep", "1000", detach=True)
    assert done.code == 0, done
    assert scene.stages() == [*ON_THE_HOST[:-1]]
    os.kill(node.shim_pid(name), signal.SIGKILL)
    until(lambda: not node.status(name), 10, "the task is gone")
    until(lambda: scene.stages() == [*ON_THE_HOST], 5, "poststop hooks ran")
    assert scene.told()[-1][1]["status"] == "stopped"
    node.ctr("containers", "delete", name)
    node.excuse_reference("socket")
    node.assert_clean()
    assert scene.stages() == [*ON_THE_HOST]
