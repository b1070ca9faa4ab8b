"""A pod's shim becomes another version: all its containers, their limits and ports go on."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.api import process_spec
from integration.harness.clients.event_sink import EventTap
from integration.harness.clients.ttrpc import Client
from integration.harness.clients.wire import Msg
from integration.harness.host import footprint
from integration.harness.nodes.pods import PodNode
from integration.pods.test_memory import HOG, limited
from integration.pods.test_port_forward import dial
from integration.upgrades import address, upgrade, upgrades

pytestmark = pytest.mark.gvisor
#: Seconds for a word to come back from a sandbox that is busy, on a machine that may be.
PATIENCE = 60.0
#: How often in a row; by hand a hundred times.
TIMES = int(os.environ.get("UPGRADES", "2"))
#: And of the longer one, which stops containerd for three of ten.
MORE = int(os.environ.get("UPGRADES", "3"))
COUNTS = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); done; echo last $i; exit 7"
SERVER = "nc -ll -p 7002 -e cat & echo ready; sleep 10000"


@pytest.mark.without_pause
def test_a_pod_under_load_goes_on(pods: PodNode) -> None:
    """A log, a terminal, an OOM kill by a container's own limit, a forwarded port, a new member."""
    pod = pods.pod()
    counting = pod.start("sh", "-c", COUNTS, name="counting", **limited(64))
    server = pod.start("sh", "-c", SERVER, name="server")
    pod.wait_log(server, "ready")
    shim = address(pods.daemon, pod.id)
    pid = pod.shim
    with pods.exec_stream(server, "cat", tty=True) as terminal:
        for each in range(TIMES):
            terminal.write(f"word{each}.\n")
            assert upgrade(shim) == ""
            terminal.expect(f"word{each}.")
            terminal.expect(f"word{each}.")
            assert pods.exec(counting, "echo", "here").out == "here\n"
            assert pods.status(server).state == cri.RUNNING
    assert upgrades(shim)["taken"] == TIMES
    assert pod.shim == pid
    with pods.forward(pod, 7002) as stream:
        stream.write_bytes(b"to and fro\n")
        assert stream.take(11) == b"to and fro\n"
        # While there is a connection, the bytes of which are in this process.
        assert upgrade(shim) == ""
        stream.write_bytes(b"again\n")
        assert stream.take(17) == b"to and fro\nagain\n"
    hog = pod.start(*HOG, name="hog", **limited(64))
    assert pods.wait_reason(hog, "OOMKilled", 30) == 137
    pods.exec(counting, "touch", "/stop")
    assert pods.wait_exited(counting, 60).exit_code == 7
    log = pod.log(counting).splitlines()
    assert log == [*(str(n) for n in range(len(log) - 1)), f"last {len(log) - 1}"]
    assert upgrade(shim) == ""
    assert pods.status(counting).exit_code == 7
    pods.delete(counting)


@pytest.mark.without_pause
def test_in_the_middle_of_other_calls(pods: PodNode) -> None:
    """Creations, starts, execs, ends and deletions go on beside one upgrade after the other."""
    pod = pods.pod()
    server = pod.start("sleep", "1000")
    shim = address(pods.daemon, pod.id)
    failures: list[BaseException] = []

    enough = threading.Event()

    def lives(first: int) -> None:
        for number in itertools.count(first):
            code = number % 100
            member = pod.start("sh", "-c", f"echo {number}; exit {code}", attempt=number)
            assert pods.wait_exited(member, 60).exit_code == code
            assert pod.wait_log(member, f"{number}\n") == f"{number}\n"
            pods.delete(member)
            if code >= 3 and enough.is_set():
                return

    def executes(_: int) -> None:
        for number in itertools.count():
            code = number % 100
            done = pods.exec(server, "sh", "-c", f"echo {number}; exit {code}")
            assert (done.code, done.out) == (code, f"{number}\n")
            if number >= 10 and enough.is_set():
                return

    def tried(work: Callable[[int], None], first: int) -> None:
        try:
            work(first)
        except BaseException as error:
            failures.append(error)

    works = [(lives, 1001), (lives, 2001), (executes, 0)]
    threads = [threading.Thread(target=tried, args=each) for each in works]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            assert upgrade(shim) == ""
            if int(str(upgrades(shim)["taken"])) >= 3:
                enough.set()
    finally:
        enough.set()
    assert not failures


