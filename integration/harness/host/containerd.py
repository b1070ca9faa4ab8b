"""A private containerd: own root, state, sockets and log; the system's own is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.host.bare_root import BareRoot
from integration.harness.host.image import Image

_CONFIG = """\
version = {config_version}
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]
{imports}
[debug]
  level = "{level}"
"""
_SERVERS = """\
[grpc]
  address = "{address}"
[ttrpc]
  address = "{address}.ttrpc"
"""
_SERVERS_4 = """\
[plugins."io.containerd.server.v1.grpc"]
  address = "{address}"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "{address}.ttrpc"
"""
_CRI = {
    2: ("io.containerd.grpc.v1.cri",),
    3: ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
}
_NEEDLESS = ("io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.erofs")


#: The switch of the shim's fork server, which the tests' own environment may set for all.
FORK_SERVER = "GVISOR_SHIM_FORK_SERVER"
#: Has every daemon, with its shims, see a file system with busybox and glibc alone.
BARE_ROOT = "GVISOR_SHIM_BARE_ROOT"
_KEPT = ("LANG", "LC_ALL", "HOME", "TMPDIR", FORK_SERVER)


def _wanted_root(folder: Path) -> BareRoot | None:
    """A root for each daemon, where the tests' environment wants that."""
    return BareRoot(folder / "bare", [peers.PEERS]) if os.environ.get(BARE_ROOT) else None


class Containerd:
    """One containerd of `version`, with runc and one generation of runsc on its PATH.

    `folder` has to be short (the sockets lie in it); it is made by `start` and outlives `stop`,
    so that a restart finds all state again.  `remove` takes it away.
    """

    def __init__(
        self,
        version: str,
        generation: str,
        folder: Path,
        namespace: str,
        *,
        cri: str = "",
        imports: str = "",
        path_first: Path | None = None,
        level: str = "debug",
        bare_root: BareRoot | None = None,
    ) -> None:
        """`bare_root` is a root file system for the daemon and all that it starts."""
        self.level = level
        self._bare_root = bare_root or _wanted_root(folder)
        self.version, self.generation, self.folder = version, generation, folder
        self.namespace = namespace
        self.bin = peers.containerd_bin(version)
        self.release = peers.daemon_generation(version)
        self.address = folder / "c.sock"
        self.root, self.state, self.log = folder / "root", folder / "state", folder / "log"
        self.fifos = folder / "fifo"
        #: Whether shims are forked by a fork server, unless the tests' environment says so.
        self.fork_server = True
        #: Further variables of its environment.
        self.variables: dict[str, str] = {}
        self.image: Image | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._cri, self._imports = cri, imports
        self._path_first = path_first
        self._prepared = False

    def become(self, version: str, cri: str) -> None:
        """Be another release from the next start on, with that configuration of CRI."""
        self.version, self.bin = version, peers.containerd_bin(version)
        self.release = peers.daemon_generation(version)
        self._cri, self._prepared = cri, False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def bundle(self, container: str) -> Path:
        return self.state / "io.containerd.runtime.v2.task" / self.namespace / container

    def start(self, timeout: float = 20) -> None:
        """Start the daemon and wait until it answers."""
        self._prepare()
        with self.log.open("ab") as log:
            command = [str(self.bin / "containerd"), "--config", str(self.folder / "config.toml")]
            self.process = subprocess.Popen(
                self._bare_root.command(*command) if self._bare_root else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd="/",
                start_new_session=True,
            )
        until(self._answers, timeout, f"containerd {self.version} answers, see {self.log}")

    def stop(self) -> None:
        """Ask the daemon to end; containers keep running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop and delete everything of this daemon that is on disk."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        for runtime in ("runc", "runsc"):
            with suppress(OSError):  # it isn't there, or there is something in it that tests report
                Path("/run/containerd", runtime, self.namespace).rmdir()

    def import_image(self) -> Image:
        if self.image is None:
            self.image = Image(self.folder / "image.tar")
            command = ["images", "import", str(self.image.path)]
            subprocess.run(self.ctr_command(*command), capture_output=True, timeout=60, check=True)
        return self.image

    def ctr_command(self, *arguments: str) -> list[str]:
        return [
            str(self.bin / "ctr"),
            "--address",
            str(self.address),
            "--namespace",
            self.namespace,
            *arguments,
        ]

    def environment(self) -> dict[str, str]:
        """What the daemon, and through it the shim, finds in its environment."""
        keep = {k: v for k, v in os.environ.items() if k in _KEPT}
        folders = [self.folder / "bin", peers.shim_bin(), self.bin, peers.runc_bin()]
        if self._path_first is not None:
            folders.insert(0, self._path_first)
        path = ":".join([*map(str, folders), "/usr/sbin:/usr/bin:/sbin:/bin"])
        if not self.fork_server:
            keep.setdefault(FORK_SERVER, "off")
        return {**keep, **self.variables, "PATH": path}

    def log_tail(self, lines: int = 60) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _prepare(self) -> None:
        if self._prepared:
            return
        for part in (self.folder, self.folder / "bin", self.fifos):
            part.mkdir(parents=True, exist_ok=True)
        if self._bare_root is not None:
            self._bare_root.make()
        runsc = self.folder / "bin" / "runsc"
        if self.generation and not runsc.is_symlink():
            runsc.symlink_to(peers.runsc(self.generation))
        config_version = 4 if self.release >= (2, 3) else 3 if self.release >= (2, 0) else 2
        disabled = () if self._cri else _CRI[min(config_version, 3)]
        if config_version >= 3:
            disabled += _NEEDLESS
        elif self.release >= (1, 7):
            disabled += _NEEDLESS[:1]
        text = (_CONFIG + (_SERVERS_4 if config_version >= 4 else _SERVERS)).format(
            level=self.level,
            config_version=config_version,
            root=self.root,
            state=self.state,
            address=self.address,
            disabled=", ".join(f'"{name}"' for name in disabled),
            imports=f'imports = ["{self._imports}"]' if self._imports else "",
        )
        (self.folder / "config.toml").write_text(text + self._cri)
        self._prepared = True

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"containerd {self.version} ended:\n{self.log_tail(20)}")
        if not self.address.exists():
            return False
        done = subprocess.run(self.ctr_command("version"), capture_output=True, timeout=10)
        return done.returncode == 0

    def _end(self, signo: int) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signo)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)
        from integration.harness.host import footprint

        pid = self.process.pid
        self.process = None
        until(lambda: not footprint.fork_servers(pid), 10, f"fork server of {pid} ended with it")
