"""What all containers of a shim share, and what a caller asks for when it creates one."""

from __future__ import annotations

from runtime.base.record import Record
from runtime.runsc.driver import find_driver
from runtime.sandbox.sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.bundle.mount_options import RootfsMount
    from runtime.cgroups.hierarchy import CgroupRoot
    from runtime.host.reactor import Reactor
    from runtime.host.workers import Workers
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.driver import Driver
    from runtime.sandbox.checkpoint_image import Image
    from runtime.task.events import Event
    from runtime.task.process import IO, IORequest, OpenStdio


class Context(Record):
    """What all containers of a shim share."""

    namespace: str
    reactor: Reactor
    workers: Workers
    emit: Callable[[Event], None]
    open_io: Callable[[OpenStdio], IO]
    cache_dir: str
    #: One for all of them, as it remembers what it has found out.
    cgroup_root: CgroupRoot
    shim_address: str = ""
    #: Whether what is created is started by the same process, and worth preparing.
    starts: bool = True
    #: Told of each step of a creation, before it, with the container's id; what it raises makes
    #: the creation fail.
    observe: Callable[[str, str], None] | None = None
    #: The ways to drive a sandbox.
    find_driver: Callable[[RunscConfig, str], Driver] = staticmethod(find_driver)
    boot: Callable[..., Sandbox] = Sandbox.boot


class CreateRequest(Record):
    """What a caller asks for.  ``bundle`` holds config.json; mounts go to ``bundle``/rootfs."""

    id: str
    bundle: str
    io: IORequest
    config: RunscConfig
    rootfs: tuple[RootfsMount, ...] = ()
    checkpoint: str = ""
    #: What is there, if it was opened and checked already; it is taken over.
    image: Image | None = None
    #: A checkpoint of file systems alone, which those of a sandbox of its own are restored from.
    files_checkpoint: str = ""
    #: Whether sentry and gofers die with this process.
    attached: bool = False
    #: A file for what the sentry has to say to the container's user.
    user_log: str = ""
    #: Further files of init, in a sandbox of its own: its number to ours.
    pass_fds: Mapping[int, int] = {}
