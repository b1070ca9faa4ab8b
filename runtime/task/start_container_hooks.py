"""startContainer hooks: run inside the container, by the sentry, before init's first instruction.

Owns how a hook is run there.  ``sandbox/stopped_start.py`` keeps init from running meanwhile.
"""

from __future__ import annotations

import os
import select
import threading
import time

from runtime.base.errors import DeadlineExceeded, Failed, RuntimeFault
from runtime.bundle import hooks
from runtime.bundle.hook_spec import START_CONTAINER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.bundle.hook_spec import Hook
    from runtime.bundle.hooks import HookState
    from runtime.bundle.spec import Spec
    from runtime.sandbox.sandbox import ExitInfo, Sandbox

_LOOK_INTERVAL = 0.05


def run_inside(sandbox: Sandbox, cid: str, spec: Spec, state: HookState, deadline: float) -> None:
    """Run the container's startContainer hooks in it, as its init's user, in their order.

    Raises Failed or DeadlineExceeded with the hook's last words at the first that fails; then the
    container is good for its end only.
    """
    for index, hook in enumerate(spec.hooks.get(START_CONTAINER, ())):
        what = f"{START_CONTAINER} hook {index} ({hook.path})"
        if not hooks.is_skipped(hook, what):
            _run(sandbox, cid, spec, hook, what, state, deadline)


class _End:
    """The exit of one hook, for the thread that waits."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.info: ExitInfo | None = None

    def __call__(self, info: ExitInfo) -> None:
        self.info = info
        self.event.set()


def _run(
    sandbox: Sandbox,
    cid: str,
    spec: Spec,
    hook: Hook,
    what: str,
    state: HookState,
    deadline: float,
) -> None:
    timeout = hooks.limit(hook, deadline)
    process = spec.process.replace(
        executable=hook.path, args=hook.argv, env=hook.env, cwd="/", terminal=False
    )
    started = time.monotonic()
    stdin, end, output = hooks.state_file(state), _End(), hooks.HookOutput()
    try:
        fds = (stdin, output.writer, output.writer)
        try:
            pid = sandbox.execute(cid, process, fds, False, deadline)
        except RuntimeFault as fault:
            raise Failed(f"{what}: {fault}") from None
        output.close_writer()
        sandbox.wait_pid(cid, pid, end)
        info = _wait(end, output, started + timeout)
        if info is None:
            # What else it started ends with the container, which its failure ends.
            _kill(sandbox, cid, pid)
            raise DeadlineExceeded(hooks.with_output(what, output.text()), timeout)
        if info.status:
            how = f"{what}: exit status {info.status}"
            raise Failed(hooks.with_output(how, output.text()))
    finally:
        os.close(stdin)
        output.close()


def _wait(end: _End, output: hooks.HookOutput, deadline: float) -> ExitInfo | None:
    """The hook's exit; None if it takes too long."""
    poller = select.poll()
    poller.register(output.reader, select.POLLIN)
    # Usually the output ends with the hook; but what it left in the background may hold it.
    while not end.event.is_set() and time.monotonic() < deadline:
        poller.poll(_LOOK_INTERVAL * 1000)
        if not output.take():
            end.event.wait(max(deadline - time.monotonic(), 0.0))
    output.take()
    return end.info


def _kill(sandbox: Sandbox, cid: str, pid: int) -> None:
    try:
        sandbox.signal(cid, 9, pid=pid)
    except RuntimeFault:
        return  # it has just ended, or the sandbox has
