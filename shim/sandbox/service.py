"""The Sandbox service: a pod of containerd's that has no pause container.

Served as ``containerd.runtime.sandbox.v1.Sandbox``, for runtimes with ``sandboxer = "shim"``
(containerd 2.1 and later).  The sandbox is a container like a pause container's, of the same id,
from a bundle that is written here.  So everything that works for pods works for these.
"""

from __future__ import annotations

import os
import threading
import time

from protos import sandbox_pb2
from protos.platform_pb2 import Metric, Platform
from protos.wkt_pb2 import Any
from runtime.base import fastjson, log
from runtime.base.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    InvalidState,
    NotFound,
    reason,
)
from runtime.base.signals import SIGKILL
from runtime.bundle.spec import validate_id
from runtime.host import forward_program
from runtime.task.context import CreateRequest
from runtime.task.lifecycle import State
from runtime.task.process import IORequest
from shim.base import convert
from shim.sandbox import spec as sandbox_spec
from shim.sandbox.requests import TIMEOUT, config_in, deadline_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protos import pod_pb2
    from runtime.cgroups.metrics import Metrics
    from runtime.runsc.config import RunscConfig
    from runtime.sandbox.checkpoint_image import Image
    from runtime.task.container import Container
    from runtime.task.pod import Pod
    from runtime.task.process import Exit, Process
    from shim.sandbox.pod_checkpoint import PodCheckpoints
    from shim.sandbox.streams import Streams
    from shim.ttrpc.call import Call

