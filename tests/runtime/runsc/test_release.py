from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, Unsupported
from runtime.base.golang import parse_bool
from runtime.bundle.spec import Spec, parse_spec
from runtime.runsc import release
from runtime.runsc.config import RunscConfig, find_binary
from runtime.runsc.flags import read_settings
from runtime.runsc.release import Generation, parse_help, probe
from tests.fakes.generations import GENERATIONS, help_text


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def runsc(folder: Path, year: int = 2024) -> str:
    """A program with runsc's help, which notes each run."""
    for topic in ("boot", "gofer", "flags"):
        (folder / topic).write_text(help_text(year, topic))
    return script(
        folder / "runsc",
        f'echo run >> {folder}/runs\ncase "$1" in\n'
        f'help) cat {folder}/"$2" ;;\n'
        f"flags) cat {folder}/flags >&2 ;;\n"
        "--version) echo 'runsc version 1.2.3'; echo 'spec: 1.0' ;;\n*) exit 128;;\nesac\n",
    )


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


# -- binaries ------------------------------------------------------------------------------------


def test_find_binary(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "runsc").write_text("")
    good = script(two / "runsc", "")
    path = f"relative:{tmp_path}/none:{one}:{two}"
    assert find_binary("runsc", path) == good
    assert find_binary(good) == good
    with pytest.raises(Failed, match=f"runsc binary {one}/runsc: not executable"):
        find_binary("runsc", str(one))
    with pytest.raises(Failed, match=f"runsc binary {one}/runsc: not executable"):
        find_binary(f"{one}/runsc")
    with pytest.raises(Failed, match="runsc binary 'nosuch' not found in"):
        find_binary("nosuch", path)
    with pytest.raises(Failed, match="runsc binary /no/such: no such file or directory"):
        find_binary("/no/such")
    with pytest.raises(Failed, match="not a regular file"):
        find_binary(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("F", False), ("", None), ("yes", None)]
)
def test_parse_bool(text: str, value: bool | None) -> None:
    assert parse_bool(text) is value


# -- help ----------------------------------------------------------------------------------------


def test_parse_help() -> None:
    text = (
        "boot [flags] <container id>  -first\n    \tif set, x\n"
        '  -name string\n    \tsays y: a (default), b. (default "a")\n'
        "  -net-raw runsc exec\n    \tdoes - or -other things\n"
    )
    usage, flags = parse_help(text)
    assert usage == "boot [flags] <container id>"
    assert flags == {"first": "", "name": "a", "net-raw": ""}
    assert parse_help("") == ("", {})


#: Property -> whether the releases of 2022, 2024 and 2026 have it.
ABILITIES = {
    "mount_confs": (False, True, True),
    "gofer_takes_id": (False, False, True),
    "gofer_rpc": (False, False, True),
    "pins_files": (False, False, True),
    "directfs": (False, True, True),
    "pid_namespace_flag": (True, True, False),
    "sorts_routes": (False, False, False),
    "event_takes_id": (False, True, True),
    "path_sockets": (False, True, True),
    "pauses_by_container_manager": (False, True, True),
    "names_gofer_filestores": (False, True, True),
    "saves_by_options": (False, True, True),
    "restores_under_new_id": (False, True, True),
    "mounts_cgroups": (False, True, True),
    "has_newer_proc_files": (False, True, True),
    "knows_volume_options": (False, True, True),
    "knows_newer_capabilities": (False, True, True),
    "knows_nr_open": (False, True, True),
    "overlay_in_plain_path": (True, False, False),
    "lets_override_2024": (False, True, True),
    "network_by_container_manager": (False, False, True),
    "filters_execs": (False, False, True),
    "reads_overrides": (True, True, False),
    "makes_no_cwd_in_readonly_root": (False, False, True),
    "saves_without_execs": (False, False, True),
    "mounts_cgroup2": (False, False, True),
    "knows_newer_fields": (False, False, True),
    "lets_override_2026": (False, False, True),
    "bounds_overlays": (False, False, True),
    "saves_files": (False, False, True),
}


@pytest.mark.parametrize("name", ABILITIES)
def test_generations(name: str) -> None:
    assert tuple(getattr(g, name) for g in GENERATIONS.values()) == ABILITIES[name]


def test_each_ability_is_in_the_table() -> None:
    properties = {name for name, value in vars(Generation).items() if isinstance(value, property)}
    assert properties | {"gofer_takes_id"} == {*ABILITIES, "default_platform"}


