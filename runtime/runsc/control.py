"""The calls to a sentry's control server, in the domain's terms.

Owns the names of its methods, and how much each may answer.  ``control_results.py`` checks what
comes back; ``control_errors.py`` says what its errors mean.
"""

from __future__ import annotations

import time

from runtime.base.constant import Constant, member
from runtime.base.errors import (
    DeadlineExceeded,
    Failed,
    InvalidState,
    NotFound,
    SandboxGone,
    Unreachable,
    Unsupported,
)
from runtime.runsc import control_results, urpc
from runtime.runsc.control_errors import translate, without_dump
from runtime.runsc.control_results import SandboxProcess, counter, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.cgroups.metrics import SentryStats
    from runtime.runsc.driver import Driver
    from runtime.runsc.urpc import Connection, Reply

__all__ = ["ContainerState", "Control", "SandboxProcess", "SignalMode"]

#: Seconds without statistics after a sentry was late with them.
_MUTE_TIME = 5.0
_PREFIX = "containerManager."
#: Bytes of the replies that may be longer than others (``urpc.MAX_REPLY``), in which a process or
#: a goroutine may take some hundreds.  What can't be saved is told with a stack.
_LIMITS = {
    _PREFIX + "Processes": 8 << 20,
    _PREFIX + "Event": 2 << 20,
    "Cgroups.ReadControlFiles": 1 << 20,
    _PREFIX + "Checkpoint": 2 << 20,
    _PREFIX + "Restore": 2 << 20,
    _PREFIX + "RestoreSubcontainer": 2 << 20,
    _PREFIX + "ProcfsDump": 16 << 20,
    "debug.Stacks": 16 << 20,
    "Metrics.GetRegisteredMetrics": 1 << 20,
}


class SignalMode(Constant):
    """Whom a signal is for; the numbers are the sentry's (runsc/boot/loader.go)."""

    PROCESS: ClassVar[SignalMode] = member(0)
    ALL: ClassVar[SignalMode] = member(1)
    FOREGROUND: ClassVar[SignalMode] = member(2)
    GROUP: ClassVar[SignalMode] = member(3)


class ContainerState(Constant):
    """What the sentry says of a container; the numbers are its own."""

    UNKNOWN: ClassVar[ContainerState] = member(0)
    CREATING: ClassVar[ContainerState] = member(1)
    RUNNING: ClassVar[ContainerState] = member(2)
    STOPPED: ClassVar[ContainerState] = member(3)

    def known(self, started: bool) -> ContainerState:
        """It, where it is known whether a start was tried.

        Releases before gofer mounts were configured don't tell a container whose init is yet to
        come from one that has ended.
        """
        return ContainerState.CREATING if self is ContainerState.STOPPED and not started else self


