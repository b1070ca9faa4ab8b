"""The verbs that only look, and what errors look like, on state files that a test writes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.cgroups.metrics import Metrics
from runtime.cli import attached, config_snippets, find, logs, manage, output, show, top
from runtime.cli.main import _say, main
from runtime.state import shim_record
from runtime.state.shim_record import ContainerRecord

REPOSITORY = Path(__file__).resolve().parents[3]


class Host:
    """A root directory with records, and gvctl to be run on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.root = folder, folder / "root"
        self.root.mkdir()
        self.options = folder / "options.toml"
        self.options.touch()
        self._capsys = capsys

    def record(self, name: str, sandbox: str = "") -> Path:
        bundle = self.folder / name
        bundle.mkdir()
        spec = {
            "process": {"args": ["true"]},
            "root": {"path": "rootfs"},
            "annotations": {"a": "b"},
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        sandbox = sandbox or name
        record = ContainerRecord(
            id=name, sandbox_id=sandbox, is_root=sandbox == name, bundle=str(bundle)
        )
        shim_record.save(str(self.root), record)
        return bundle

    def call(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        status = main(["--root", str(self.root), "--config", str(self.options), *words])
        said = self._capsys.readouterr()
        return status, said.out, said.err


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, capsys)


def test_list(host: Host) -> None:
    assert host.call("list", "-f", "json") == (0, "null\n", "")
    bundle = host.record("box1")
    host.record("box2")
    status, out, err = host.call("list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "NAMESPACE"]
    assert lines[0].split() == heads
    assert lines[1].split()[:4] == ["box1", "0", "stopped", str(bundle)]
    assert host.call("list", "-q")[1] == "box1\nbox2\n"
    first = json.loads(host.call("list", "--format", "json")[1])[0]
    assert first["id"] == "box1" and first["annotations"] == {"a": "b"}
    assert first["rootfs"] == str(bundle / "rootfs")


def test_a_corrupt_file_is_named_and_hides_no_other(host: Host) -> None:
    host.record("box1")
    (host.root / "bad_sandbox:bad.shim.json").write_text("{")
    status, out, err = host.call("list", "-q")
    assert (status, out) == (0, "box1\n")
    assert err.startswith("gvctl: ") and "bad_sandbox:bad" in err


def test_state_by_the_beginning_of_an_id(host: Host) -> None:
    host.record("box1")
    found = json.loads(host.call("state", "bo")[1])
    assert (found["id"], found["status"], found["pid"]) == ("box1", "stopped", 0)
    host.record("box2")
    status, _, err = host.call("state", "bo")
    assert status == 1 and "ambiguous" in err


@pytest.mark.parametrize("verb", ["state", "start", "pause", "ps", "delete", "exec", "logs"])
def test_a_container_that_is_not_there(host: Host, verb: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["true"] if verb == "exec" else []
    status, out, err = host.call("--log", str(log), "--log-format", "json", verb, "box9", *words)
    assert (status, out) == (255 if verb == "exec" else 1, "")
    text = 'container "box9" does not exist'
    assert err == f"gvctl: {text}\n"
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", text) and line["time"].endswith("Z")


def test_delete_by_force_of_what_is_not_there(host: Host) -> None:
    assert host.call("delete", "--force", "box9") == (0, "", "")


def test_states_that_forbid(host: Host) -> None:
    host.record("box1")
    for verb in ("pause", "resume", "ps", "events"):
        status, _, err = host.call(verb, "box1")
        assert status == 1 and 'container "box1" in state stopped' in err
    assert host.call("delete", "box1")[0] == 0
    assert host.call("list", "-q")[1] == ""


def test_a_text_log(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    host.call("--log", str(log), "state", "box9")
    assert 'level=error msg="container \\"box9\\" does not exist"' in log.read_text()


def test_errors_in_the_command_line_reach_the_log(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert host.call(f"--log={log}", "--log-format=json", "nosuch")[0] == 1
    assert "invalid choice" in json.loads(log.read_text())["msg"]


def test_namespaces_have_roots_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tmp_path / "options.toml"
    options.write_text(f'root = "{tmp_path}/roots"\n')
    for name in ("one", "two"):
        bundle = tmp_path / name
        bundle.mkdir()
        record = ContainerRecord(id="box", sandbox_id="box", is_root=True, bundle=str(bundle))
        shim_record.save(f"{tmp_path}/roots/{name}", record)
    assert main(["--config", str(options), "state", "box"]) == 1
    assert "is in several roots" in capsys.readouterr().err
    assert main(["--config", str(options), "-n", "two", "list", "-f", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["namespace"], found["bundle"]) == ("two", str(tmp_path / "two"))
    assert main(["--config", str(options), "-n", "../x", "list"]) == 1


def test_a_broken_options_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = tmp_path / "options.toml"
    options.write_text("binary_nmae = 'x'\n")
    assert main(["--config", str(options), "list"]) == 1
    assert f"{options}: binary_nmae: is no option" in capsys.readouterr().err


def test_a_reader_that_has_gone() -> None:
    program = "from runtime.cli.main import run; import sys; sys.argv[1:] = ['features']; run()"
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=REPOSITORY)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_stdio_that_the_caller_has_closed_is_dev_null(tmp_path: Path, closed: str) -> None:
    seen = tmp_path / "seen"
    program = (
        "import os, sys; from runtime.cli import main\n"
        "def look(argv, *ways):\n"
        "    print('out'); print('err', file=sys.stderr); sys.stdin.read()\n"
        "    found = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        f"    open({str(seen)!r}, 'w').write(' '.join(found))\n"
        "    return 7\n"
        "main.main = look; main.run()"
    )
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program]
    pipe = subprocess.PIPE
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=REPOSITORY
    )
    assert done.returncode == 7, done.stderr
    found = seen.read_text().split()
    for number in range(3):
        if f"{number}<&-" in closed or f"{number}>&-" in closed:
            assert found[number] == "/dev/null"
    assert (done.stdout, done.stderr) == (
        b"" if "1>&-" in closed else b"out\n",
        b"" if "2>&-" in closed else b"err\n",
    )


def test_spec(host: Host, tmp_path: Path) -> None:
    assert host.call("spec", "-b", str(tmp_path)) == (0, "", "")
    assert json.loads((tmp_path / "config.json").read_text())["process"]["args"] == ["sh"]
    status, _, err = host.call("spec", "-b", str(tmp_path))
    assert status == 1 and "already exists" in err


def test_features(host: Host) -> None:
    found = json.loads(host.call("features")[1])
    assert "createRuntime" in found["hooks"]
    found = json.loads(host.call("--flag", "oci-seccomp=false", "features")[1])
    assert found["linux"]["seccomp"]["enabled"] is False


# -- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9),
        ("KILL", 9),
        ("SIGKILL", 9),
        ("term", 15),
        ("0", 0),
        ("RTMIN+1", 35),
        ("sigrtmax-1", 63),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert manage.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "65", "-1", "SIGNOPE", "RTMIN+x", "9x", "SIG_DFL"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown signal"):
        manage.signal_number(text)


def test_tables_show_what_would_move_the_cursor() -> None:
    text = output.table(("A", "B"), [("x\x1b[2J", 1), ("long-name", "y\n")])
    assert text == "A           B\nx\\x1b[2J    1\nlong-name   y\\x0a\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (None, "-")],
)
def test_sizes(number: int | None, text: str) -> None:
    assert output.size(number) == text


def test_figures_have_runcs_form() -> None:
    from runtime.cli.show import stats_json

    found = stats_json(Metrics(cpu_usage_ns=5, pids=3))
    assert found["cpu"]["usage"]["total"] == 5
    assert found["pids"] == {"current": 3, "limit": 0}
    assert "limit" not in found["memory"]["usage"]


def pod(at: float, cpu: int, **fields: Any) -> top.PodUse:
    values: dict[str, Any] = {
        "id": "p",
        "name": "p",
        "namespace": "n",
        "status": "running",
        "pid": 9,
    }
    return top.PodUse(**{**values, "at": at, "cpu_ns": cpu, **fields})


def test_top_compares_two_looks() -> None:
    watcher = top.Watcher()
    (line,) = watcher.see([pod(1.0, 0, gofers={"a": 5, "b": 6})])
    assert line["cpuPercent"] is None and line["goferRestarts"] == 0
    (line,) = watcher.see([pod(3.0, 1_000_000_000, gofers={"a": 5, "b": 6})])
    assert (line["cpuPercent"], line["gofers"]) == (50.0, 2)
    (line,) = watcher.see([pod(4.0, 900_000_000, gofers={"a": 5, "b": -1, "c": 8})])
    assert (line["cpuPercent"], line["gofers"], line["goferRestarts"]) == (0.0, 2, 1)
    (line,) = watcher.see([pod(5.0, 0, pid=10, gofers={"a": 50})])
    assert line["cpuPercent"] is None  # another sandbox of the same name
    assert watcher.see([]) == []


def test_tops_cells_for_what_is_unknown() -> None:
    watcher = top.Watcher()
    (row,) = top.rows(watcher.see([pod(1.0, 0, status="stopped", pid=0)]))
    assert list(row) == ["p", "n", "stopped", "-", "-", "-", "-", 0, 0, 0, "-", "-"]


@pytest.mark.parametrize(
    ("lines", "text"), [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")]
)
def test_the_last_lines_of_a_file(lines: int, text: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\nc\n")
    fd = os.open(path, os.O_RDONLY)
    start = logs.tail_start(fd, 6, lines)
    assert os.pread(fd, 100, start).decode() == text
    path.write_text("a\n" + "x" * 200_000 + "\nunended")
    assert os.pread(fd, 100, logs.tail_start(fd, 200_010, 1)) == b"unended"
    assert logs.tail_start(fd, 200_010, 2) == 2
    os.close(fd)


def test_what_a_sandbox_says_does_not_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\u009b31m\u202eabc\r\tfine\n"
    shown = "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\x202eabc\\x0d\tfine\n"
    assert output.plain(evil) == shown
    assert output.plain("ünï 日本\n") == "ünï 日本\n"
    file = tmp_path / "log"
    file.write_text(evil)
    with file.open("rb") as log:
        logs._copy(log.fileno(), 0)
    assert capsys.readouterr().out == shown
    _say(evil)
    output.warn(evil)
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setattr(find, "find", lambda _: SimpleNamespace(stacks=lambda: evil))
    show.stacks_verb(argparse.Namespace())
    assert capsys.readouterr().out == shown


def test_logs_are_found_by_what_is_open(tmp_path: Path) -> None:
    proc = tmp_path / "7"
    (proc / "fd").mkdir(parents=True)
    words = ["runsc-sandbox", "--debug-log-fd=5", "--log=/x", "--panic-log-fd=6", "--log-fd=bad"]
    (proc / "cmdline").write_text("\0".join(words))
    (proc / "fd" / "5").symlink_to("/var/log/debug")
    (proc / "fd" / "6").symlink_to("/memfd:x (deleted)")
    found = list(logs.open_logs(7, "boot", str(tmp_path)))
    assert found == [logs.LogFile(kind="debug", writer="boot", path="/var/log/debug")]
    assert list(logs.open_logs(8, "boot", str(tmp_path))) == []


def test_logs_of_a_sandbox_that_is_gone_match_the_patterns(tmp_path: Path) -> None:
    for name in ("b1/runsc.log.2026.boot.txt", "b1/runsc.log.2026.gofer.txt", "b2/x", "p-b1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    flags = {"debug-log": f"{tmp_path}/%ID%/", "panic-log": f"{tmp_path}/p-%ID%", "log": "relative"}
    names = [Path(f.path).name for f in logs.matching(flags, "b1")]
    assert names == ["runsc.log.2026.boot.txt", "runsc.log.2026.gofer.txt", "p-b1"]
    assert list(logs.matching(flags, "b*")) == []


def test_snippets() -> None:
    assert [config_snippets.config_version(v) for v in ("1.6.20", "v1.7", "2.0.0", "2")] == [
        2,
        2,
        3,
        3,
    ]
    with pytest.raises(InvalidRequest):
        config_snippets.config_version("new")
    import tomllib

    for version, plugin in ((2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")):
        document = tomllib.loads(
            config_snippets.containerd_snippet(version, "g.v", '/opt/"x\\y/shim')
        )
        assert "version" not in document  # config.toml has one
        runtime = document["plugins"][plugin]["containerd"]["runtimes"]["g.v"]
        assert runtime["runtime_type"] == "io.containerd.gvisor.v2"
        assert runtime["runtime_path"] == '/opt/"x\\y/shim'
        assert runtime["options"]["ConfigPath"] == config_snippets.OPTIONS_FILE
    assert "handler: gvisor\n" in config_snippets.runtime_class("gvisor")
    from runtime.runsc import options_file

    data = config_snippets.options_snippet("/opt/runsc").encode()
    assert options_file.check("x", options_file.parse("x", data))[0]["binary_name"] == "/opt/runsc"


def test_config(host: Host) -> None:
    status, out, _ = host.call("config", "containerd", "--containerd", "2.1.9")
    assert status == 0 and "io.containerd.cri.v1.runtime" in out and "grpc.v1.cri" not in out
    assert "# /etc/containerd/conf.d/gvisor.toml, containerd 2.1.9;" in out
    told = out[: out.index("\n\n")]
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| containerd | 1.6"))
    assert {*re.findall(r"\d+\.\d+\.\d+", told)} == {*re.findall(r"\d+\.\d+\.\d+", row)}
    assert "November 2026" in told and "April 2028" in told
    assert '\n#   imports = ["/etc/containerd/conf.d/*.toml"]\n[plugins' in out
    out = host.call("config", "--containerd", "1.7", "--handler", "mine")[1]
    assert "io.containerd.grpc.v1.cri" in out and "conf.d" not in out
    assert "handler: mine" in out and "binary_name" in out
    assert all(line.startswith("#") for line in out.splitlines() if "version = " in line)
    assert host.call("config", "--handler", "no/name")[0] == 1


# -- attached processes ------------------------------------------------------------------------


def test_a_session_copies_both_ways_and_gives_the_status() -> None:
    our_in, their_in = os.pipe()[::-1]
    our_out, their_out = os.pipe()
    source, feed = os.pipe()
    result, sink = os.pipe()
    os.set_blocking(our_in, False)
    os.write(feed, b"typed")
    os.close(feed)

    def process() -> int:
        data = b""
        while chunk := os.read(their_in, 100):
            data += chunk
        os.write(their_out, data.upper() * 50_000)
        os.close(their_out)
        return 7

    streams = (
        attached.CopiedStream(source, our_in, close_target=True, is_input=True),
        attached.CopiedStream(our_out, sink),
    )
    import threading

    read: list[int] = []

    def drain() -> None:
        total = 0
        while total < 250_000 and (chunk := os.read(result, 65536)):
            total += len(chunk)
        read.append(total)

    reader = threading.Thread(target=drain)
    reader.start()
    assert attached.run(process, lambda _: None, streams) == 7
    reader.join(10)
    assert read == [250_000]
    for fd in (their_in, our_out, source, result, sink):
        os.close(fd)


def test_a_writer_hears_that_nobody_reads_any_more() -> None:
    our_out, their_out = os.pipe()
    result, sink = os.pipe()
    os.close(result)

    def process() -> int:
        try:
            while True:
                os.write(their_out, bytes(65536))
        except BrokenPipeError:
            return 9

    streams = (attached.CopiedStream(our_out, sink, close_source=True),)
    assert attached.run(process, lambda _: None, streams) == 9
    for fd in (their_out, sink):
        os.close(fd)


def test_a_session_ends_though_the_output_is_held() -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    assert attached.run(lambda: 3, lambda _: None, (attached.CopiedStream(reader, null),)) == 3
    for fd in (reader, writer, null):
        os.close(fd)


def test_a_sessions_signals_and_failure() -> None:
    import signal
    import threading

    came = threading.Event()
    numbers: list[int] = []

    def note(number: int) -> None:
        numbers.append(number)
        came.set()

    def process() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        assert came.wait(10)
        raise InvalidRequest("x", "failed")

    with pytest.raises(InvalidRequest):
        attached.run(process, note)
    assert numbers == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_keys_that_are_signals() -> None:
    import termios

    master, slave = os.openpty()
    assert attached.key_signals(master, b"a\x03b\x1a\x1c") == [2, 20, 3]
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~termios.ISIG
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    assert attached.key_signals(master, b"\x03") == []
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("count", "why"),
    [
        ("-1", "is not between 0 and 64"),
        ("65", "is not between 0 and 64"),
        ("64", "is not open"),
    ],
)
def test_files_that_can_not_be_passed_on(host: Host, tmp_path: Path, count: str, why: str) -> None:
    status, _, err = host.call(
        "create", "--bundle", str(tmp_path), f"--preserve-fds={count}", "box9"
    )
    assert status == 1 and "--preserve-fds: " in err and why in err