def test_default_platforms() -> None:
    assert list(GENERATIONS) == [2022, 2024, 2026]
    assert [g.default_platform for g in GENERATIONS.values()] == ["ptrace", "systrap", "systrap"]


# -- probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", GENERATIONS)
def test_probe_once(tmp_path: Path, year: int) -> None:
    binary = runsc(tmp_path, year)
    cache = tmp_path / "cache"
    found = probe(binary, str(cache))
    assert found == GENERATIONS[year].replace(
        binary=binary, version="1.2.3", boot_binary=binary, boot_version="1.2.3"
    )
    assert runs(tmp_path) == 4
    assert probe(binary, str(cache)) == found
    assert runs(tmp_path) == 4
    assert [path.stat().st_mode & 0o777 for path in cache.iterdir()] == [0o600]
    # Another file is another generation, even under the same name.
    os.utime(binary, (1, 1))
    probe(binary, str(cache))
    assert runs(tmp_path) == 8


@pytest.mark.parametrize("damage", ["garbage", "empty", "writable", "format", "flags", "link"])
def test_damaged_cache_is_ignored(tmp_path: Path, damage: str) -> None:
    binary = runsc(tmp_path)
    cache = tmp_path / "cache"
    found = probe(binary, str(cache))
    (entry,) = cache.iterdir()
    value = json.loads(entry.read_text())
    if damage == "garbage":
        entry.write_bytes(b"\xff{")
    elif damage == "empty":
        entry.write_text("")
    elif damage == "writable":
        entry.chmod(0o666)
    elif damage == "format":
        entry.write_text(json.dumps({**value, "format": 0}))
    elif damage == "flags":
        entry.write_text(json.dumps({**value, "boot_flags": []}))
    else:
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
    assert probe(binary, str(cache)) == found
    assert runs(tmp_path) == 8
    assert probe(binary, str(cache)) == found
    assert runs(tmp_path) == 8, "the cache was not repaired"


def test_cache_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert probe(runsc(tmp_path), str(tmp_path / "file" / "cache")).directfs


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo 'Usage: runsc' >&2\nexit 128\n", r"exit status 128\): Usage: runsc"),
        ("exit 0\n", "unknown generation: its help doesn't name --apply-caps"),
        ("kill -9 $$\n", "signal 9"),
    ],
)
def test_strange_binaries(tmp_path: Path, text: str, why: str) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(Unsupported, match=why):
        probe(script(tmp_path / "strange", text), str(cache))
    assert not cache.exists()


def test_binary_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "PROBE_TIMEOUT", 0.2)
    with pytest.raises(DeadlineExceeded, match="help boot"):
        probe(script(tmp_path / "slow", "exec sleep 100\n"), str(tmp_path))


# -- settings ------------------------------------------------------------------------------------


def settings(year: int, annotations: dict[str, str] | None = None, **flags: str) -> object:
    flags = {name.replace("_", "-"): value for name, value in flags.items()}
    config = RunscConfig(root="/r", flags=flags)
    return read_settings(config, GENERATIONS[year], make_spec(annotations or {}))


def make_spec(annotations: dict[str, str]) -> Spec:
    value = {"process": {"args": ["x"]}, "root": {"path": "/x"}, "annotations": annotations}
    return parse_spec(json.dumps(value).encode(), "/b")


def test_defaults() -> None:
    old = read_settings(RunscConfig(root="/r"), GENERATIONS[2022], None)
    assert (old.network, old.directfs, old.root_overlay, old.mount_overlay) == (
        "sandbox",
        False,
        "none",
        "none",
    )
    new = read_settings(RunscConfig(root="/r"), GENERATIONS[2024], None)
    assert (new.directfs, new.root_overlay, new.mount_overlay, new.net_raw) == (
        True,
        "self",
        "none",
        False,
    )


@pytest.mark.parametrize(
    ("year", "value", "expected"),
    [
        (2024, "none", ("none", "none")),
        (2024, "root:memory", ("memory", "none")),
        (2024, "all:self", ("self", "self")),
        (2024, "all:dir=/d", ("/d", "/d")),
        (2022, "root:/d", ("/d", "none")),
    ],
)
def test_overlays(year: int, value: str, expected: tuple[str, str]) -> None:
    found = read_settings(RunscConfig(root="/", flags={"overlay2": value}), GENERATIONS[year], None)
    assert (found.root_overlay, found.mount_overlay) == expected