_READY, _NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class SandboxService:
    """The calls by name; each runs on a worker and raises RuntimeFault."""

    def __init__(
        self,
        pod: Pod,
        *,
        options: Callable[[str, bytes, str], RunscConfig],
        metrics: Callable[[Metrics], tuple[str, bytes]],
        shutdown: Callable[[], None],
    ) -> None:
        self._pod = pod
        self._options = options
        self._metrics = metrics
        self._shutdown = shutdown
        self._log = log.get_logger("sandbox_service")
        self._lock = threading.Lock()
        self._streams: Streams | None = None  # guarded by _lock; set once
        self._stdio: dict[str, IORequest] = {}  # guarded by _lock; of inits with streams
        self._bundle = ""  # of the sandbox that was created here
        self._created = 0.0
        #: Pids that it had before it was restored, each with the one that it has by now.
        self._former: dict[int, int] = {}  # guarded by _lock
        #: The sandbox's first process, while another takes its place.
        self._outgoing: Process | None = None  # guarded by _lock
        self._kept_waiting: list[tuple[Call, Exit]] = []  # guarded by _lock; for its end
        self._checkpoints: PodCheckpoints | None = None  # guarded by _lock; set once
        self.methods: Mapping[str, Callable[[Call], bytes | None]] = {
            "CreateSandbox": self._create,
            "StartSandbox": self._start,
            "Platform": self._platform,
            "StopSandbox": self._stop,
            "WaitSandbox": self._wait,
            "SandboxStatus": self._status,
            "PingSandbox": self._ping,
            "ShutdownSandbox": self._end,
            "SandboxMetrics": self._stats,
        }

    @property
    def streams(self) -> Streams:
        """Standard streams that come over connections."""
        with self._lock:
            if self._streams is None:
                from shim.sandbox.streams import Streams

                self._streams = Streams(self._pod.context.reactor)
            return self._streams

    @property
    def checkpoints(self) -> PodCheckpoints:
        """Checkpoints of the whole pod."""
        with self._lock:
            if self._checkpoints is None:
                from shim.sandbox.pod_checkpoint import PodCheckpoints

                self._checkpoints = PodCheckpoints(self._pod, self)
            return self._checkpoints

    def stdio(self, io: IORequest, container_id: str = "") -> IORequest:
        """``io`` with FIFOs in place of streams, of a container's init if it is named.

        Raises Failed, InvalidRequest.
        """
        if not any("streaming_id=" in each for each in (io.stdin, io.stdout, io.stderr)):
            return io
        made = self.streams.fifos(io, f"{self._bundle}/io")
        if container_id:
            with self._lock:
                self._stdio[container_id] = made
        return made

    def stdio_of(self, container_id: str) -> IORequest | None:
        """The FIFOs of a container's init, if it has streams; from any thread, under any lock."""
        with self._lock:
            return self._stdio.get(container_id)

    def named(self, io: IORequest) -> IORequest:
        """``io`` as its client knows it."""
        return io if self._streams is None else self._streams.named(io)

    def release(self, io: IORequest) -> None:
        """End the streams of a process that is deleted."""
        if self._streams is not None:
            with self._lock:
                self._stdio = {key: each for key, each in self._stdio.items() if each != io}
            self._streams.release(io.stdin, io.stdout, io.stderr)

    def when_delivered(self, io: IORequest, callback: Callable[[], None]) -> None:
        """Call back once all output of an ended process has been sent; never blocks."""
        if self._streams is None:
            callback()
        else:
            self._streams.when_delivered(io, callback)

    def close_input(self, io: IORequest) -> None:
        """No more input comes."""
        if self._streams is not None:
            self._streams.close_input(io.stdin)

    def complete_member(self, bundle: str) -> None:
        """Have a container that is about to be created mount the pod's files.

        Raises InvalidRequest, Failed.
        """
        if not self._bundle:
            return
        try:
            with self._lock:
                former = dict(self._former)
            sandbox_spec.complete_member(bundle, self._bundle, former)
        except OSError as error:
            raise Failed(f"bundle {bundle}: {reason(error)}") from None

    def config_for(self, sandbox_id: str) -> RunscConfig:
        """What the operator's options say by now.  Raises InvalidRequest."""
        return self._options("", b"", sandbox_id)

    def sandbox(self, sandbox_id: str) -> Container:
        """The sandbox's container.  Raises NotFound."""
        try:
            return self._pod.container(sandbox_id)
        except NotFound:
            raise NotFound("sandbox", sandbox_id) from None

    # -- life -----------------------------------------------------------------------------

    def _create(self, call: Call) -> None:
        request = sandbox_pb2.CreateSandboxRequest.FromString(call.payload)
        validate_id("sandbox", request.sandbox_id)
        bundle = convert.text("bundle_path", request.bundle_path)
        if not bundle.startswith("/"):
            raise InvalidRequest("bundle_path", f"{bundle!r} is not an absolute path")
        if any(each.id == request.sandbox_id for each in self._pod.all()):
            raise AlreadyExists("sandbox", request.sandbox_id)  # whose files are in use
        config = config_in("options", request.options)
        runsc = self._options("", b"", request.sandbox_id)
        call.on_cancel(lambda: self._pod.abandon(request.sandbox_id))
        left_alone = False  # by its creator: nobody would ever shut it down
        try:
            self._make(request, config, runsc, bundle)
            left_alone = not call.reply(sandbox_pb2.CreateSandboxResponse().SerializeToString())
            if left_alone:
                self._pod.delete(request.sandbox_id)
        finally:
            if (left_alone or call.cancelled) and self._pod.close_if_empty():
                self._shutdown()

    def _make(
        self,
        request: sandbox_pb2.CreateSandboxRequest,
        config: pod_pb2.PodSandboxConfig,
        runsc: RunscConfig,
        bundle: str,
    ) -> None:
        try:
            root = forward_program.install(forward_program.FOLDERS)
            netns = convert.text("netns_path", request.netns_path)
            allowed = runsc.pod_annotations
            spec = sandbox_spec.spec_of(config, request.sandbox_id, bundle, netns, root, allowed)
            sandbox_spec.write(bundle, spec, config)
        except OSError as error:
            raise Failed(f"bundle {bundle}: {reason(error)}") from None
        nothing = IORequest(stdin="", stdout="", stderr="", terminal=False)
        self._pod.create(
            CreateRequest(id=request.sandbox_id, bundle=bundle, io=nothing, config=runsc)
        )
        self._bundle, self._created = bundle, time.time()

    def _start(self, call: Call) -> bytes:
        request = sandbox_pb2.StartSandboxRequest.FromString(call.payload)
        pid = self.sandbox(request.sandbox_id).start(deadline_of(call))
        return sandbox_pb2.StartSandboxResponse(
            pid=pid, created_at=convert.timestamp(self._created)
        ).SerializeToString()

    def _stop(self, call: Call) -> bytes:
        request = sandbox_pb2.StopSandboxRequest.FromString(call.payload)
        deadline = deadline_of(call)
        if request.timeout_secs:
            deadline = min(deadline, time.monotonic() + request.timeout_secs)
        self._kill(self.sandbox(request.sandbox_id), deadline)
        return sandbox_pb2.StopSandboxResponse().SerializeToString()

    def _kill(self, container: Container, deadline: float) -> None:
        """End the sandbox and all that is in it.  Raises DeadlineExceeded."""
        ended = threading.Event()

        def notice(_: Exit) -> None:
            ended.set()

        container.init.wait(notice)
        if not ended.is_set():
            try:
                container.kill("", SIGKILL, True)
            except NotFound:
                pass  # it ends just now
        if not ended.wait(max(deadline - time.monotonic(), 0)):
            container.init.forget_waiter(notice)
            raise DeadlineExceeded(f"end of sandbox {container.id!r}", TIMEOUT)

    def _wait(self, call: Call) -> None:
        request = sandbox_pb2.WaitSandboxRequest.FromString(call.payload)
        self._answer_at_end(call, self.sandbox(request.sandbox_id).init)

    def _answer_at_end(self, call: Call, process: Process) -> None:
        def answer(exit: Exit) -> None:
            with self._lock:
                if process is self._outgoing:
                    self._kept_waiting.append((call, exit))
                    return
            _tell_end(call, exit)

        call.on_cancel(lambda: process.forget_waiter(answer))
        process.wait(answer)

    def exchange(self, old: Container, image: Image, deadline: float) -> None:
        """Put a sandbox that is restored from ``image`` in the place of one that runs nothing.

        Who waits for the sandbox's end waits on, unless this fails: then it has ended.  The image
        is taken over, and closed in the end.  Raises what ending, creating and starting raise,
        InvalidState if it is being exchanged already.
        """
        with self._lock:
            if self._outgoing is not None:
                raise InvalidState("restore", f"sandbox {old.id!r}", "being restored")
            self._outgoing = old.init
        heir: Process | None = None
        try:
            if old.init.state is not State.CREATED:
                self._kill(old, deadline)
            self._pod.delete(old.id)
            self._pod.create(
                CreateRequest(
                    id=old.id,
                    bundle=old.bundle,
                    io=old.init.io_request,
                    config=self.config_for(old.id),
                    checkpoint=image.path,
                    image=image,
                )
            )
            new = self._pod.container(old.id)
            new.start(deadline)
            heir = new.init
        finally:
            with self._lock:
                self._outgoing = None
                if heir is not None:
                    pids = [*self._former, old.init.pid]
                    self._former = dict.fromkeys(filter(None, pids), heir.pid)
                waiting, self._kept_waiting = self._kept_waiting, []
            for call, exit in waiting:
                if heir is None:
                    _tell_end(call, exit)
                else:
                    self._answer_at_end(call, heir)

    def _end(self, call: Call) -> None:
        """Free everything and end the shim.  For a sandbox that never was as well."""
        request = sandbox_pb2.ShutdownSandboxRequest.FromString(call.payload)
        try:
            container = self.sandbox(request.sandbox_id)
        except NotFound:
            container = None
        if container is not None:
            if container.init.state is not State.CREATED:
                self._kill(container, deadline_of(call))
            self._pod.delete(request.sandbox_id)
        call.reply(sandbox_pb2.ShutdownSandboxResponse().SerializeToString())
        self._shutdown()

    # -- looking --------------------------------------------------------------------------

    def _platform(self, call: Call) -> bytes:
        request = sandbox_pb2.PlatformRequest.FromString(call.payload)
        self.sandbox(request.sandbox_id)
        machine = os.uname().machine
        platform = Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))
        return sandbox_pb2.PlatformResponse(platform=platform).SerializeToString()

    def _status(self, call: Call) -> bytes:
        request = sandbox_pb2.SandboxStatusRequest.FromString(call.payload)
        with self._lock:
            outgoing = self._outgoing
        if outgoing is not None and outgoing.container_id == request.sandbox_id:
            # To its client it is the same sandbox, before as after.
            return sandbox_pb2.SandboxStatusResponse(
                sandbox_id=request.sandbox_id,
                pid=outgoing.pid,
                state=_READY,
                created_at=convert.timestamp(self._created),
            ).SerializeToString()
        container = self.sandbox(request.sandbox_id)
        snapshot = container.init.snapshot()
        response = sandbox_pb2.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=snapshot.pid,
            state=_READY if container.init.started else _NOT_READY,
            created_at=convert.timestamp(self._created),
        )
        if snapshot.exit is not None:
            response.exited_at.CopyFrom(convert.timestamp(snapshot.exit.at))
        if request.verbose and container.spec is not None:
            about = {
                "sandboxID": request.sandbox_id,
                "pid": snapshot.pid,
                "processStatus": snapshot.state.value,
                "runtimeSpec": container.spec.raw,
            }
            response.info["info"] = fastjson.dumps(about)
        return response.SerializeToString()

    def _ping(self, call: Call) -> bytes:
        self.sandbox(sandbox_pb2.PingRequest.FromString(call.payload).sandbox_id)
        return sandbox_pb2.PingResponse().SerializeToString()

    def _stats(self, call: Call) -> bytes:
        request = sandbox_pb2.SandboxMetricsRequest.FromString(call.payload)
        type_url, value = self._metrics(self.sandbox(request.sandbox_id).metrics())
        metric = Metric(
            id=request.sandbox_id,
            timestamp=convert.timestamp(time.time()),
            data=Any(type_url=type_url, value=value),
        )
        return sandbox_pb2.SandboxMetricsResponse(metrics=metric).SerializeToString()


def _tell_end(call: Call, exit: Exit) -> None:
    call.reply(
        sandbox_pb2.WaitSandboxResponse(
            exit_status=exit.status, exited_at=convert.timestamp(exit.at)
        ).SerializeToString()
    )
