"""runsc's flags by which more than the sentry has to act: files, metrics, cgroups."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.clients.runsc import Runsc
from integration.harness.nodes.node import Node
from runtime.runsc import flag_table

pytestmark = pytest.mark.gvisor


def options(folder: Path, **flags: str) -> tuple[str, ...]:
    """What has a container run by these flags."""
    file = folder / "options.toml"
    lines = [f'{name.replace("_", "-")} = "{value}"' for name, value in flags.items()]
    file.write_text("\n".join(["[runsc_config]", *lines, ""]))
    return ("--runtime-config-path", str(file))


def flags_of(node: Node) -> frozenset[str]:
    command = [peers.runsc(node.daemon.generation), "flags"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(re.findall(r"^  -(\S+)", done.stdout + done.stderr, re.MULTILINE))


def test_every_flag_of_the_release_is_in_the_table(node: Node) -> None:
    assert not flags_of(node) - flag_table.ALL


def test_files_that_are_written_when_a_sandbox_ends(node: Node, tmp_path: Path) -> None:
    """Profiles and a trace of sentry and gofer, whole, although Delete follows at once."""
    folder = tmp_path / "files"
    flags = {
        "profile": "true",
        "profile_cpu": f"{folder}/%ID%/",
        "profile_heap": f"{folder}/%ID%/",
        "trace": f"{folder}/%ID%/trace",
    }
    if "final-metrics-log" in flags_of(node):
        flags["final_metrics_log"] = f"{folder}/%ID%/metrics"
    given = options(tmp_path, **flags)
    done = node.run("true", options=given)
    assert done.code == 0, done
    (made,) = folder.iterdir()
    sizes = {file.name: file.stat().st_size for file in made.iterdir()}
    profiles = ("runsc-profile.cpu.pprof", "runsc-profile.heap.pprof", "trace")
    expected = {name + end for name in profiles for end in ("", f".gofer.{made.name}")}
    expected |= {"metrics"} & {Path(value).name for value in flags.values()}
    assert set(sizes) == expected
    assert all(sizes.values()), sizes


def test_state_tells_a_metric_server_what_runsc_tells_it(node: Node, tmp_path: Path) -> None:
    """The sentry's metrics are written down by name and form, as runsc does of the same binary."""
    runsc = Runsc(node.daemon.generation, Path("/run/containerd/runsc", node.daemon.namespace))
    name = node.run_detached(
        "sleep", "1000", options=options(tmp_path, metric_server="/run/m.sock")
    )
    ours = _sandbox(runsc.root, name)
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    theirs_root = Runsc(node.daemon.generation, tmp_path / "state")
    flag = "--metric-server=/run/m.sock"
    spec = {
        "ociVersion": "1.0.0",
        "process": {"args": ["/x"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"cgroupsPath": f"/{name}-theirs"},
    }
    (bundle / "config.json").write_text(json.dumps(spec))
    theirs_root.ok(flag, "--ignore-cgroups", "create", "--bundle", str(bundle), "m", output=False)
    try:
        theirs = _sandbox(theirs_root.root, "m")
    finally:
        theirs_root("delete", "--force", "m")
    for sandbox in (ours, theirs):
        sandbox["registeredMetrics"]["metrics"].sort(key=lambda metric: metric["name"])
    assert ours["registeredMetrics"]["metrics"]
    for key in ("registeredMetrics", "metricServerAddress"):
        assert ours[key] == theirs[key], key
    unlike = {
        key
        for key, value in theirs["metricMetadata"].items()
        if ours["metricMetadata"][key] != value
    }
    assert unlike <= {"go", "network"}
    exported = runsc.ok("export-metrics", name)
    opens = re.findall(r'^runsc_fs_opens{[^}]*sandbox="([^"]*)"} [1-9]', exported, re.MULTILINE)
    assert opens == [name], exported


def _sandbox(root: Path, name: str) -> dict[str, Any]:
    state = json.loads((root / f"{name}_sandbox:{name}.state").read_text())
    return dict(state["sandbox"])


def test_the_log_for_a_pods_user(node: Node, tmp_path: Path) -> None:
    given = options(tmp_path, debug="true", debug_to_user_log="true")
    where = f"io.kubernetes.cri.sandbox-log-directory={tmp_path}"
    done = node.run("true", options=(*given, "--annotation", where))
    assert done.code == 0, done
    assert "gVisor" in (tmp_path / "gvisor.log").read_text()
    done = node.run("true", options=given)
    assert done.code and "'debug-to-user-log' needs the annotation" in done.err, done


def test_an_overlay_that_is_full(node: Node, tmp_path: Path) -> None:
    """The error of a full disk; on releases that know no size, the flag is refused."""
    write = "dd if=/dev/zero of=/big bs=1M count=4 && echo all"
    done = node.run("sh", "-c", write, options=options(tmp_path, overlay2="root:self,size=2m"))
    if "host-settings" in flags_of(node):
        assert done.code and "No space left on device" in done.err, done
    else:
        assert done.code and "overlay2 with a size is not supported by runsc" in done.err, done
