"""One containerd with one runtime: what a test works with."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from integration.harness.base.done import Done
from integration.harness.base.terminal import Terminal
from integration.harness.base.waiting import until
from integration.harness.clients.api import TASK_SERVICES
from integration.harness.clients.daemon_api import Api
from integration.harness.clients.ttrpc import Client
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.host.image import IMAGE


class Node:
    """A daemon, a runtime, and the containers that a test makes with them."""

    def __init__(self, daemon: Containerd, runtime: str, prefix: str = "c") -> None:
        self.daemon, self.runtime, self._prefix = daemon, runtime, prefix
        self.ids: list[str] = []
        self._numbers = itertools.count(1)
        self._api: Api | None = None
        self._flaws: tuple[str, ...] = ()
        self._background: list[subprocess.Popen[bytes]] = []

    def excuse_reference(self, *kinds: str) -> None:
        """In this test, the reference runtime may leave things of these kinds behind."""
        if not self.gvisor:
            self.excuse(*kinds)

    def excuse(self, *kinds: str) -> None:
        """In this test, any runtime may leave things of these kinds behind; they are taken away."""
        self._flaws += kinds

    @property
    def gvisor(self) -> bool:
        """Whether containers run in gVisor (the reference runtime's do not)."""
        return "runc" not in Path(self.runtime).name.split(".")[-2:][0]

    @property
    def api(self) -> Api:
        if self._api is None:
            self._api = Api(self.daemon)
        return self._api

    def new_id(self) -> str:
        """An id that no other container of this node had."""
        self.ids.append(f"{self._prefix}{next(self._numbers)}")
        return self.ids[-1]

    def known(self, container: str) -> str:
        """Have an id that a test chose looked after like those of `new_id`."""
        self.ids.append(container)
        return container

    # ctr

    def ctr(self, *arguments: str, input: bytes | None = None, timeout: float = 30) -> Done:
        """Run ctr to its end."""
        done = subprocess.run(
            self.daemon.ctr_command(*arguments),
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout,
        )
        # Since 2.2 it shows the daemon's warnings first, as of cgroup v1; they are no container's.
        lines = done.stderr.decode().splitlines(keepends=True)
        errors = "".join(line for line in lines if 'msg="DEPRECATION: ' not in line)
        return Done(done.returncode, done.stdout.decode(), errors)

    def ctr_process(
        self, *arguments: str, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """A ctr that goes on in the background, its output in pipes; `clean` ends it."""
        process = subprocess.Popen(
            self.daemon.ctr_command(*arguments),
            bufsize=0,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._background.append(process)
        return process

    def run_command(
        self, container: str, command: Sequence[str], options: Sequence[str] = (), io: bool = True
    ) -> list[str]:
        fifo = ["--fifo-dir", str(self.daemon.fifos)] if io else []
        return [
            *("run", "--runtime", self.runtime),
            *fifo,
            *options,
            *(IMAGE, container),
            *command,
        ]

    def run(
        self,
        *command: str,
        options: Sequence[str] = (),
        container: str | None = None,
        input: bytes | None = None,
        timeout: float = 30,
    ) -> Done:
        """`ctr run --rm` of the test image."""
        name = container or self.new_id()
        line = self.run_command(name, command, ["--rm", *options])
        return self.ctr(*line, input=input, timeout=timeout)

    def run_detached(
        self, *command: str, options: Sequence[str] = (), container: str | None = None
    ) -> str:
        """`ctr run -d`, with its output to nowhere; returns the id of the running container."""
        name = container or self.new_id()
        io = () if "--log-uri" in options else ("--null-io",)
        line = self.run_command(name, command, ["-d", *io, *options])
        done = self.ctr(*line)
        assert done.code == 0, done
        return name

    def run_in_background(
        self, *command: str, options: Sequence[str] = (), stdin: int = subprocess.DEVNULL
    ) -> tuple[str, subprocess.Popen[bytes]]:
        """`ctr run` as a process of its own, its output in pipes, once the task is running."""
        name = self.new_id()
        process = self.ctr_process(*self.run_command(name, command, options), stdin=stdin)
        until(
            lambda: process.poll() is not None or self.status(name) in ("RUNNING", "STOPPED"),
            15,
            f"task {name} started",
        )
        return name, process

    def run_terminal(self, *command: str, options: Sequence[str] = ()) -> tuple[str, Terminal]:
        name = self.new_id()
        line = self.run_command(name, command, ["--rm", "-t", *options])
        return name, Terminal(self.daemon.ctr_command(*line))

    def exec_command(
        self, container: str, exec_id: str, command: Sequence[str], options: Sequence[str] = ()
    ) -> list[str]:
        return [
            *("tasks", "exec", "--exec-id", exec_id, "--fifo-dir", str(self.daemon.fifos)),
            *options,
            container,
            *command,
        ]

    def exec(
        self,
        container: str,
        *command: str,
        options: Sequence[str] = (),
        input: bytes | None = None,
        timeout: float = 20,
    ) -> Done:
        """`ctr task exec`."""
        name = f"e{next(self._numbers)}"
        line = self.exec_command(container, name, command, options)
        return self.ctr(*line, input=input, timeout=timeout)

    def exec_terminal(self, container: str, *command: str) -> Terminal:
        name = f"e{next(self._numbers)}"
        return Terminal(
            self.daemon.ctr_command(*self.exec_command(container, name, command, ["-t"]))
        )

    def status(self, container: str) -> str:
        """The state of a task, as `ctr task ls` names it; empty when there is none."""
        return self._table(container)[1]

    def pid(self, container: str) -> int:
        return int(self._table(container)[0] or 0)

    def _table(self, container: str) -> tuple[str, str]:
        done = self.ctr("tasks", "ls")
        assert done.code == 0, done
        for line in done.out.splitlines()[1:]:
            words = line.split()
            if words and words[0] == container:
                return words[1], words[2]
        return "", ""

    def kill(self, container: str, signal_name: str, *options: str) -> Done:
        return self.ctr("tasks", "kill", "-s", signal_name, *options, container)

    def metrics(self, container: str) -> dict[str, Any]:
        done = self.ctr("tasks", "metrics", "--format", "json", container)
        assert done.code == 0, done
        found: dict[str, Any] = json.loads(done.out)
        return found

    def delete(self, container: str) -> None:
        """`ctr task delete -f`, then the container and its snapshot."""
        self.ctr("tasks", "delete", "-f", container)
        done = self.ctr("containers", "delete", container)
        assert done.code == 0, done

    def wait_stopped(self, container: str, timeout: float = 10) -> None:
        until(lambda: self.status(container) == "STOPPED", timeout, f"{container} stopped")

    # Processes

    def shim(self, container: str) -> Client:
        """A connection of our own to a container's shim."""
        service = TASK_SERVICES[not self.gvisor and self.daemon.release >= (2, 0)]
        return Client(footprint.socket_of(self.daemon, container), service)

    def shim_pid(self, container: str) -> int:
        with self.shim(container) as shim:
            return int(shim.call("Connect", id=container).shim_pid)

    def descendants(self, pid: int) -> list[int]:
        return footprint.descendants(pid)

    # Cleaning up

    def clean(self) -> None:
        """Remove every task, container and snapshot of the namespace."""
        if not self.daemon.alive:
            self.close()
            self.daemon.start()
        deadline = time.monotonic() + 15  # a task that is being created cannot be deleted yet
        while tasks := self.api.task("List").tasks:
            for task in tasks:
                self.ctr("tasks", "delete", "-f", task.id)
            if time.monotonic() > deadline:
                break  # `assert_clean` will say what is left
        for record in self.api.call("containerd.services.containers.v1.Containers/List").containers:
            self.api.unmake(record.id)
        for process in self._background:
            process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        self._background.clear()
        for left in self.daemon.fifos.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    def assert_clean(self, timeout: float = 8) -> None:
        """Nothing of any container is left on the machine; AssertionError tells what is."""
        seen: list[str] = []

        def nothing() -> bool:
            found = footprint.of(self.daemon, self.ids)
            seen[:] = [line for line in found if not line.startswith(self._flaws)]
            return not seen

        try:
            until(nothing, timeout, "nothing is left")
        except AssertionError:
            footprint.purge(self.daemon, self.ids)
            raise AssertionError("left behind:\n  " + "\n  ".join(seen)) from None
        if self._flaws:
            footprint.purge(self.daemon, self.ids)
            self._flaws = ()
        self.ids.clear()

    def remove_cgroups(self, *names: str) -> None:
        """Remove empty cgroups that a test had made directly below the namespace's."""
        for name in names:
            footprint.remove_cgroups(self.daemon, name)

    def close(self) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None

    def __repr__(self) -> str:
        return f"Node({self.runtime}, containerd {self.daemon.version}, {self.daemon.generation})"