class Control:
    """Typed calls.  Thread-safe: each call has a connection of its own, and nothing is shared.

    Every call raises SandboxGone if there is no sentry (any more), Unreachable if there is one and
    the connection broke nevertheless, DeadlineExceeded, ResourceExhausted, or what
    :func:`translate` makes of the sentry's error.  Which of the first two it is, ``gone`` finds
    out, from the process: a call that fails says nothing of whether anything has ended.
    """

    def __init__(
        self,
        address: str,
        driver: Driver,
        gone: Callable[[], SandboxGone | Unreachable],
        pid: int = 0,
    ) -> None:
        self.address = address
        #: The sentry, if it is known.
        self.pid = pid
        self._driver = driver
        self._gone = gone
        # Hints, so without a guard.
        self._mute_until = 0.0
        self._tells_state = True

    def call(
        self,
        method: str,
        argument: object = None,
        fds: Sequence[int] = (),
        timeout: float = urpc.DEFAULT_TIMEOUT,
        *,
        operation: str = "",
        container_id: str = "",
        pid: int = 0,
        args: Sequence[str] = (),
    ) -> Any:
        """Any method of the sentry; ``operation`` and the rest are for the wording of errors."""
        try:
            return self._call(method, argument, fds, timeout)
        except urpc.RemoteError as error:
            raise translate(str(error), operation or method, container_id, pid, args) from None
        except urpc.Disconnected:
            raise self._gone() from None
        except urpc.ProtocolError as error:
            raise Failed(f"{method}: {error}") from None

    def _call(self, method: str, argument: object, fds: Sequence[int], timeout: float) -> Any:
        limit = _LIMITS.get(method, urpc.MAX_REPLY)
        return urpc.call(self.address, method, argument, fds, timeout, pid=self.pid, limit=limit)

    def call_for_files(
        self, method: str, argument: object, count: int, timeout: float = urpc.DEFAULT_TIMEOUT
    ) -> tuple[Any, list[int]]:
        """A method that answers with descriptors; they are the caller's to close."""
        try:
            return urpc.call_for_files(self.address, method, argument, count, timeout, pid=self.pid)
        except urpc.RemoteError as error:
            raise translate(str(error), method, "") from None
        except urpc.Disconnected:
            raise self._gone() from None
        except urpc.ProtocolError as error:
            raise Failed(f"{method}: {error}") from None

    def port_forward(self, cid: str, port: int, fd: int, timeout: float) -> None:
        """Connect an end of a Unix stream socket to a port; see sandbox/forward_mount.py."""
        argument, what = {"ContainerID": cid, "Port": port}, "forward a port of"
        method = _PREFIX + "PortForward"
        self.call(method, argument, (fd,), timeout, operation=what, container_id=cid)

    def _first_known(
        self, methods: Sequence[str], argument: object, fds: Sequence[int], timeout: float
    ) -> str:
        """Call the first of several names that the sentry knows; returns it."""
        for method in methods:
            try:
                self.call(method, argument, fds, timeout)
            except Unsupported:
                if method == methods[-1]:
                    raise
            else:
                return method
        raise AssertionError("no method")

    # -- the sandbox -----------------------------------------------------------------------

    def set_network(self, argument: Mapping[str, Any], fds: Sequence[int], timeout: float) -> None:
        """Tell the sentry of its interfaces; once, before the start."""
        self._first_known(self._driver.network_methods, dict(argument), fds, timeout)

    def pause(self, timeout: float) -> None:
        """Freeze everything in the sandbox."""
        self._first_known(self._driver.pause_methods, None, (), timeout)

    def resume(self, timeout: float) -> None:
        """Let the sandbox run again."""
        self._first_known(self._driver.resume_methods, None, (), timeout)

    # -- containers ------------------------------------------------------------------------

    def start_root(self, sandbox_id: str, timeout: float, args: Sequence[str] = ()) -> None:
        """Start the root container's init; ``args`` are for the wording of errors."""
        self.call(
            _PREFIX + "StartRoot",
            sandbox_id,
            (),
            timeout,
            operation="start",
            container_id=sandbox_id,
            args=args,
        )

    def create_subcontainer(self, container_id: str, terminal: Sequence[int]) -> None:
        """Register a container; ``terminal`` is empty or its pty's slave."""
        self.call(
            _PREFIX + "CreateSubcontainer",
            {"CID": container_id},
            terminal,
            operation="create",
            container_id=container_id,
        )

    def start_subcontainer(
        self, argument: Mapping[str, Any], fds: Sequence[int], timeout: float
    ) -> None:
        """Start a container that is registered."""
        self.call(
            _PREFIX + "StartSubcontainer",
            argument,
            fds,
            timeout,
            operation="start",
            container_id=argument["CID"],
            args=argument["Spec"]["process"]["args"],
        )

    def destroy_subcontainer(self, container_id: str, timeout: float) -> None:
        """Kill everything in a container and forget it."""
        self.call(
            _PREFIX + "DestroySubcontainer",
            container_id,
            (),
            timeout,
            operation="destroy",
            container_id=container_id,
        )

    def state(self, container_id: str, timeout: float = urpc.DEFAULT_TIMEOUT) -> ContainerState:
        """What the sentry thinks of a container.

        Releases before 20240501 don't say: then a container whose init can be signalled runs.
        """
        try:
            number = self.call(
                _PREFIX + "ContainerRuntimeState", container_id, (), timeout, operation="query"
            )
        except Unsupported:
            return self._state_by_signal(container_id, timeout)
        found = ContainerState.of(number) if type(number) is int else None
        if found is None:
            raise Failed(f"query container {container_id!r}: malformed result")
        return found

    def _state_by_signal(self, container_id: str, timeout: float) -> ContainerState:
        try:
            self.signal(container_id, 0, 0, SignalMode.PROCESS, timeout)
        except NotFound as fault:
            return ContainerState.STOPPED if fault.kind == "process" else ContainerState.UNKNOWN
        except InvalidState:
            return ContainerState.CREATING
        return ContainerState.RUNNING

    def signal(
        self, container_id: str, signo: int, pid: int, mode: SignalMode, timeout: float
    ) -> None:
        """Signal init (``pid`` 0), an exec by the pid that it was given, or several."""
        self.call(
            _PREFIX + "Signal",
            {"CID": container_id, "Signo": signo, "PID": pid, "Mode": mode.value},
            (),
            timeout,
            operation="signal",
            container_id=container_id,
            pid=pid,
        )

    def execute(
        self,
        container_id: str,
        process: ProcessSpec,
        fds: Sequence[int],
        terminal: bool,
        timeout: float,
    ) -> int:
        """Run another process in a container; returns its pid in the container's namespace."""
        pid = self.call(
            _PREFIX + "ExecuteAsync",
            self._driver.execute_argument(container_id, process, terminal),
            fds,
            timeout,
            operation="exec in",
            container_id=container_id,
            args=process.args,
        )
        return integer(pid, "ExecuteAsync")

    def processes(self, container_id: str, timeout: float) -> list[SandboxProcess]:
        """The processes of a container, or of all if the id is empty."""
        found = self.call(
            _PREFIX + "Processes",
            container_id,
            (),
            timeout,
            operation="list processes of",
            container_id=container_id,
        )
        return control_results.processes(found)

    def event(self, container_id: str, timeout: float, others: Sequence[str] = ()) -> SentryStats:
        """Usage of a container, as the sentry counts it; ``others`` share its sandbox.

        Where a container has cgroups mounted, as CRI's have, a sentry before 2026 tells no CPU time
        but that of the one it is asked for (runsc/boot/events.go): then that of the others is read
        from their cgroups, all in one more call, as many ask for figures every second.

        All of it takes ``timeout`` at most, and next to nothing for a while after it took that
        long: who lists a node's containers asks for one after the other.  Raises DeadlineExceeded.
        """
        began = time.monotonic()
        if began < self._mute_until:
            raise DeadlineExceeded("sentry's statistics, which were late before,", 0.0)
        try:
            return self._shares(container_id, began + timeout, others)
        except DeadlineExceeded:
            self._mute_until = time.monotonic() + _MUTE_TIME
            raise

    def _shares(self, container_id: str, deadline: float, others: Sequence[str]) -> SentryStats:
        found = self._event(container_id, deadline - time.monotonic())
        if found.own_cpu_ns is None:
            return found
        cpu_ns = {container_id: found.own_cpu_ns}
        if others:
            left = max(deadline - time.monotonic(), 0.001)
            cpu_ns |= zip(others, self._cpu_times(others, left), strict=True)
        return found.replace(cpu_ns=cpu_ns)

    def _cpu_times(self, ids: Sequence[str], timeout: float) -> list[int]:
        """Nanoseconds of CPU that each container used; 0 where it has no cgroups of its own."""
        name = "cpuacct.usage"
        args = [{"file": {"controller": "cpuacct", "path": f"/{cid}", "name": name}} for cid in ids]
        method = "Cgroups.ReadControlFiles"
        found = self.call(method, {"args": args}, (), timeout, operation="query")
        return control_results.cgroup_numbers(found, len(ids))

    def usage(self, container_id: str, timeout: float) -> SentryStats:
        """The same in one exchange, with no CPU time of containers that share the sandbox."""
        return self._event(container_id, timeout)

    def file_memory(self, timeout: float) -> int:
        """Bytes of the sandbox's memory that are files, mapped or cached."""
        found = self.call("Usage.Collect", {"Full": True}, (), timeout)
        return counter(found, "Mapped") + counter(found, "PageCache")

    def _event(self, container_id: str, timeout: float) -> SentryStats:
        result = self.call(
            _PREFIX + "Event",
            self._driver.event_argument(container_id),
            (),
            timeout,
            operation="query",
            container_id=container_id,
        )
        return control_results.stats(result)

    # -- checkpoint and restore ------------------------------------------------------------

    def restores_pods(self) -> bool:
        """Whether the sentry can go on after a checkpoint, and save several containers.

        Both came with release-20240501, as did the call by which it is found out.
        """
        try:
            self.call(_PREFIX + "ContainerRuntimeState", "")
        except Unsupported:
            return False
        return True

    def checkpoint(
        self,
        sandbox_id: str,
        files: Sequence[int],
        *,
        compression: str,
        paged: bool,
        leave_running: bool,
        timeout: float,
    ) -> None:
        """Save the sandbox to ``files``: the state, and with ``paged`` the pages' two files."""
        argument = self._driver.checkpoint_argument(
            sandbox_id, compression, paged=paged, leave_running=leave_running
        )
        self._plain_call("Checkpoint", argument, files, timeout, f"checkpoint {sandbox_id!r}")

    def restore(
        self, sandbox_id: str, files: Sequence[int], *, paged: bool, device: bool, timeout: float
    ) -> None:
        """Load what was saved, in the place of StartRoot; ``device``: the platform's comes last.

        With several containers in the image this returns at once, and the restore of the last
        one does the work.
        """
        argument = self._driver.restore_argument(sandbox_id, paged=paged, device=device)
        self._plain_call("Restore", argument, files, timeout, f"restore {sandbox_id!r}")

    def restore_subcontainer(
        self, argument: Mapping[str, Any], fds: Sequence[int], timeout: float
    ) -> None:
        """Restore a container that is registered, in the place of StartSubcontainer."""
        what = f"restore {argument['CID']!r}"
        self._plain_call("RestoreSubcontainer", argument, fds, timeout, what)

    def save_files(
        self, files: Sequence[int], paths: Sequence[tuple[str, str]], timeout: float
    ) -> None:
        """Save what the sandbox keeps of ``paths`` (container name, path) to four files."""
        argument = {
            "paths": [{"container_name": name, "path": path} for name, path in paths],
            "exit_after_saving": False,
            "use_checkpoint_gofer": False,
        }
        self._plain_call("FSSave", argument, files, timeout, "save file systems")

    def wait_files_restored(self, container_id: str, timeout: float) -> bool:
        """Wait until a container's files are all there; False if the image has none for it.

        Raises Failed with the sentry's words where they can't be read.
        """
        try:
            what = f"restore files of {container_id!r}"
            self._plain_call("WaitFSRestore", {"CID": container_id}, (), timeout, what)
        except Failed as fault:
            if "no filesystems restored for container" in str(fault):
                return False
            raise
        return True

    def wait_for(self, method: str, timeout: float) -> None:
        """Wait for what goes on in the sandbox: ``WaitRestore``, ``WaitFSCheckpoint``, ..."""
        self._plain_call(method, None, (), timeout, method)

    def _plain_call(
        self, method: str, argument: object, fds: Sequence[int], timeout: float, what: str
    ) -> None:
        """A call whose error is passed on in the sentry's words, as is what it says when it dies.

        The table of :func:`translate` is about starts; here the same words mean other things.
        """
        try:
            self._call(_PREFIX + method, argument, fds, timeout)
        except urpc.RemoteError as error:
            text = without_dump(str(error))
            if "unknown method" in text:
                raise Unsupported(f"{what}: {text}") from None
            if "using hostinet" in text:
                raise Unsupported(f"{what}: the network is the host's: {text}") from None
            raise Failed(f"{what}: {text}") from None
        except urpc.Disconnected:
            gone = self._gone()
            if isinstance(gone, Unreachable):
                raise Unreachable(f"{what}: {gone}") from None
            raise SandboxGone(gone.pid, gone.status, f"{what}: {gone}") from None
        except urpc.ProtocolError as error:
            raise Failed(f"{what}: {error}") from None

    # -- looking into it ---------------------------------------------------------------------

    def create_trace(
        self, config: Mapping[str, Any], force: bool, fds: Sequence[int], timeout: float
    ) -> None:
        """Begin a trace session; a file for each of its sinks."""
        argument = {"Config": config, "Force": force}
        self._plain_call("CreateTraceSession", argument, fds, timeout, "create a trace session")

    def delete_trace(self, name: str, timeout: float) -> None:
        """End a trace session."""
        self._plain_call("DeleteTraceSession", name, (), timeout, "delete a trace session")

    def traces(self, timeout: float) -> list[tuple[str, list[tuple[str, int]]]]:
        """The trace sessions by name, each with its sinks' names and how many events they lost."""
        from runtime.runsc.trace_session import sessions

        return sessions(self.call(_PREFIX + "ListTraceSessions", None, (), timeout))

    def procfs(self, timeout: float) -> list[dict[str, Any]]:
        """What /proc would tell of each process, environments included, in the sentry's form."""
        found = self.call(_PREFIX + "ProcfsDump", None, (), timeout)
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise Failed("ProcfsDump: malformed result")
        return found

    def set_log_level(self, level: int, timeout: float) -> None:
        """What the sentry logs: 0 warnings, 1 information, 2 everything."""
        self.call("Logging.Change", {"SetLevel": True, "Level": level}, (), timeout)

    # -- waiting ---------------------------------------------------------------------------

    def connect(self, timeout: float) -> Connection:
        """A connection on which a wait is to be sent."""
        try:
            return urpc.connect(self.address, time.monotonic() + timeout, self.pid)
        except urpc.Disconnected:
            raise self._gone() from None

    def send_wait(self, connection: Connection, container_id: str, timeout: float) -> None:
        """Ask for the exit of a container's init."""
        self._send(connection, _PREFIX + "Wait", container_id, timeout)

    def send_wait_pid(
        self, connection: Connection, container_id: str, pid: int, timeout: float
    ) -> None:
        """Ask for the exit of an exec.  The sentry tells it to one asker, once."""
        argument = {"PID": pid, "CID": container_id}
        self._send(connection, _PREFIX + "WaitPID", argument, timeout)

    def post_request(self, method: str, argument: object, limit: int) -> Connection:
        """Ask anything without waiting; ``limit`` is of the replies on this connection, in bytes.

        Raises what :func:`runtime.runsc.urpc.post` does.
        """
        return urpc.post(self.address, method, argument, self.pid, limit)

    def event_request(self, container_id: str) -> tuple[str, object]:
        """What to ask for a container's usage: method and argument."""
        return _PREFIX + "Event", self._driver.event_argument(container_id)

    def post_wait(self, container_id: str, pid: int) -> Connection:
        """Ask for the exit of an exec, or with ``pid`` 0 of init, without waiting for anything.

        For the reactor.  Raises what :func:`runtime.runsc.urpc.post` does.
        """
        if not pid:
            return self._post("Wait", container_id)
        return self._post("WaitPID", {"PID": pid, "CID": container_id})

    def post_look(self, container_id: str, pid: int) -> Connection:
        """Ask whether an exec, or init, is there still, likewise; see ``is_over``."""
        if not pid and self._tells_state:
            return self._post("ContainerRuntimeState", container_id)
        argument = {"CID": container_id, "Signo": 0, "PID": pid, "Mode": SignalMode.PROCESS.value}
        return self._post("Signal", argument)

    def _post(self, method: str, argument: object) -> Connection:
        return urpc.post(self.address, _PREFIX + method, argument, self.pid)

    def is_over(self, reply: Reply, pid: int) -> bool:
        """Whether the reply to ``post_look`` says that there is no such process any more.

        Any other error, and a container that was not started yet, are no end.
        """
        if reply.success:
            ended = (ContainerState.STOPPED.value, ContainerState.UNKNOWN.value)
            # Of a signal the result is an object.
            return not pid and type(reply.result) is int and reply.result in ended
        fault = translate(reply.error, "look at", "")
        if isinstance(fault, Unsupported):
            self._tells_state = False  # before release-20240501
            return False
        if isinstance(fault, InvalidState):
            return fault.state == "stopped"
        return isinstance(fault, NotFound)

    def _send(self, connection: Connection, method: str, argument: object, timeout: float) -> None:
        try:
            connection.send(method, argument, (), time.monotonic() + timeout)
        except urpc.Disconnected:
            raise self._gone() from None


def wait_status(reply: Reply) -> int:
    """The raw wait status in the reply to a wait.  Raises RuntimeFault."""
    try:
        status = integer(reply.value(), "Wait")
    except urpc.RemoteError as error:
        raise translate(str(error), "wait for", "") from None
    if status > 0xFFFF:
        raise Failed("Wait: malformed result")
    return status


def shell_status(raw: int) -> int:
    """A wait status the way a shell has it: the exit code, or 128 + the signal's number."""
    signo = raw & 0x7F
    return 128 + signo if signo else (raw >> 8) & 0xFF
