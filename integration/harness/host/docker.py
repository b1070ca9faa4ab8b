"""A private dockerd on a private containerd: own data, sockets, cgroup and network namespace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from integration.harness.base import peers
from integration.harness.base.done import Done
from integration.harness.base.linux import unmount
from integration.harness.base.waiting import until
from integration.harness.host.containerd import FORK_SERVER, Containerd
from integration.harness.host.image import unpack_rootfs

IMAGE = "busybox-test"
_TOOLS = peers.PEERS / "docker-tools"
_LIBRARIES = f"{_TOOLS}/usr/lib/x86_64-linux-gnu:{_TOOLS}/lib/x86_64-linux-gnu"
#: dockerd's tools need libraries that gvctl must not be given.
_GVCTL = """\
#!/bin/sh
unset LD_LIBRARY_PATH
exec '{gvctl}' "$@"
"""
_BUILD = """\
#!/bin/sh
exec '{gvctl}' --flag overlay2=none "$@"
"""
RELEASES = ("20.10", "28")


def tree(release: str) -> Path:
    """The unpacked packages of one release."""
    return peers.PEERS / f"docker-{release}"


class Docker:
    """One dockerd of `release` with the shim as a runtime, in a network namespace of its own.

    What it does to the firewall and to bridges stays in there.  `folder` holds all its files and
    has to be short.  Containers run in gVisor with any of its own runtimes: `gvisor`, `plain`
    (without overlay) and `host-net` (the network stack of the host).  20.10 knows runtimes by the
    path of a runc only, so that there they are gvctl.  Images are built without overlay.
    """

    def __init__(self, release: str, daemon: Containerd, folder: Path) -> None:
        self.release, self.daemon, self.folder = release, daemon, folder
        self.socket, self.log = folder / "d.sock", folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._bin = folder / "bin"
        self.ids: set[str] = set()

    def start(self, timeout: float = 40, **settings: object) -> None:
        """Start the daemon with more settings in its daemon.json, and wait until it answers."""
        self._prepare(settings)
        path = f"{self._bin}:{tree(self.release)}/usr/sbin:{self.daemon.environment()['PATH']}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(["unshare", "--net"] if not self._net.exists() else self._enter()),
                    str(tree(self.release) / "usr/sbin/dockerd"),
                    *("--config-file", str(self.folder / "daemon.json")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "HOME": str(self.folder),
                    "PATH": path,
                    **{k: v for k, v in os.environ.items() if k == FORK_SERVER},
                    "LD_LIBRARY_PATH": _LIBRARIES,
                    "XTABLES_LIBDIR": f"{_TOOLS}/usr/lib/x86_64-linux-gnu/xtables",
                    # What BuildKit inside of dockerd runs its steps with.
                    "DOCKER_BUILDKIT_RUNC_COMMAND": str(self._bin / "build-runtime"),
                },
                cwd="/",
                start_new_session=True,
            )
        until(self._answers, timeout, f"dockerd {self.release} answers, see {self.log}")
        if not self._net.exists():
            self._net.touch()
            namespace = f"/proc/{self.process.pid}/ns/net"
            subprocess.run(["mount", "--bind", namespace, self._net], check=True)
            self.inside("ip", "link", "set", "lo", "up")

    def stop(self, signo: int = signal.SIGTERM) -> None:
        """Have the daemon end; containers go on where it was told `live-restore`."""
        if self.process is not None:
            self.process.send_signal(signo)
            self.process.wait(40)
            self.process = None

    def remove(self) -> None:
        """Remove containers and the daemon with all that it has on disk."""
        if self.process is not None:
            for name in self("ps", "-aq").out.split():
                self("rm", "-f", "-v", name)
            self.stop()
        if self._net.exists():
            unmount(str(self._net))
        with open("/proc/self/mountinfo") as lines:
            inside = [line.split()[4] for line in lines if f" {self.folder}/" in line]
        for target in reversed(inside):
            unmount(target)
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words: str) -> list[str]:
        return [str(tree(self.release) / "usr/bin/docker"), "-H", f"unix://{self.socket}", *words]

    def __call__(self, *words: str, input: str = "", timeout: float = 60) -> Done:
        done = subprocess.run(
            self.command(*words),
            input=input,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "DOCKER_CONFIG": str(self.folder / "client"),
                # That of 20.10 can be told no other program than runc.
                "DOCKER_BUILDKIT": "0" if self.release == "20.10" else "1",
            },
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, input: str = "") -> str:
        """What a command prints that has to succeed."""
        done = self(*words, input=input)
        assert done.code == 0, (words, done, self.log_tail())
        return done.out.strip()

    def run(self, *words: str, options: Sequence[str] = ("--rm",), input: str = "") -> Done:
        return self("run", *options, IMAGE, *words, input=input)

    def detached(self, name: str, *words: str, options: Sequence[str] = ()) -> str:
        """`docker run -d`; returns the id."""
        self.ids.add(found := self.ok("run", "-d", "--name", name, *options, IMAGE, *words))
        return found

    def field(self, name: str, path: str) -> str:
        return self.ok("inspect", "--format", "{{" + path + "}}", name)

    def inside(self, *command: str) -> str:
        """Run a command of the host in the daemon's network namespace."""
        done = subprocess.run(
            [*self._enter(), *command], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout

    def import_image(self) -> None:
        rootfs, archive = self.folder / "image", self.folder / "image.tar"
        rootfs.mkdir()
        unpack_rootfs(rootfs)
        with tarfile.open(archive, "w") as out:
            out.add(rootfs, ".")
        self.ok("import", "--change", "ENV PATH=/bin", str(archive), IMAGE)

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _net(self) -> Path:
        return self.folder / "net"

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net={self._net}"]

    def _prepare(self, settings: dict[str, object]) -> None:
        self._bin.mkdir(parents=True, exist_ok=True)
        plugins = self.folder / "client/cli-plugins"
        buildx = tree(self.release) / "usr/libexec/docker/cli-plugins/docker-buildx"
        if buildx.exists() and not plugins.exists():
            plugins.mkdir(parents=True)
            (plugins / "docker-buildx").symlink_to(buildx)
        for tool in ("iptables", "ip6tables"):
            link = self._bin / tool
            if not link.is_symlink():
                link.symlink_to(_TOOLS / "usr/sbin/xtables-nft-multi")
        gvctl = self._bin / "gvctl"
        gvctl.write_text(_GVCTL.format(gvctl=peers.shim_bin() / "gvctl"))
        build = self._bin / "build-runtime"
        build.write_text(_BUILD.format(gvctl=gvctl))
        for script in (gvctl, build):
            script.chmod(0o755)
        runtimes = {
            "gvisor": self._runtime(gvctl),
            "plain": self._runtime(gvctl, overlay2="none"),
            "host-net": self._runtime(gvctl, network="host"),
        }
        text = {
            "hosts": [f"unix://{self.socket}"],
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "run"),
            "pidfile": str(self.folder / "pid"),
            "containerd": str(self.daemon.address),
            "containerd-namespace": self.daemon.namespace,
            "containerd-plugins-namespace": f"{self.daemon.namespace}-plugins",
            "cgroup-parent": f"/{self.daemon.namespace}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "init-path": str(_TOOLS / "usr/bin/tini-static"),
            "userland-proxy-path": str(tree(self.release) / "usr/sbin/docker-proxy"),
            "runtimes": runtimes,
            "default-runtime": "gvisor",
            "shutdown-timeout": 5,
            **settings,
        }
        (self.folder / "daemon.json").write_text(json.dumps(text))

    def _runtime(self, gvctl: Path, **flags: str) -> dict[str, object]:
        if self.release == "20.10":
            words = [word for name in flags for word in ("--flag", f"{name}={flags[name]}")]
            return {"path": str(gvctl), "runtimeArgs": words}
        if not flags:
            return {"runtimeType": peers.GVISOR}
        options = self.folder / f"{'-'.join(flags)}.toml"
        lines = [f'{name} = "{value}"' for name, value in flags.items()]
        options.write_text("\n".join(["[runsc_config]", *lines, ""]))
        given = {"TypeUrl": f"{peers.GVISOR}.options", "ConfigPath": str(options)}
        return {"runtimeType": peers.GVISOR, "options": given}

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"dockerd {self.release} ended:\n{self.log_tail()}")
        return self.socket.exists() and self("version").code == 0
