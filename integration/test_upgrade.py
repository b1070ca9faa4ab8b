"""A running shim becomes another version of itself: what it serves goes on, and nobody notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients.api import process_spec
from integration.harness.clients.event_sink import EventSink
from integration.harness.clients.gvctl import Gvctl
from integration.harness.host import footprint
from integration.harness.nodes.node import Node
from integration.harness.nodes.versions import Version
from integration.test_checkpoint import COUNTER, counting, restored, saved
from integration.upgrades import address, info, upgrade, upgrades
from runtime.base.version import VERSION
from shim.observe.debug_client import ask

pytestmark = pytest.mark.gvisor
#: How often in a row; by hand a hundred times.
TIMES = int(os.environ.get("UPGRADES", "5"))
#: Seconds for a word to come back from a sandbox that is busy, on a machine that may be.
PATIENCE = 60.0
#: Output that goes on until a file is there, then how many lines it was, and an exit code.
COUNTS = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); done; echo last $i; exit 7"


@pytest.fixture(scope="module")
def newer(short_folder: Path) -> Iterator[Version]:
    """A version that differs in nothing but what it says of itself."""
    version = Version(short_folder / "newer")
    version.call_it("99.0")
    yield version


class Reader(threading.Thread):
    """Takes what a process writes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        assert process.stdout is not None
        self._stream = process.stdout
        self.parts: list[bytes] = []
        self.start()

    def run(self) -> None:
        while data := self._stream.read(1 << 16):
            self.parts.append(data)

    def lines(self) -> list[str]:
        self.join(60)
        assert not self.is_alive()
        return b"".join(self.parts).decode().splitlines()


def assert_counted(lines: list[str]) -> None:
    """It wrote all numbers in order, and then how many."""
    count = len(lines) - 1
    assert lines[-1] == f"last {count}"
    assert lines[:-1] == [str(n) for n in range(count)]


def test_an_idle_pod_goes_on(node: Node, newer: Version) -> None:
    name = node.run_detached("sleep", "1000")
    shim = address(node.daemon, name)
    pid = node.shim_pid(name)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    assert upgrade(shim) == ""
    now = info(shim)
    assert now["pid"] == pid == node.shim_pid(name)
    assert node.status(name) == "RUNNING"
    assert upgrade(shim, newer.launcher) == ""
    now = info(shim)
    assert (now["version"], now["package"]) == ("99.0", str(newer.packages))
    assert upgrades(shim)["taken"] == 2
    # It is known as before, by those who look for shims.
    seen = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert seen[seen.index(b"-id") + 1] == command[command.index(b"-id") + 1] == name.encode()
    assert Path(f"/proc/{pid}/comm").read_text() == "containerd-shim\n"
    done = node.exec(name, "echo", "here")
    assert (done.code, done.out) == (0, "here\n"), done
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= descriptors + 1, 10, "no descriptor more")
    wait = node.api.task_later("Wait", container_id=name)
    assert node.kill(name, "SIGKILL").code == 0
    assert wait().exit_status == 137
    node.delete(name)
    until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the shim has ended")


