"""A pod: the containers that one shim serves, by id.

Owns the registry and what concerns several containers at once: ids reserved atomically, pause,
resume and checkpoint of a whole sandbox, the end of the pod.  Usually all containers share the
sandbox of the first; containers that are grouped by a label alone each have their own.
"""

from __future__ import annotations

import threading
import time

from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidState,
    NotFound,
    SandboxGone,
)
from runtime.base.log import get_logger
from runtime.bundle.spec import sandbox_to_join, validate_id
from runtime.task.container import Container
from runtime.task.create import create
from runtime.task.events import TaskCheckpointed, TaskPaused, TaskResumed
from runtime.task.lifecycle import Op, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.bundle.spec import Spec
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.context import Context, CreateRequest
    from runtime.task.events import Event
    from runtime.task.process import Exit

#: Seconds that a delete waits for a creation to be given up.
SETTLE_TIMEOUT = 30.0
#: Seconds for the sentry to forget a container that has ended.
DESTROY_TIMEOUT = 5.0


class Pod:
    """The registry.  Its lock is held for look-ups only, never while anything is done."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._log = get_logger("pod")
        self._lock = threading.Lock()
        self._containers: dict[str, Container] = {}  # guarded by _lock
        self._closed = False  # guarded by _lock
        #: Called when there are orphans; must not block.
        self.on_orphans: Callable[[], None] = lambda: None

    def container(self, container_id: str) -> Container:
        """The container of that id, also while it is being created.  Raises NotFound."""
        with self._lock:
            found = self._containers.get(container_id)
        if found is None or found.init.state is State.DELETED:
            raise NotFound("container", container_id, f"container {container_id!r} not created")
        return found

    def create(self, request: CreateRequest) -> int:
        """Create a container and its sandbox; returns the pid that stands for its init.

        Raises AlreadyExists, InvalidRequest and whatever the steps raise; then the id is free.
        """
        validate_id("container", request.id)
        container = Container(self.context, request.id, request.bundle, request.io)
        container.killing.thaw = lambda: self.resume(request.id)
        container.guests = self._guests
        with self._lock:
            if self._closed:
                raise SandboxGone(0, detail="the shim is shutting down")
            if request.id in self._containers:
                raise AlreadyExists("container", request.id)
            self._containers[request.id] = container
        try:
            return create(container, request, self.context, self._root_for)
        except BaseException:
            self._forget(request.id)
            raise
        finally:
            container.settled.set()

    def abandon(self, container_id: str) -> None:
        """Give a creation up, if one of that id is under way.  Doesn't wait."""
        with self._lock:
            found = self._containers.get(container_id)
        if found is not None and not found.settled.is_set():
            found.abandon()

    def _root_for(self, spec: Spec) -> Container | None:
        """The container whose sandbox a new one joins; None if it gets a sandbox of its own."""
        sandbox_id = sandbox_to_join(spec)
        return None if sandbox_id is None else self.container(sandbox_id)

    def delete(
        self, container_id: str, heard: Callable[[], bool] = lambda: True
    ) -> tuple[int, Exit]:
        """Free a container that is created or stopped; returns init's pid and exit.

        ``heard`` tells in the end whether anybody waits for the outcome still; if not, the
        container stays, stopped, for whoever asks next.

        One that is being created is given up: containerd deletes it when the client that wanted
        it has gone, and comes only once.
        """
        container = self.container(container_id)
        container.abandon()
        if not container.settled.wait(SETTLE_TIMEOUT):
            raise DeadlineExceeded(f"creation of {container_id!r}", SETTLE_TIMEOUT)
        self.container(container_id)
        return container.delete(lambda: self._forget(container_id), heard)

    def _forget(self, container_id: str) -> None:
        with self._lock:
            gone = self._containers.pop(container_id, None)
        if gone is not None and gone.settled.is_set():
            guests = self._guests(gone)
            for guest in guests:
                guest.orphaned = True
            if guests:
                self.on_orphans()

    def _guests(self, container: Container) -> list[Container]:
        """The other containers in the sandbox of its own that a container has."""
        holdings = container.holdings
        if holdings is None or holdings.sandbox is None or not container.is_root:
            return []
        found = self._sharing(holdings.sandbox)
        return [each for each in found if each is not container and each.settled.is_set()]

    def orphans(self) -> list[str]:
        """The ids of containers that are left of sandboxes whose first container is deleted.

        They are dead, and hold nothing on the host but a bundle and their client's pipes.
        """
        return [each.id for each in self.all() if each.orphaned]

    def close_if_empty(self, *, but_for_freed: bool = False) -> bool:
        """Refuse creations from now on, unless there is a container left.

        With ``but_for_freed``, containers that are deleted but for the reply don't count.
        """
        with self._lock:
            if not all(but_for_freed and each.freed for each in self._containers.values()):
                return False
            self._closed = True
            return True

    def all(self) -> list[Container]:
        with self._lock:
            return list(self._containers.values())

    # -- pause and resume: the sentry freezes as a whole ------------------------------------

    def _sharing(self, sandbox: Sandbox) -> list[Container]:
        return [c for c in self.all() if c.holdings is not None and c.holdings.sandbox is sandbox]

    def pause(self, container_id: str) -> None:
        """Freeze the container's sandbox; siblings that run are reported as paused, too."""
        container = self.container(container_id)
        container.require_created()
        sandbox = container.sandbox
        if sandbox.restoring:
            raise InvalidState("pause", container.init.subject, "being restored")
        container.init.reserve(Op.PAUSE)
        others = self._reserve_others(container, sandbox, State.RUNNING, Op.PAUSE)
        self._act(
            [container, *others],
            sandbox.pause,
            "paused",
            Op.PAUSED,
            Op.PAUSE_FAILED,
            lambda c: TaskPaused(container_id=c.id),
        )

    def resume(self, container_id: str) -> None:
        """Let the container's sandbox run again, and with it every sibling."""
        container = self.container(container_id)
        container.require_created()
        sandbox = container.sandbox
        container.init.reserve(Op.RESUME)
        others = self._reserve_others(container, sandbox, State.PAUSED, Op.RESUME)
        self._act(
            [container, *others],
            sandbox.resume,
            "running",
            Op.RESUMED,
            Op.RESUME_FAILED,
            lambda c: TaskResumed(container_id=c.id),
        )

    # -- checkpoint: the sentry is saved as a whole -----------------------------------------

    def checkpoint(self, container_id: str, path: str, *, exit: bool, timeout: float) -> None:
        """Save the container's sandbox, with all its containers, in directory ``path``.

        Running or paused, they are afterwards as they were; with ``exit`` they end, with status
        0.  Whichever container of a pod is named, the image is the pod's, as with runsc.  Raises
        InvalidState if one of them was created and not started, and what
        ``checkpoint.save_sandbox`` raises; then no image is left.
        """
        from runtime.sandbox import checkpoint

        container = self.container(container_id)
        container.require_created()
        sandbox = container.sandbox
        for other in self._sharing(sandbox):
            if other.init.state in (State.CREATED, State.STARTING):
                # The sentry would count it, and wait for it when the pod is restored.
                raise InvalidState("checkpoint", other.init.subject, other.init.state.value)
        before = container.init.reserve(Op.CHECKPOINT)
        others = self._reserve_others(container, sandbox, before, Op.CHECKPOINT)

        saved = [container, *others]

        def ending() -> None:
            for each in saved:
                each.killing.claim_saved()

        def act() -> None:
            for other in self._sharing(sandbox):
                if other.init.state is State.STOPPED and not other.is_root:
                    # Likewise, and it is of no use to the sentry any more.
                    sandbox.destroy_subcontainer(other.id, time.monotonic() + DESTROY_TIMEOUT)
            execs = sum(each.started_execs() for each in saved)
            checkpoint.save_sandbox(
                sandbox, path, exit=exit, execs=execs, timeout=timeout, ending=ending
            )

        self._act(
            saved,
            act,
            "running" if before is State.RUNNING else "paused",
            Op.CHECKPOINTED,
            Op.CHECKPOINT_FAILED,
            lambda c: TaskCheckpointed(container_id=c.id, path=path) if c is container else None,
        )

    def _reserve_others(
        self, first: Container, sandbox: Sandbox, state: State, op: Op
    ) -> list[Container]:
        reserved = []
        for other in self._sharing(sandbox):
            if other is first or other.init.state is not state:
                continue
            try:
                other.init.reserve(op)
            except InvalidState:
                continue  # it ended in this very moment
            reserved.append(other)
        return reserved

    def _act(
        self,
        containers: list[Container],
        action: Callable[[], None],
        status: str,
        done: Op,
        failed: Op,
        event: Callable[[Container], Event | None],
    ) -> None:
        try:
            action()
        except BaseException:
            for container in containers:
                container.init.commit(failed)
            raise
        for container in containers:
            container.status_changed(status)
            container.init.commit(done, event(container))
