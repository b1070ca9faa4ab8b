from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import Failed
from runtime.bundle.spec import Spec, parse_spec
from runtime.bundle.spec_defaults import fill
from tests.fakes.generations import GENERATIONS

MEMLOCK = [{"type": "RLIMIT_MEMLOCK", "soft": 1, "hard": 2}]


def make(root: str = "/no/such/root", mounts: Any = (), linux: Any = None, **more: Any) -> Spec:
    value = {
        "process": {
            "args": ["true"],
            "cwd": more.pop("cwd", "/"),
            "rlimits": more.pop("rlimits", MEMLOCK),
        },
        "root": {"path": root, "readonly": more.pop("readonly", False)},
        "mounts": list(mounts),
        "linux": linux or {},
        **more,
    }
    return parse_spec(json.dumps(value).encode(), "/bundle")


def run(spec: Spec, year: int = 2026, own_sandbox: bool = True) -> Spec:
    return fill(
        spec,
        own_sandbox=own_sandbox,
        makes_cwd=not GENERATIONS[year].makes_no_cwd_in_readonly_root,
    )


def test_a_spec_that_says_all_stays_as_it_is() -> None:
    spec = make(hostname="x")
    assert run(spec) is spec


@pytest.mark.parametrize(
    "uts", [[], [{"type": "uts"}], [{"type": "uts", "path": "/proc/self/ns/uts"}]]
)
def test_host_name(uts: list[dict[str, str]]) -> None:
    spec = make(linux={"namespaces": uts})
    if any("path" in each for each in uts) and os.geteuid() != 0:
        pytest.skip("entering a namespace needs root")
    filled = run(spec)
    assert filled.hostname == filled.raw["hostname"] == os.uname().nodename
    assert run(spec, own_sandbox=False).hostname == ""


def test_host_name_of_no_namespace() -> None:
    spec = make(linux={"namespaces": [{"type": "uts", "path": "/no/such/ns"}]})
    with pytest.raises(Failed, match="UTS namespace /no/such/ns: no such file"):
        run(spec)


@pytest.mark.parametrize(
    ("own", "soft", "hard"), [((8 << 20, -1), 8 << 20, (1 << 64) - 1), ((0, 9), 0, 9)]
)
def test_locked_memory(
    monkeypatch: pytest.MonkeyPatch, own: tuple[int, int], soft: int, hard: int
) -> None:
    """As Linux inherits it; a pause container says nothing, as its limits are re-applied to all."""
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_MEMLOCK: own}.__getitem__)
    others = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    filled = run(make(hostname="x", rlimits=others))
    added = {"type": "RLIMIT_MEMLOCK", "soft": soft, "hard": hard}
    assert filled.raw["process"]["rlimits"] == [*others, added]
    assert [(r.type, r.soft, r.hard) for r in filled.process.rlimits[1:]] == [tuple(added.values())]
    pause = {"io.kubernetes.cri.container-type": "sandbox"}
    assert run(make(hostname="x", rlimits=[], annotations=pause)).process.rlimits == ()


def test_devices() -> None:
    """Without a mode they get one; below a bind mount they are the host's."""
    devices = [
        {"path": "/dev/a", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/b", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
    ]
    filled = run(make(linux={"devices": devices}, hostname="x"))
    assert [d["fileMode"] for d in filled.raw["linux"]["devices"]] == [0o666, 0o600]
    bound = {"destination": "/dev/", "type": "bind", "source": "/dev", "options": ["rbind"]}
    filled = run(make(mounts=[bound], linux={"devices": devices}))
    assert filled.raw["linux"]["devices"] == []


def test_mounts() -> None:
    mounts = [
        {"destination": "/a", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/b", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]},
        {"destination": "/c", "type": "none", "source": "/x", "options": ["rbind"]},
    ]
    filled = run(make(mounts=mounts))
    assert [m.options for m in filled.mounts] == [("mode=1777",), ("mode=700",), ("rbind",)]
    assert [m.type for m in filled.mounts] == ["tmpfs", "tmpfs", "bind"]


@pytest.mark.parametrize(
    ("year", "readonly", "cwd", "made"),
    [
        (2026, True, "/made/here", True),
        (2024, True, "/made/here", False),
        (2026, False, "/made/here", False),
        (2026, True, "/there", False),
        (2026, True, "/volume/x", False),
    ],
)
def test_working_directory(tmp_path: Path, year: int, readonly: bool, cwd: str, made: bool) -> None:
    (tmp_path / "there").mkdir()
    volume = {"destination": "/volume", "type": "bind", "source": "/x", "options": ["rbind"]}
    filled = run(make(str(tmp_path), [volume], readonly=readonly, cwd=cwd), year)
    assert [m.destination for m in filled.mounts[1:]] == ([cwd] if made else [])
