"""A container beside its sandbox's root container, and the spec by which the sentry starts it."""

from __future__ import annotations

import os
import threading
import time

from runtime.base.errors import (
    DeadlineExceeded,
    Failed,
    InvalidState,
    NotFound,
    SandboxGone,
    Unreachable,
)
from runtime.base.log import get_logger
from runtime.host.fds import FdSet
from runtime.sandbox.spec_file import raw_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.runsc.control import Control
    from runtime.runsc.driver import Driver
    from runtime.runsc.flags import Settings
    from runtime.sandbox.boot_params import BootParams
    from runtime.sandbox.gofer import Gofer


#: Seconds for a gofer whose files are closed to end, and to be asked why.
_LAST_WORDS = 0.2
#: Seconds that the sentry has to destroy a container, before and after its gofer is killed.
_DESTROY_TIMEOUT = 3.0
_DESTROY_AGAIN = 2.0
#: Seconds to reap what was killed, even where the deadline is over.
_REAP_TIMEOUT = 0.5


_log = get_logger("subcontainer")


class Subcontainer:
    """What a sandbox keeps of it: how it was made, its gofer, its stdio until the start.

    Thread-safe: what is used by a start is not closed before that is over.
    """

    def __init__(self, params: BootParams, settings: Settings, gofer: Gofer) -> None:
        self.params = params
        self.settings = settings
        self.gofer = gofer
        self._using = threading.Lock()
        with FdSet() as ours:
            stdio = tuple(ours.dup(fd) for fd in params.stdio)
            self._stdio = tuple(ours.steal(fd) for fd in stdio)  # guarded by _using

    @property
    def started(self) -> bool:
        """Whether its start was tried."""
        return self.gofer.mounts_fd < 0

    def start(
        self,
        driver: Driver,
        sentry_pid: int,
        call: Callable[[Mapping[str, Any], tuple[int, ...]], None],
        deadline: float,
    ) -> None:
        """Make the ``call`` that has the sentry run init, with its argument and descriptors.

        Raises InvalidState if that was tried before, the gofer's failure, what ``call`` raises.
        """
        params, gofer = self.params, self.gofer
        with self._using:
            if self.started:
                raise InvalidState("start", f"container {params.id!r}", "started")
            try:
                mounts = gofer.read_mounts(deadline)
                spec = resolved_spec(params, mounts, sentry_pid)
                devices = (gofer.device_io_fd,) if gofer.device_io_fd >= 0 else ()
                argument = driver.start_subcontainer_argument(
                    params.id,
                    spec,
                    self.settings,
                    gofer.plan.confs,
                    len(gofer.plan.filestore_fds),
                    bool(devices),
                )
                stdio = () if params.tty else self._stdio
                fds = (*stdio, *gofer.plan.filestore_fds, *devices, *gofer.io_fds)
                try:
                    call(argument, fds)
                except Failed as fault:
                    # A gofer that has told its mounts may have died since.  Its files are closed
                    # a little before it has ended.
                    words = gofer.message(time.monotonic() + _LAST_WORDS)
                    if not words:
                        raise
                    raise Failed(f"gofer: {words}; sentry: {fault}") from None
            finally:
                self._close_stdio_locked()
                gofer.release()

    def close_stdio(self) -> None:
        """Close its stdio, as its end would.  Idempotent."""
        with self._using:
            self._close_stdio_locked()

    def _close_stdio_locked(self) -> None:
        stdio, self._stdio = self._stdio, ()
        for fd in stdio:
            os.close(fd)

    def destroy(self, control: Control, deadline: float) -> None:
        """Have the sentry kill all of it and forget it."""
        destroy(control, self.params.id, deadline, self.gofer.kill)

    def stop(self, deadline: float) -> None:
        """Kill and reap the gofer and close all that was for the sentry; idempotent.

        A start that is under way ends first: the sentry or the gofer that it waits for is dead.
        Raises Failed, DeadlineExceeded.
        """
        self.gofer.let_finish()
        self.gofer.kill()
        left = max(deadline - time.monotonic(), _REAP_TIMEOUT)
        if not self._using.acquire(timeout=left):
            raise DeadlineExceeded(f"start of container {self.params.id!r}", left)
        try:
            self._close_stdio_locked()
            self.gofer.stop(max(deadline - time.monotonic(), _REAP_TIMEOUT))
        finally:
            self._using.release()


def destroy(control: Control, cid: str, deadline: float, unblock: Callable[[], None]) -> None:
    """Have the sentry kill all of a container and forget it.

    A sentry that waits for the gofer goes on once ``unblock`` has killed that.  One that doesn't
    answer even then has been asked, and nothing on the host depends on its answer.
    """
    for bound in (_DESTROY_TIMEOUT, _DESTROY_AGAIN):
        left = max(min(bound, deadline - time.monotonic()), 0.001)
        try:
            control.destroy_subcontainer(cid, left)
        except DeadlineExceeded as fault:
            _log.warning("container.destroy_unanswered", container=cid, error=str(fault))
            unblock()
        except Unreachable as fault:
            # Once more, as its containers may run on.
            _log.warning("container.destroy_unheard", container=cid, error=str(fault))
        except (NotFound, SandboxGone):
            return
        else:
            return


def resolved_spec(params: BootParams, mounts: list[Any], sentry_pid: int) -> dict[str, Any]:
    """The spec as the sentry wants it for a subcontainer: the gofer's mounts, absolute paths.

    A PID namespace that is the sentry's own means the sandbox's root one, which a container is
    in if it names none (runsc/sandbox, fixPidns).
    """
    raw = raw_spec(params.spec, params.tty)
    raw["mounts"] = mounts
    linux = raw.get("linux")
    if isinstance(linux, dict) and params.spec.namespaces.get("pid") == (
        f"/proc/{sentry_pid}/ns/pid"
    ):
        others = [n for n in linux["namespaces"] if n.get("type") != "pid"]
        raw["linux"] = {**linux, "namespaces": others}
    return raw
