"""The Task service: decode a request, make one call on the pod, encode the answer.

Served as ``containerd.task.v2.Task`` and ``containerd.task.v3.Task``, whose messages are the same
(containerd's api/runtime/task).  Holds no lifecycle rules and maps no errors.
"""

from __future__ import annotations

import os
import threading
import time

from protos import task_pb2 as pb
from protos.wkt_pb2 import Any
from runtime.base import log
from runtime.base.errors import NotFound
from runtime.bundle.process_spec import parse_process, unlike_container
from runtime.bundle.spec import validate_id
from runtime.task.context import CreateRequest
from runtime.task.events import TaskExited
from shim.base import convert, status
from shim.ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from runtime.cgroups.metrics import Metrics
    from runtime.runsc.config import RunscConfig
    from runtime.task.container import Container
    from runtime.task.events import Event
    from runtime.task.pod import Pod
    from runtime.task.process import Exit
    from shim.bundles import Bundles
    from shim.observe.counters import Counters
    from shim.sandbox.service import SandboxService
    from shim.ttrpc.call import Call

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")
SANDBOX: Final = "containerd.runtime.sandbox.v1.Sandbox"
#: Proposed to containerd: see ``shim/sandbox/pod_checkpoint.py``.
POD_CHECKPOINT: Final = "containerd.runtime.sandbox.v1.Checkpoint"
STREAMING: Final = "containerd.services.streaming.v1.Streaming"

#: Seconds for a start or exec whose caller set no deadline.
START_TIMEOUT: Final = 60.0
#: Seconds for which an end is kept back while there is output that nobody reads, and at most.
READER_PATIENCE: Final = 0.1
READING_TIMEOUT: Final = 2.0
#: Seconds for a checkpoint, or a start from one; memory may be large.
CHECKPOINT_TIMEOUT: Final = 600.0


