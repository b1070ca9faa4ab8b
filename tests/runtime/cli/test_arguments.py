"""The command line: what runc's callers pass is taken, and what is wrong is said."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from runtime.cli import arguments, completion, manual
from runtime.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
#: As podman's conmon, podman, docker's containerd and runc's users call a runtime.
CALLS = [
    "--systemd-cgroup --log-format=json --log=/x create --bundle /b --pid-file /p id",
    "--root /r --log /l --log-format json create --bundle /b --pid-file /p --console-socket /c id",
    "create -b /b --no-pivot --no-new-keyring --preserve-fds 0 id",
    "start id",
    "run -d --pid-file /p id",
    "--debug --rootless=auto run --keep --no-subreaper id",
    "exec --process /p --pid-file /f --detach --console-socket /c id",
    "exec -t -u 5:6 -e A=B -g 7 -c CAP_KILL --cwd /w id sh -c x",
    "state id",
    "kill id 9",
    "kill --all id TERM",
    "kill -a id",
    "delete --force id",
    "list -f json",
    "list --quiet",
    "ps --format json id",
    "ps id -ef",
    "events --stats id",
    "events --interval 500ms id",
    "pause id",
    "resume id",
    "checkpoint --image-path /i --work-path /w --leave-running --tcp-established id",
    "restore --image-path /i --bundle /b --detach --pid-file /p id",
    "features",
    "spec --bundle /b",
    "update --resources - ID",
    "update --memory 512M --cpu-share 5 --cpu-quota -1 --pids-limit -1 ID",
]


@pytest.mark.parametrize("call", CALLS)
def test_what_runcs_callers_pass(call: str) -> None:
    args = arguments.build().parse_args(call.split())
    assert args.verb in call.split()
    module, name = args.call.split(":")
    source = (ROOT / "runtime/cli" / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {name}_verb(" in source or f"{name}_verb = " in source


def test_every_verb_has_its_function() -> None:
    for name, parser in completion.verbs().items():
        module, function = parser.get_default("call").split(":")
        source = (ROOT / "runtime/cli" / f"{module.replace('.', '/')}.py").read_text()
        found = (f"def {function}_verb(", f"{function}_verb = ")
        assert any(text in source for text in found), name


def test_a_command_keeps_its_own_options() -> None:
    args = arguments.build().parse_args(["exec", "-t", "id", "sh", "-c", "-t", "--tty"])
    assert (args.tty, args.id, args.command) == (True, "id", ["sh", "-c", "-t", "--tty"])
    args = arguments.build().parse_args(["exec", "id", "ls", "-d"])
    assert (args.detach, args.command) == (False, ["ls", "-d"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5", 1.5), ("1h", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert arguments.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5x", "-1", "1s2", "1.2.3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.duration(text)


@pytest.mark.parametrize(
    ("text", "ports"),
    [("80", (80, 80)), ("8080:80", (8080, 80)), (":80", (0, 80)), ("0:80", (0, 80))],
)
def test_forwardings(text: str, ports: tuple[int, int]) -> None:
    assert arguments.forwarding(text) == ports


@pytest.mark.parametrize("text", ["", "0", "x", "80:", "80:0", "70000", "1:2:3", "-1"])
def test_what_is_no_forwarding(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.forwarding(text)


def test_flags() -> None:
    args = arguments.build().parse_args(["--flag", "network=none", "--flag", "debug", "list"])
    assert args.flag == [("network", "none"), ("debug", "true")]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["state"], "the following arguments are required: ID"),
        (["list", "--format", "yaml"], "invalid choice: 'yaml'"),
        (["--debug"], "a command is wanted"),
        (["list", "--form", "json"], "unrecognized arguments: --form"),
    ],
)
def test_usage_errors(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(argv) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("gvctl: ") and words in said.err


# -- the man page and completion ------------------------------------------------------------------


def test_the_man_page_is_up_to_date() -> None:
    found = (ROOT / "docs/gvctl.1").read_text()
    assert found == manual.page(), "write it anew: python -m runtime.cli.manual >docs/gvctl.1"


def test_the_man_page_has_all_that_help_has() -> None:
    page = (ROOT / "docs/gvctl.1").read_text().replace("\\-", "-")
    for name, parser in completion.verbs().items():
        section = page.partition(f".SS {name}\n")[2].partition("\n.S")[0]
        assert section, name
        for action in completion.options(parser):
            if action.dest != "help":
                assert all(f"\\fB{option}\\fR" in section for option in action.option_strings)
                assert (action.help or "") in section.replace("\\e", "\\")
    for option in completion.options(arguments.build()):
        assert f"\\fB{option.option_strings[-1]}\\fR" in page.partition(".SH COMMANDS")[0]


def test_no_line_of_the_man_page_is_taken_for_a_request() -> None:
    known = (".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR", ".RB", ".I", ".nf", ".fi", '.\\"')
    for line in manual.page().splitlines():
        assert not line.startswith((".", "'")) or line.split()[0] in known, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_verb_and_option(shell: str) -> None:
    script = completion.script(shell)
    for name, parser in completion.verbs().items():
        assert name in script
        for action in completion.options(parser):
            for option in action.option_strings:
                word = option if shell != "fish" else f"-l {option[2:]}"
                if option.startswith("--") or shell != "fish":
                    assert word in script, (name, option)


def complete(words: list[str], tmp_path: Path) -> list[str]:
    """What bash offers for the last word."""
    script = tmp_path / "completion"
    script.write_text(completion.script("bash"))
    text = (
        f'source "{script}"; gvctl() {{ printf "box1\\nbox2\\n"; }}\n'
        f"COMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}\n"
        '_gvctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gvctl", "st"], ["stacks", "start", "state"]),
        (["gvctl", "--root", "/x", "paus"], ["pause"]),
        (["gvctl", "exec", "bo"], ["box1", "box2"]),
        (["gvctl", "exec", "box1", "--user"], ["--user"]),
        (["gvctl", "list", "--format", ""], ["json", "table"]),
        (["gvctl", "completion", "z"], ["zsh"]),
        (["gvctl", "kill", "--a"], ["--all"]),
    ],
)
def test_bash_completes(words: list[str], offered: list[str], tmp_path: Path) -> None:
    assert sorted(complete(words, tmp_path)) == offered


@pytest.mark.parametrize(
    ("words", "namespace"),
    [(("list", "-n", "x"), "x"), (("-n", "y", "list"), "y"), (("list",), "")],
)
def test_list_takes_the_namespace_on_either_side(words: tuple[str, ...], namespace: str) -> None:
    assert arguments.build().parse_args(words).namespace == namespace
