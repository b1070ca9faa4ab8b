import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from shim import arguments as cli
from shim.version import VERSION
from tests.shim.process import REPOSITORY, Shim

LAUNCHER = REPOSITORY / "shim" / "bin" / "containerd-shim-gvisor-v2"


def test_containerds_command_line() -> None:
    text = "-namespace k8s.io -address /a -publish-binary /b -id c -debug start"
    assert cli.parse(text.split()) == cli.Invocation(
        action="start",
        namespace="k8s.io",
        address="/a",
        publish_binary="/b",
        id="c",
        debug=True,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--id=c --namespace n delete", {"id": "c", "namespace": "n", "action": "delete"}),
        ("-id c start -debug", {"id": "c", "action": "start"}),  # flags end at the action
        ("-v", {"version": True}),
        ("-version=true", {"version": True}),
        ("-debug=false -info", {"info": True}),
        ("-new start", {"action": "start"}),
        ("-new value start", {"action": "start"}),
        ("-new=value start", {"action": "start"}),
        ("-new -id c start", {"id": "c", "action": "start"}),
        ("-new start start", {"action": "start"}),
        ("-new", {}),
        ("-id -- start", {"id": "--", "action": "start"}),
        ("-id c -- delete", {"id": "c", "action": "delete"}),
        ("-id= -socket /s", {"socket": "/s"}),
        ("", {}),
    ],
)
def test_flags(arguments: str, expected: dict[str, str | bool]) -> None:
    assert cli.parse(arguments.split()) == cli.Invocation(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [["-id"], ["-debug=maybe"], ["run"], ["-"]])
def test_bad_flags(arguments: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        cli.parse(arguments)


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "a\0", "x" * 1025])
def test_check_id(value: str) -> None:
    with pytest.raises(InvalidRequest):
        cli.check_id("-id", value)


def test_an_unexpected_exception_is_one_line(tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    shim.extra = (
        "from shim import cleanup\ndef bad(call): raise KeyError('a\\nb')\ncleanup.delete = bad"
    )
    result = shim.delete("c1", shim.bundle("c1"))
    shim.close()
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.startswith(b"containerd-shim-gvisor-v2: KeyError: ")
    # containerd goes on in the same line with the exit status.
    assert result.stderr.count(b"\n") == 0


def test_python_m_shim() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "shim", "-v"], cwd=REPOSITORY, capture_output=True
    )
    assert f"Version:  {VERSION}\n" in result.stdout.decode()


def run(path: str | Path, cwd: Path | None = None, **environment: str) -> str:
    result = subprocess.run(
        [str(path), "-v"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_launcher_of_the_source_tree(tmp_path: Path) -> None:
    expected = f"Version:  {VERSION}\n"
    assert expected in run(LAUNCHER)
    assert expected in run("./containerd-shim-gvisor-v2", LAUNCHER.parent)
    (tmp_path / "link").symlink_to(LAUNCHER)
    assert expected in run(tmp_path / "link", tmp_path)
    path = f"{LAUNCHER.parent}:{os.environ['PATH']}"
    assert expected in run(LAUNCHER.name, tmp_path, PATH=path)


def make_installation(prefix: Path, packages: str) -> Path:
    """A tree as pip makes it, with an interpreter in it if ``prefix`` is an environment."""
    site = prefix / "lib" / packages
    site.mkdir(parents=True)
    for package in ("shim", "runtime"):
        (site / package).symlink_to(REPOSITORY / package)
    launcher = prefix / "bin" / LAUNCHER.name
    launcher.parent.mkdir()
    launcher.write_bytes(LAUNCHER.read_bytes())
    launcher.chmod(0o755)
    return launcher


VERSIONED = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def test_launcher_in_an_environment(tmp_path: Path) -> None:
    launcher = make_installation(tmp_path, f"{VERSIONED}/site-packages")
    # The environment's interpreter is taken, not the one on the path.
    marker = tmp_path / "used"
    interpreter = launcher.parent / VERSIONED
    interpreter.write_text(f'#!/bin/sh\n: >{marker}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    assert f"Version:  {VERSION}\n" in run(launcher, PATH="/nowhere:/usr/bin:/bin")
    assert marker.exists()


def test_launcher_with_the_interpreter_elsewhere(tmp_path: Path) -> None:
    launcher = make_installation(tmp_path, f"{VERSIONED}/dist-packages")
    directory = tmp_path / "path"
    directory.mkdir()
    (directory / VERSIONED).symlink_to(sys.executable)
    assert f"Version:  {VERSION}\n" in run(launcher, PATH=f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize("link", [os.symlink, os.link, shutil.copy])
def test_launcher_elsewhere_finds_where_it_was_installed(tmp_path: Path, link: Any) -> None:
    launcher = make_installation(tmp_path / "prefix", f"{VERSIONED}/site-packages")
    site = tmp_path / "prefix" / "lib" / VERSIONED / "site-packages"
    marker, interpreter = tmp_path / "used", tmp_path / "a python"
    interpreter.write_text(f'#!/bin/sh\n: >{marker}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    # As setup.py does it.
    text = launcher.read_text()
    text = text.replace("\ninstalled=\n", f"\ninstalled={site}\n")
    launcher.write_text(text.replace("\ninterpreter=\n", f"\ninterpreter='{interpreter}'\n"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link(launcher, elsewhere / launcher.name)
    expected = f"Version:  {VERSION}\n"
    assert expected in run(elsewhere / launcher.name, tmp_path)
    assert expected in run(launcher.name, tmp_path, PATH=f"{elsewhere}:/usr/bin:/bin")
    assert marker.exists() or link is os.symlink, "the interpreter that it was installed for"


def test_launcher_ignores_pythons_environment(tmp_path: Path) -> None:
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "__init__.py").write_text("raise SystemExit('wrong one')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONWARNINGS": "x"}
    assert f"Version:  {VERSION}\n" in run(LAUNCHER, tmp_path, **environment)


def test_launcher_without_its_interpreter(tmp_path: Path) -> None:
    launcher = make_installation(tmp_path, "python3.999/site-packages")
    result = subprocess.run([launcher, "-v"], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert result.returncode == 1
    assert result.stderr == f"{LAUNCHER.name}: no python3.999 to run it with\n".encode()
