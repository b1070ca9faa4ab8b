"""A pod that is held in the middle of an operation, for a test to strike at.

Each moment is reached by a gate that is part of the situation, never by waiting for a while: the
sentry is stopped, and a connection that it hasn't taken says that the shim has asked it; or the
sentry's own start is held before it executes itself once more, or a helper.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from integration.harness.base.peers import runsc
from integration.harness.base.waiting import until
from integration.harness.clients.api import TASK_SERVICES
from integration.harness.clients.daemon_api import Api, Events
from integration.harness.clients.ttrpc import Client
from integration.harness.clients.ttrpc import Refused as ShimRefused
from integration.harness.host import footprint
from integration.harness.nodes import gates
from integration.harness.nodes.pods import Pod, PodNode, kill

CREATED, RUNNING, STOPPED = 1, 2, 3
_FOREVER = ("sleep", "1000")


class Scene:
    """The operation `call` is under way in `pod`, and stays so until `release`."""

    def __init__(self, pods: PodNode, pod: Pod, events: Events) -> None:
        self.pods, self.pod, self.events = pods, pod, events
        #: What the operation is about, and a container beside it; empty where there is none yet.
        self.container = self.other = ""
        self.call: Callable[[], Any] | None = None
        self.release: Callable[[], None] = lambda: None
        self.shim = 0
        self.sentry = 0
        self._shim_id = ""
        #: The gofers by the id of their container.
        self.gofers: dict[str, int] = {}

    def look(self) -> None:
        """Note who is who; beforehand, so that a strike takes no time."""
        self.shim = self.shim or self.pods.shims()[0]
        if not self._shim_id:
            words = footprint.command_line(self.shim)
            self._shim_id = words[words.index("-id") + 1]
        for pid in footprint.descendants(self.shim):
            words = footprint.command_line(pid)
            if footprint.parent(pid) != self.shim:
                continue  # what a gofer forks has its command line for a moment
            if "boot" in words:
                self.sentry = pid
            elif "gofer" in words:
                bundle = next(word for word in words if word.startswith("--bundle="))
                self.gofers[bundle.rpartition("/")[2]] = pid

    def until_running(self) -> None:
        """Wait until what was about to start runs, as the shim says it to whoever asks next."""
        _until_state(self, self.container or self.pod_id, RUNNING)

    def strike(self, victim: str) -> None:
        """SIGKILL, while the operation is under way."""
        assert self.call is None or not under_way_is_over(self.call), (
            "it was over before the strike"
        )
        pid = self._pid(victim)
        if victim == "containerd":
            self.pods.daemon.kill()
        else:
            assert pid and footprint.alive(pid), f"no {victim} to strike at"
            kill(pid)

    def _pid(self, victim: str) -> int:
        if victim == "gofer":
            return self._gofer(lambda: self.container)
        if victim == "root gofer":
            return self._gofer(lambda: self.pod_id)
        return {"shim": self.shim, "sentry": self.sentry, "containerd": 0}[victim]

    def _gofer(self, container: Callable[[], str]) -> int:
        """The container's gofer; executing itself anew it has no command line for a moment."""
        if container() not in self.gofers:
            until(lambda: self.look() or container() in self.gofers, 5, "a gofer is seen")
        return self.gofers[container()]

    @property
    def pod_id(self) -> str:
        """The pod's id, also before CRI has told it: the shim's, which is called with it."""
        return self.pod.id or self._shim_id


def under_way_is_over(call: Callable[[], Any]) -> bool:
    done = getattr(call, "done", None)
    return bool(done is not None and done())


@contextmanager
def scene(pods: PodNode, moment: str) -> Iterator[Scene]:
    """Come to a moment; at the end whatever is held is let go."""
    with ExitStack() as stack:
        api = Api(pods.daemon)
        stack.callback(api.close)
        events = stack.enter_context(api.events())
        found = Scene(pods, pods.prepare(), events)
        _MOMENTS[moment](found, stack)
        yield found


# -- the pod's own start -----------------------------------------------------------------------


def _pod_create(found: Scene, stack: ExitStack) -> None:
    """The sentry is about to execute itself or a helper; the shim waits for it to be ready."""
    gate = stack.enter_context(_gate(found.pods))
    found.call = found.pod.run_later(40)
    gate.wait()
    found.look()
    found.release = gate.open


def _pod_start(found: Scene, stack: ExitStack) -> None:
    gate = stack.enter_context(_gate(found.pods))
    found.call = found.pod.run_later(40)
    gate.wait()
    found.look()
    daemon = found.pods.daemon.process
    assert daemon is not None
    gates.freeze(daemon.pid)
    stack.callback(gates.thaw, daemon.pid)
    gate.open()
    _until_state(found, found.pod_id, CREATED)
    _stop_sentry(found, stack)
    gates.thaw(daemon.pid)
    _until_asked(found, found.pod_id)


