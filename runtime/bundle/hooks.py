"""Running the hooks of a ``config.json`` and telling what became of them.

Owns what a hook gets (its own environment and nothing else, the container's state on stdin), how
long it may take, and that a poststop hook is run once, whoever deletes the container.  When each
stage comes is decided by who creates, starts and deletes.

Where a hook runs:

* prestart, createRuntime, poststart and poststop in this process's namespaces;
* createContainer on the host as well, but in a mount namespace of its own, from which nothing it
  mounts gets out, and in the network namespace that the container's spec names;
* startContainer in the container itself, by the sentry, before init's first instruction
  (``task/start_container_hooks.py``): its path is the container's.
"""

from __future__ import annotations

import os
import select
import time

from runtime.base import fastjson, files
from runtime.base.errors import DeadlineExceeded, Failed, RuntimeFault, reason
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.base.signals import SIGKILL
from runtime.base.version import OCI_VERSION
from runtime.bundle.hook_spec import CREATE_CONTAINER, POSTSTOP, STAGES
from runtime.host.children import describe_status
from runtime.host.linux import CLONE_NEWNET, CLONE_NEWNS
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.bundle.hook_spec import Hook
    from runtime.bundle.spec import Spec
    from runtime.host.spawn import Child

#: Seconds for a hook that names no time-out itself.
DEFAULT_TIMEOUT = 60.0
#: Seconds for all poststop hooks that name none: whoever deletes waits for them.
POSTSTOP_TIMEOUT = 10.0
#: Seconds that even a hook's own time-out can't exceed.
MAX_TIMEOUT = 600.0
#: In the bundle while poststop hooks are owed; whoever manages to remove it runs them.
OWED = "gvisor-poststop"

_KILL_TIMEOUT = 2.0
#: Of what a hook prints: bytes that are kept, characters that are told.
_KEPT, _TAIL = 4096, 500
# How often a wait looks whether the creation that the hook belongs to was given up.
_GIVE_UP_INTERVAL = 0.25
#: Programs that gVisor's runsc passes over, too (runsc/specutils/hooks.go): they set up for the
#: host's kernel what the sentry has its own way for.
_SKIPPED = "/nvidia-container-runtime-hook"
_CDI_HOOK = ("/nvidia-cdi-hook", "disable-device-node-modification")

_log = get_logger("hooks")


class HookState(Record):
    """The state of a container as its hooks are told of it.  ``pid`` is 0 where there is none."""

    id: str
    status: str
    bundle: str
    pid: int = 0
    annotations: Mapping[str, str] = {}

    def encode(self) -> bytes:
        """As JSON, in the form of the specification's "State"."""
        value: dict[str, object] = {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": self.status,
            "bundle": self.bundle,
        }
        if self.pid > 0:
            value["pid"] = self.pid
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return fastjson.dumps(value).encode("ascii")


def state_of(spec: Spec, container_id: str, status: str, pid: int = 0) -> HookState:
    """The state that a hook of the container is told."""
    return HookState(
        id=container_id, status=status, bundle=spec.bundle, pid=pid, annotations=spec.annotations
    )


