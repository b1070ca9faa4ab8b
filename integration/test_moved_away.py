"""A running shim needs none of its files: they may be replaced, or removed, below it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.host import footprint
from integration.harness.nodes.node import Node

_LAUNCHER = "containerd-shim-gvisor-v2"
#: What an installation holds, dependencies included.
_NEEDED = ("shim", "runtime", "protos", "google", "structlog", "pyroute2", "_cffi_backend*")


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """A copy of the installed shim with all that it imports, which finds itself."""
    installed = Path(sysconfig.get_path("platlib"))
    prefix = tmp_path / "prefix"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = prefix / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    for pattern in _NEEDED:
        for path in installed.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, site / path.name)
            else:
                shutil.copy(path, site)
    (prefix / "bin").mkdir()
    shutil.copy(peers.shim_bin() / _LAUNCHER, prefix / "bin")
    (prefix / "bin" / version).symlink_to(sys.executable)
    yield prefix


def _has_loaded_all(node: Node, container: str) -> bool:
    """Whether this container's shim has, not one of an earlier test."""
    return any(
        "daemon.preloaded" in line and container in line
        for line in node.daemon.log_tail(2000).splitlines()
    )


def _servers(containerd: int, installation: Path) -> list[int]:
    """The fork servers of this containerd that run from the copy."""
    return [
        pid
        for pid in footprint.fork_servers(containerd)
        if str(installation) in Path(f"/proc/{pid}/maps").read_text()
    ]


@pytest.mark.gvisor
@pytest.mark.parametrize("forked", [True, False], ids=["forked", "started"])
def test_all_calls_work_when_the_files_are_gone(
    node: Node, installation: Path, tmp_path: Path, forked: bool
) -> None:
    options = tmp_path / "options.toml"
    options.write_text(f"fork_server = {str(forked).lower()}\n")
    runtime = ("--runtime-config-path", str(options))
    launcher = str(installation / "bin" / _LAUNCHER)
    node.runtime, usual = launcher, node.runtime
    assert node.daemon.process is not None
    containerd = node.daemon.process.pid
    try:
        if forked:
            # The first one leaves the server behind.
            assert node.run("true", options=runtime).code == 0
            (server,) = until(lambda: _servers(containerd, installation), 20, "a fork server")
        container = node.run_detached("sleep", "1000", options=runtime)
        shim = node.shim_pid(container)
        while forked and not footprint.is_forked_by(server, shim):
            # The server was only about to listen.
            node.kill(container, "KILL")
            node.wait_stopped(container)
            node.delete(container)
            assert server in _servers(containerd, installation)
            container = node.run_detached("sleep", "1000", options=runtime)
            shim = node.shim_pid(container)
        assert str(installation) in Path(f"/proc/{shim}/maps").read_text()
        if not forked:
            until(lambda: _has_loaded_all(node, container), 30, "it has loaded all")
        away = installation.with_name("away")
        installation.rename(away)
        try:
            with node.exec_terminal(
                container, "sh", "-c", "test -t 1 && echo on a terminal"
            ) as tty:
                tty.expect("on a terminal")
            assert node.exec(container, "echo", "x").out == "x\n"
            logger = tmp_path / "logger"
            logger.write_text(f"#!/bin/sh\nexec 5>&-\ncat <&3 >{tmp_path}/logged\n")
            logger.chmod(0o755)
            done = node.ctr(
                *("tasks", "exec", "--exec-id", "logged", "--log-uri", f"binary://{logger}"),
                *(container, "echo", "to the logger"),
            )
            assert done.code == 0, done
            logged = tmp_path / "logged"
            until(
                lambda: logged.exists() and logged.read_text() == "to the logger\n", 10, "it logs"
            )
            assert node.metrics(container)
            for command in (("pause",), ("resume",), ("ps",)):
                assert node.ctr("tasks", *command, container).code == 0
            if "20221219" not in node.daemon.generation:  # which ends what it saves
                done = node.ctr("tasks", "checkpoint", container)
                assert done.code == 0, done
            assert "ModuleNotFoundError" not in node.daemon.log_tail(200)
        finally:
            away.rename(installation)
        node.ctr("tasks", "kill", "--signal", "KILL", container)
        until(lambda: node.status(container) == "STOPPED", 10, "it has ended")
        assert node.ctr("tasks", "delete", container).code == 0
        node.clean()
    finally:
        node.runtime = usual