def test_under_load_nothing_is_lost(node: Node) -> None:
    """Output of init and of an exec, a terminal, calls that wait; again and again."""
    name, process = node.run_in_background("sh", "-c", COUNTS)
    shim = address(node.daemon, name)
    pid = node.shim_pid(name)
    reader = Reader(process)
    # The end of init would be its own.
    script = COUNTS.replace("/stop", "/stop-exec").replace("exit 7", "exit 8")
    counting = node.ctr_process(*node.exec_command(name, "counting", ["sh", "-c", script]))
    exec_reader = Reader(counting)
    until(lambda: exec_reader.parts and reader.parts, 20, "both write")
    with node.exec_terminal(name, "cat") as terminal:
        terminal.write("first\n")
        terminal.expect("first")
        for each in range(TIMES):
            # Each is seen twice: as the terminal's echo, and as what cat writes.  Not two lines at
            # once, of which cat may get the second only with a third, upgrade or not.
            terminal.write(f"before{each}.\n")
            assert upgrade(shim) == ""
            for _ in range(2):
                terminal.expect(f"before{each}.", PATIENCE)
            terminal.write(f"after{each}.\n")
            for _ in range(2):
                terminal.expect(f"after{each}.", PATIENCE)
            done = node.exec(name, "sh", "-c", f"echo {each}; exit {each % 100}")
            assert (done.code, done.out) == (each % 100, f"{each}\n"), done
        assert counting.poll() is None and process.poll() is None
        assert node.shim_pid(name) == pid
        terminal.write("\x04")
        node.exec(name, "touch", "/stop-exec")
    assert_counted(exec_reader.lines())
    assert counting.wait(60) == 8
    node.exec(name, "touch", "/stop")
    assert_counted(reader.lines())
    assert process.wait(60) == 7


def test_events_that_wait_for_containerd_are_handed_over(node: Node) -> None:
    name = node.run_detached("sh", "-c", "while [ ! -e /stop ]; do sleep 0.1; done; exit 23")
    shim = address(node.daemon, name)
    with node.shim(name) as client:
        spec = process_spec(node.api.spec("touch", "/stop")["process"])
        node.daemon.stop()
        node.close()
        try:
            client.call("Exec", id=name, exec_id="stop", spec=spec)
            assert upgrade(shim) == ""
            # The same connection, and what it waits for.
            client.call("Start", id=name, exec_id="stop")
            assert client.call("Wait", id=name).exit_status == 23
            assert client.call("Wait", id=name, exec_id="stop").exit_status == 0
            assert upgrade(shim) == ""
            assert client.call("State", id=name).exit_status == 23
            assert client.call("Delete", id=name, exec_id="stop").exit_status == 0
            with EventSink(Path(f"{node.daemon.address}.ttrpc")) as sink:
                told = [sink.next() for _ in range(4)]
            assert [topic for topic, _ in told] == ["exec-added", "exec-started", "exit", "exit"]
            assert {event.exit_status for topic, event in told[2:]} == {0, 23}
        finally:
            node.daemon.start()


