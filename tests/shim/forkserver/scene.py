"""A launcher of its own, a folder for servers, and the calls that a containerd makes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protos import bootstrap_pb2
from runtime.host import forkservers
from tests.shim.launchers import NAME, compile_launcher, install

ON = {"GVISOR_SHIM_FORK_SERVER": "on"}
#: This process is containerd to the shims that it starts itself.
US = os.readlink("/proc/self/exe")
PREPARED = Path(__file__).with_name("prepared.py")


def until(found: Callable[[], Any], what: str, timeout: float = 30) -> Any:
    """The first truth of ``found``."""
    deadline = time.monotonic() + timeout
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Scene:
    """Everything of it is gone after ``close``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # A test's own directory is too long for the path of a socket.
        self.short = Path(tempfile.mkdtemp(prefix="fs-"))
        self.servers = self.short / "f"
        self.site = install(directory / "prefix")
        self.launcher = self.compile(NAME, "one")
        self.daemons: list[int] = []

    def compile(self, name: str, build: str) -> Path:
        """A launcher of another build of the same installation."""
        return compile_launcher(
            self.directory / name / NAME,
            INSTALLED=str(self.site),
            INTERPRETER=sys.executable,
            BUILD=build,
            SERVERS=str(self.servers),
        )

    def command(
        self, action: str, name: str, binary: str = US, launcher: Path | None = None
    ) -> tuple[list[str], Path]:
        """The command line, and the bundle to run it in."""
        bundle = self.directory / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text('{"annotations": {}}')
        words = [str(launcher or self.launcher), "-namespace", "ns", "-address", "/x/c.sock"]
        return [*words, "-publish-binary", binary, "-id", name, action], bundle

    def stdin(self, name: str, options: bytes = b"") -> bytes:
        params = bootstrap_pb2.BootstrapParams(
            instance_id=name, namespace="ns", socket_dir=str(self.short / "s")
        )
        if options:
            extension = params.extensions.add()
            extension.value.type_url = "runtimeoptions.v1.Options"
            extension.value.value = b"\x1a" + bytes([len(options)]) + options
        return bytes(params.SerializeToString())

    def run(
        self,
        action: str,
        name: str,
        *,
        binary: str = US,
        launcher: Path | None = None,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        prepare: str = "",
    ) -> subprocess.CompletedProcess[bytes]:
        """What containerd runs, in a process that ``prepare`` of prepared.py has changed before."""
        words, bundle = self.command(action, name, binary, launcher)
        if prepare:
            # No fork of this process may run Python: threads of other tests' gRPC go on in it, and
            # write to its stderr or abort it.
            words = [sys.executable, "-I", str(PREPARED), prepare, *words]
        done = subprocess.run(
            words,
            cwd=bundle,
            input=self.stdin(name) if stdin is None else stdin,
            env={**ON, "PATH": os.environ["PATH"], "WHAT": "a value", **(environment or {})},
            capture_output=True,
            timeout=60,
        )
        if action == "start" and not done.returncode:
            self.daemons.append(self.daemon(name))
        return done

    def daemon(self, name: str) -> int:
        return int((self.directory / name / "shim.pid").read_text())

    def start(self, name: str, **options: Any) -> int:
        """Start a shim; its pid."""
        done = self.run("start", name, **options)
        assert (done.returncode, done.stderr) == (0, b""), done
        return self.daemon(name)

    def server(self) -> forkservers.ForkServerInfo:
        """The one server, once it answers."""
        return until(lambda: forkservers.every(str(self.servers)), "a server")[0]

    def next_server(
        self, ended: forkservers.ForkServerInfo, prepare: str
    ) -> forkservers.ForkServerInfo:
        """The one after ``ended``, which ends.

        The start that it couldn't serve leaves none if it found that one's lock still; the next
        start does.
        """
        until(lambda: not alive(ended.pid), "its end")
        if not os.path.exists(ended.socket + ".lock"):
            self.start(f"after-{ended.pid}", prepare=prepare)
        return self.server()

    def none(self) -> bool:
        """Whether there is no server, and none on its way."""
        return not self.servers.exists() or not os.listdir(self.servers)

    def _ended(self) -> bool:
        """Have all servers end, also one that is only about to listen."""
        for path in forkservers.sockets(str(self.servers)):
            try:
                forkservers.end(path)
            except OSError:
                continue
        return self.none()

    def close(self) -> None:
        for pid in self.daemons:
            kill(pid, signal.SIGKILL)
        until(self._ended, "the server's end")
        shutil.rmtree(self.short)


def kill(pid: int, signo: int) -> None:
    try:
        os.kill(pid, signo)
    except ProcessLookupError:
        pass


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def dump(value: object) -> str:
    return json.dumps(value, indent=1, default=str)
