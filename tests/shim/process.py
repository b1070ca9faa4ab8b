"""Runs the shim's command line in a real child process, with a small daemon in place of ours.

The daemon writes down what it was told and serves its socket until it is asked to quit.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_PROGRAM = """
import sys
sys.path[:0] = [{repository!r}, {packages!r}]
daemon = type(sys)("shim.daemon")
exec({daemon!r}, daemon.__dict__)
sys.modules["shim.daemon"] = daemon
from shim.base import options, sockets
sockets.DEFAULT_DIR = {sockets!r}
options.GLOBAL_FILES = {files!r}
options.DEFAULT_ROOT = {root!r}
{extra}
from shim.__main__ import run
run()
"""

_DAEMON = """
def main(args):
    import _signal, _socket, os, sys
    _signal.alarm(20)
    seen = {name: getattr(args, name) for name in args._fields}
    seen["modules"] = sorted(sys.modules)
    seen["fds"] = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            seen["fds"][fd] = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            pass  # that of the listing itself
    seen["cwd"], seen["sid"], seen["pid"] = os.getcwd(), os.getsid(0), os.getpid()
    seen["environment"] = sorted(os.environ)
    seen["comm"] = open("/proc/self/comm").read().strip()
    seen["blocked"] = sorted(_signal.pthread_sigmask(_signal.SIG_BLOCK, ()))
    seen["pending"] = sorted(_signal.sigpending())
    seen["ignored"] = [n for n in range(1, 32) if _signal.getsignal(n) == _signal.SIG_IGN]
    import json
    with open("daemon.tmp", "w") as file:
        json.dump(seen, file, default=lambda value: value.decode("latin-1"))
    os.rename("daemon.tmp", "daemon.json")
    listener = _socket.socket(fileno=args.listener_fd)
    while True:
        fd, _ = listener._accept()
        message = os.read(fd, 1)
        if message == b"q":
            os.unlink(args.socket_address[7:])
            return 0
        os.write(fd, b".") if message else None
        os.close(fd)
"""

CRASHING_DAEMON = """
def main(args):
    raise RuntimeError("no such luck")
"""


class Shim:
    """One containerd's view: a socket directory, and command lines run in bundles."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # A test's own directory is too long for the path of a socket.
        self.sockets = Path(tempfile.mkdtemp(prefix="shim-"))
        self.root = directory / "root"
        self.daemon = _DAEMON
        self.files: tuple[str, ...] = ()
        self.extra = ""
        self.environment: dict[str, str] = {}
        self.started: set[str] = set()

    def bundle(self, name: str, spec: object = None) -> Path:
        path = self.directory / name
        (path / "rootfs").mkdir(parents=True, exist_ok=True)
        if spec is not None:
            (path / "config.json").write_text(json.dumps(spec))
        return path

    def run(
        self, arguments: list[str], bundle: Path, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        program = _PROGRAM.format(
            repository=str(REPOSITORY),
            packages=sysconfig.get_path("platlib"),
            daemon=self.daemon,
            sockets=str(self.sockets),
            files=self.files,
            root=str(self.root),
            extra=self.extra,
        )
        environment = {**os.environ, "TTRPC_ADDRESS": "/run/x.sock.ttrpc", **self.environment}
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, *arguments],
            cwd=bundle,
            env=environment,
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            capture_output=True,
            timeout=20,
        )
        address = bundle / "address"
        if address.exists():
            self.started.add(address.read_text())
        return result

    def start(
        self, container_id: str, bundle: Path, stdin: bytes | None = None, *flags: str
    ) -> subprocess.CompletedProcess[bytes]:
        return self.run([*self.flags(container_id), *flags, "start"], bundle, stdin)

    def delete(self, container_id: str, bundle: Path) -> subprocess.CompletedProcess[bytes]:
        arguments = [*self.flags(container_id), "-bundle", str(bundle), "delete"]
        return self.run(arguments, bundle)

    def flags(self, container_id: str) -> list[str]:
        return ["-namespace", "ns", "-address", "/run/x.sock", "-id", container_id]

    def close(self) -> None:
        for address in self.started:
            quit_daemon(address)
        shutil.rmtree(self.sockets)


def ask(address: str, message: bytes) -> bytes:
    """What the daemon at ``address`` answers; returns once it has closed the connection."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(address.removeprefix("unix://"))
        peer.sendall(message)
        return peer.recv(1)


def quit_daemon(address: str) -> None:
    try:
        ask(address, b"q")
    except OSError:
        pass  # none there, or gone already


def what_daemon_saw(bundle: Path) -> dict[str, object]:
    """The daemon's notes; it has made them once it answers."""
    assert ask((bundle / "address").read_text(), b"?") == b"."
    seen = json.loads((bundle / "daemon.json").read_text())
    assert isinstance(seen, dict)
    return seen
