"""A container known from its state on disk alone, and all that can be done with it.

Owns the operations, for a process that did not start the container: synchronous, without a
reactor, and without containerd.  ``state/loaded_state.py`` finds out what the container is.

The states in which each is legal are those of gVisor's ``runsc/container/container.go``, but for
signals to a created container, which the OCI asks for.
"""

from __future__ import annotations

import os
import select
import threading
import time
from functools import partial

from runtime.base.errors import (
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unanswered,
    Unreachable,
    Unsupported,
)
from runtime.base.signals import SIGKILL
from runtime.bundle.capabilities import FILES, all_sets
from runtime.bundle.process_spec import ProcessSpec
from runtime.cgroups.metrics import combine
from runtime.host.fds import own_stdio
from runtime.runsc.control import SignalMode, shell_status, wait_status
from runtime.runsc.urpc import DEFAULT_TIMEOUT, Disconnected, ProtocolError
from runtime.runsc.usage import UsageFiles, parse_usage
from runtime.sandbox import forward_mount
from runtime.sandbox.port_forward import dial
from runtime.sandbox.prepare_spec import exec_capabilities
from runtime.sandbox.signals import Effect, effect
from runtime.state import shim_record, writer
from runtime.state.loaded_state import CREATED, PAUSED, RUNNING, STOPPED, StoredState
from runtime.state.lock import StateLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from builtins import list as Listed
    from collections.abc import Callable
    from typing import Any

    from runtime.cgroups.metrics import Metrics
    from runtime.runsc.control import SandboxProcess
    from runtime.runsc.trace_session import Session
    from runtime.runsc.urpc import Connection
    from runtime.runsc.usage import Usage
    from runtime.sandbox.inside_files import InsideFiles

#: Seconds in which a sentry must be gone once the wait for its init has ended.
_EXIT_TIMEOUT = 20.0
#: Seconds before a sentry is asked again for an exit, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
#: The first release whose sentry signals process groups.
_GROUP_RELEASE = 20260413
#: Seconds for our own program to end.
_REAP_TIMEOUT = 5.0
#: What it is called inside, where nothing has that name.
_FILES_PROGRAM = "/.gvisor-shim-files"
_SHELL = ("/bin/sh", "-c", "exec /proc/self/fd/3")
#: Seconds that a paused sentry has to acknowledge a signal, before it is resumed to take it.
_KILL_TIMEOUT = 0.8


def _as_file(data: bytes) -> int:
    """A file in memory, opened for reading only: the sentry executes no other."""
    writer = os.memfd_create("gvisor-files", os.MFD_CLOEXEC)
    try:
        os.write(writer, data)
        return os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)


