from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.base.errors import InvalidRequest
from runtime.bundle.capabilities import NAMES, Capabilities
from runtime.bundle.process_spec import MAX_JSON, Rlimit, parse_process, unlike_container
from runtime.bundle.spec import IdMapping, Mount, load_spec, parse_spec, validate_id

PROCESS: dict[str, Any] = {"args": ["sh"], "cwd": "/"}
MINIMAL: dict[str, Any] = {"process": PROCESS, "root": {"path": "rootfs"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def parse(value: object) -> Any:
    return parse_spec(json.dumps(value).encode(), "/bundle")


def test_minimal() -> None:
    spec = parse(MINIMAL)
    assert spec.root_path == "/bundle/rootfs"
    assert spec.process.args == ("sh",)
    assert spec.process.capabilities is None
    assert (spec.hostname, spec.netns_path, spec.container_type, spec.sandbox_id) == ("",) * 4
    assert (spec.mounts, spec.resources, spec.hooks, spec.namespaces) == ((), {}, {}, {})


def test_everything() -> None:
    linux = {
        "cgroupsPath": "/pod/x",
        "resources": {"memory": {"limit": 5}},
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 2}],
    }
    spec = parse(
        {
            **MINIMAL,
            "root": {"path": "/abs", "readonly": True},
            "hostname": "h",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/d", "type": "bind", "source": "data", "options": ["ro"]},
                {"destination": "e", "source": "/x", "options": ["rbind"]},
            ],
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "s",
                "io.kubernetes.cri.container-name": "n",
            },
            "linux": linux,
            "hooks": {"prestart": []},
        }
    )
    assert (spec.root_path, spec.root_readonly, spec.hostname) == ("/abs", True, "h")
    assert spec.mounts == (
        Mount(destination="/proc", type="proc", source="proc"),
        Mount(destination="/d", type="bind", source="/bundle/data", options=("ro",)),
        Mount(destination="/e", source="/x", options=("rbind",)),
    )
    assert [mount.is_bind for mount in spec.mounts] == [False, True, True]
    assert [mount.read_only for mount in spec.mounts] == [False, True, False]
    assert (spec.container_type, spec.sandbox_id, spec.container_name) == ("container", "s", "n")
    assert spec.cgroups_path == "/pod/x"
    assert spec.resources == {"memory": {"limit": 5}}
    assert spec.namespaces == {"pid": "", "network": "/run/netns/a"}
    assert spec.netns_path == "/run/netns/a"
    assert spec.uid_mappings == (IdMapping(container_id=0, host_id=1000, size=2),)
    assert spec.hooks == {}


def test_crio_annotations() -> None:
    prefix = "io.kubernetes.cri-o."
    annotations = {prefix + "ContainerType": "sandbox", prefix + "SandboxID": "s"}
    spec = parse({**MINIMAL, "annotations": annotations})
    assert (spec.container_type, spec.sandbox_id) == ("sandbox", "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": None}, "config.json: process: is missing"),
        ({"process": []}, "config.json: process: must be an object"),
        ({"root": None}, "config.json: root: is missing"),
        ({"root": {}}, "config.json: root.path: is missing"),
        ({"root": {"path": 7}}, "config.json: root.path: must be a string"),
        ({"root": {"path": "a\0b"}}, "config.json: root.path: contains a NUL character"),
        ({"root": {"path": "\ud800"}}, "config.json: root.path: is not valid Unicode"),
        ({"root": {"path": "/", "readonly": 1}}, "config.json: root.readonly: must be a boolean"),
        ({"process": {}}, "config.json: process.args: must name a program"),
        ({"process": {"args": "sh"}}, "config.json: process.args: must be an array"),
        ({"process": {"args": [1]}}, r"config.json: process.args\[0\]: must be a string"),
        ({"process": {"args": [""]}}, r"config.json: process.args\[0\]: must not be empty"),
        ({"process": {**PROCESS, "cwd": "x"}}, "config.json: process.cwd: 'x' is not an absolute"),
        (
            {"process": {**PROCESS, "user": {"uid": -1}}},
            "config.json: process.user.uid: must be from 0 to",
        ),
        ({"mounts": {}}, "config.json: mounts: must be an array"),
        ({"mounts": [1]}, r"config.json: mounts\[0\]: must be an object"),
        ({"mounts": [{}]}, r"config.json: mounts\[0\].destination: is missing"),
        ({"annotations": {"a": 1}}, r"config.json: annotations\['a'\]: must be a string"),
        ({"linux": []}, "config.json: linux: must be an object"),
        (
            {"linux": {"namespaces": [{"type": "x"}]}},
            r"linux.namespaces\[0\].type: 'x' is not a kind of namespace",
        ),
        (
            {"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}},
            r"linux.namespaces\[1\].type: 'pid' is given twice",
        ),
        (
            {"linux": {"namespaces": [{"type": "pid", "path": "x"}]}},
            r"linux.namespaces\[0\].path: 'x' is not absolute",
        ),
        ({"linux": {"uidMappings": [{}]}}, r"linux.uidMappings\[0\].size: must be at least 1"),
        ({"linux": {"resources": 1}}, "config.json: linux.resources: must be an object"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse({**MINIMAL, **change})


@given(
    st.dictionaries(st.sampled_from(["process", "root", "mounts", "linux", "annotations"]), JSON)
)
def test_any_json_is_read_or_refused(change: dict[str, Any]) -> None:
    try:
        parse({**MINIMAL, **change})
    except InvalidRequest:
        return


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff{}", "is not JSON: not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b" " * (MAX_JSON + 1), "larger than"),
    ],
)
def test_what_is_no_json(data: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"config.json: {why}|config.json: .*{why}"):
        parse_spec(data, "/b")
    with pytest.raises(InvalidRequest, match=r"^exec spec: "):
        parse_process(data, "exec spec")