def test_overlays_of_a_size() -> None:
    found = settings(2026, overlay2="root:self,size=2g")
    assert (found.root_overlay, found.mount_overlay, found.overlay_size) == ("self", "none", "2g")
    assert settings(2026, {PREFIX + "overlay2": "all:memory,size=5%"}).overlay_size == "5%"
    for value in ("root:self,", "root:self,2g", "root:self,size=", "root:self,size=g", "x,size=0"):
        with pytest.raises(InvalidRequest, match=r"overlay2 .* is malformed"):
            settings(2026, overlay2=value)
    with pytest.raises(Unsupported, match="with a size is not supported by runsc"):
        settings(2024, overlay2="root:self,size=2g")


@pytest.mark.parametrize(
    "value", ["x", "root", "all:", "root:x", "root:dir=x", "x:memory", "root:/d"]
)
def test_overlays_that_are_malformed(value: str) -> None:
    with pytest.raises(InvalidRequest, match="overlay2"):
        settings(2024, overlay2=value)


@pytest.mark.parametrize(
    ("flags", "fault", "why"),
    [
        ({"frobnicate": "1"}, InvalidRequest, "runsc_config: unknown runsc flag 'frobnicate'"),
        ({"--debug": "1"}, InvalidRequest, "unknown runsc flag '--debug'"),
        ({"log-fd": "1"}, InvalidRequest, "set by the shim"),
        ({"network": "x"}, InvalidRequest, "network 'x' is none of"),
        ({"directfs": "maybe"}, InvalidRequest, "flag 'directfs' is not a boolean"),
        ({"debug": "a\0b"}, InvalidRequest, "NUL"),
        ({"rootless": "true"}, Unsupported, "'rootless' is not supported"),
    ],
)
def test_flags_that_are_refused(flags: dict[str, str], fault: type[Exception], why: str) -> None:
    with pytest.raises(fault, match=why):
        read_settings(RunscConfig(root="/", flags=flags), GENERATIONS[2024], None)


def test_flags_of_other_generations_are_unknown() -> None:
    with pytest.raises(InvalidRequest, match="unknown runsc flag 'directfs'"):
        settings(2022, directfs="false")
    settings(2024, rootless="false", nvproxy="false")


PREFIX = "dev.gvisor.flag."


def test_overrides() -> None:
    allowed = {"allow_flag_override": "true"}
    config = RunscConfig(root="/r", flags={"allow-flag-override": "true", "network": "none"})
    found = read_settings(
        config, GENERATIONS[2024], make_spec({PREFIX + "network": "host", "other": "x"})
    )
    assert found.network == "host"
    assert found.flags == config.flags, "the command line stays as configured"
    assert settings(2024, {PREFIX + "debug": "true", PREFIX + "oci-seccomp": "true"})
    assert settings(2022, {PREFIX + "debug": "true", PREFIX + "oci-seccomp": "true"})
    assert settings(2022, {PREFIX + "host-uds": "all"}, **allowed)
    assert settings(2026, {PREFIX + "overlay2": "all:memory"}).mount_overlay == "memory"
    for year, name, value in (
        (2024, "network", "host"),
        (2024, "oci-seccomp", "false"),
        (2022, "oci-seccomp", "false"),
        (2022, "host-uds", "all"),
        (2024, "overlay2", "all:memory"),
        (2026, "overlay2", "all:dir=/tmp"),
    ):
        with pytest.raises(
            InvalidRequest, match=f"annotation {PREFIX}{name}: flag override disabled"
        ):
            settings(year, {PREFIX + name: value})
    with pytest.raises(InvalidRequest, match="names no runsc flag"):
        settings(2024, {PREFIX + "zork": "1"}, **allowed)
    with pytest.raises(Unsupported):
        settings(2024, {PREFIX + "rootless": "true"}, **allowed)
    with pytest.raises(Unsupported):
        settings(2024, {PREFIX + "log-fd": "3"}, **allowed)
    with pytest.raises(Unsupported, match=r"dev\.gvisor\.bundle"):
        settings(2024, {"dev.gvisor.bundle.fast": "true"})


def test_state_directory() -> None:
    assert RunscConfig(root="/r").state_dir == "/r"
    assert RunscConfig(root="/r", flags={"root": "/other"}).state_dir == "/other"