class Pulse(threading.Thread):
    """Asks for a container's state all the time, on one connection; how long answers take."""

    def __init__(self, client: Client, container: str) -> None:
        super().__init__(daemon=True)
        self._client, self._container = client, container
        self._longest = 0.0
        self.answers = 0
        self._over = threading.Event()
        self.lost: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._over.wait(0.005):
                began = time.monotonic()
                self._client.call("State", 60, id=self._container)
                self._longest = max(self._longest, time.monotonic() - began)
                self.answers += 1
        except Exception as error:
            self.lost = error

    def beat(self) -> None:
        """Wait for an answer to what is asked from now on."""
        before = self.answers
        until(lambda: self.answers > before + 1 or not self.is_alive(), PATIENCE, "an answer")

    def longest(self) -> float:
        """Since it was last asked."""
        found, self._longest = self._longest, 0.0
        return found

    def stop(self) -> None:
        self._over.set()
        self.join(60)
        assert self.lost is None


def process(script: str, **more: object) -> dict[str, object]:
    """A shell, as the shim is asked for it."""
    spec = {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], **more}
    return process_spec(spec)


class Exec:
    """An exec that the shim is asked for, and whose FIFOs are the test's."""

    def __init__(
        self,
        client: Client,
        container: str,
        folder: Path,
        name: str,
        script: str,
        *,
        terminal: bool = False,
    ) -> None:
        stdin, stdout = (str(folder / f"{name}-{each}") for each in ("in", "out"))
        for path in (stdin, stdout):
            os.mkfifo(path)
        self._out = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
        self._named = {"id": container, "exec_id": name}
        self._client = client
        spec = process(script, terminal=terminal)
        files = {"stdin": stdin, "stdout": stdout, "terminal": terminal}
        client.call("Exec", spec=spec, **files, **self._named)
        client.call("Start", **self._named)
        self._in = os.open(stdin, os.O_WRONLY)
        self.wait = client.call_later("Wait", 3600, **self._named)
        self.seen = bytearray()
        self._reader: threading.Thread | None = None

    def type(self, text: str) -> None:
        os.write(self._in, text.encode())

    def read(self, text: str) -> None:
        """Wait until that is there."""
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.seen[-2000:]:
            assert self._more(max(deadline - time.monotonic(), 0)), (text, self.seen[-300:])

    def read_all(self) -> None:
        """Take what it writes until that has an end, in a thread."""

        def run() -> None:
            while self._more(None):
                pass

        self._reader = threading.Thread(target=run, daemon=True)
        self._reader.start()

    def _more(self, timeout: float | None) -> bool:
        if not select.select([self._out], [], [], timeout)[0]:
            return False
        data = os.read(self._out, 1 << 16)
        self.seen += data
        return bool(data)

    def close(self) -> None:
        """Delete it, after which all has been written."""
        self._client.call("Delete", **self._named)
        if self._reader is not None:
            self._reader.join(PATIENCE)
            assert not self._reader.is_alive()
        for fd in (self._in, self._out):
            os.close(fd)


def assert_whole(log: Path, stops: list[float]) -> None:
    """All numbers and then how many; but for what containerd had read when it was stopped.

    That is lost with it, below any shim: it doesn't write down what it has taken out of a pipe.
    """
    before, at = -1, ""
    for line in log.read_text().splitlines():
        stamp, _, _, content = line.split(" ", 3)
        if content.startswith("last "):
            assert int(content.removeprefix("last ")) == before + 1
            return
        number = int(content)
        if number != before + 1:
            here, then = (datetime.fromisoformat(each).timestamp() for each in (at, stamp))
            assert before < number and any(here - 1 <= stop <= then + 1 for stop in stops), line
        before, at = number, stamp
    raise AssertionError("it has no end")


#: It says what it reads, and its end is the test's word.
_SAYS = "stty -echo; echo ready; while read x; do echo got $x; [ $x = end ] && exit 9; done"


@contextlib.contextmanager
def tapped(pods: PodNode) -> Iterator[EventTap]:
    """What the shims of `counted` pods tell containerd."""
    script = pods.daemon.folder / "bin" / "containerd-shim-counted-v2"
    text = script.read_text()
    path = pods.daemon.folder / "tap"
    script.write_text(text.replace("\nexec ", f"\nexport TTRPC_ADDRESS={path}\nexec ", 1))
    try:
        with EventTap(path, Path(f"{pods.daemon.address}.ttrpc")) as tap:
            yield tap
    finally:
        script.write_text(text)


