"""The program of a ``binary://`` stdio URI: it is started per process and reads its output.

Owns the program's process and the pipes to it.  The contract is that of containerd's logging
binaries (``cmd/containerd-shim-runc-v2/process/io.go``, ``core/runtime/v2/logging``): descriptor
3 reads stdout, 4 reads stderr, 5 is written or closed once the program is ready; the environment
is CONTAINER_ID and CONTAINER_NAMESPACE and nothing else.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time

from runtime.base.errors import DeadlineExceeded, Failed, ResourceExhausted, reason
from runtime.base.log import get_logger
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.host.reactor import Reactor, Timer, Watch
    from runtime.host.spawn import Child

_SIGKILL, _SIGTERM = 9, 15
# How long a program may take to end after SIGTERM; as long as containerd's runc shim gives it.
TERMINATION_GRACE = 12.0
_KILL_WAIT = 2.0

_log = get_logger("logger")


class LoggerProcess:
    """A running logging program.  ``stdout`` and ``stderr`` are the pipes' write ends, in
    blocking mode, -1 once given away."""

    def __init__(
        self,
        *,
        argv: tuple[str, ...],
        container_id: str,
        namespace: str,
        must_report: bool,
        reactor: Reactor,
        deadline: float,
    ) -> None:
        """Start the program and wait until it is ready.

        ``argv[0]`` is its path.  With ``must_report`` (``binary-v2``) it has to write a byte;
        else closing its descriptor 5 counts as ready, too.  ``deadline`` is a ``time.monotonic()``
        value.

        Raises Failed if it can't be started or ends instead of getting ready, DeadlineExceeded,
        ResourceExhausted.  Nothing is left behind then.
        """
        self._path = argv[0]
        self._reactor = reactor
        self._lock = threading.Lock()
        self._stopping = False  # guarded by _lock
        self._exit_watch: Watch | None = None  # guarded by _lock
        self._kill_timer: Timer | None = None  # guarded by _lock
        self._child: Child | None = None  # guarded by _lock
        self.stdout = self.stderr = -1
        theirs: list[int] = []
        ready = -1
        try:
            out_read, self.stdout = self._pipe()
            theirs.append(out_read)
            err_read, self.stderr = self._pipe()
            theirs.append(err_read)
            ready, ready_write = self._pipe()
            theirs.append(ready_write)
            self._child = spawn(
                SpawnSpec(
                    path=self._path,
                    argv=argv,
                    env={"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace},
                    fds={3: out_read, 4: err_read, 5: ready_write},
                )
            )
            while theirs:
                os.close(theirs.pop())
            self._await_ready(ready, must_report, deadline)
        except BaseException:
            self.abandon()
            raise
        finally:
            for fd in (*theirs, ready):
                if fd >= 0:
                    os.close(fd)

    def take_stdout(self) -> int:
        """Hand the write end of the program's stdout pipe over to the caller."""
        fd, self.stdout = self.stdout, -1
        return fd

    def take_stderr(self) -> int:
        """Hand the write end of the program's stderr pipe over to the caller."""
        fd, self.stderr = self.stderr, -1
        return fd

    def stop(self) -> None:
        """Ask the program to end, and see to it in the background; idempotent.

        SIGTERM at once; SIGKILL if it is still there after ``TERMINATION_GRACE`` seconds.  The
        pipes should be closed by then, since that tells it that there is no more to read.
        """
        with self._lock:
            child = self._child
            if self._stopping or child is None:
                return
            self._stopping = True
            self._close_pipes()
            child.kill(_SIGTERM)
            try:
                self._exit_watch = self._reactor.watch(child.pidfd, select.EPOLLIN, self._exited)
            except Failed:
                child.close()  # the shim is about to end, and there's nobody left to see to it
                return
            self._kill_timer = self._reactor.call_later(TERMINATION_GRACE, self._overdue)

    def abandon(self) -> None:
        """Kill the program and reap it, since the process that it was to serve never came to be."""
        self._close_pipes()
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return
        child.kill(_SIGKILL)
        try:
            child.wait(_KILL_WAIT)
        except DeadlineExceeded:
            _log.warning("logger.survived", program=self._path, pid=child.pid)
        child.close()

    # -- starting ----------------------------------------------------------------------------

    def _pipe(self) -> tuple[int, int]:
        try:
            return os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise ResourceExhausted(f"pipe to {self._path}: {reason(error)}") from error
            raise Failed(f"pipe to {self._path}: {reason(error)}") from error

    def _await_ready(self, ready: int, must_report: bool, deadline: float) -> None:
        started = time.monotonic()
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if not poll.poll(max(deadline - started, 0.0) * 1000):
            raise DeadlineExceeded(f"logging program {self._path}", deadline - started)
        if os.read(ready, 1):
            return
        if must_report:
            raise Failed(f"logging program {self._path} ended or did not report that it is ready")
        child = self._child
        if child is not None and _is_exiting(child.pid):
            # Its descriptors were closed by its end, a moment before it can be waited for.
            status = os.waitstatus_to_exitcode(child.wait(max(deadline - time.monotonic(), 0.1)))
            if status:
                raise Failed(f"logging program {self._path} ended with status {status} at once")

    # -- stopping, in the reactor's thread ---------------------------------------------------

    def _overdue(self) -> None:
        with self._lock:
            child = self._child
            if child is not None:
                _log.warning("logger.killed", program=self._path, pid=child.pid)
                child.kill(_SIGKILL)

    def _exited(self, _mask: int) -> None:
        with self._lock:
            child, self._child = self._child, None
            watch, timer = self._exit_watch, self._kill_timer
            self._exit_watch = self._kill_timer = None
        if watch is not None:
            watch.cancel()
        if timer is not None:
            timer.cancel()
        if child is not None:
            child.poll()
            child.close()

    def _close_pipes(self) -> None:
        for fd in (self.take_stdout(), self.take_stderr()):
            if fd >= 0:
                os.close(fd)


def _is_exiting(pid: int) -> bool:
    """Has this child of ours begun to exit?  (PF_EXITING in proc_pid_stat(5)'s flags.)"""
    try:
        file = open(f"/proc/{pid}/stat", "rb")  # noqa: SIM115
    except FileNotFoundError:
        return True  # and has been reaped
    with file:
        return bool(int(file.read().rpartition(b")")[2].split()[6]) & 4)
