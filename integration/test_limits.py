"""Cgroups, limits, running out of memory, and the runtime's options."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from integration.harness.base import peers
from integration.harness.base.linux import unified_cgroups
from integration.harness.base.waiting import until
from integration.harness.clients.api import packed
from integration.harness.host.footprint import cgroup_files
from integration.harness.host.footprint import of as left_behind
from integration.harness.nodes.node import Node

SIGKILL = 9
LIMIT = 64 << 20
# Grows until something stops it: tail keeps what it reads for as long as no line ends.
HOG = ("sh", "-c", "tail /dev/zero; exit 99")


@pytest.mark.core
def test_limits_reach_the_host(node: Node) -> None:
    """What the spec asks for stands in the container's cgroup on the host."""
    name = node.run_detached(
        "sleep", "1000", options=["--memory-limit", str(LIMIT), "--cpus", "0.5"]
    )
    path = f"/{node.daemon.namespace}/{name}"
    if unified_cgroups():
        assert cgroup_files("", path, "memory.max") == [str(LIMIT)]
        assert cgroup_files("", path, "cpu.max") == ["50000 100000"]
    else:
        assert cgroup_files("memory", path, "memory.limit_in_bytes") == [str(LIMIT)]
        assert cgroup_files("cpu", path, "cpu.cfs_quota_us") == ["50000"]
    assert cgroup_files("pids", path, "cgroup.procs") != [""]


def test_cgroup_of_ones_own(node: Node) -> None:
    """`--cgroup` names the path; it is gone with the container, and its parent is not ours."""
    path = f"/{node.daemon.namespace}/deep/er"
    name = node.run_detached("sleep", "1000", options=["--cgroup", path])
    assert cgroup_files("memory", path, "cgroup.procs") not in ([], [""])
    node.delete(name)
    assert cgroup_files("memory", path, "cgroup.procs") == []
    node.remove_cgroups("deep")


def test_no_cgroup_at_all(node: Node) -> None:
    done = node.run("echo", "fine", options=["--cgroup", ""])
    assert done.out == "fine\n", done
    if not node.gvisor:
        node.excuse_reference("cgroup")


@pytest.mark.core
def test_out_of_memory(node: Node) -> None:
    """The exit code says SIGKILL, and the event comes before the exit."""
    with node.api.events() as events:
        name = node.run_detached("tail", "/dev/zero", options=["--memory-limit", str(LIMIT)])
        node.wait_stopped(name, timeout=30)
        assert events.wait(name, "exit").exit_status == 137
        events.wait(name, "oom")
        topics = events.topics(name)
        assert topics.index("oom") < topics.index("exit") or not node.gvisor, topics
    assert node.api.task("Delete", container_id=name).exit_status == 137


