"""A containerd with its CRI plugin, and pods on it, made as the kubelet makes them."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from integration.harness.base import peers
from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.clients.cri import Cri
from integration.harness.clients.daemon_api import Refused
from integration.harness.clients.gvctl import Gvctl
from integration.harness.clients.streaming import Forwarding, Stream
from integration.harness.host import footprint
from integration.harness.host.containerd import Containerd
from integration.harness.host.image import IMAGE, Image
from integration.harness.host.pod_network import PodNetwork

#: containerd's namespace for all that comes through CRI.
NAMESPACE = "k8s.io"
PAUSE_IMAGE = "localhost/gvisor-shim-test:pause"
_NOT_FOUND = 5

_CRI_1 = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
{common}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
  snapshotter = "overlayfs"
"""
_CRI_2 = """
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.cri.v1.runtime"]
{common}
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{conf}"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
"""
# Lowering a score wants a capability that containers on a test machine may lack.
_COMMON = """\
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
"""
# These ask every container for its figures every second if nothing else is said, like cAdvisor.
_COMMON_2_3 = """\
  stats_collect_period = "1h"
"""
_COMMON_1 = """\
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"""
_COUNTED = "io.containerd.counted.v2"
#: The handler whose pods have no pause container, whatever the others' have.
_SHIM = "gvisor-shim"
#: The same, and its containers' stdio are streams.
_STREAMS = "gvisor-streams"
#: In a shim's environment: its options.
_OPTIONS_FILE = "GVISOR_SHIM_OPTIONS"
#: A runtime whose shim is on nobody's PATH under the name that this gives.
_ELSEWHERE = "io.containerd.elsewhere.v2"
_RUNTIME = """\
[plugins."{plugin}".containerd.runtimes.{name}]
  runtime_type = "{kind}"
  cni_conf_dir = "{conf}"
  pod_annotations = ["dev.gvisor.*"]
"""
_OPTIONS = """\
[plugins."{plugin}".containerd.runtimes.{name}.options]
{options}
"""


class Output(NamedTuple):
    """What an exec left."""

    code: int
    out: str
    err: str


