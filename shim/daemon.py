"""The daemon: builds every object of a shim process and owns the order of its shutdown.

The only module that knows all concrete classes.  Runs on the main thread, which afterwards only
reads the signal pipe: an idle shim is never woken.
"""

from __future__ import annotations

import _socket
import gc
import os
import sys
import threading
import time

from runtime.base import log, signals, stages
from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.cgroups.hierarchy import CgroupRoot
from runtime.host import children, linux, open_files
from runtime.host.reactor import Reactor
from runtime.host.workers import Workers
from runtime.runsc.config import CACHE_DIR
from runtime.task.context import Context
from runtime.task.kill import watch_gofer
from runtime.task.pod import Pod
from shim import bundles, events, service
from shim.base import options, sockets
from shim.forkserver import caller
from shim.forsaken import Forsaken
from shim.handover.upgrade import Upgrade
from shim.observe.counters import Counters
from shim.observe.debug_socket import DebugSocket
from shim.rest import Rest
from shim.termination import Termination
from shim.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.cgroups.metrics import Metrics
    from runtime.runsc.config import RunscConfig
    from runtime.task.events import Event
    from runtime.task.process import IO, OpenStdio
    from shim.daemon_args import DaemonArgs
    from shim.observe.debug_service import DebugService
    from shim.observe.tracing_setup import Tracing
    from shim.sandbox.service import SandboxService
    from shim.ttrpc.call import Call
    from shim.ttrpc.server import Handler

#: Seconds that a shutdown gives the event queue, and open replies.
FLUSH_TIMEOUT = 5.0
STOP_TIMEOUT = 2.0
#: Seconds for the last spans.
TRACES_TIMEOUT = 1.0
#: What asks for traces, as in containerd (``shim/observe/otlp.py``, whose import costs more).
_TRACES_WANTED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Seconds that a client has for closing its connection after it shut a sandbox down.
GRACE = 2.0
#: Seconds from the start of a daemon that no fork server has forked until it imports the rest.
PRELOAD_DELAY = 2.0
#: A thread's stack.  The default of 8 MiB is only reserved, but counts against memory cgroups
#: and overcommit where a host has hundreds of pods.
STACK_SIZE = 256 * 1024


#: Seconds for what is under way to end, while all else is held still for an upgrade.
FREEZE_TIMEOUT = 1.0
#: Seconds that the end of a shim waits for an upgrade that goes on.
STOP_UPGRADE_TIMEOUT = 20.0
#: In the pipe of signals: there is a job for the main thread.
_JOB = 254


class Job:
    """A function for the main thread."""

    def __init__(self, function: Callable[[], str]) -> None:
        self._function = function
        self.result = ""
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:
            self.result = repr(error)
        self.done.set()


