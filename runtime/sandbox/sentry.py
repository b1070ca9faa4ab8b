"""A sentry: the process that is a sandbox.

Owns its start until it answers calls, its control socket, and what it leaves behind.
``runsc/control.py`` makes the calls, ``exits.py`` notices its end.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import stat
import time

from runtime.base.cleanup_steps import Steps
from runtime.base.errors import AlreadyExists, DeadlineExceeded, Failed, Unsupported, reason
from runtime.base.log import get_logger
from runtime.base.signals import SIGKILL
from runtime.base.stages import stage
from runtime.host.child_log import ChildLog, is_echo
from runtime.host.children import describe_status
from runtime.host.fds import FdSet, open_namespace, own_stdio
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec
from runtime.runsc.control_address import control_addresses
from runtime.runsc.donated_files import open_files
from runtime.runsc.driver import CLONE_NEWNET, BootCommand
from runtime.runsc.pin_ring import PinRing
from runtime.runsc.sidecars import closed_folder
from runtime.runsc.urpc import SocketPath
from runtime.sandbox.gofer import in_user_namespace
from runtime.sandbox.gofer_mounts import remove_filestores
from runtime.sandbox.spec_file import spec_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.host.pids import ProcessHandle
    from runtime.host.spawn import Child
    from runtime.runsc.driver import Credentials
    from runtime.runsc.flags import Settings
    from runtime.sandbox.boot_params import BootParams
    from runtime.sandbox.gofer import Gofer

_log = get_logger("sentry")
_RLIMIT_MEMLOCK = 8
#: A sentry puts a file at number 256, for which its table would grow once it has threads.
_DESCRIPTORS = 512
#: Seconds for a process that failed to be gone, so that its last words are complete.
#: Of annotations about checkpoints of file systems alone; see ``files/image.py``.
_FILES_PREFIX = "dev.gvisor.internal.fscheckpoint."
_DYING_TIMEOUT = 1.0
#: Seconds to reap each of those that were killed.
_UNDO_TIMEOUT = 10.0
#: The standard input's number, which is the terminal's if there is one.
_TERMINAL_FLAGS_FD = "stdio-fds"
#: Seconds that a sentry whose init has ended has to write its profiles and last metrics.
_LAST_FILES_TIMEOUT = 3.0


class Sentry:
    """A sentry process.  One thread at a time, but for ``kill``."""

    def __init__(
        self, child: ProcessHandle, address: str, credentials: Credentials, log: ChildLog
    ) -> None:
        self.child = child
        self.address = address
        self.credentials = credentials
        self.log = log
        #: Whether it writes files when it ends by itself.
        self.writes_at_end = False
        #: Holds what it would be slow to let go of at its end, until that has come.
        self.ring = PinRing()

    @classmethod
    def start(
        cls,
        params: BootParams,
        settings: Settings,
        gofer: Gofer,
        started: Callable[[Child], None] | None,
        deadline: float,
    ) -> Sentry:
        """Start a sentry, then its gofer, and wait until the sentry answers.

        The gofer second, as the sentry takes longest.  ``started`` is called when both run.

        Raises Failed with the words of who knows why if either dies; DeadlineExceeded;
        AlreadyExists if a sentry of that id lives.  Then nothing of the sentry is left.
        """
        spec, driver, config = params.spec, params.driver, params.config
        credentials = driver.sandbox_credentials(settings, spec)
        abstract = driver.abstract_sockets and config.abstract_control_socket
        addresses = control_addresses(config.state_dir, params.id, abstract)
        log = ChildLog("sentry-log")
        ring = PinRing()
        child = None
        try:
            with FdSet() as ours:
                listener, address = _bind_first(addresses, params.id, ours)
                try:
                    ready, ready_write = ours.pipe()
                    own_stdio(params.stdio, *credentials.owner)
                    host_memory = _host_memory()
                    files = open_files(
                        settings.effective,
                        "boot",
                        params.id,
                        params.id,
                        driver.generation.boot_flags,
                        ours,
                    )
                    command = driver.boot_command(
                        config.state_dir,
                        settings,
                        BootCommand(
                            sandbox_id=params.id,
                            bundle=spec.bundle,
                            credentials=credentials,
                            spec_fd=spec_file(spec, params.tty, ours),
                            mounts_fd=gofer.mounts_fd,
                            controller_fd=listener,
                            start_sync_fd=ready_write,
                            io_fds=gofer.io_fds,
                            device_io_fd=gofer.device_io_fd,
                            nvidia_driver=params.nvidia_driver,
                            filestore_fds=gofer.plan.filestore_fds,
                            stdio=params.stdio,
                            confs=gofer.plan.confs,
                            total_memory=min(params.memory_limit or host_memory, host_memory),
                            host_memory=host_memory,
                            device_fd=open_device(settings, ours),
                            pin_ring_fd=_ring_of_its_own(params, ring),
                            cpu_count=params.cpu_count,
                            cpu_quota=params.cpu_quota,
                            cpu_period=params.cpu_period,
                            attached=params.attached,
                            user_log_fd=_open_user_log(params.user_log, ours),
                            restored_files=params.restored_files,
                            saved_files=_open_saved_files(params, ours),
                            pass_fds=params.pass_fds,
                            files=files,
                        ),
                    )
                    fds = {1: log.fd, 2: log.fd, **command.fds}
                    wanted = _spawn_spec(params, settings, credentials, command.argv, fds, ours)
                    child = _spawn(wanted)
                    _log.debug("sentry.spawned", sandbox=params.id, pid=child.pid)
                    ours.close_one(ready_write)
                    gofer.release()
                    with stage("gofer"):
                        gofer.launch()
                    _log.debug("gofer.spawned", sandbox=params.id)
                    sentry = cls(child, address, credentials, log)
                    sentry.writes_at_end = files.at_end
                    sentry.ring = ring
                    if started is not None:
                        started(child)
                    sentry._await_ready(ready, gofer, _platform(params, settings), deadline)
                    _log.debug("sentry.ready", sandbox=params.id)
                except BaseException:
                    _unlink(address)
                    raise
        except BaseException:
            if child is not None:
                child.kill(SIGKILL)
                child.wait(_DYING_TIMEOUT)
                child.close()
            log.close()
            ring.close()
            raise
        return sentry

    def _await_ready(self, ready: int, gofer: Gofer, platform: str, deadline: float) -> None:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        started = time.monotonic()
        if not poll.poll(max(deadline - started, 0.0) * 1000):
            what = f"start of the sentry on platform {platform}"
            raise DeadlineExceeded(what, round(time.monotonic() - started, 1))
        if os.read(ready, 1):
            return
        limit = time.monotonic() + _DYING_TIMEOUT
        try:
            raw = self.child.wait(_DYING_TIMEOUT)
        except DeadlineExceeded:
            raw = None
        words = gofer.message(limit if raw is None else time.monotonic() + 0.2)
        ended = describe_status(raw) if raw is not None else "no readiness"
        said = {"gofer": words, "sentry": self.log.message() or ended}
        raise Failed("start sandbox: " + _causes(said))

    def let_finish(self) -> None:
        """Let one that is ending by itself write what it writes at its end; returns in any case."""
        if self.writes_at_end:
            try:
                self.child.wait(_LAST_FILES_TIMEOUT)
            except DeadlineExceeded as fault:
                _log.warning("sentry.files_unfinished", pid=self.child.pid, error=str(fault))

    def kill(self) -> None:
        """SIGKILL.  Thread-safe, no error if it is dead."""
        self.child.kill(SIGKILL)

    def remove_socket(self) -> None:
        """Remove the control socket.  Idempotent."""
        _unlink(self.address)


def _causes(said: Mapping[str, str]) -> str:
    """What each process said, in order, less what one only says since another has ended."""
    said = {who: words for who, words in said.items() if words}
    causes = {who: words for who, words in said.items() if not is_echo(words)} or said
    return "; ".join(f"{who}: {words}" for who, words in causes.items())


def undo_boot(sentry: Sentry | None, gofer: Gofer) -> None:
    """Kill and reap what a boot that failed has started, and remove what it made."""
    steps = Steps()
    if sentry is not None:
        steps.run("kill sentry", sentry.kill)
        steps.run("reap sentry", sentry.child.wait, _UNDO_TIMEOUT)
        steps.run("close sentry", sentry.child.close)
        steps.run("remove control socket", sentry.remove_socket)
        steps.run("close log", sentry.log.close)
        steps.run("let go of files", sentry.ring.close)
    steps.run("stop gofer", gofer.stop, _UNDO_TIMEOUT)
    steps.run("remove filestores", remove_filestores, gofer.plan.shared_filestores)
    try:
        steps.finish()
    except Failed as fault:
        # What is told is why the boot failed.
        _log.error("boot.not_undone", error=str(fault))


def _spawn_spec(
    params: BootParams,
    settings: Settings,
    credentials: Credentials,
    argv: tuple[str, ...],
    fds: dict[int, int],
    ours: FdSet,
) -> SpawnSpec:
    spec, driver, join = params.spec, params.driver, []
    # Joined before the user namespace: entering the pod's network takes the shim's rights.
    if spec.netns_path and settings.network != "none":
        join.append((open_namespace(spec.netns_path, ours), CLONE_NEWNET))
    wanted = SpawnSpec(
        path=driver.generation.boot_binary,
        argv=argv,
        env=driver.boot_environment(settings.effective),
        fds=fds,
        namespaces=driver.sandbox_namespaces(settings, spec),
        join=tuple(join),
        uid=credentials.uid,
        gid=credentials.gid,
        ambient_caps=credentials.ambient,
        cgroup_procs=params.cgroup_procs,
        cgroup_fd=params.cgroup_fd,
        controlling_tty=_terminal_number(argv) if params.tty else None,
        pdeathsig=SIGKILL if params.attached else 0,
        setsid=True,
        drop_groups=True,
        # These two ask for the global barrier only (pkg/sentry/platform); releases since 2025
        # don't even register.
        fd_room=_DESCRIPTORS,
        no_membarrier=_platform(params, settings) in ("ptrace", "systrap"),
        # From birth, so that the processes which run the container's code have it as well.
        oom_score_adj=spec.process.oom_score_adj,
        # The sentry locks memory for moments; it gets as much of this as we may give.
        rlimits={_RLIMIT_MEMLOCK: (-1, -1)},
    )
    return in_user_namespace(wanted, credentials.user_namespace, spec, ours)


def _platform(params: BootParams, settings: Settings) -> str:
    return settings.platform or params.driver.generation.default_platform


def _spawn(wanted: SpawnSpec) -> Child:
    """Raises Failed; says so if it is for a folder that the sentry may not enter."""
    try:
        return spawn(wanted)
    except Failed as fault:
        folder = closed_folder(wanted.path) if wanted.uid else ""
        if not folder:
            raise
        raise Failed(f"{fault}: {folder} is closed to the user that the sentry runs as") from None


def _terminal_number(argv: tuple[str, ...]) -> int:
    """The child's number of the standard input."""
    prefix = f"--{_TERMINAL_FLAGS_FD}="
    return next(int(word[len(prefix) :]) for word in argv if word.startswith(prefix))


