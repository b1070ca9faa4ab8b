"""The container library: create, start and run containers without containerd or a shim.

Owns what a program such as gvctl does around the steps that it shares with the shim: its own
stdio, a process that may end once its call is over, the pid file, and waiting.  Afterwards
``state/loaded.py`` drives the container, whether it was made here, by the shim or by runsc.

The order of things is that of gVisor's ``runsc/container/container.go``: New, Start, Run.
"""

from __future__ import annotations

import os
import threading
import time

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, NotFound, RuntimeFault, reason
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.bundle.spec import load_spec, sandbox_to_join, validate_id
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.runsc.config import CACHE_DIR
from runtime.state.destroy import adjust_score
from runtime.state.loaded import StoredContainer
from runtime.state.loaded_state import CREATED
from runtime.state.lock import StateLock
from runtime.task import attach
from runtime.task import create as creation
from runtime.task.container import Container
from runtime.task.context import Context, CreateRequest
from runtime.task.create import BOOT_TIMEOUT
from runtime.task.inherited_io import GivenIO, check_terminal
from runtime.task.process import IORequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from runtime.bundle.spec import Spec
    from runtime.runsc.config import RunscConfig
    from runtime.task.attach import AdoptedSandbox
    from runtime.task.process import IO, Exit

_PID_FILE_MODE = 0o644
_DEFAULT_STDIO = (0, 1, 2)

_log = get_logger("library")


class Request(Record):
    """What a caller wants created.  ``config.root`` is the root directory of the state files."""

    id: str
    #: The absolute path of the directory with config.json.
    bundle: str
    config: RunscConfig
    cache_dir: str = CACHE_DIR
    #: The caller's, who keeps them.
    stdio: tuple[int, int, int] = _DEFAULT_STDIO
    #: A socket that takes the master of the container's terminal.
    console_socket: str = ""
    #: A file for the pid, written last of all.
    pid_file: str = ""
    user_log: str = ""
    #: Whether the sandbox dies with this process.
    attached: bool = False
    #: Further files of init, in a sandbox of its own: its number to ours.
    pass_fds: Mapping[int, int] = {}
    #: The directory of an image: what is run is restored from it, in place of being started.
    checkpoint: str = ""
    #: Likewise of an image of file systems alone: what is run has those.
    files_checkpoint: str = ""


class _Session:
    """What the shared steps want of whoever takes them, for the time of one call."""

    def __init__(
        self, cache_dir: str, open_io: Callable[[], GivenIO] | None = None, *, starts: bool
    ) -> None:
        self._reactor = Reactor()
        self._workers = Workers(call_later=self._reactor.call_later)
        self._open_io = open_io
        self.context = Context(
            namespace="",
            reactor=self._reactor,
            workers=self._workers,
            emit=lambda event: None,
            open_io=lambda wanted: self._open(),
            cache_dir=cache_dir,
            cgroup_root=CgroupRoot(),
            starts=starts,
        )

    def _open(self) -> IO:
        assert self._open_io is not None
        return self._open_io()

    def __enter__(self) -> Self:
        self._reactor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.stop()
        self._reactor.stop()


def create(request: Request) -> StoredContainer:
    """Create a container: in a sandbox of its own, or in the one that its annotations name.

    This process may end after it; the container is started by :func:`start`.  Raises a
    RuntimeFault, and then nothing is left of it.
    """
    if request.checkpoint:
        raise InvalidRequest("checkpoint", "is for a run, or for the start of what is created")
    with _Session(request.cache_dir, lambda: _open_io(request), starts=False) as session:
        container, adopted = _create(request, session.context)
        holdings = container.holdings
        assert holdings is not None
        try:
            _write_pid_file(request, container)
        except BaseException:
            _give_up(container)
            raise
        if holdings.memory is not None and container.is_root:
            holdings.memory.close()
        if adopted is not None:
            adopted.close()
    return StoredContainer.load_exact(request.config.state_dir, request.id, _sandbox_id(container))


def start(
    container: StoredContainer,
    config: RunscConfig,
    *,
    cache_dir: str = CACHE_DIR,
    stdio: tuple[int, int, int] = _DEFAULT_STDIO,
    checkpoint: str = "",
) -> None:
    """Run the init of a created container, or restore it from the image in ``checkpoint``.

    ``stdio`` is for a container that joins a sandbox and has no terminal: its init gets the
    starter's.  ``config`` counts for what runsc made; of others it is known.  After a failure of
    a sandbox's first container the sandbox is ended.  Raises InvalidState unless it is created.
    """
    deadline = time.monotonic() + BOOT_TIMEOUT
    lock = StateLock(container.root, container.id, container.sandbox_id).acquire()
    with lock, _Session(cache_dir, starts=True) as session:
        fresh = container.under(lock)
        fresh.require("restore" if checkpoint else "start", CREATED)
        root = fresh if fresh.is_root else _host(fresh.root, fresh.sandbox_id)
        adopted, sandbox = attach.adopt_created(fresh, root, session.context, config, stdio, lock)
        try:
            if checkpoint:
                attach.restore_from(adopted, sandbox, checkpoint)
            adopted.start(deadline)
            if fresh.is_root:
                attach.note_network(fresh, sandbox)
            else:
                attach.note_gofer(adopted, sandbox)
        finally:
            sandbox.close()
    adjust_score(fresh)