def test_it_ends_while_it_is_being_upgraded(node: Node) -> None:
    """Ends that fall into an upgrade are told, with their codes."""
    name = node.run_detached("sleep", "1000")
    shim = address(node.daemon, name)
    for code in (11, 12, 13):
        process = node.ctr_process(
            *node.exec_command(name, f"ends{code}", ["sh", "-c", f"echo on; read x; exit {code}"]),
            stdin=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"on\n"
        end = threading.Timer(0.05 * (code - 10), process.stdin.write, [b"x\n"])
        end.start()
        assert upgrade(shim) == ""
        end.join()
        assert process.wait(30) == code
    sentry = node.pid(name)
    wait = node.api.task_later("Wait", container_id=name)
    end = threading.Timer(0.1, os.kill, [sentry, signal.SIGKILL])
    end.start()
    assert upgrade(shim) == ""
    end.join()
    assert wait().exit_status == 137


def test_gvctl_upgrades_pods_that_run(node: Node, newer: Version) -> None:
    """Those that are named, or all; what is refused is said, and is its status."""
    first, second = (node.run_detached("sleep", "1000") for _ in range(2))
    gvctl = Gvctl("-n", node.daemon.namespace)
    done = gvctl("upgrade", "--running", "--program", str(newer.launcher), first)
    assert (done.code, done.out) == (0, f"{first}: handed over from {VERSION} to 99.0\n"), done
    done = gvctl("upgrade", "--running")
    lines = [f"{first}: handed over from 99.0 to", f"{second}: handed over from {VERSION} to"]
    # The first was last called by the path of the newer one.
    assert done.out.splitlines() == [f"{lines[0]} 99.0", f"{lines[1]} {VERSION}"], done
    done = gvctl("upgrade", "--running", "--program", "/bin/true", second)
    assert done.code == 1 and done.out.startswith(f"{second}: refused: /bin/true can't take over")
    assert done.out.endswith(f" (it runs on as {VERSION})\n")
    found = json.loads(gvctl("doctor", "-f", "json").out)["sandboxes"]
    told = {each["sandbox"]: (each["version"], each["age"]) for each in found}
    assert (told[first], told[second]) == (("99.0", "newer"), (VERSION, "current"))
    words = [f"{first} {node.daemon.namespace} 99.0 newer than {VERSION}".split()]
    assert [line.split() for line in gvctl("doctor").out.splitlines() if first in line] == words
    for words in (("upgrade", first), ("upgrade", "--program", "/bin/true")):
        done = gvctl(*words)
        assert done.code == 1 and "for --running only" in done.err, done
    assert gvctl("upgrade", "--running", "nobody").code == 1


def test_sighup_takes_what_the_link_leads_to(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    shim = address(node.daemon, name)
    os.kill(node.shim_pid(name), signal.SIGHUP)
    until(lambda: upgrades(shim)["taken"] == 1, 60, "the upgrade is over")
    assert node.exec(name, "echo", "here").out == "here\n"


def test_what_cannot_take_over_is_refused_and_the_old_one_runs_on(
    node: Node, short_folder: Path, tmp_path: Path
) -> None:
    name = node.run_detached("sleep", "1000")
    shim = address(node.daemon, name)
    pid = node.shim_pid(name)
    other = Version(short_folder / "other")
    # Nobody but root may be able to change what is executed.
    theirs = tmp_path / "shim"
    theirs.write_bytes(other.launcher.read_bytes())
    theirs.chmod(0o755)
    os.chown(theirs, 65534, 65534)
    assert "not to root" in upgrade(shim, theirs) or "others than root" in upgrade(shim, theirs)
    assert "absolute path" in upgrade(shim, "bin/sh")
    assert "no such file" in upgrade(shim, short_folder / "none").lower()
    other.launcher.chmod(0o777)
    assert "others than root may write" in upgrade(shim, other.launcher)
    other.launcher.chmod(0o755)
    # Not a shim at all.
    assert "can't take over" in upgrade(shim, "/bin/true")
    # One that means something else by a container.
    other.edit(
        "runtime/task/container.py",
        "        self.freed = False\n",
        "        self.freed = False\n        self.shape_of_water = 1\n",
    )
    refused = upgrade(shim, other.launcher)
    assert "runtime.task.container:Container" in refused and "shape_of_water" in refused
    # One that crashes in the dry run.
    other.edit("shim/take_over.py", '    refused = ""\n', "    raise OSError('broken')\n")
    assert "broken" in upgrade(shim, other.launcher)
    assert upgrades(shim)["taken"] == 0
    assert node.shim_pid(name) == pid
    assert node.exec(name, "echo", "here").out == "here\n"
    assert upgrade(shim) == ""
    assert node.exec(name, "echo", "here").out == "here\n"


def test_a_version_that_fails_after_all_gives_the_process_back(
    node: Node, short_folder: Path
) -> None:
    name, process = node.run_in_background("sh", "-c", COUNTS)
    reader = Reader(process)
    shim = address(node.daemon, name)
    other = Version(short_folder / "failing")
    other.edit("shim/take_over.py", "            daemon.prepare()\n", "            1 / 0\n")
    assert "ZeroDivisionError" in upgrade(shim, other.launcher)
    assert upgrades(shim)["taken"] == 0
    assert info(shim)["package"] != str(other.packages)
    # It may end with the container that it ends.
    assert node.exec(name, "touch", "/stop").code in (0, 137)
    assert_counted(reader.lines())
    assert process.wait(60) == 7


class Gate:
    """A version that stops where it is checked, or where it has been executed."""

    def __init__(self, folder: Path, where: str) -> None:
        self._version = Version(folder)
        self._reached, self._open = folder / "reached", folder / "open"
        wait = (
            f"open({str(self._reached)!r}, 'w').close()\n"
            f"    while not os.path.exists({str(self._open)!r}):\n        time.sleep(0.01)\n"
        )
        self._version.edit("shim/take_over.py", where, f"{where}    {wait}")

    def enter(self, shim: str) -> None:
        """Have a shim become that version, up to the gate."""
        program = str(self._version.launcher)
        ask(shim, "Upgrade", {"program": program}, PATIENCE)
        until(self._reached.exists, PATIENCE, "it is at the gate")

    def open(self) -> None:
        self._open.touch()

    def checker(self, shim: int) -> int:
        """The process that checks for a shim."""
        [found] = [
            pid for pid in footprint.descendants(shim) if "-check" in footprint.command_line(pid)
        ]
        return found


CHECKING = '    refused = ""\n'
EXECUTED = "    status = 1\n"


def test_the_check_dies(node: Node, short_folder: Path) -> None:
    """Row 1: the shim runs on as it was."""
    name = node.run_detached("sleep", "1000")
    shim, pid = address(node.daemon, name), node.shim_pid(name)
    gate = Gate(short_folder / "check-dies", CHECKING)
    gate.enter(shim)
    os.kill(gate.checker(pid), signal.SIGKILL)
    until(lambda: upgrades(shim)["done"] == 1, PATIENCE, "it is over")
    assert "it says nothing" in str(upgrades(shim)["last"])
    assert node.exec(name, "echo", "here").out == "here\n"


@pytest.mark.parametrize("where", [CHECKING, EXECUTED], ids=["frozen", "executed"])
def test_the_shim_dies_in_an_upgrade(node: Node, short_folder: Path, where: str) -> None:
    """Rows 2 and 3: as the death of any shim."""
    name = node.run_detached("sleep", "1000")
    shim, pid = address(node.daemon, name), node.shim_pid(name)
    sentry = node.pid(name)
    gate = Gate(short_folder / ("dies-" + ("frozen" if where == CHECKING else "executed")), where)
    gate.enter(shim)
    checker = gate.checker(pid) if where == CHECKING else 0
    os.kill(pid, signal.SIGKILL)
    until(lambda: not footprint.alive(sentry), PATIENCE, "the sandbox has ended")
    gate.open()
    until(lambda: not (checker and footprint.alive(checker)), PATIENCE, "the check has ended")


@pytest.mark.parametrize("where", [CHECKING, EXECUTED], ids=["frozen", "executed"])
def test_containerd_dies_and_the_shim_gets_a_signal(
    node: Node, short_folder: Path, where: str
) -> None:
    """Row 4: nothing is noticed of either once it is over."""
    name = node.run_detached("sh", "-c", "trap 'exit 12' TERM; while true; do sleep 0.1; done")
    shim, pid = address(node.daemon, name), node.shim_pid(name)
    which = "frozen" if where == CHECKING else "executed"
    gate = Gate(short_folder / f"containerd-{which}", where)
    gate.enter(shim)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGINT):
        os.kill(pid, number)
    node.daemon.kill()
    node.close()
    gate.open()
    node.daemon.start()
    # SIGHUP asks for one more, once the first is over.
    until(lambda: upgrades(shim)["taken"] >= 1, PATIENCE, "it is over")
    assert node.shim_pid(name) == pid
    assert node.exec(name, "echo", "here").out == "here\n"
    wait = node.api.task_later("Wait", container_id=name)
    assert node.kill(name, "SIGTERM").code == 0
    assert wait().exit_status == 12


def test_a_paused_container_stays_so(node: Node) -> None:
    name, process = node.run_in_background("sh", "-c", COUNTS)
    shim = address(node.daemon, name)
    reader = Reader(process)
    until(lambda: reader.parts, 20, "it writes")
    assert node.ctr("tasks", "pause", name).code == 0
    assert upgrade(shim) == ""
    assert node.status(name) == "PAUSED"
    assert upgrade(shim) == ""
    assert node.ctr("tasks", "resume", name).code == 0
    assert node.exec(name, "touch", "/stop").code in (0, 137)
    assert_counted(reader.lines())
    assert process.wait(60) == 7


def test_the_end_of_a_paused_container(node: Node) -> None:
    name = node.run_detached("sleep", "1000")
    assert node.ctr("tasks", "pause", name).code == 0
    assert upgrade(address(node.daemon, name)) == ""
    wait = node.api.task_later("Wait", container_id=name)
    assert node.kill(name, "SIGKILL").code == 0
    assert wait().exit_status == 137


def test_a_log_program_goes_on(node: Node, tmp_path: Path) -> None:
    """Its pipes, the order of its end, and that it is this shim's child."""
    logger = tmp_path / "logger"
    logger.write_text(
        "#!/bin/sh\nexec 1>&- 2>&-\necho $$ > ${0%/*}/pid\nexec 5>&-\n"
        "cat <&3 > ${0%/*}/out &\ncat <&4 > ${0%/*}/err &\nwait\necho ended > ${0%/*}/ended\n"
    )
    logger.chmod(0o755)
    name = node.run_detached("sh", "-c", COUNTS, options=["--log-uri", f"binary://{logger}"])
    shim = address(node.daemon, name)
    out = tmp_path / "out"
    until(lambda: out.exists() and out.stat().st_size, 20, "it logs")
    for _ in range(2):
        assert upgrade(shim) == ""
        size = out.stat().st_size
        until(lambda size=size: out.stat().st_size > size, 20, "it logs")  # type: ignore[misc]
    wait = node.api.task_later("Wait", container_id=name)
    assert node.exec(name, "touch", "/stop").code in (0, 137)
    assert wait().exit_status == 7
    node.delete(name)
    until((tmp_path / "ended").exists, 20, "it has ended")
    assert_counted(out.read_text().splitlines())


def test_what_was_restored_is_restored_once(node: Node) -> None:
    """A sandbox of an image; the counter in its memory counts on."""
    if node.daemon.generation < "2023":
        pytest.skip("this runsc ends what it checkpoints, and ctr can't ask for that")
    name = node.run_detached("sh", "-c", COUNTER)
    first = counting(node, name)
    assert upgrade(address(node.daemon, name)) == ""
    reference = saved(node, name)
    again = node.new_id()
    restored(node, again, reference)
    shim = address(node.daemon, again)
    before = counting(node, again, first)
    for _ in range(2):
        assert upgrade(shim) == ""
        before = counting(node, again, before)
    wait = node.api.task_later("Wait", container_id=again)
    assert node.kill(again, "SIGKILL").code == 0
    assert wait().exit_status == 137


def test_signals_and_requests_in_a_storm(node: Node, newer: Version) -> None:
    """All are parts of some upgrade, each of which is over; nothing that runs notices."""
    name, process = node.run_in_background("sh", "-c", COUNTS)
    reader = Reader(process)
    shim, pid = address(node.daemon, name), node.shim_pid(name)
    wait = node.api.task_later("Wait", container_id=name)
    refused: list[str] = []

    def asks(program: str) -> None:
        for _ in range(3):
            refused.append(upgrade(shim, program))

    threads = [threading.Thread(target=asks, args=(p,)) for p in ("", str(newer.launcher))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGCHLD)
        threads[0].join(0.02)
    assert refused == [""] * 6
    until(lambda: (u := upgrades(shim))["done"] == u["asked"], PATIENCE, "the last is over")
    assert node.shim_pid(name) == pid
    assert node.exec(name, "touch", "/stop").code in (0, 137)
    assert_counted(reader.lines())
    assert wait().exit_status == process.wait(60) == 7
