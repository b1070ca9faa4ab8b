"""What a sandbox, or a container in one, is made of."""

from __future__ import annotations

from runtime.base.record import Record
from runtime.sandbox import cgroup_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.bundle.spec import Spec
    from runtime.cgroups.metrics import SentryStats
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.driver import Driver
    from runtime.sandbox.checkpoint_image import Image


class BootParams(Record):
    """What a container's sandbox, or a container in one, is made of.

    ``stdio`` stays the caller's.  ``cgroup_procs`` and ``cgroup_fd`` are as in SpawnSpec.
    Limits are what the container is told to have.
    """

    id: str
    bundle: str
    spec: Spec
    config: RunscConfig
    driver: Driver
    stdio: tuple[int, int, int]
    tty: bool = False
    cgroup_procs: tuple[str, ...] = ()
    cgroup_fd: int | None = None
    cpu_count: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    memory_limit: int | None = None
    #: Whose ABI the sentry speaks to NVIDIA's driver; empty without a GPU.
    nvidia_driver: str = ""
    #: Whether sentry and gofers die with the shim.
    attached: bool = False
    #: A file for what the sentry has to say to the container's user.
    user_log: str = ""
    #: Further files of the first container's init: its number to ours, which stays the caller's.
    pass_fds: Mapping[int, int] = {}
    #: What the file systems of a fresh sandbox are restored from; stays the caller's.
    restored_files: tuple[int, ...] = ()
    #: What the containers are restored from, in place of being started; stays the caller's.
    image: Image | None = None

    def judge(self, found: SentryStats) -> SentryStats:
        """The sentry's figures of it, with whose memory they tell.

        Releases of 2026 tell everybody's CPU time also where they count each by itself.
        """
        if found.owns_memory:
            return found
        return found.replace(owns_memory=cgroup_mounts.counts(self.spec, self.driver.generation))
