"""Sandboxes on a real runsc, without containerd: how tests make, watch and end them."""

from __future__ import annotations

import json
import os
import queue
import shutil
import time
from pathlib import Path
from typing import Any

from integration.harness.base import peers
from runtime.bundle.process_spec import ProcessSpec
from runtime.bundle.spec import load_spec
from runtime.host.reactor import Reactor
from runtime.runsc.config import RunscConfig
from runtime.runsc.driver import find_driver
from runtime.sandbox.sandbox import BootParams, ExitInfo, Sandbox

TIMEOUT = 20.0
PROC = {"destination": "/proc", "type": "proc", "source": "proc"}
DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
APPLETS = (
    "cat chmod echo env false id ip kill ls mkdir ps pwd sh sleep stty test touch true tty yes"
)


class Exit:
    """A callback for an exit, and a way to wait for it."""

    def __init__(self) -> None:
        self._queue: queue.Queue[ExitInfo] = queue.Queue()
        self.calls = 0

    def __call__(self, info: ExitInfo) -> None:
        self.calls += 1
        self._queue.put(info)

    def get(self) -> ExitInfo:
        return self._queue.get(timeout=TIMEOUT)


class Run:
    """A booted sandbox with pipes for its output."""

    def __init__(self, sandbox: Sandbox, output: int) -> None:
        self.sandbox = sandbox
        self.exit = Exit()
        self.output = output
        sandbox.on_init_exit(self.exit)

    def start(self) -> Run:
        self.sandbox.start_root(time.monotonic() + TIMEOUT)
        return self

    def read(self) -> str:
        """All that is printed until everybody has closed the pipe."""
        chunks = []
        while chunk := os.read(self.output, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()

    def line(self) -> str:
        """The next line."""
        data = b""
        while not data.endswith(b"\n"):
            chunk = os.read(self.output, 1)
            if not chunk:
                break
            data += chunk
        return data.decode().rstrip()

    def execute(self, *args: str, cid: str = "", **fields: Any) -> tuple[str, ExitInfo]:
        """Run a command to its end; its output and exit."""
        reader, writer = os.pipe()
        cid = cid or self.sandbox.id
        ended = Exit()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            spec = ProcessSpec(args=args, env=fields.pop("env", ("PATH=/bin",)), **fields)
            fds = (null, writer, writer)
            pid = self.sandbox.execute(cid, spec, fds, False, time.monotonic() + TIMEOUT)
            os.close(writer)
            writer = -1
            self.sandbox.wait_pid(cid, pid, ended)
            chunks = []
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)
            return b"".join(chunks).decode(), ended.get()
        finally:
            for fd in (reader, writer, null):
                if fd >= 0:
                    os.close(fd)


class Lab:
    """A place to make sandboxes of one generation in."""

    def __init__(self, generation: str, folder: Path, cache: Path) -> None:
        self.generation = generation
        self.binary = str(peers.runsc(generation))
        self.folder = folder
        self.cache = cache
        self.state = folder / "state"
        self.rootfs = make_rootfs(folder / "rootfs")
        self.reactor = Reactor()
        self.reactor.start()
        self._runs: list[Run] = []

    @property
    def new(self) -> bool:
        """Whether it is a release since 2024-11-18."""
        return find_driver(self.config(), str(self.cache)).generation.gofer_rpc

    @property
    def old(self) -> bool:
        return self.generation < "2023"

    def config(self, **flags: str) -> RunscConfig:
        flags = {name.replace("_", "-"): value for name, value in flags.items()}
        return RunscConfig(
            binary=self.binary, root=str(self.state), flags={"network": "none", **flags}
        )

    def bundle(self, name: str, args: list[str] | tuple[str, ...], **changes: Any) -> str:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        process = {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                kind: ["CAP_KILL", "CAP_NET_RAW"] for kind in ("bounding", "effective", "permitted")
            },
            **changes.pop("process", {}),
        }
        kinds = ("pid", "ipc", "uts", "mount", "network")
        spec = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": str(self.rootfs)},
            "mounts": [PROC, DEV],
            "linux": {"namespaces": [{"type": kind} for kind in kinds]},
            **changes,
        }
        (folder / "config.json").write_text(json.dumps(spec))
        return str(folder)

    def params(
        self, name: str, args: Any, stdio: tuple[int, int, int], **options: Any
    ) -> BootParams:
        config = options.pop("config", None) or self.config()
        tty = options.pop("tty", False)
        boot = options.pop("boot", {})
        bundle = self.bundle(options.pop("bundle", name[:50]), args, **options)
        return BootParams(
            id=name,
            bundle=bundle,
            spec=load_spec(bundle),
            config=config,
            driver=find_driver(config, str(self.cache)),
            stdio=stdio,
            tty=tty,
            **boot,
        )

    def boot(self, args: Any, name: str = "one", network: Any = None, **options: Any) -> Run:
        reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            params = self.params(name, args, (null, writer, writer), **options)
            sandbox = Sandbox.boot(
                params,
                reactor=self.reactor,
                network=network,
                deadline=time.monotonic() + TIMEOUT,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
            os.close(null)
        run = Run(sandbox, reader)
        self._runs.append(run)
        return run

    def run(self, args: Any, **options: Any) -> Run:
        return self.boot(args, **options).start()

    def outcome(self, args: Any, **options: Any) -> tuple[str, ExitInfo]:
        run = self.run(args, **options)
        text, info = run.read(), run.exit.get()
        self.finish(run)
        return text, info

    def finish(self, run: Run) -> None:
        self._runs.remove(run)
        run.sandbox.destroy(TIMEOUT)
        os.close(run.output)
        assert run.exit.get() if not run.exit.calls else run.exit.calls == 1

    def close(self) -> None:
        for run in list(self._runs):
            self.finish(run)
        self.reactor.stop()


def make_rootfs(folder: Path) -> Path:
    for name in ("bin", "dev", "etc", "proc", "tmp", "mnt"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    shutil.copy(peers.busybox(), folder / "bin" / "busybox")
    for name in APPLETS.split():
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def until(master: int, what: bytes) -> bytes:
    """Read from a terminal's master until ``what`` came."""
    data = b""
    while what not in data:
        data += os.read(master, 1024)
    return data
