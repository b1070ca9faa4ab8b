"""When each stage of hooks comes in the life of a container that a shim serves.

Owns the order and what a failure means.  ``bundle/hooks.py`` runs them, and is loaded only for a
container that has any.
"""

from __future__ import annotations

from runtime.base.errors import RuntimeFault
from runtime.base.signals import SIGKILL
from runtime.bundle.hook_spec import (
    CREATE_CONTAINER,
    CREATE_RUNTIME,
    POSTSTART,
    POSTSTOP,
    PRESTART,
    START_CONTAINER,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event
    from typing import Protocol

    from runtime.bundle.spec import Spec
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.process import Process


if TYPE_CHECKING:

    class HookSubject(Protocol):
        """What the stages need of a container; its own class says what each member is."""

        id: str
        init: Process
        is_root: bool
        spec: Spec | None
        abandoned: Event


def while_creating(container: HookSubject, sandbox: Sandbox, deadline: float) -> None:
    """prestart, createRuntime and createContainer: the first that fails ends the creation.

    They come when the sentry is there and init isn't, with the sentry's pid for init's.
    createContainer hooks see the root file system as it is on the host: the gofer, in whose view
    they would be, is shut off from the host by then.  Raises Failed or DeadlineExceeded.
    """
    spec = container.spec
    if spec is None or not spec.hooks:
        return
    from runtime.bundle import hooks

    # From here on the container counts as one whose end is told.
    hooks.owe_poststop(spec)
    state = hooks.state_of(spec, container.id, "creating", sandbox.pid)
    for stage in (PRESTART, CREATE_RUNTIME, CREATE_CONTAINER):
        hooks.run(spec, stage, state, deadline, container.abandoned.is_set)


def before_start(
    container: HookSubject, sandbox: Sandbox, deadline: float
) -> tuple[Callable[[], None], ...]:
    """startContainer: what to do between the making of init and its first instruction, if any.

    A failure is the start's; it leaves nothing running.
    """
    spec = container.spec
    if spec is None or START_CONTAINER not in spec.hooks:
        return ()
    from runtime.bundle.hooks import state_of
    from runtime.task.start_container_hooks import run_inside

    state = state_of(spec, container.id, "created", container.init.pid)

    def run() -> None:
        try:
            run_inside(sandbox, container.id, spec, state, deadline)
        except BaseException:
            if not container.is_root:  # whose start's failure ends the sandbox
                _end_held(sandbox, container.id)
            raise

    return (run,)


def _end_held(sandbox: Sandbox, container_id: str) -> None:
    """End an init that was made and may never run, and what the hooks left."""
    from runtime.sandbox.sandbox import SignalMode

    try:
        sandbox.signal(container_id, SIGKILL, mode=SignalMode.ALL)
    except RuntimeFault:
        return  # it has just ended, or the sandbox has


def after_start(container: HookSubject, deadline: float) -> None:
    """poststart: failures are logged."""
    spec = container.spec
    if spec is None or POSTSTART not in spec.hooks:
        return
    from runtime.bundle import hooks

    state = hooks.state_of(spec, container.id, "running", container.init.pid)
    hooks.run_all(spec, POSTSTART, state, deadline)


def after_delete(container: HookSubject) -> None:
    """poststop: once, when nothing of the container is left; failures are logged."""
    spec = container.spec
    if spec is not None and POSTSTOP in spec.hooks:
        from runtime.bundle.hooks import settle_poststop

        settle_poststop(spec, container.id)