# -- the control socket --------------------------------------------------------------------------


def _bind_first(addresses: tuple[str, ...], sandbox_id: str, fds: FdSet) -> tuple[int, str]:
    """A socket bound to the first of the addresses that is free, and that address."""
    for address in addresses[:-1]:
        try:
            return _bind_abstract(address, fds), address
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Failed(f"bind control socket: {reason(error)}") from None
    return _bind(addresses[-1], sandbox_id, fds), addresses[-1]


def _bind_abstract(name: str, fds: FdSet) -> int:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.bind(name)
    except BaseException:
        sock.close()
        raise
    return fds.add(sock.detach())


def _bind(address: str, sandbox_id: str, fds: FdSet) -> int:
    """A bound socket, not listening: that is the sentry's part."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        os.makedirs(os.path.dirname(address), mode=0o711, exist_ok=True)
        os.fchmod(sock.fileno(), 0o600)  # the mode that bind gives the file
        with SocketPath(address) as path:
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if _lives(path):
                    raise AlreadyExists("sandbox", sandbox_id) from None
                _unlink(address)
                sock.bind(path)
    except OSError as error:
        sock.close()
        raise Failed(f"bind control socket {address}: {reason(error)}") from None
    except BaseException:
        sock.close()
        raise
    return fds.add(sock.detach())


def _lives(path: str) -> bool:
    """Whether anything but a leftover socket is at ``path``."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return True
    except FileNotFoundError:
        return False  # removed in this very moment
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    finally:
        sock.close()
    return True