class Daemon:
    """One shim process, from the listening socket to the removal of that socket."""

    def __init__(self, args: DaemonArgs) -> None:
        self.args = args
        self._log = log.get_logger("daemon", pod=args.id, namespace=args.namespace)
        self._ending = False  # set once, by any thread: the sandbox is shut down
        self._signals = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._signals[0], True)
        self.reactor = Reactor()
        self.workers = Workers(call_later=self.reactor.call_later)
        self.rest = Rest(self.reactor)
        self.counters = Counters()
        stages.observe(self.counters)
        self.publisher = events.Publisher(
            events.transport_for(
                args.ttrpc_address, args.address, args.publish_binary, args.namespace
            )
        )
        self.tracing = self._trace()
        self.pod = Pod(
            Context(
                namespace=args.namespace,
                reactor=self.reactor,
                workers=self.workers,
                emit=self._emit,
                open_io=self._open_io,
                cache_dir=CACHE_DIR,
                cgroup_root=CgroupRoot(),
                shim_address=args.socket_address,
                observe=self._creation_step,
            )
        )
        self.service = service.TaskService(
            self.pod,
            options=self._options,
            metrics=_metrics,
            shutdown=self.stop,
            bundles=bundles.Bundles(args.socket_address, args.bundle),
            sandbox=self._sandbox_service,
            counters=self.counters,
        )
        self._handle: Handler = self.service.handle
        if self.tracing is not None:
            self._handle = self.tracing.traced(self._handle)
        self.server = Server(
            _socket.socket(fileno=args.listener_fd),
            self._called,
            submit=self.workers.submit_now,
            on_error=self._rpc_failed,
            on_idle=self._idle,
        )
        self.forsaken = Forsaken(
            self.pod,
            self.reactor,
            self.workers,
            clients=lambda: self.server.connections,
            told=lambda: self.publisher.flush(0),
            end_if_wanted=self.service.idle,
            end=self.stop,
        )
        self.pod.on_orphans = self.forsaken.look_later
        self.termination = Termination(
            self.pod, self.reactor, clients=lambda: self.server.connections, end=self.terminate
        )
        self._flush_timeout = FLUSH_TIMEOUT
        #: Whether somebody set the log's level who doesn't want to have it set by options.
        self._level_is_set = False
        self.debug = DebugSocket(args.socket_address, self.reactor, self._debug_service)
        self._jobs: list[Job] = []  # guarded by _jobs_lock; for the main thread
        self._jobs_lock = threading.Lock()
        self._jobs_over = False  # guarded by _jobs_lock
        self.upgrade = Upgrade(self, _command_line(args), self, self._in_main)

    # -- what the objects need of each other ------------------------------------------------

    def _options(self, type_url: str, value: bytes, container_id: str) -> RunscConfig:
        given = (type_url, value) if type_url else self.args.options
        config = options.decode(*given, self.args.namespace, container_id=container_id)
        _log_as_configured(config, with_level=not self._level_is_set)
        return config

    def _called(self, call: Call) -> bytes | None:
        if caller.fork_server:
            self.rest.worked()
        return self._handle(call)

    def _emit(self, event: Event) -> None:
        self.counters.happened(event)
        self.service.publish(event, self.publisher.publish)

    def _sandbox_service(self) -> SandboxService:
        from shim.sandbox.service import SandboxService

        return SandboxService(
            self.pod, options=self._options, metrics=_metrics, shutdown=self._stop_soon
        )

    def _open_io(self, wanted: OpenStdio) -> IO:
        from shim.stdio.process_io import ProcessIO

        return ProcessIO.open(wanted, self.args.namespace, self.reactor)

    def _creation_step(self, container_id: str, step: str) -> None:
        if log.enabled(log.DEBUG):
            self._log.debug("creation.step", container=container_id, step=step)

    def _rpc_failed(self, call: Call, error: BaseException) -> None:
        self._log.error("rpc.crashed", method=call.method, error=repr(error))

    def _idle(self) -> None:
        """The last client has gone."""
        if self._ending:
            self.stop()
        self.service.idle()
        self.forsaken.look_later()

    def _trace(self) -> Tracing | None:
        """Traces, where containerd's environment asks for them; nothing of it is loaded else."""
        if not any(os.environ.get(name) for name in _TRACES_WANTED):
            return None
        from shim.observe import tracing_setup

        found = tracing_setup.start(os.environ, self.args.namespace, self.args.id, self.counters)
        if found is not None:
            stages.observe(found.tracer)
            self.publisher.context = found.tracer.context
        return found

    # -- the debug socket -------------------------------------------------------------------

    def _debug_service(self) -> DebugService:
        from shim.observe.debug_service import DebugService

        return DebugService(
            self.pod,
            self.publisher.counts,
            self.counters,
            self._about,
            clients=lambda: self.server.connections,
            set_level=self._set_level,
            upgrade=self.upgrade.request,
        )

    def _about(self) -> Mapping[str, object]:
        args = self.args
        return {
            "namespace": args.namespace,
            "id": args.id,
            "bundle": args.bundle,
            "address": args.socket_address,
            "forkServer": caller.fork_server,
            "package": os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
            "upgrade": self.upgrade.about(),
        }

    def _set_level(self, name: str) -> str:
        """Set the log's level by logrus' name, if there is one; the name of the one before."""
        before = log.level_name()
        if name:
            level = _LEVELS[name]
            self._level_is_set = True
            log.set_level(level)
            self._log.info("log.level_set", level=name)
        return before

    # -- life -------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until Shutdown or a signal; returns the exit status."""
        self.reactor.start()
        # While there is a thread to be had: events are queued under a lock that nobody may fail
        # under.
        self.publisher.start()
        self.server.start()
        self._handle_signals()
        signals.pthread_sigmask(signals.SIG_UNBLOCK, signals.HANDLED)
        gc.freeze()  # what is there now is there to stay
        gc.enable()
        self.debug.open()
        self.forsaken.look_later()
        if not caller.fork_server:
            self.reactor.call_later(PRELOAD_DELAY, lambda: self.workers.submit(self._preload))
        self._log.debug("daemon.started", pid=os.getpid(), address=self.args.socket_address)
        self._serve()
        self._close()
        return 0

    def resume(self, told: Callable[[], None]) -> int:
        """Go on in a process that has become this version; otherwise like :meth:`run`.

        ``told`` says what has become of an upgrade, once all has thawed: until then the upgrade is
        under way, and the next one, which is asked for as soon as the reactor runs, doesn't begin.
        """
        self._handle_signals()
        gc.freeze()
        gc.enable()
        for container in self.pod.all():
            if container.runs:
                watch_gofer(container, self.reactor)  # earlier versions didn't
        self.thaw()
        told()
        signals.pthread_sigmask(signals.SIG_UNBLOCK, signals.HANDLED)
        # What has ended meanwhile has told nobody.
        os.write(self._signals[1], bytes((signals.SIGCHLD,)))
        self.reactor.call_later(PRELOAD_DELAY, lambda: self.workers.submit(self._preload))
        self._serve()
        self._close()
        return 0

    # -- becoming another version (shim/handover) -------------------------------------------

    def freeze(self) -> str:
        """Hold everything still; what is under way, if that can't be.  For the upgrade's thread."""
        if not self.workers.drain(0):
            return self._under_way()
        if not self.publisher.freeze():
            return "an event is being sent"
        if self.tracing is not None and not self.tracing.freeze():
            return "spans are being sent"
        self.server.freeze()
        if not self.workers.drain(FREEZE_TIMEOUT):
            return self._under_way()
        if why := self.reactor.freeze():
            return why
        return "" if self.workers.freeze(FREEZE_TIMEOUT) else self._under_way()

    def _under_way(self) -> str:
        return f"under way: {', '.join(self.server.handled()) or 'work of its own'}"

    def thaw(self) -> None:
        """Go on after :meth:`freeze`; idempotent."""
        self.workers.thaw()
        self.reactor.thaw()
        self.server.thaw()
        self.publisher.thaw()
        if self.tracing is not None:
            self.tracing.thaw()

    def _in_main(self, function: Callable[[], str]) -> str:
        """Run ``function`` in the main thread, which reads no signal meanwhile; its result."""
        job = Job(function)
        with self._jobs_lock:
            if self._jobs_over:
                raise Failed("the shim ends")
            self._jobs.append(job)
        os.write(self._signals[1], bytes((_JOB,)))
        job.done.wait()
        return job.result

    def _run_jobs(self) -> None:
        while True:
            with self._jobs_lock:
                if not self._jobs:
                    return
                job = self._jobs.pop()
            job.run()

    def _refuse_jobs(self) -> None:
        with self._jobs_lock:
            self._jobs_over = True
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result = "the shim ends"
            job.done.set()
        self.upgrade.stop(STOP_UPGRADE_TIMEOUT)

    def _preload(self) -> None:
        """Import what may be imported later, as the files may be replaced or removed by then."""
        from shim.forkserver import preload

        preload.everything(others=False)
        self._log.debug("daemon.preloaded")

    def stop(self) -> None:
        """Make :meth:`run` return; from any thread."""
        os.write(self._signals[1], b"\0")

    def terminate(self) -> None:
        """Likewise, without waiting for a containerd that isn't there to hear of events."""
        self._flush_timeout = 0.0
        self.stop()

    def _stop_soon(self) -> None:
        """The same once the last client has gone, or after a while; from any thread.

        containerd's client may take a connection that ends right after a reply for one that ended
        without, and then says that the sandbox couldn't be removed.
        """
        self._ending = True
        self.reactor.call_later(GRACE if self.server.connections else 0.0, self.stop)

    def _handle_signals(self) -> None:
        def ignore(*_: object) -> None:
            """The number travels through the wake-up pipe."""

        for number in signals.HANDLED:
            signals.signal(number, ignore)
        signals.signal(signals.SIGPIPE, signals.SIG_IGN)
        signals.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)

    def _serve(self) -> None:
        while True:
            numbers = os.read(self._signals[0], 64)
            for number in numbers:
                if number == _JOB:
                    continue
                if number == signals.SIGCHLD:
                    children.reap_orphans()
                elif number == signals.SIGHUP:
                    self.upgrade.request("")
                elif number == signals.SIGUSR1:
                    self._dump_stacks()
                elif number == 0 or self.pod.close_if_empty():
                    return
                else:
                    self.termination.request(number)
            # Last, as one may not return.
            if _JOB in numbers:
                self._run_jobs()

    def _dump_stacks(self) -> None:
        import traceback

        names = {t.ident: t.name for t in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            stack = "".join(traceback.format_stack(frame, limit=12))[-3000:]
            self._log.error("thread.dumped", thread=names.get(ident, ident), stack=stack)

    def _close(self) -> None:
        self._refuse_jobs()
        # First: the next shim of this pod binds its own when the other one is free.
        self.debug.remove()
        sockets.remove_socket(self.args.socket_address)
        self.server.stop(STOP_TIMEOUT)
        self.publisher.flush(self._flush_timeout)
        self.publisher.close()
        self.workers.drain(STOP_TIMEOUT)
        self.reactor.stop()
        self.debug.close()
        if self.tracing is not None:
            # Last, when nobody waits for anything of this process but its end.
            self.tracing.close(TRACES_TIMEOUT)


def _metrics(figures: Metrics) -> tuple[str, bytes]:
    from runtime.cgroups.factory import host_mode
    from shim import metrics

    return metrics.to_any(host_mode(), figures)


def _open_log(level: str) -> None:
    """Log to the FIFO that containerd made in the bundle, without ever blocking on it."""
    fd = -1
    for flags in (os.O_WRONLY, os.O_RDWR):
        try:
            fd = os.open("log", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            break
        except OSError:
            continue  # no reader yet, or no such file (CRI-O): try the other way, or go without
    log.configure(fd, _LEVELS[level])


#: Room in the table of descriptors; runsc's file gets a number above 700 (runsc/program.py).
_DESCRIPTORS = 1024

#: logrus' levels, which containerd and the option ``log_level`` name, as ours.
_LEVELS = {
    "trace": log.DEBUG,
    "debug": log.DEBUG,
    "info": log.INFO,
    "warn": log.WARNING,
    "warning": log.WARNING,
    "error": log.ERROR,
    "fatal": log.ERROR,
    "panic": log.ERROR,
}


def _log_as_configured(config: RunscConfig, with_level: bool) -> None:
    """Log to the file and at the level that the operator named, in place of containerd's log.

    As gVisor's shim does (pkg/shim/v1/runsc, initLogging).  Raises InvalidRequest if the file
    can't be opened.
    """
    if config.log_level and with_level:
        log.set_level(_LEVELS[config.log_level])
    if config.log_path and config.log_path != log.destination():
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            os.makedirs(os.path.dirname(config.log_path) or "/", 0o755, exist_ok=True)
            fd = os.open(config.log_path, flags | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise InvalidRequest("log_path", f"{config.log_path}: {reason(error)}") from None
        log.redirect(fd, config.log_path)


def _command_line(args: DaemonArgs) -> tuple[str, ...]:
    """How a version that takes over is called: as ``start`` was, by which shims are known."""
    named = (
        ("-namespace", args.namespace),
        ("-address", args.address),
        ("-publish-binary", args.publish_binary),
        ("-id", args.id),
    )
    return tuple(word for name, value in named if value for word in (name, value))


def prepare() -> None:
    """What concerns the process, before there is a thread."""
    linux.limit_malloc_arenas(1)
    open_files.make_room(_DESCRIPTORS)
    threading.stack_size(STACK_SIZE)
    linux.set_child_subreaper()


def show_launcher() -> None:
    """Have ps show the launcher's command line, as in a fork of the fork server."""
    launcher = sys._xoptions.get("launcher")
    if isinstance(launcher, str):
        try:
            linux.show_arguments([os.fsencode(each) for each in (launcher, *sys.argv[1:])], None)
        except OSError:
            pass  # it shows the interpreter's


def main(args: DaemonArgs) -> int:
    """Run a shim daemon on ``args.listener_fd``; returns the process's exit status."""
    open_files.raise_limit()
    prepare()
    _open_log(args.log_level)
    if not caller.fork_server:
        show_launcher()
    started = time.monotonic()
    daemon = Daemon(args)
    try:
        return daemon.run()
    finally:
        log.get_logger("daemon").debug("daemon.ended", s=round(time.monotonic() - started, 1))
