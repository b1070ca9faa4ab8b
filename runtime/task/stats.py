"""What one container uses: the host's figures and the sentry's, and the last of them at its end.

``cgroups/metrics.py`` joins the two.
"""

from __future__ import annotations

import threading

from runtime.base.errors import DeadlineExceeded, NotFound, SandboxGone
from runtime.base.log import get_logger
from runtime.cgroups.metrics import CpuClock, MemoryUse, combine
from runtime.task.lifecycle import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from runtime.bundle.spec import Spec
    from runtime.cgroups.metrics import Metrics
    from runtime.cgroups.pod_limits import Limits
    from runtime.sandbox.sandbox import Sandbox
    from runtime.task.acquired import Holdings
    from runtime.task.process import Process

    class Measured(Protocol):
        """What figures need of a container; its own class says what each member is."""

        id: str
        init: Process
        spec: Spec | None
        holdings: Holdings | None
        is_root: bool
        limits: Limits

        @property
        def sandbox(self) -> Sandbox: ...
        @property
        def memory_limit(self) -> int | None: ...
        def require_created(self) -> None: ...


#: Seconds that the sentry has to tell of its processes and usage; containerd waits for 5 at its
#: own start, and what is known without the sentry is told then.
LOOK_TIMEOUT = 2.0


class Stats:
    """The figures of one container.  Thread-safe."""

    def __init__(self, container_id: str) -> None:
        self._log = get_logger("container", container=container_id)
        self._lock = threading.Lock()
        self._last: Metrics | None = None  # guarded by _lock
        self._cpu = CpuClock()

    def metrics(self, container: Measured) -> Metrics:
        """Usage now of ``container``; once that has ended, its last figures, until it is deleted.

        As with runc, whose cgroup stays until then: containerd asks when it has heard of an OOM,
        and a scrape may come between the end and the Delete.  Where nobody asked while it ran,
        they are what the host's cgroup says.  Raises InvalidState while it is being created.
        """
        container.require_created()
        ended = container.init.exit is not None
        if ended and (last := self._known()) is not None:
            return last
        holdings = container.holdings
        cgroup = (holdings.cgroup or holdings.sandbox_cgroup) if holdings is not None else None
        host = cgroup.stats() if cgroup is not None else None
        sentry = None
        if not ended and container.init.state is not State.CREATED:
            try:
                sentry = container.sandbox.event(container.id, LOOK_TIMEOUT)
            except (SandboxGone, NotFound) as fault:
                # It has ended, and its exit is about to be published.
                self._log.debug("metrics.sentry_gone", error=str(fault))
                if (last := self._known()) is not None:
                    return last
            except DeadlineExceeded as fault:
                # An error would be logged at each scrape, and might fail that of the whole node.
                self._log.warning("metrics.stale", error=str(fault))
                if (last := self._known()) is not None:
                    return last
        in_pod = container.spec is not None and bool(container.spec.container_type)
        metrics = combine(
            host,
            sentry,
            container.id,
            is_root_only=False if in_pod else None,
            memory_limit=None if container.is_root else container.memory_limit,
            pids_limit=container.limits.pids,
            clock=self._cpu,
        )
        with self._lock:
            self._last = metrics
        if sentry is not None and holdings is not None and holdings.memory is not None:
            usage = MemoryUse(bytes=sentry.memory_usage, exact=sentry.owns_memory)
            holdings.memory.note(container.id, usage)
        return metrics

    def _known(self) -> Metrics | None:
        with self._lock:
            return self._last