def _unlink(path: str) -> None:
    if path.startswith("\0"):
        return  # an abstract name ends with its socket
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Failed(f"remove control socket {path}: {reason(error)}") from None


# -- what a sentry is given ------------------------------------------------------------------------


def open_device(settings: Settings, fds: FdSet) -> int:
    """The device of the KVM platform, or -1.  Raises Unsupported if the host has none that works.

    A sentry that is given one that doesn't would not say so, but never be ready.
    """
    if settings.platform != "kvm":
        return -1
    path = settings.platform_device or "/dev/kvm"
    what = "open"
    try:
        fd = fds.add(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        from runtime.host import kvm

        what = "make a virtual machine with"
        kvm.check(fd)
    except OSError as error:
        raise Unsupported(f"platform kvm: {what} {path}: {reason(error)}") from None
    return fd


def _ring_of_its_own(params: BootParams, ring: PinRing) -> int:
    """The ring that the sentry pins files in itself, or -1.

    It knows more of them than we do, but pins none when it restores.
    """
    if params.image is not None or not params.driver.generation.pins_files:
        return -1
    return ring.to_donate()


def _open_saved_files(params: BootParams, ours: FdSet) -> tuple[int, ...]:
    """What a program in the sandbox may save file systems to."""
    annotations = params.spec.annotations
    if not any(name.startswith(_FILES_PREFIX) for name in annotations):
        return ()
    from runtime.sandbox.files.image import open_for_saving

    folder = params.config.fs_checkpoints
    return open_for_saving(annotations, folder, params.driver.generation, ours)


def _open_user_log(path: str, fds: FdSet) -> int:
    """The file for messages to the container's user, or -1.  Raises Failed."""
    if not path:
        return -1
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return fds.add(os.open(path, flags, 0o644))
    except OSError as error:
        raise Failed(f"user log {path}: {reason(error)}") from None


def _host_memory() -> int:
    """Bytes of memory that the host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