def run(
    request: Request,
    *,
    detach: bool = False,
    keep: bool = False,
    waiting: _Waiting | None = None,
) -> int:
    """Create and start, or restore, a container, and wait for its end unless ``detach`` is set.

    Returns init's status as a shell has it, 0 if detached.  After the end nothing is left of it
    unless ``keep`` is set, and after a failure in any case.  ``waiting`` is called once init
    runs, and what it returns when init has ended: where signals come from, say.
    """
    open_io: Callable[[], GivenIO] = lambda: _open_io(request)  # noqa: E731
    with _Session(request.cache_dir, open_io, starts=True) as session:
        container, adopted = _create(request, session.context)
        ended = threading.Event()
        found: list[Exit] = []

        def note(exit: Exit) -> None:
            found.append(exit)
            ended.set()

        container.init.wait(note)
        try:
            container.start(time.monotonic() + BOOT_TIMEOUT)
            if adopted is not None:
                attach.note_gofer(container, adopted)
            # After the start: what reads it may expect a container that runs.
            _write_pid_file(request, container)
            sandbox_id = _sandbox_id(container)
            stored = StoredContainer.load_exact(request.config.state_dir, request.id, sandbox_id)
            if not container.is_root:
                adjust_score(stored)
            if not detach:
                stop = waiting(stored) if waiting is not None else None
                try:
                    ended.wait()
                finally:
                    if stop is not None:
                        stop()
        except BaseException:
            _give_up(container)
            raise
        if detach or keep:
            if found:
                # In vain if that is done already, but not before.
                assert container.holdings is not None
                container.holdings.record_exit(found[0].status, found[0].at)
            _leave(container, adopted)
            return 0 if detach else found[0].status
        container.delete(lambda: None)
        if not container.is_root:
            adjust_score(stored)
    return found[0].status


if TYPE_CHECKING:
    _Waiting = Callable[[StoredContainer], Callable[[], None]]


# -- the steps ------------------------------------------------------------------------------


def _create(request: Request, context: Context) -> tuple[Container, AdoptedSandbox | None]:
    validate_id("container", request.id)
    spec = load_spec(request.bundle)
    terminal = spec.process.terminal
    check_terminal(terminal, request.console_socket, request.stdio)
    container = Container(context, request.id, request.bundle, IORequest(terminal=terminal))
    adopted: list[AdoptedSandbox] = []

    def find_root(spec: Spec) -> Container | None:
        sandbox_id = sandbox_to_join(spec)
        if sandbox_id is None:
            return None
        stored = _host(request.config.state_dir, sandbox_id)
        root, sandbox = attach.adopt_host(stored, context, request.config)
        adopted.append(sandbox)
        if request.checkpoint:
            sandbox.go_on_restoring(request.checkpoint)
        return root

    wanted = CreateRequest(
        id=request.id,
        bundle=request.bundle,
        io=IORequest(terminal=terminal),
        config=request.config,
        checkpoint=request.checkpoint,
        files_checkpoint=request.files_checkpoint,
        attached=request.attached,
        user_log=request.user_log,
        pass_fds=request.pass_fds,
    )
    try:
        creation.create(container, wanted, context, find_root)
    except BaseException:
        for sandbox in adopted:
            sandbox.close()
        raise
    return container, adopted[0] if adopted else None


def _open_io(request: Request) -> GivenIO:
    spec = load_spec(request.bundle)
    if request.console_socket:
        return GivenIO.with_console(request.console_socket, spec.process.console_size)
    return GivenIO(request.stdio, spec.process.terminal)


def _host(root: str, sandbox_id: str) -> StoredContainer:
    """The root container of a sandbox.  Raises NotFound."""
    try:
        return StoredContainer.load_exact(root, sandbox_id, sandbox_id)
    except NotFound:
        raise NotFound("sandbox", sandbox_id, f'sandbox "{sandbox_id}" does not exist') from None


def _sandbox_id(container: Container) -> str:
    return container.sandbox.id


def _write_pid_file(request: Request, container: Container) -> None:
    if not request.pid_file:
        return
    try:
        data = str(container.init.pid).encode("ascii")
        files.replace_file(os.path.abspath(request.pid_file), data, _PID_FILE_MODE)
    except OSError as error:
        raise Failed(f"pid file {request.pid_file}: {reason(error)}") from None


def _give_up(container: Container) -> None:
    """Take a container apart again; what fails is logged, as there is a first failure."""
    from runtime.task import hook_stages

    assert container.holdings is not None
    try:
        container.holdings.release()
    except RuntimeFault as fault:
        _log.error("library.cleanup_failed", container=container.id, error=str(fault))
    hook_stages.after_delete(container)


def _leave(container: Container, adopted: AdoptedSandbox | None) -> None:
    """Let go of a container that goes on without this process."""
    holdings = container.holdings
    if holdings is not None and holdings.memory is not None and container.is_root:
        holdings.memory.close()
    if adopted is not None:
        adopted.close()
    elif holdings is not None and holdings.sandbox is not None:
        holdings.sandbox.leave()