@contextmanager
def _gate(pods: PodNode) -> Iterator[gates.ExecGate]:
    """A gate for a runsc of the node's own, or for the sentry beside it where it has one."""
    link = pods.daemon.folder / "bin" / "runsc"
    own = pods.daemon.folder / "runsc.own"
    boots = Path("gvisor-bin", "gvisor_sentry")
    real = runsc(pods.daemon.generation)
    if not (real.parent / boots).exists():
        boots = Path("runsc")
    if not own.exists():
        (own / boots).parent.mkdir(parents=True)
        shutil.copy2(real, own / "runsc")
        if boots != Path("runsc"):
            shutil.copy2(real.parent / boots, own / boots)
        link.unlink()
        link.symlink_to(own / "runsc")
    with gates.ExecGate(own / boots, gates.sentry_executes) as gate:
        yield gate


# -- a container's life ------------------------------------------------------------------------


def _prepared(found: Scene) -> None:
    found.pod.run()
    found.shim = found.pod.shim
    found.other = found.pod.start(*_FOREVER)


def _create(found: Scene, stack: ExitStack) -> None:
    _prepared(found)
    found.container = found.pod.create(*_FOREVER)
    found.look()
    _stop_sentry(found, stack)
    found.call = found.pods.cri.call_later("StartContainer", container_id=found.container)
    _until_asked(found, found.pod.id)
    found.look()


def _start(found: Scene, stack: ExitStack) -> None:
    _create(found, stack)
    daemon = found.pods.daemon.process
    assert daemon is not None
    gates.freeze(daemon.pid)
    stack.callback(gates.thaw, daemon.pid)
    gates.thaw(found.sentry)
    _until_state(found, found.container, CREATED)
    gates.freeze(found.sentry)
    gates.thaw(daemon.pid)
    _until_asked(found, found.pod.id)


def _running(found: Scene, stack: ExitStack) -> None:
    """With an exec that runs as well."""
    _prepared(found)
    found.container = found.pod.start(*_FOREVER)
    found.look()
    found.call = _exec_later(found)
    found.events.wait(found.container, "exec-started")


def _exec(found: Scene, stack: ExitStack) -> None:
    _prepared(found)
    found.container = found.pod.start(*_FOREVER)
    found.look()
    _stop_sentry(found, stack)
    found.call = _exec_later(found)
    _until_asked(found, found.pod.id)


def _stop(found: Scene, stack: ExitStack) -> None:
    _prepared(found)
    found.container = found.pod.start(*_FOREVER)
    found.look()
    _stop_sentry(found, stack)
    found.call = found.pods.cri.call_later(
        "StopContainer", 40, container_id=found.container, timeout=20
    )
    _until_asked(found, found.pod.id)


def _delete(found: Scene, stack: ExitStack) -> None:
    """CRI deletes the task of a container as soon as it hears that it ended."""
    _prepared(found)
    found.container = found.pod.start(*_FOREVER)
    found.look()
    daemon = found.pods.daemon.process
    assert daemon is not None
    gates.freeze(daemon.pid)
    stack.callback(gates.thaw, daemon.pid)
    with _client(found) as client:
        client.call("Kill", id=found.container, signal=9)
    _until_state(found, found.container, STOPPED)
    _stop_sentry(found, stack)
    gates.thaw(daemon.pid)
    _until_asked(found, found.pod.id)


def _exec_later(found: Scene) -> Callable[[], Any]:
    return found.pods.cri.call_later(
        "ExecSync", 40, container_id=found.container, cmd=_FOREVER, timeout=0
    )


def _stop_sentry(found: Scene, stack: ExitStack) -> None:
    gates.freeze(found.sentry)
    stack.callback(gates.thaw, found.sentry)
    found.release = lambda: gates.thaw(found.sentry)


def _until_asked(found: Scene, sandbox: str) -> None:
    socket = gates.control_socket(sandbox)
    until(lambda: gates.calls_waiting(socket), 20, "the shim has asked the sentry")


def _client(found: Scene) -> Client:
    service = TASK_SERVICES[not found.pods.gvisor and found.pods.daemon.release >= (2, 0)]
    return Client(footprint.socket_of(found.pods.daemon, found.pod_id), service)


def _until_state(found: Scene, container: str, status: int) -> None:
    """Wait for a state by asking the shim itself, as containerd is stopped."""
    with _client(found) as client:

        def look() -> bool:
            try:
                return bool(client.call("State", id=container).status == status)
            except ShimRefused:  # it is not created yet
                return False

        until(look, 20, f"{container[:12]} is in state {status}")


_MOMENTS: dict[str, Callable[[Scene, ExitStack], None]] = {
    "pod create": _pod_create,
    "pod start": _pod_start,
    "create": _create,
    "start": _start,
    "running": _running,
    "exec": _exec,
    "stop": _stop,
    "delete": _delete,
}