class TaskService:
    """Dispatches calls; :meth:`handle` runs on a worker thread per call."""

    def __init__(
        self,
        pod: Pod,
        *,
        options: Callable[[str, bytes, str], RunscConfig],
        metrics: Callable[[Metrics], tuple[str, bytes]],
        shutdown: Callable[[], None],
        bundles: Bundles,
        sandbox: Callable[[], SandboxService] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._pod = pod
        self._bundles = bundles
        self._options = options
        self._metrics = metrics
        self._shutdown = shutdown
        self._make_sandbox = sandbox
        self._counters = counters
        self._making = threading.Lock()
        #: Once it was called: pods with a pause container have no use for it.
        self._sandbox: SandboxService | None = None
        self._stop_wanted = threading.Event()
        self._log = log.get_logger("service")
        self._methods: dict[str, Callable[[Call], bytes | None]] = {
            "State": self._state,
            "Create": self._create,
            "Start": self._start,
            "Delete": self._delete,
            "Pids": self._pids,
            "Pause": self._pause,
            "Resume": self._resume,
            "Checkpoint": self._checkpoint,
            "Kill": self._kill,
            "Exec": self._exec,
            "ResizePty": self._resize_pty,
            "CloseIO": self._close_io,
            "Update": self._update,
            "Wait": self._wait,
            "Stats": self._stats,
            "Connect": self._connect,
            "Shutdown": self._stop,
        }

    def handle(self, call: Call) -> bytes | None:
        """Answer a call, or raise StatusError.  None: the reply comes later."""
        methods: Mapping[str, Callable[[Call], bytes | None]] = self._methods
        if call.service == SANDBOX and self._make_sandbox is not None:
            with self._making:
                self._sandbox = self._sandbox or self._make_sandbox()
            methods = self._sandbox.methods
        elif call.service == STREAMING and self._sandbox is not None:
            methods = {"Stream": self._sandbox.streams.serve}
        elif call.service == POD_CHECKPOINT and self._sandbox is not None:
            methods = self._sandbox.checkpoints.methods
        elif call.service not in SERVICES:
            raise StatusError(status.UNIMPLEMENTED, f"service {call.service}")
        method = methods.get(call.method)
        if method is None:
            raise StatusError(status.UNIMPLEMENTED, f"method {call.method}")
        started = time.monotonic()
        code = status.OK
        try:
            return method(call)
        except StatusError as answer:
            code = answer.code
            raise
        except Exception as fault:
            code, message, expected = status.of(fault)
            if type(fault).__name__ == "DecodeError":
                code, expected = status.INVALID_ARGUMENT, True
                message = f"{call.method}: malformed request"
            if not expected:
                self._log.exception("rpc.failed", method=call.method)
            raise StatusError(code, message) from None
        finally:
            seconds = time.monotonic() - started
            if self._counters is not None:
                self._counters.called(call.method, code, seconds)
            if log.enabled(log.DEBUG):
                ms = round(seconds * 1000, 2)
                self._log.debug("rpc.handled", method=call.method, code=code, ms=ms)

    def _deadline(self, call: Call, timeout: float = START_TIMEOUT) -> float:
        return call.deadline if call.deadline is not None else time.monotonic() + timeout

    # -- life -----------------------------------------------------------------------------

    def _create(self, call: Call) -> None:
        request = pb.CreateTaskRequest.FromString(call.payload)
        options = request.options
        # The options may make it a part of a path.
        validate_id("container", request.id)
        # Nobody would ever delete a container whose creator has gone: it is given up.
        call.on_cancel(lambda: self._pod.abandon(request.id))
        io = None
        try:
            io = convert.io_request(request)
            if self._sandbox is not None:
                self._sandbox.complete_member(convert.text("bundle", request.bundle))
                io = self._sandbox.stdio(io, request.id)
            pid = self._pod.create(
                CreateRequest(
                    id=request.id,
                    bundle=convert.text("bundle", request.bundle),
                    io=io,
                    config=self._options(options.type_url, options.value, request.id),
                    rootfs=convert.rootfs(request),
                    checkpoint=request.checkpoint,
                )
            )
            self._bundles.note(request.bundle)
            self._count_start(request.id)
            left_alone = not call.reply(pb.CreateTaskResponse(pid=pid).SerializeToString())
            if left_alone:
                self._pod.delete(request.id)
        except BaseException:
            if self._sandbox is not None and io is not None:
                self._sandbox.release(io)
            self._end_if_unwanted(call.cancelled)
            raise
        self._end_if_unwanted(left_alone)

    def _count_start(self, container_id: str) -> None:
        """Count it under the name that the pod has for it, which its next life will have, too."""
        if self._counters is None:
            return
        try:
            spec = self._pod.container(container_id).spec
        except NotFound:
            return  # deleted already
        name = spec.container_name if spec is not None else ""
        # As gvctl calls it: a sandbox's own has no name, one that no pod names has its id.
        if not name and spec is not None and spec.container_type != "sandbox":
            name = container_id
        self._counters.created(container_id, name)

    def publish(self, event: Event, publish: Callable[[Event], None]) -> None:
        """Publish an event; the end of what has streams once its output has been sent."""
        io, sandbox = None, self._sandbox
        if sandbox and isinstance(event, TaskExited) and event.id == event.container_id:
            io = sandbox.stdio_of(event.container_id)
        if sandbox is None or io is None:
            publish(event)
        else:
            sandbox.when_delivered(io, lambda: publish(event))

    def idle(self) -> None:
        """Nobody is connected any more, or somebody was buried: end an empty shim told to end.

        containerd 2 sends one Shutdown for a pod, after the first container's deletion, and those
        of the others may be under way.
        """
        if self._stop_wanted.is_set() and self._pod.close_if_empty():
            self._shutdown()

    def _end_if_unwanted(self, left_alone: bool) -> None:
        """End a shim that was told to, or left alone, while its only container was being made."""
        if (left_alone or self._stop_wanted.is_set()) and self._pod.close_if_empty():
            self._shutdown()

    def _start(self, call: Call) -> bytes:
        request = pb.StartRequest.FromString(call.payload)
        container = self._pod.container(request.id)
        if request.exec_id:
            pid = container.start_exec(request.exec_id, self._deadline(call))
        elif container.sandbox.restore is not None:
            pid = container.start(self._deadline(call, CHECKPOINT_TIMEOUT))
        else:
            pid = container.start(self._deadline(call))
        return pb.StartResponse(pid=pid).SerializeToString()

    def _delete(self, call: Call) -> bytes:
        request = pb.DeleteRequest.FromString(call.payload)
        pid: int
        exit: Exit
        io = None
        if self._sandbox is not None:
            io = self._pod.container(request.id).process(request.exec_id).snapshot().io
        if request.exec_id:
            pid, exit = self._pod.container(request.id).delete_exec(request.exec_id)
        else:
            lost = threading.Event()
            call.on_cancel(lost.set)
            pid, exit = self._pod.delete(request.id, lambda: not lost.is_set())
        if self._sandbox is not None and io is not None:
            self._sandbox.release(io)
        return pb.DeleteResponse(
            pid=pid, exit_status=exit.status, exited_at=convert.timestamp(exit.at)
        ).SerializeToString()

    def _exec(self, call: Call) -> bytes:
        request = pb.ExecProcessRequest.FromString(call.payload)
        container = self._pod.container(request.id)
        spec = parse_process(request.spec.value, "exec spec")
        missing = unlike_container(spec, container.spec.process) if container.spec else ()
        unknown = [name[:100] for name in spec.unknown_capabilities[:10]]
        if missing or unknown:
            self._log.warning(
                "exec.partly_honoured", container=request.id, unknown=unknown, missing=missing
            )
        io = convert.io_request(request)
        if self._sandbox is None:
            container.add_exec(request.exec_id, spec, io, self._deadline(call))
            return b""
        io = self._sandbox.stdio(io)
        try:
            container.add_exec(request.exec_id, spec, io, self._deadline(call))
        except BaseException:
            self._sandbox.release(io)
            raise
        return b""

    def _kill(self, call: Call) -> bytes:
        request = pb.KillRequest.FromString(call.payload)
        self._pod.container(request.id).kill(request.exec_id, request.signal, request.all)
        return b""

    def _wait(self, call: Call) -> None:
        request = pb.WaitRequest.FromString(call.payload)
        process = self._pod.container(request.id).process(request.exec_id)
        io = process.snapshot().io

        def answer(exit: Exit) -> None:
            reply = pb.WaitResponse(
                exit_status=exit.status, exited_at=convert.timestamp(exit.at)
            ).SerializeToString()

            def send() -> None:
                call.reply(reply)

            # Nothing of it blocks, so the reactor may do it.
            if self._sandbox is None:
                send()
            else:
                self._sandbox.when_delivered(io, send)

        call.on_cancel(lambda: process.forget_waiter(answer))
        process.wait(answer)

    def _pause(self, call: Call) -> bytes:
        self._pod.pause(pb.PauseRequest.FromString(call.payload).id)
        return b""

    def _resume(self, call: Call) -> bytes:
        self._pod.resume(pb.ResumeRequest.FromString(call.payload).id)
        return b""

    def _checkpoint(self, call: Call) -> bytes:
        request = pb.CheckpointTaskRequest.FromString(call.payload)
        options = convert.checkpoint_options(request.options)
        self._pod.checkpoint(
            request.id,
            request.path or options.image_path,
            exit=options.exit,
            timeout=self._deadline(call, CHECKPOINT_TIMEOUT) - time.monotonic(),
        )
        return b""

    def _stop(self, call: Call) -> bytes | None:
        if not self._pod.close_if_empty(but_for_freed=True):
            # The container that is left may be one whose creation is about to fail.
            self._stop_wanted.set()
            return b""
        call.reply(b"")
        self._shutdown()
        return None

    # -- looking --------------------------------------------------------------------------

    def _state(self, call: Call) -> bytes:
        request = pb.StateRequest.FromString(call.payload)
        container = self._pod.container(request.id)
        container.require_created()
        process = container.process(request.exec_id)
        snapshot = process.snapshot()
        io = process.io
        if snapshot.exit is not None and io is not None:
            # A client that learns of an end closes its pipes, and one that has just come back after
            # a restart is only about to open them.
            io.await_reading(READER_PATIENCE, READING_TIMEOUT)
        if self._sandbox is not None:
            snapshot = snapshot.replace(io=self._sandbox.named(snapshot.io))
        return convert.state_response(snapshot, request.id, request.exec_id, container.bundle)

    def _pids(self, call: Call) -> bytes:
        container = self._pod.container(pb.PidsRequest.FromString(call.payload).id)
        processes = []
        for found in container.pids():
            info = None
            if found.exec_id:
                from protos import runc_pb2

                details = runc_pb2.ProcessDetails(exec_id=found.exec_id)
                info = Any(
                    type_url="containerd.runc.v1.ProcessDetails",
                    value=details.SerializeToString(),
                )
            processes.append(pb.ProcessInfo(pid=found.pid, info=info))
        return pb.PidsResponse(processes=processes).SerializeToString()

    def _stats(self, call: Call) -> bytes:
        container = self._pod.container(pb.StatsRequest.FromString(call.payload).id)
        type_url, value = self._metrics(container.metrics())
        return pb.StatsResponse(stats=Any(type_url=type_url, value=value)).SerializeToString()

    def _connect(self, call: Call) -> bytes:
        # Never fails: it is containerd's health check after its own restart.
        request = pb.ConnectRequest.FromString(call.payload)
        container: Container | None
        try:
            container = self._pod.container(request.id)
        except NotFound:
            container = None
        pid = container.init.pid if container is not None else 0
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=pid).SerializeToString()

    # -- changing -------------------------------------------------------------------------

    def _update(self, call: Call) -> bytes:
        request = pb.UpdateTaskRequest.FromString(call.payload)
        container = self._pod.container(request.id)
        resources = request.resources if request.HasField("resources") else None
        container.update(convert.resources(resources))
        return b""

    def _resize_pty(self, call: Call) -> bytes:
        request = pb.ResizePtyRequest.FromString(call.payload)
        container = self._pod.container(request.id)
        container.resize(request.exec_id, request.width, request.height)
        return b""

    def _close_io(self, call: Call) -> bytes:
        request = pb.CloseIORequest.FromString(call.payload)
        process = self._pod.container(request.id).process(request.exec_id)
        if request.stdin:
            process.close_stdin()
            if self._sandbox is not None:
                self._sandbox.close_input(process.snapshot().io)
        return b""