@pytest.mark.gvisor
def test_options_from_a_file(node: Node, tmp_path: Path) -> None:
    """`runtime-config-path` is a TOML file; a flag of its runsc_config reaches the sandbox."""
    config = _config(tmp_path, 'debug = "true"\ndebug-log = "%s/"' % (tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    done = node.run("echo", "fine", options=["--runtime-config-path", str(config)])
    assert done.out == "fine\n", done
    logs = [path.name for path in (tmp_path / "logs").iterdir()]
    assert any("boot" in name for name in logs), logs
    assert any("gofer" in name for name in logs), logs


@pytest.mark.gvisor
def test_options_in_the_request(node: Node, tmp_path: Path) -> None:
    """The same options as a body, which is what CRI of 1.7 and later sends."""
    from integration.harness.clients.wire import Schema

    (tmp_path / "logs").mkdir()
    body = f'[runsc_config]\ndebug = "true"\ndebug-log = "{tmp_path}/logs/"\n'
    options = Schema("type_url:1 config_path:2 config_body:3:bytes").encode(
        type_url="io.containerd.runsc.v1.options", config_body=body.encode()
    )
    _run_with_options(node, packed("runtimeoptions.v1.Options", options))
    assert any("boot" in path.name for path in (tmp_path / "logs").iterdir())


@pytest.mark.gvisor
def test_options_of_runc_are_accepted(node: Node, tmp_path: Path) -> None:
    """Callers that only know runc's options must get through; runc's binary is not one of ours."""
    done = node.run("echo", "fine", options=["--runc-root", str(tmp_path / "root")])
    assert done.out == "fine\n", done


@pytest.mark.gvisor
def test_binary_from_the_options(node: Node, tmp_path: Path) -> None:
    copy = tmp_path / "my-runsc"
    copy.symlink_to(peers.runsc(node.daemon.generation))
    config = _config(tmp_path, "", f'binary_name = "{copy}"\n')
    done = node.run("echo", "fine", options=["--runtime-config-path", str(config)])
    assert done.out == "fine\n", done


def _fake_runsc(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return f'binary_name = "{path}"\n'


@pytest.mark.gvisor
@pytest.mark.parametrize("case", ["missing", "not executable", "unknown generation", "crashes"])
def test_bad_runsc(node: Node, tmp_path: Path, case: str) -> None:
    """One clear error that names the binary, and nothing left."""
    binary = tmp_path / "runsc"
    if case == "missing":
        options = f'binary_name = "{binary}"\n'
    elif case == "not executable":
        options = _fake_runsc(binary, "#!/bin/sh\nexit 0\n", 0o644)
    elif case == "unknown generation":
        text = "#!/bin/sh\necho 'runsc version release-20190101.0'\necho 'spec: 1.0.0'\n"
        options = _fake_runsc(binary, text)
    else:
        options = _fake_runsc(binary, "#!/bin/sh\necho broken >&2\nexit 1\n")
    config = _config(tmp_path, "", options)
    done = node.run("true", options=["--runtime-config-path", str(config)])
    assert done.code == 1, done
    assert str(binary) in done.err, done.err
    _assert_one_error(node, done.err)


@pytest.mark.gvisor
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ('no-such-flag = "1"', "no-such-flag"),
        ('platform = "kvm"', "kvm"),
        ('platform = "no-such-platform"', "no-such-platform"),
    ],
)
def test_bad_flags(node: Node, tmp_path: Path, flags: str, named: str) -> None:
    if named == "kvm" and Path("/dev/kvm").exists():
        pytest.skip("there is a /dev/kvm here")
    config = _config(tmp_path, flags)
    done = node.run("true", options=["--runtime-config-path", str(config)])
    assert done.code == 1, done
    assert named in done.err, done.err
    _assert_one_error(node, done.err)


@pytest.mark.gvisor
@pytest.mark.parametrize("text", [None, "not = [toml", "binary_name = 3\n"])
def test_bad_options_file(node: Node, tmp_path: Path, text: str | None) -> None:
    config = tmp_path / "runsc.toml"
    if text is not None:
        config.write_text(text)
    done = node.run("true", options=["--runtime-config-path", str(config)])
    assert done.code == 1, done
    assert "runsc.toml" in done.err or "binary_name" in done.err, done.err
    _assert_one_error(node, done.err)


@pytest.mark.gvisor
def test_runsc_is_not_on_the_path(node: Node) -> None:
    link = node.daemon.folder / "bin" / "runsc"
    if shutil.which("runsc", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"):
        pytest.skip("the machine has a runsc of its own")
    target = link.readlink()
    link.unlink()
    try:
        done = node.run("true")
    finally:
        link.symlink_to(target)
    assert done.code == 1, done
    assert "runsc" in done.err
    _assert_one_error(node, done.err)


def test_a_socket_is_private(node: Node) -> None:
    """Nobody but root may talk to a shim."""
    from integration.harness.host.footprint import SOCKETS, socket_of

    name = node.run_detached("sleep", "1000")
    assert stat.S_IMODE(SOCKETS.stat().st_mode) & 0o077 in (0, 0o011)
    assert stat.S_IMODE(socket_of(node.daemon, name).stat().st_mode) & 0o077 == 0


def _config(folder: Path, flags: str, top: str = "") -> Path:
    config = folder / "runsc.toml"
    config.write_text(f"{top}[runsc_config]\n{flags}\n")
    return config


def _run_with_options(node: Node, options: dict[str, object]) -> None:
    name = node.new_id()
    spec = node.api.spec("true", container=name)
    mounts = node.api.make(name, node.runtime, spec, options=options)
    # The container's are taken; containerd 2 refuses in this call any but runc's.
    more = {"options": options} if node.daemon.release < (2, 0) else {}
    node.api.task("Create", container_id=name, rootfs=mounts, **more)
    wait = node.api.task_later("Wait", container_id=name)
    node.api.task("Start", container_id=name)
    assert wait().exit_status == 0
    node.api.task("Delete", container_id=name)


def _assert_one_error(node: Node, text: str) -> None:
    """One line from ctr, no traceback; and nothing left."""
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text
    until(lambda: not left_behind(node.daemon, node.ids), 5, "nothing is left")


@pytest.mark.gvisor
def test_own_limits_in_a_pod_of_annotations(node: Node) -> None:
    """Containers that are grouped by annotations alone are told apart like those of CRI."""
    if node.daemon.generation < "2023":
        pytest.skip("this runsc counts memory for the whole sandbox only")
    sandbox = _in_pod(node, "sleep", "1000", kind="sandbox")
    steady = _in_pod(node, "sh", "-c", _HOLDING.format(40), sandbox=sandbox, limit=64 << 20)
    with node.api.events() as events:
        hog = _in_pod(node, *HOG, sandbox=sandbox, limit=64 << 20)
        node.wait_stopped(hog, 30)
        assert events.wait(hog, "exit").exit_status == 137
        topics = events.topics(hog)
        assert topics.count("oom") == 1 and topics.index("oom") < topics.index("exit"), topics
    assert node.exec(steady, "echo", "fine").out == "fine\n"
    node.delete(hog)
    node.delete(steady)


# Takes that many MiB and keeps them.
_HOLDING = "(head -c {}m /dev/zero; exec sleep 1000) | tail"


def _in_pod(
    node: Node, *command: str, kind: str = "container", sandbox: str = "", limit: int = 0
) -> str:
    name = node.new_id()
    spec = node.api.spec(*command, container=name)
    spec["annotations"] = {
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox or name,
    }
    if limit:
        spec["linux"].setdefault("resources", {})["memory"] = {"limit": limit}
    mounts = node.api.make(name, node.runtime, spec)
    node.api.task("Create", container_id=name, rootfs=mounts)
    node.api.task("Start", container_id=name)
    return name