def run(
    spec: Spec,
    stage: str,
    state: HookState,
    deadline: float | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Run a stage's hooks on the host in their order; the first failure ends it.

    ``deadline`` (``time.monotonic()``) bounds those that have no time-out of their own;
    ``given_up`` says whether nobody wants the outcome any more.  Raises Failed or
    DeadlineExceeded with the hook's last words.
    """
    for index, hook in enumerate(spec.hooks.get(stage, ())):
        what = f"{stage} hook {index} ({hook.path})"
        if is_skipped(hook, what):
            continue
        namespaces = _Namespaces(spec, stage)
        try:
            _run(hook, what, state, namespaces, limit(hook, deadline), given_up)
        finally:
            namespaces.close()


def run_all(spec: Spec, stage: str, state: HookState, deadline: float | None = None) -> list[str]:
    """Run all of a stage's hooks, whatever becomes of each; returns what failed, having logged it.

    Raises nothing.
    """
    faults = []
    for hook in spec.hooks.get(stage, ()):
        alone = spec.replace(hooks={stage: (hook,)})
        try:
            run(alone, stage, state, deadline)
        except (RuntimeFault, OSError) as fault:
            faults.append(str(fault))
            _log.warning("hook.failed", container=state.id, stage=stage, error=str(fault))
    return faults


def limit(hook: Hook, deadline: float | None) -> float:
    """Seconds that the hook may take."""
    if hook.timeout is not None:
        return min(hook.timeout, MAX_TIMEOUT)
    if deadline is None:
        return DEFAULT_TIMEOUT
    return min(max(deadline - time.monotonic(), 0.1), DEFAULT_TIMEOUT)


def is_skipped(hook: Hook, what: str) -> bool:
    """Whether it is one of those that do harm under gVisor; says so in the log."""
    name, action = _CDI_HOOK
    skipped = hook.path.endswith(_SKIPPED) or (hook.path.endswith(name) and action in hook.args)
    if skipped:
        _log.info("hook.skipped", hook=what)
    return skipped


# -- poststop: once -------------------------------------------------------------------------


def owe_poststop(spec: Spec) -> None:
    """Write down that the container's poststop hooks are to be run, if it has any.

    Raises Failed.
    """
    if POSTSTOP not in spec.hooks:
        return
    try:
        files.replace_file(os.path.join(spec.bundle, OWED), b"")
    except OSError as error:
        raise Failed(f"{spec.bundle}/{OWED}: {reason(error)}") from None


def settle_poststop(spec: Spec, container_id: str, timeout: float = POSTSTOP_TIMEOUT) -> list[str]:
    """Run the poststop hooks, if they are owed and nobody else does; returns what failed.

    ``timeout`` is in seconds, for those that have none of their own.  Raises nothing.
    """
    if POSTSTOP not in spec.hooks or not claim_poststop(spec.bundle):
        return []
    state = state_of(spec, container_id, "stopped")
    return run_all(spec, POSTSTOP, state, time.monotonic() + timeout)


def claim_poststop(bundle: str) -> bool:
    """Whether the bundle's poststop hooks are owed; only one caller is ever told so."""
    try:
        os.unlink(os.path.join(bundle, OWED))
    except OSError:
        return False
    return True


# -- one hook on the host -------------------------------------------------------------------


class _Namespaces:
    """Where a hook runs: descriptors to join, and what is to be new."""

    def __init__(self, spec: Spec, stage: str) -> None:
        self.join: tuple[tuple[int, int], ...] = ()
        self.new = 0
        assert stage in STAGES
        if stage != CREATE_CONTAINER:
            return
        self.new = CLONE_NEWNS
        if spec.netns_path:
            try:
                fd = os.open(spec.netns_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise Failed(f"network namespace {spec.netns_path}: {reason(error)}") from None
            self.join = ((fd, CLONE_NEWNET),)

    def close(self) -> None:
        for fd, _ in self.join:
            os.close(fd)


def _run(
    hook: Hook,
    what: str,
    state: HookState,
    namespaces: _Namespaces,
    timeout: float,
    given_up: Callable[[], bool],
) -> None:
    started = time.monotonic()
    output = HookOutput()
    try:
        stdin = state_file(state)
        try:
            child = spawn(
                SpawnSpec(
                    path=hook.path,
                    argv=hook.argv,
                    env=dict(each.split("=", 1) for each in hook.env),
                    cwd="/",
                    fds={0: stdin, 1: output.writer, 2: output.writer},
                    join=namespaces.join,
                    namespaces=namespaces.new,
                    private_mounts=bool(namespaces.new & CLONE_NEWNS),
                    setsid=True,
                )
            )
        except Failed as fault:
            raise Failed(f"{what}: {fault}") from None
        finally:
            os.close(stdin)
        output.close_writer()
        with child:
            raw = _wait(child, output, started + timeout, given_up)
        if raw is None:
            if given_up():
                raise Failed(f"{what}: its container was deleted meanwhile")
            raise DeadlineExceeded(with_output(what, output.text()), timeout)
        if raw:
            raise Failed(with_output(f"{what}: {describe_status(raw)}", output.text()))
        ms = round((time.monotonic() - started) * 1000, 1)
        _log.debug("hook.ran", hook=what, container=state.id, ms=ms)
    finally:
        output.close()


def state_file(state: HookState) -> int:
    """A file of the state to read from its beginning; the caller closes it."""
    fd = os.memfd_create("hook-state", os.MFD_CLOEXEC)
    files.write_all(fd, state.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class HookOutput:
    """What a hook prints: read while it runs, so that it never blocks, and its end kept."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._kept = b""

    def take(self) -> bool:
        """Read what is there, without waiting; False once no one can write any more."""
        while True:
            try:
                chunk = os.read(self.reader, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._kept = (self._kept + chunk)[-_KEPT:]

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")

    def close_writer(self) -> None:
        """Close our copy of the hook's end.  Idempotent."""
        writer, self.writer = self.writer, -1
        if writer >= 0:
            os.close(writer)

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)


def _wait(
    child: Child, output: HookOutput, deadline: float, given_up: Callable[[], bool]
) -> int | None:
    """The hook's wait status, or None if it had to be killed, and its process group with it."""
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    poller.register(output.reader, select.POLLIN)
    while not given_up():
        left = deadline - time.monotonic()
        if left <= 0:
            break
        poller.poll(min(left, _GIVE_UP_INTERVAL) * 1000)
        raw = child.poll()
        # What it started and left behind may hold the pipe for as long as it likes.
        if not output.take() and raw is None:
            poller = select.poll()
            poller.register(child.pidfd, select.POLLIN)
        if raw is not None:
            return raw
    # It isn't reaped, so the number of its group can't be anybody else's.
    if child.poll() is None:
        try:
            os.killpg(child.pid, SIGKILL)
        except ProcessLookupError:
            child.kill(SIGKILL)
    try:
        child.wait(_KILL_TIMEOUT)
    except DeadlineExceeded:
        _log.error("hook.survived", pid=child.pid)
    output.take()
    return None


def with_output(text: str, output: str) -> str:
    """``text`` and the end of what the hook printed, on one line."""
    words = " ".join(output.split())
    if len(words) > _TAIL:
        words = "..." + words[-_TAIL:]
    return f"{text}: {words}" if words else text