class PendingExit:
    """The end of a container's init, which the sentry has been asked for.  A context manager."""

    def __init__(self, container: StoredContainer, connection: Connection) -> None:
        self._container = container
        self._connection = connection

    def result(self, timeout: float | None = None) -> int:
        """Wait for it; see :meth:`StoredContainer.wait`.  To be asked once: this is closed then."""
        return self._container._ended(self._connection, timeout)

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def __enter__(self) -> PendingExit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoredContainer(StoredState):
    """A container and what can be done with it.

    Methods that talk to the sentry block for ``timeout`` seconds at most and raise what
    :class:`runtime.runsc.control.Control` raises, SandboxGone above all.  An operation that the
    status forbids raises InvalidState: ``cannot X container "id" in state S``.
    """

    # -- the sentry --------------------------------------------------------------------------

    def processes(self, timeout: float = DEFAULT_TIMEOUT) -> Listed[SandboxProcess]:
        """What runs in it.  While running or paused."""
        self.require("get processes of", RUNNING, PAUSED)
        return self.control().processes(self.id, timeout)

    def event(self, timeout: float = DEFAULT_TIMEOUT) -> Metrics:
        """Usage: the host's cgroup, its CPU time split by the sentry's figures for each container.

        While created, running or paused.
        """
        self.require("get events for", CREATED, RUNNING, PAUSED)
        from runtime.cgroups import factory
        from runtime.cgroups.resources import parse

        siblings, _ = self.load_sandbox(self.root, self.sandbox_id)
        others = [each.id for each in siblings if each.id != self.id]
        try:
            sentry = self.control().event(self.id, timeout, others)
        except InvalidState:
            sentry = None  # a release that tells nothing of what isn't started
        pid = self._live_pid(self.sandbox_process)
        host = factory.of_process(pid).stats() if pid > 0 else None
        alone = None if not self.spec.container_type and not others else False
        limit = parse(self.spec.resources).pids_limit
        return combine(host, sentry, self.id, is_root_only=alone, pids_limit=limit)

    def execute(
        self,
        process: ProcessSpec,
        fds: tuple[int, int, int],
        tty: bool,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> int:
        """Run another process; returns its pid in the container.  While created or running.

        ``fds`` stay the caller's; for a terminal all three are the pty's slave.
        """
        self.require("execute in", CREATED, RUNNING)
        own_stdio(fds, *self.sandbox_owner())
        flags = self.record.flags if self.record is not None else {}
        capabilities = exec_capabilities(process.capabilities, self.spec, flags)
        process = process.replace(capabilities=capabilities)
        return self.control().execute(self.id, process, fds, tty, timeout)

    def open_files(self, timeout: float = DEFAULT_TIMEOUT) -> InsideFiles:
        """Its files, as it sees them itself; a context manager.  While running.

        A program of ours makes the calls, as the container's root; the image needs nothing for it.
        Raises Unsupported where the sentry can't run a program that isn't in the container.
        """
        from runtime.sandbox import inside_files

        self.require("reach the files of", RUNNING)
        theirs: Listed[int] = []
        ours: Listed[int] = []
        try:
            for mine in (1, 0):
                pipe = os.pipe2(os.O_CLOEXEC)
                ours.append(pipe[mine])
                theirs.append(pipe[1 - mine])
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            own_stdio(tuple(theirs), *self.sandbox_owner())
            theirs.append(_as_file(inside_files.program()))
            process = ProcessSpec(
                args=(_FILES_PROGRAM,), capabilities=all_sets(FILES), no_new_privileges=True
            )
            pid = self._run_ours(process, tuple(theirs), timeout)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return inside_files.InsideFiles(ours[0], ours[1], partial(self._reap, pid))

    def _run_ours(self, process: ProcessSpec, fds: tuple[int, ...], timeout: float) -> int:
        """Run the program that is the last of the files."""
        for shell in ((), _SHELL):
            try:
                args = shell or process.args
                each = process.replace(args=args)
                return self.control().execute(self.id, each, fds, False, timeout)
            except InvalidRequest as fault:
                if fault.field != "process.args":
                    raise
                # It looked for the name, as it knows no programs that come as a file: to such a
                # release they are all files of the process's, which a shell can execute.
        text = f"{self.subject}: its runsc needs a /bin/sh there to run a program of ours"
        raise Unsupported(text)

    def _reap(self, pid: int) -> None:
        try:
            self.wait_pid(pid, _REAP_TIMEOUT)
        except (RuntimeFault, OSError):
            return  # the sentry keeps its status for a while longer

    def sandbox_owner(self) -> tuple[int, int]:
        """The user and group to whom stdio must belong.  Raises SandboxGone."""
        if self.stored is not None:
            return self.stored.uid, self.stored.gid
        process = self.sandbox_process()
        if process is None:
            raise self._gone()
        with process:
            # Its owner in our user namespace.
            try:
                info = os.stat(f"/proc/{process.pid}")
            except (FileNotFoundError, ProcessLookupError):
                raise self._gone() from None
            return info.st_uid, info.st_gid

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of its init; the status as a shell has it: 0 to 255.

        Raises SandboxGone where it ended before anybody could ask and left no word of it,
        DeadlineExceeded.
        """
        return self._ended(None, timeout)

    def open_wait(self) -> PendingExit:
        """Ask for the end of its init now, to have the answer later.

        One that is made to end after it is known to have ended, however quickly.  Raises
        SandboxGone.
        """
        return PendingExit(self, self._ask_init())

    def _ask_init(self) -> Connection:
        control = self.control()
        connection = control.connect(DEFAULT_TIMEOUT)
        try:
            control.send_wait(connection, self.id, DEFAULT_TIMEOUT)
        except BaseException:
            connection.close()
            raise
        return connection

    def _recorded_exit(self) -> int:
        """How init ended, from what the shim wrote down.  Raises SandboxGone."""
        record = shim_record.load_exact(self.root, self.id, self.sandbox_id) or self.record
        if record is None or record.exit_status is None:
            raise self._gone()
        return record.exit_status

    def wait_pid(self, pid: int, timeout: float | None = None) -> int:
        """Wait for a process that ``execute`` started; its status as a shell has it.

        The sentry tells it once.  Raises NotFound, SandboxGone, DeadlineExceeded.
        """
        return self._wait_pid(self.id, pid, timeout)

    def wait_root_pid(self, pid: int, timeout: float | None = None) -> int:
        """Like ``wait_pid``, for a pid of the sandbox's own namespace."""
        return self._wait_pid(self.sandbox_id, pid, timeout)

    def _wait_pid(self, container_id: str, pid: int, timeout: float | None) -> int:
        if self._live_pid(self.sandbox_process) < 0:
            raise self._gone()
        control = self.control()

        def ask() -> Connection:
            connection = control.connect(DEFAULT_TIMEOUT)
            try:
                control.send_wait_pid(connection, container_id, pid, DEFAULT_TIMEOUT)
            except BaseException:
                connection.close()
                raise
            return connection

        return shell_status(self._outwait(None, ask, timeout))

    def _outwait(
        self, connection: Connection | None, ask: Callable[[], Connection], timeout: float | None
    ) -> int:
        """The wait status, from ``connection`` or as often as it has to be asked for.

        A sentry that lives may close connections: one that restores does.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                with connection or ask() as asked:
                    left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                    return self._await(asked, left)
            except Unreachable:
                if deadline is not None and time.monotonic() + pause > deadline:
                    raise DeadlineExceeded(f"wait for {self.subject}", timeout or 0.0) from None
            connection = None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _await(self, connection: Connection, timeout: float | None) -> int:
        """The wait status that the sentry answers with, however long that takes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not poll.poll(None if left is None else left * 1000):
                raise DeadlineExceeded(f"wait for {self.subject}", timeout or 0.0)
            try:
                reply = connection.feed()
            except Disconnected:
                raise self._autopsy() from None
            except ProtocolError as error:
                raise Failed(f"wait for {self.subject}: {error}") from None
            if reply is not None:
                return wait_status(reply)

    def _ended(self, connection: Connection | None, timeout: float | None) -> int:
        try:
            # Closed at once: an idle connection holds up a sentry that wants to exit.
            raw = self._outwait(connection, self._ask_init, timeout)
        except (SandboxGone, NotFound):
            return self._recorded_exit()
        if self.is_root:
            process = self.sandbox_process()
            if process is not None:
                with process:
                    process.wait_gone(_EXIT_TIMEOUT)
        return shell_status(raw)

    # -- signals -------------------------------------------------------------------------------

    def signal(self, signo: int, everyone: bool = False, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Signal its init, or all its processes; SIGKILL to all waits for their end.

        While created (a signal that would end it, does), running or paused; all of a stopped one
        may be signalled as well, for what its init left.  Raises NotFound if nobody is there.
        """
        allowed = (CREATED, RUNNING, PAUSED, STOPPED) if everyone else (CREATED, RUNNING, PAUSED)
        status = self.require("signal", *allowed)
        what = effect(
            signo, created=status == CREATED, paused=status == PAUSED, is_root=self.is_root
        )
        mode = SignalMode.ALL if everyone else SignalMode.PROCESS
        if what is Effect.END_SANDBOX:
            self._kill_sandbox(SIGKILL)
        elif what is Effect.END_CONTAINER:
            self.control().destroy_subcontainer(self.id, DEFAULT_TIMEOUT)
        elif what is Effect.DELIVER:
            self.control().signal(self.id, signo, 0, mode, timeout)
        elif what is Effect.DELIVER_AND_RESUME:
            try:
                self.control().signal(self.id, signo, 0, mode, min(timeout, _KILL_TIMEOUT))
            except Unanswered:
                pass  # in its socket, as pending as one to a stopped process
            self.resume(timeout)

    def _kill_sandbox(self, signo: int) -> None:
        process = self.sandbox_process()
        if process is None:
            raise self._gone()
        with process:
            process.kill(signo)
            process.wait_gone(DEFAULT_TIMEOUT)

    def signal_process(self, pid: int, signo: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Signal one process: a pid that ``execute`` gave, or one of the sandbox's namespace."""
        self.require("signal a process inside", RUNNING, PAUSED)
        self.control().signal(self.id, signo, pid, SignalMode.PROCESS, timeout)

    def signal_foreground(self, pid: int, signo: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Signal the foreground group of the terminal of process ``pid``, 0 for init's."""
        self.require("signal a process inside", RUNNING, PAUSED)
        self.control().signal(self.id, signo, pid, SignalMode.FOREGROUND, timeout)

    def signal_process_group(self, pid: int, signo: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Signal the process group ``pid``.  Raises Unsupported where the sentry lacks it."""
        self.require("signal a process group inside", RUNNING, PAUSED)
        # Not to be found out by trying: a sentry dies of a mode that it doesn't know.
        if self.stored is None or self.stored.release < _GROUP_RELEASE:
            raise Unsupported(f"{self.subject}: this runsc can't signal process groups")
        self.control().signal(self.id, signo, pid, SignalMode.GROUP, timeout)

    # -- the rest ------------------------------------------------------------------------------

    def pause(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Freeze the sandbox, with all its containers.  While created or running."""
        with self._locked() as lock:
            self.require("pause", CREATED, RUNNING)
            self.control().pause(timeout)
            self._write_status(lock, PAUSED)

    def resume(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Let the sandbox run again.  While paused."""
        with self._locked() as lock:
            if self.stored is None and self.record is not None:
                # Nothing says whether it is paused; to resume what runs does nothing.
                self.require("resume", RUNNING, PAUSED)
            else:
                self.require("resume", PAUSED)
            self.control().resume(timeout)
            self._write_status(lock, RUNNING)

    def _locked(self) -> StateLock:
        """The lock, with what is written read again under it."""
        lock = StateLock(self.root, self.id, self.sandbox_id).acquire()
        try:
            self.stored, self._lock = self.reload().stored, lock
        except BaseException:
            lock.release()
            raise
        return lock

    def _write_status(self, lock: StateLock, status: str) -> None:
        if self.stored is not None:
            self.stored = writer.rewrite(lock, self.stored, status)

    def usage(self, full: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Usage:
        """The sandbox's memory, as the sentry collects it; ``full`` with what it is used for."""
        self.require("get usage of", CREATED, RUNNING, PAUSED)
        found = self.control().call("Usage.Collect", {"Full": full}, (), timeout)
        return parse_usage(found)

    def usage_fd(self, timeout: float = DEFAULT_TIMEOUT) -> UsageFiles:
        """The files from which the sandbox's memory can be read at any time; to be closed."""
        self.require("get usage of", CREATED, RUNNING, PAUSED)
        _, fds = self.control().call_for_files("Usage.UsageFD", {"Version": 1}, 2, timeout)
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            raise Failed(f"Usage.UsageFD: {len(fds)} descriptors instead of 2")
        return UsageFiles(*fds)

    def reduce(self, wait: bool = False, timeout: float = 60.0) -> None:
        """Have the sentry give back memory that it can do without."""
        self.require("reduce memory of", CREATED, RUNNING, PAUSED)
        self.control().call("Usage.Reduce", {"wait": wait}, (), timeout)

    def stacks(self, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The stacks of the sentry's goroutines.  In whatever state, while the sentry lives."""
        found = self.control().call("debug.Stacks", None, (), timeout)
        if not isinstance(found, str):
            raise Failed("debug.Stacks: malformed result")
        return found

    def forward_program(self) -> str:
        """The program in the sandbox's first container that connects to ports; empty if none.

        Pods of the shim's have it.  Raises as ``load_exact`` does.
        """
        root = (
            self if self.is_root else self.load_exact(self.root, self.sandbox_id, self.sandbox_id)
        )
        return forward_mount.program_in(root.spec)

    def dial(self, program: str, port: int) -> tuple[int, int]:
        """Connect to a port in the sandbox, by ``forward_program``.  While running.

        Returns two non-blocking pipes, to write to it and to read from it, which are the caller's.
        Raises Failed if nobody listens there.
        """
        self._check_port(port)
        root = (
            self if self.is_root else self.load_exact(self.root, self.sandbox_id, self.sandbox_id)
        )
        return dial(_Inside(root), program, port)

    def _check_port(self, port: int) -> None:
        self.require("port forward", RUNNING)
        if not 0 < port < 65536:
            raise InvalidRequest("port", f"{port} is not between 1 and 65535")

    def port_forward(self, port: int, fd: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Have the sentry connect ``fd`` to a port in the sandbox.  While running.

        It is an end of a Unix stream socket, the only kind that the sentry takes from the host.
        For sandboxes without ``forward_program``, as it loses what comes faster than it is read.

        Raises Unsupported where the sentry lacks it (before release-20230206).
        """
        self._check_port(port)
        self.control().port_forward(self.id, port, fd, timeout)

    def tar_root(self, fd: int, timeout: float = 60.0) -> None:
        """Write what was changed in the root file system to ``fd``, as a tar archive.

        While running or paused.  Raises Unsupported where the sentry lacks it (before
        release-20251020), Failed if the root file system has no overlay.
        """
        self.require("archive the root file system of", RUNNING, PAUSED)
        self.control().call(
            "Fs.TarRootfsUpperLayer",
            {"ContainerID": self.id},
            (fd,),
            timeout,
            operation="archive the root file system of",
            container_id=self.id,
        )

    def set_log_level(self, level: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """How much the sandbox's sentry logs: 0 warnings, 1 information, 2 everything."""
        self.require("set the log level of", CREATED, RUNNING, PAUSED)
        self.control().set_log_level(level, timeout)

    def create_trace(
        self, session: Session, force: bool = False, timeout: float = DEFAULT_TIMEOUT
    ) -> Listed[str]:
        """Begin a trace session of its sandbox; ``force`` ends one that is there.

        Returns what is wrong with the sinks that were left out.  While created, running or paused.
        Raises Failed in the sentry's words, or if a sink's other end isn't there.
        """
        from runtime.runsc.trace_session import Connected

        self.require("trace", CREATED, RUNNING, PAUSED)
        with Connected(session) as connected:
            self.control().create_trace(connected.config, force, connected.fds, timeout)
            return connected.left_out

    def delete_trace(self, name: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """End a trace session.  Raises Failed if there is none."""
        self.require("trace", CREATED, RUNNING, PAUSED)
        self.control().delete_trace(name, timeout)

    def traces(
        self, timeout: float = DEFAULT_TIMEOUT
    ) -> Listed[tuple[str, Listed[tuple[str, int]]]]:
        """The sandbox's trace sessions, each with its sinks and how many events each has lost."""
        self.require("trace", CREATED, RUNNING, PAUSED)
        return self.control().traces(timeout)

    def procfs(self, timeout: float = DEFAULT_TIMEOUT) -> Listed[dict[str, Any]]:
        """What /proc would tell of each process of the sandbox, environments included."""
        self.require("get processes of", RUNNING, PAUSED)
        return self.control().procfs(timeout)

    def destroy(self, force: bool = False, timeout: float = 15.0) -> None:
        """End it and free all that it holds; idempotent.

        While created or stopped, in whatever state with ``force``.  Does every step whatever
        fails; raises Failed naming all that did.
        """
        from runtime.state.destroy import destroy

        destroy(self, force, timeout)


class _Inside:
    """A sandbox's first container as :func:`dial` needs it."""

    def __init__(self, root: StoredContainer) -> None:
        self._root = root
        self.id = root.id

    def execute(
        self,
        cid: str,
        process: ProcessSpec,
        fds: tuple[int, int, int],
        tty: bool,
        deadline: float,
    ) -> int:
        return self._root.execute(process, fds, tty, max(deadline - time.monotonic(), 0.1))

    def wait_pid(self, cid: str, pid: int, callback: object) -> None:
        """Reaped by a thread of its own, which ends with the process."""
        threading.Thread(target=self._reap, args=(pid,), name="reaper", daemon=True).start()

    def _reap(self, pid: int) -> None:
        try:
            self._root.wait_pid(pid)
        except RuntimeFault:
            return  # the sandbox has ended