class PodNode:
    """A daemon, the runtime under test, and a network; `clean` takes all pods away again."""

    def __init__(
        self,
        folder: Path,
        version: str,
        generation: str,
        runtime: str,
        number: int,
        *,
        level: str = "debug",
        others: Mapping[str, str] | None = None,
        without_pause: bool = False,
        streams: bool = False,
    ) -> None:
        """`others` are further handlers by name, each with its runtime's name or shim's path.

        With `without_pause` the shim makes all of gVisor's pods (`sandboxer = "shim"`), with
        `streams` their containers' stdio are streams besides.
        """
        self.without_pause, self.streams = without_pause, streams
        self.network = PodNetwork(folder / "cni", number)
        self._others = others or {}
        #: Scripts that run the shim: whether calls are noted, and the name of its options' file.
        self._shims: dict[str, tuple[bool, str]] = {}
        self.runtime = runtime
        #: What stands above the cgroups of all pods, and tells their processes from others.
        self.cgroup = f"gvt{os.getpid()}-{number}"
        configuration = self._configuration(folder, version)
        self.daemon = Containerd(
            version,
            generation,
            folder,
            NAMESPACE,
            cri=configuration,
            imports=f"{folder}/conf.d/*.toml",
            level=level,
        )
        self.pods: list[Pod] = []
        self.ids: list[str] = []
        self._numbers = itertools.count(1)
        self._cri: Cri | None = None

    @property
    def _ours(self) -> Containerd:
        """The daemon under the name of its pods' cgroups, for `footprint`."""
        ours = copy.copy(self.daemon)
        ours.namespace = self.cgroup
        return ours

    @property
    def gvisor(self) -> bool:
        """Whether containers run in gVisor (the reference runtime's do not)."""
        return "runc" not in Path(self.runtime).name.split(".")[-2:][0]

    @property
    def cri(self) -> Cri:
        """A connection to the daemon, made when it is first wanted."""
        if self._cri is None:
            self._cri = Cri(self.daemon.address)
        return self._cri

    def call(self, method: str, timeout: float = 30, /, **values: Any) -> Any:
        """A call of CRI; Refused when it fails."""
        return self.cri.call(method, timeout, **values)

    # -- the daemon -------------------------------------------------------------------------

    def start(self) -> None:
        """Make the network, start the daemon and wait until pods can be run on it."""
        (self.daemon.folder / "logs").mkdir(parents=True)
        folder = self.daemon.folder
        options = f'root = "{folder}/runsc"\nfs_checkpoints = "{folder}/saved"\n'
        options += "pod_checkpoint = true\n"
        if self.without_pause:  # containerd chooses else
            options += 'pod_annotations = ["dev.gvisor.*"]\n'
        texts = {
            "gvisor": options,
            "gvisor-apart": options + "grouping = false\n",
            "gvisor-closed": options + "port_forward = false\n",
        }
        for name, text in texts.items():
            (self.daemon.folder / f"{name}.toml").write_text(text)
        self._write_shims()
        self._write_drop_in()
        self.network.create()
        self.daemon.start()
        images = self.daemon.folder / "images.tar"
        write_images(images)
        self.ctr("images", "import", str(images))
        for name in (IMAGE, PAUSE_IMAGE):
            until(lambda name=name: self._has(name), 15, f"CRI knows {name}")  # type: ignore[misc]
        self.wait_ready()

    def wait_ready(self) -> None:
        try:
            until(self._ready, 20, "CRI plugin is ready")
        except AssertionError:
            if self.daemon.process is not None:
                self.daemon.process.send_signal(signal.SIGUSR1)  # it logs its stacks
                time.sleep(1)
            raise

    def restart(self, kill: bool = False) -> None:
        """Restart the daemon; pods go on."""
        self.close()
        if kill:
            self.daemon.kill()
        else:
            self.daemon.stop()
        self.daemon.start()
        self.wait_ready()

    def become(self, version: str) -> None:
        """Go on with another release of containerd on the same state, as an upgrade does."""
        self.close()
        self.daemon.stop()
        text = self._configuration(self.daemon.folder, version)
        self.daemon.become(version, text)
        self._write_shims()
        self._write_drop_in()
        self.daemon.start()
        self.wait_ready()

    def revive(self) -> None:
        """Start the daemon again if it does not run."""
        if not self.daemon.alive:
            self.close()
            self.daemon.start()
            self.wait_ready()

    def remove(self) -> None:
        self.close()
        self.daemon.remove()
        footprint.remove_cgroups(self._ours)
        self.network.remove()

    def close(self) -> None:
        if self._cri is not None:
            self._cri.close()
            self._cri = None

    def ctr(self, *arguments: str) -> str:
        done = subprocess.run(
            self.daemon.ctr_command(*arguments), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done
        return done.stdout

    def _has(self, image: str) -> bool:
        return bool(self.call("ImageStatus", image={"image": image}).image.id)

    def _ready(self) -> bool:
        try:
            conditions = self.call("Status").status.conditions
            self.call("ListPodSandbox")  # refused until all pods are found again
        except Refused:
            return False
        # Later releases have a condition for warnings, as that cgroup v1 is deprecated.
        ready = {each.type for each in conditions if each.status}
        return {"RuntimeReady", "NetworkReady"} <= ready

    def _configuration(self, folder: Path, version: str) -> str:
        release = peers.daemon_generation(version)
        new = release >= (2, 0)
        plugin = "io.containerd.cri.v1.runtime" if new else "io.containerd.grpc.v1.cri"
        text = (_CRI_2 if new else _CRI_1).format(
            pause=PAUSE_IMAGE,
            plugins=self.network.plugins,
            conf=self.network.single,
            common=_COMMON
            + ("" if new else _COMMON_1)
            + (_COMMON_2_3 if release >= (2, 3) else ""),
        )
        ours = '  TypeUrl = "runtimeoptions.v1.Options"\n  ConfigPath = "{}/{}.toml"'
        names = ("gvisor", "gvisor-apart", "gvisor-closed")
        plain, apart, closed = (ours.format(folder, name) for name in names)
        runc = f'  Root = "{folder}/runc"'
        gvisor = peers.GVISOR if "runc" in self.runtime else self.runtime
        single, dual = self.network.single, self.network.dual
        kinds = {"gvisor": (gvisor, plain), "runc": (peers.RUNC, runc)}
        for name, runtime in self._others.items():
            kinds[name] = (runtime, runc if "runc" in Path(runtime).name else plain)
        handlers = [("gvisor-apart", gvisor, single, apart), ("gvisor-plain", gvisor, single, "")]
        handlers.append(("gvisor-closed", gvisor, single, closed))
        if release >= (2, 1):
            handlers.append((_SHIM, gvisor, single, plain))
            handlers.append((_STREAMS, gvisor, single, plain))
        handlers.append(("gvisor-chain", gvisor, self.network.chain, plain))
        for name, (kind, options) in kinds.items():
            handlers += [(name, kind, single, options), (name + "-dual", kind, dual, options)]
            if name in ("gvisor", "runc"):
                handlers.append((name + "-counted", _COUNTED, single, options))
        for name, kind, conf, options in handlers:
            ours = self.without_pause and name.startswith("gvisor")
            without_pause = ours or name in (_SHIM, _STREAMS)
            if without_pause:
                # containerd passes no options on to such pods: each has a shim that knows its own.
                file = options.rpartition("/")[2].partition(".toml")[0]
                self._shims[name] = (name.endswith("-counted"), file)
                # It finds the pod's by the runtime's type alone, whatever `runtime_path` says.
                options, kind = "", f"io.containerd.{name}.v2"
            elif name.endswith("-counted"):
                self._shims["counted"] = (True, "")
            text += _RUNTIME.format(plugin=plugin, name=name, kind=kind, conf=conf)
            if without_pause:
                text += '  sandboxer = "shim"\n'
            if name == _STREAMS or (without_pause and self.streams):
                text += '  io_type = "streaming"\n'
            if options:
                text += _OPTIONS.format(plugin=plugin, name=name, options=options)
        return text if new else text + self._printed(folder, version)

    def _printed(self, folder: Path, version: str) -> str:
        """What gvctl says to configure, with nothing on PATH under the name of the runtime."""
        release = "{}.{}".format(*peers.daemon_generation(version))
        words = ("config", "containerd", "--containerd", release)
        text = Gvctl().ok(*words, "--handler", "gvisor-path")
        text = text.replace(peers.GVISOR + '"', _ELSEWHERE + '"', 1)
        shim = peers.shim_path(self.runtime, version)
        text = text.replace(str(peers.shim_bin() / "containerd-shim-gvisor-v2"), str(shim))
        return text.replace("/etc/containerd/gvisor.toml", f"{folder}/gvisor.toml")

    def _write_drop_in(self) -> None:
        """The same in a file of its own, where the daemon takes one."""
        file = self.daemon.folder / "conf.d" / "gvisor-path.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if self.daemon.release >= (2, 0):
            file.write_text(self._printed(self.daemon.folder, self.daemon.version))

    def _write_shims(self) -> None:
        """The runtime under test by other names, some with options of their own.

        What is counted notes how often containerd runs it.
        """
        for name, (counted, options) in self._shims.items():
            runtime = self.runtime if name == "counted" or self.gvisor else peers.GVISOR
            lines = ["#!/bin/sh"]
            if counted:
                lines.append(f'echo "$@" >> {self._calls}')
            if options:
                lines.append(f"export {_OPTIONS_FILE}={self.daemon.folder}/{options}.toml")
            shim = peers.shim_path(runtime, self.daemon.version)
            lines.append(f'exec {shlex.quote(str(shim))} "$@"\n')
            script = self.daemon.folder / "bin" / f"containerd-shim-{name}-v2"
            script.parent.mkdir(exist_ok=True)
            script.write_text("\n".join(lines))
            script.chmod(0o755)

    @property
    def _calls(self) -> Path:
        return self.daemon.folder / "calls"

    def shim_calls(self, *ids: str) -> list[tuple[str, str]]:
        """Action and id of each call of the shim's binary for containers of `counted` pods."""
        if not self._calls.exists():
            return []
        found = [line.split() for line in self._calls.read_text().splitlines()]
        calls = [(words[-1], words[words.index("-id") + 1]) for words in found if "-id" in words]
        return [call for call in calls if call[1] in ids]

    # -- pods -------------------------------------------------------------------------------

    def pod(self, **options: Any) -> Pod:
        """Run a pod; see `prepare`."""
        pod = self.prepare(**options)
        pod.run()
        return pod

    def prepare(
        self,
        *,
        name: str = "",
        dual: bool = False,
        variant: str = "",
        handler: str = "",
        **config: Any,
    ) -> Pod:
        """A pod that is yet to be run; `config` are further fields of its PodSandboxConfig.

        `handler` names a runtime of containerd's configuration, else it is the one under test, or
        a variant of it: `dual` with an IPv6 address as well, `counted` for `shim_calls`, `apart`
        with the option `grouping` off, `closed` with `port_forward` off, `plain` without options,
        `shim` with `sandboxer = "shim"` (containerd 2.1 and later), `streams` with streams besides,
        `path` with the shim named by its path alone, as `gvctl config` has it configured,
        `chain` with a network that ends with a script (``network.script``).
        """
        handler = handler or ("gvisor" if self.gvisor else "runc")
        handler = "-".join(filter(None, (handler, "dual" if dual else variant)))
        pod = Pod(self, name or f"pod{next(self._numbers)}", handler, config)
        self.pods.append(pod)
        return pod

    def exec(self, container: str, *command: str, timeout: int = 15) -> Output:
        done = self.call(
            "ExecSync", timeout + 15, container_id=container, cmd=command, timeout=timeout
        )
        return Output(done.exit_code, done.stdout.decode(), done.stderr.decode())

    def exec_stream(self, container: str, *command: str, tty: bool = False) -> Stream:
        """`kubectl exec -i`, or `-it`: a stream to a process of its own."""
        streams = {"stdin": True, "stdout": True, "stderr": not tty, "tty": tty}
        return Stream(self.call("Exec", container_id=container, cmd=command, **streams).url)

    def attach(self, container: str, *, tty: bool = False) -> Stream:
        """`kubectl attach -i`, or `-it`: a stream to the container's first process."""
        streams = {"stdin": True, "stdout": True, "stderr": not tty, "tty": tty}
        return Stream(self.call("Attach", container_id=container, **streams).url)

    def forward(self, pod: Pod, port: int) -> Forwarding:
        """`kubectl port-forward`: a connection to a port of the pod's loopback."""
        return Forwarding(self.call("PortForward", pod_sandbox_id=pod.id, port=[port]).url)

    def status(self, container: str) -> Any:
        return self.call("ContainerStatus", container_id=container).status

    def wait_exited(self, container: str, timeout: float = 10) -> Any:
        """Wait until CRI says that a container has ended; its status."""

        def ended() -> Any:
            status = self.status(container)
            return status if status.state == cri.EXITED else None

        return until(ended, timeout, f"{container[:12]} exited")

    def wait_reason(self, container: str, reason: str, timeout: float = 10) -> int:
        """Wait until CRI gives this reason for the end of a container; its exit code.

        CRI learns of an exit and of the OOM event before it on different ways.
        """

        def ended() -> Any:
            status = self.status(container)
            return status if (status.state, status.reason) == (cri.EXITED, reason) else None

        return int(until(ended, timeout, f"{container[:12]} ended by {reason}").exit_code)

    def stop(self, container: str, grace: int = 0) -> None:
        self.call("StopContainer", grace + 20, container_id=container, timeout=grace)

    def delete(self, container: str) -> None:
        self.call("RemoveContainer", container_id=container)

    # -- what runs --------------------------------------------------------------------------

    def shims(self) -> list[int]:
        """The pids of all shims that serve this daemon; none of `start` or `delete`."""
        return [
            pid
            for pid in footprint.processes(self._ours)
            if any(self._is_shim(word) for word in footprint.command_line(pid)[:7])
            and _leads_session(pid)
        ]

    @staticmethod
    def _is_shim(word: str) -> bool:
        return word.rpartition("/")[2].startswith("containerd-shim-")

    def pod_bundle(self, pod: Pod) -> Path:
        """Where containerd keeps what a pod's sandbox is made of."""
        if not pod.without_pause:
            return self.daemon.bundle(pod.id)
        return self.daemon.state / "io.containerd.sandbox.controller.v1.shim" / NAMESPACE / pod.id

    def mounts(self) -> list[str]:
        """Mount points of this node's pods."""
        return footprint.mounts(self._ours)

    def processes(self) -> list[int]:
        """All processes of this node's pods, shims included."""
        return footprint.processes(self._ours)

    def cgroups(self) -> list[Path]:
        """All cgroups of this node's pods."""
        return footprint.cgroups(self._ours)

    def leftovers(self) -> list[str]:
        """One line for each thing that stands of any pod."""
        found = [
            f"process {pid}: {' '.join(footprint.command_line(pid))[-400:]}"
            for pid in footprint.processes(self._ours)
        ]
        found += [f"mount {target}" for target in self.mounts()]
        # Those above the containers' own are the kubelet's to remove.
        found += [
            f"cgroup {path}"
            for path in footprint.cgroups(self._ours)
            if path.parent.parent.name == "burstable"
        ]
        found += [f"socket {path}" for path in footprint.sockets(self.daemon, self.ids)]
        found += [f"state {path}" for path in self._states()]
        found += [f"interface {name}" for name in self.network.ports()]
        found += [f"lease {name}" for name in self.network.leases()]
        found += [f"cni result {path}" for path in self.network.remembered()]
        return found

    def _states(self) -> list[Path]:
        """Bundles, the runtimes' own state, and what CRI keeps of pods and containers."""
        tops = [self.daemon.folder / name / NAMESPACE for name in ("runsc", "runc")]
        for base in (self.daemon.state, self.daemon.root):
            tops.append(base / "io.containerd.runtime.v2.task" / NAMESPACE)
            for kind in ("netns", "sandboxes", "containers"):
                tops.append(base / "io.containerd.grpc.v1.cri" / kind)
            tops.append(base / "io.containerd.sandbox.controller.v1.shim" / NAMESPACE)
        return [path for top in tops if top.is_dir() for path in top.iterdir()]

    def clean(self) -> None:
        """Stop and remove every pod, whoever made it; the daemon is started if need be."""
        self.revive()
        deadline = time.monotonic() + 30
        while True:
            pods = [each.id for each in self.call("ListPodSandbox").items]
            if not pods or time.monotonic() > deadline:
                break  # `assert_clean` will say what is left
            for method in ("StopPodSandbox", "RemovePodSandbox"):
                calls = [self.cri.call_later(method, 20, pod_sandbox_id=pod) for pod in pods]
                for call in calls:
                    with suppress(Refused):
                        call()
        self.pods.clear()

    def assert_clean(self, timeout: float = 8, excused: tuple[str, ...] = ()) -> None:
        """Nothing of any pod is left on the machine; AssertionError tells what is."""
        seen: list[str] = []

        def nothing() -> bool:
            seen[:] = [line for line in self.leftovers() if not line.startswith(excused)]
            return not seen

        try:
            until(nothing, timeout, "nothing is left")
        except AssertionError:
            self._purge()
            raise AssertionError("left behind:\n  " + "\n  ".join(seen)) from None
        if excused:
            self._purge()
        footprint.remove_cgroups(self._ours)
        self.ids.clear()

    def _purge(self) -> None:
        """Take away what is left, so that one failure is not blamed on the tests after it."""
        footprint.purge(self._ours, ())
        for path in footprint.sockets(self.daemon, self.ids):
            path.unlink(missing_ok=True)
        for path in self._states():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self.network.disconnect()

    def __repr__(self) -> str:
        kind = self.runtime + (" without pause containers" if self.without_pause else "")
        return f"PodNode({kind}, {self.daemon.version}, {self.daemon.generation})"


class Pod:
    """A pod and its containers, through CRI alone."""

    def __init__(self, node: PodNode, name: str, handler: str, config: dict[str, Any]) -> None:
        self.node, self.name = node, name
        self.id = ""
        self.logs = node.daemon.folder / "logs" / name
        self.cgroup = f"/{node.cgroup}/kubepods/burstable/{name}"
        self._handler = handler
        linux = {"cgroup_parent": self.cgroup, **config.pop("linux", {})}
        self.config: dict[str, Any] = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "hostname": name,
            "log_directory": str(self.logs),
            "linux": linux,
            **config,
        }
        self._numbers = itertools.count(1)

    @property
    def without_pause(self) -> bool:
        """Whether the shim makes its sandbox itself."""
        return self._handler in (_SHIM, _STREAMS) or (self.node.without_pause and self.node.gvisor)

    # -- its life ---------------------------------------------------------------------------

    def run(self, timeout: float = 40) -> None:
        self.run_later(timeout)()

    def run_later(self, timeout: float = 40) -> Callable[[], None]:
        """Ask for the pod now; the function returned waits until it runs."""
        self.logs.mkdir(exist_ok=True)
        call = self.node.cri.call_later(
            "RunPodSandbox", timeout, config=self.config, runtime_handler=self._handler
        )

        def finish() -> None:
            self.id = call().pod_sandbox_id
            self.node.ids.append(self.id)

        return finish

    def stop(self, timeout: float = 30) -> None:
        self.node.call("StopPodSandbox", timeout, pod_sandbox_id=self.id)

    def remove(self, timeout: float = 30) -> None:
        """Stop and remove it."""
        self.stop(timeout)
        self.node.call("RemovePodSandbox", timeout, pod_sandbox_id=self.id)

    @property
    def status(self) -> Any:
        return self.node.call("PodSandboxStatus", pod_sandbox_id=self.id).status

    @property
    def ips(self) -> list[str]:
        network = self.status.network
        return [network.ip, *(each.ip for each in network.additional_ips)]

    @property
    def info(self) -> dict[str, Any]:
        """What containerd tells of a sandbox: pid, config, spec, netns."""
        reply = self.node.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)
        found: dict[str, Any] = json.loads(reply.info["info"])
        return found

    @property
    def shim(self) -> int:
        """The pid of the pod's shim, as its socket's owner tells it."""
        from integration.harness.clients.api import TASK_SERVICES
        from integration.harness.clients.ttrpc import Client

        service = TASK_SERVICES[not self.node.gvisor and self.node.daemon.release >= (2, 0)]
        with Client(footprint.socket_of(self.node.daemon, self.id), service) as client:
            return int(client.call("Connect", id=self.id).shim_pid)

    def sentry(self) -> int:
        found = [p for p in self._below() if "boot" in footprint.command_line(p)]
        assert len(found) == 1, found
        return found[0]

    def gofer(self, container: str) -> int:
        """The gofer of one container, or of the sandbox if it is given the pod's id."""

        def look() -> list[int]:
            return [
                pid
                for pid in self._below()
                if "gofer" in (words := footprint.command_line(pid))
                and any(word.startswith("--bundle=") and word.endswith(container) for word in words)
            ]

        # Executing itself anew it has none for a moment, and what it forks has the same.
        return until(lambda: found if len(found := look()) == 1 else None, 5, "one gofer")[0]

    @property
    def goferless(self) -> bool:
        """Whether its sentry mounts the sandbox's root file system by itself."""
        options = self.config["linux"].get("security_context", {}).get("namespace_options", {})
        new = self.node.daemon.generation > "2023"
        return self.without_pause and new and "userns_options" not in options

    def own_gofers(self) -> list[int]:
        """The sandbox's gofer, which it may do without."""
        return [] if self.goferless else [self.gofer(self.id)]

    def gofers(self) -> list[int]:
        """All that are there."""
        return [pid for pid in self._below() if "gofer" in footprint.command_line(pid)]

    def _below(self) -> list[int]:
        return footprint.descendants(self.shim)

    # -- containers -------------------------------------------------------------------------

    def create(self, *command: str, name: str = "", attempt: int = 0, **config: Any) -> str:
        """CreateContainer of the test image; `config` are further fields of its ContainerConfig."""
        name = name or f"c{next(self._numbers)}"
        return str(
            self.node.call(
                "CreateContainer",
                pod_sandbox_id=self.id,
                sandbox_config=self.config,
                config={
                    "metadata": {"name": name, "attempt": attempt},
                    "image": {"image": IMAGE},
                    "command": command,
                    "log_path": f"{name}-{attempt}.log",
                    "linux": {},
                    **config,
                },
            ).container_id
        )

    def start(self, *command: str, **config: Any) -> str:
        """Create and start a container."""
        container = self.create(*command, **config)
        self.node.call("StartContainer", container_id=container)
        return container

    def log(self, container: str, stream: str = "") -> str:
        """What a container printed so far, of one stream or of both."""
        path = Path(self.node.status(container).log_path)
        text = path.read_text() if path.exists() else ""
        out = []
        for line in text.splitlines():
            _, which, tag, content = line.split(" ", 3)
            if which == stream or not stream:
                out.append(content + ("\n" if tag == "F" else ""))
        return "".join(out)

    def wait_log(self, container: str, text: str, timeout: float = 10) -> str:
        """Wait until a container has printed something."""

        def look() -> str:
            seen = self.log(container)
            return seen if text in seen else ""

        return until(look, timeout, f"{text!r} in the log of {container[:12]}")