# -- files ---------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    assert load_spec(str(tmp_path)).root_path == f"{tmp_path}/rootfs"


def test_load_refuses(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(InvalidRequest, match=r"config.json: in bundle .*: no such file"):
        load_spec(str(tmp_path))
    with pytest.raises(InvalidRequest, match="bundle: 'x' is not an absolute path"):
        load_spec("x")
    (tmp_path / "other").write_text(json.dumps(MINIMAL))
    config.symlink_to("other")
    with pytest.raises(InvalidRequest, match="symbolic link"):
        load_spec(str(tmp_path))
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(InvalidRequest, match="not a regular file"):
        load_spec(str(tmp_path))
    config.unlink()
    with config.open("wb") as file:
        file.truncate(MAX_JSON + 1)
    with pytest.raises(InvalidRequest, match="larger than"):
        load_spec(str(tmp_path))


# -- processes -----------------------------------------------------------------------------------


def test_process() -> None:
    process = parse_process(
        json.dumps(
            {
                "args": ["a", "b"],
                "env": ["X=1"],
                "cwd": "/d",
                "terminal": True,
                "user": {"uid": 1, "gid": 2, "additionalGids": [3, 4]},
                "capabilities": {"effective": ["CAP_KILL"], "bounding": ["CAP_CHOWN", "CAP_BPF"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}],
                "oomScoreAdj": -5,
                "noNewPrivileges": True,
                "consoleSize": {"height": 24, "width": 80},
            }
        ).encode(),
        "exec spec",
    )
    assert (process.args, process.env, process.cwd) == (("a", "b"), ("X=1",), "/d")
    assert (process.uid, process.gid, process.additional_gids) == (1, 2, (3, 4))
    assert process.capabilities == Capabilities(effective=1 << 5, bounding=1 << 0 | 1 << 39)
    assert process.rlimits == (Rlimit(type="RLIMIT_NOFILE", soft=5, hard=6),)
    assert sorted(process.containers) == ["oomScoreAdj", "rlimits"]
    assert (process.oom_score_adj, process.console_size) == (-5, (24, 80))
    assert process.terminal and process.no_new_privileges


def test_what_an_exec_can_not_have_of_its_own() -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    init = parse_process({**PROCESS, "rlimits": limits, "apparmorProfile": "p"}, "config.json")
    same = parse_process({**PROCESS, "rlimits": limits, "selinuxLabel": ""}, "exec spec")
    other = parse_process({**PROCESS, "apparmorProfile": "q", "oomScoreAdj": 3}, "exec spec")
    assert unlike_container(same, init) == ()
    assert sorted(unlike_container(other, init)) == ["apparmorProfile", "oomScoreAdj"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capabilities": {"effective": [1]}}, r"capabilities.effective\[0\]: must be a string"),
        ({"rlimits": [{"type": "X"}]}, r"rlimits\[0\].type: 'X' is not the name"),
        (
            {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]},
            r"rlimits\[0\].soft: is above the hard limit",
        ),
        (
            {"rlimits": [{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_CPU"}]},
            r"rlimits\[1\].type: RLIMIT_CPU is given twice",
        ),
        ({"oomScoreAdj": 1001}, "oomScoreAdj: must be from -1000 to 1000"),
        ({"oomScoreAdj": 1.5}, "oomScoreAdj: must be an integer"),
        ({"env": ["A\0B"]}, r"env\[0\]: contains a NUL"),
        ({"user": {"additionalGids": [True]}}, r"user.additionalGids\[0\]: must be an integer"),
        ({"args": ["x" * (5 << 20)]}, "args: is, with the environment, larger"),
    ],
)
def test_process_that_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match="exec spec: " + message):
        parse_process({**PROCESS, **change}, "exec spec")


def test_capability_numbers() -> None:
    numbers = {name: NAMES.index(name) for name in ("CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN")}
    assert numbers == {"CAP_CHOWN": 0, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
    assert len(NAMES) == 41
    caps = Capabilities(effective=0b111, bounding=0b101)
    assert caps.without(0b100) == Capabilities(effective=0b011, bounding=0b001)


# -- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["a", "A-b_c.d+e,f", "0" * 200, "..."])
def test_good_ids(id: str) -> None:
    assert validate_id("container", id) == id


@pytest.mark.parametrize("id", ["", "a/b", "a b", "ä", "a\n", "a\0", ".", "..", "x" * 300, "a:b"])
def test_bad_ids(id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^container id: ") as caught:
        validate_id("container", id)
    assert len(str(caught.value)) < 200