def test_again_and_again_with_and_without_containerd(pods: PodNode, tmp_path: Path) -> None:
    """No byte, event or exit is lost, and none comes twice.

    Two members write without a pause, one comes and goes, one serves connections of which one is
    there all the time; a terminal, calls that wait.
    """
    with tapped(pods) as tap, contextlib.ExitStack() as stack:
        pod = pods.pod(variant="counted")
        counting = [pod.start("sh", "-c", COUNTS, name=name) for name in ("one", "two")]
        server = pod.start("sh", "-c", SERVER, name="server")
        pod.wait_log(server, "ready")
        shim = address(pods.daemon, pod.id)
        client = stack.enter_context(Client(footprint.socket_of(pods.daemon, pod.id)))
        other = stack.enter_context(Client(footprint.socket_of(pods.daemon, pod.id)))
        pid, sentry = pod.shim, pod.sentry()
        listens = ("netstat", "-tln")
        until(lambda: ":7002 " in pods.exec(server, *listens).out, 20, "the server listens")
        waits = [client.call_later("Wait", 3600, id=each) for each in counting]
        connection = stack.enter_context(dial(pod, "127.0.0.1", 7002))
        terminal = Exec(client, server, tmp_path, "terminal", _SAYS, terminal=True)
        terminal.read("ready")
        counter = Exec(client, server, tmp_path, "counter", COUNTS)
        counter.read_all()
        pulse = Pulse(other, server)
        pauses = []
        gone: list[str] = []
        stops: list[float] = []
        for each in range(MORE):
            if each % 10 == 2:
                pods.close()
                stops.append(time.time())
                pods.daemon.stop()
                stops.append(time.time())
            terminal.type(f"before{each}.\n")
            connection.sendall(b"before %d" % each)
            pulse.longest()
            assert upgrade(shim) == ""
            pulse.beat()
            pauses.append(pulse.longest())
            assert connection.recv(1000) == b"before %d" % each
            terminal.read(f"got before{each}.")
            terminal.type(f"after{each}.\n")
            terminal.read(f"got after{each}.")
            if each % 10 in (2, 3, 4):
                # Events that wait for containerd, and are handed over once more.
                named = {"id": server, "exec_id": f"away{each}"}
                client.call("Exec", spec=process(f"exit {each}"), **named)
                client.call("Start", **named)
                assert client.call("Wait", 60, **named).exit_status == each
                client.call("Delete", **named)
                if each % 10 == 4 or each == MORE - 1:
                    pods.revive()
            elif each % 3 == 0:
                member = pod.start("sh", "-c", f"exit {each}", name="again", attempt=each)
                gone.append(member)
                assert upgrade(shim) == ""
                assert pods.wait_exited(member, 60).exit_code == each
                pods.delete(member)
            else:
                with pods.exec_stream(server, "cat", tty=True) as stream:
                    stream.write("word\n")
                    assert upgrade(shim) == ""
                    stream.expect("word")
                    stream.expect("word")
                assert pods.exec(server, "sh", "-c", f"exit {each}").code == each
        assert (pod.shim, pod.sentry()) == (pid, sentry)
        assert int(str(upgrades(shim)["taken"])) >= MORE
        pulse.stop()
        terminal.type("end\n")
        assert terminal.wait().exit_status == 9
        terminal.close()
        for member, wait in zip(counting, waits, strict=True):
            pods.exec(member, "touch", "/stop")
            assert wait().exit_status == pods.wait_exited(member, 60).exit_code == 7
            assert_whole(Path(pods.status(member).log_path), stops)
        pods.exec(server, "touch", "/stop")
        assert counter.wait().exit_status == 7
        counter.close()
        lines = counter.seen.decode().splitlines()
        assert lines == [*(str(n) for n in range(len(lines) - 1)), f"last {len(lines) - 1}"]
        pod.remove()
        until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the shim has ended")
        assert_told_once(tap.taken(), pod.id, [*counting, server, *gone])
        pauses.sort()
        print(
            f"{len(pauses)} upgrades: pause median {pauses[len(pauses) // 2]:.3f} s,"
            f" at most {pauses[-1]:.3f} s; load {os.getloadavg()[0]:.1f};"
            f" events {len(tap.taken())}; lines of an exec {len(lines)}"
        )


def assert_told_once(told: list[tuple[str, Msg]], pod: str, members: list[str]) -> None:
    """Each process's events, all of them, once and in order."""
    by_process: dict[tuple[str, str], list[str]] = {}
    for topic, event in told:
        process = getattr(event, "exec_id", "") or getattr(event, "id", "") or event.container_id
        by_process.setdefault((event.container_id, process), []).append(topic)
    for (container, process), topics in by_process.items():
        if process == container:
            assert topics == ["create", "start", "exit", "delete"], (container, topics)
        else:
            assert topics == ["exec-added", "exec-started", "exit"], (process, topics)
    assert {container for container, _ in by_process} == {pod, *members}