def _leads_session(pid: int) -> bool:
    """Whether a process is the first of its session or, like the reference's shim, its group."""
    try:
        return pid in (os.getsid(pid), os.getpgid(pid)) and not _acts(pid)
    except ProcessLookupError:
        return False


def _acts(pid: int) -> bool:
    return footprint.command_line(pid)[-1:] in (["start"], ["delete"]) and os.getsid(pid) != pid


def kill(*pids: int) -> None:
    """SIGKILL; a process that is gone already is no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def in_parallel(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Wait for calls that are under way; the first failure is raised once all have ended."""
    results: list[Any] = []
    failure: Exception | None = None
    for call in calls:
        try:
            results.append(call())
        except Exception as err:
            failure = failure or err
    if failure is not None:
        raise failure
    return results


def write_images(path: Path) -> None:
    """The test image, and one of the same layer whose command waits for ever."""
    plain = Image(path.with_suffix(".plain"))
    with tarfile.open(plain.path) as source, tarfile.open(path, "w") as target:
        manifest: list[dict[str, Any]] = []
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name == "manifest.json":
                manifest = json.loads(data)
                continue
            target.addfile(member, BytesIO(data))
            if member.name.endswith(".json"):
                config = json.loads(data)
        config["config"]["Cmd"] = ["/bin/sleep", "2147483647"]
        manifest.append({**manifest[0], "Config": "pause.json", "RepoTags": [PAUSE_IMAGE]})
        for name, body in (("pause.json", config), ("manifest.json", manifest)):
            data = json.dumps(body).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            target.addfile(entry, BytesIO(data))
    plain.path.unlink()
