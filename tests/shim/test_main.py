import subprocess
import sys
from pathlib import Path

import pytest

from runtime.base.errors import InvalidRequest
from runtime.base.version import VERSION
from shim.base import arguments as cli
from tests.shim.process import REPOSITORY, Shim


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
