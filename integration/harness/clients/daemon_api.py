"""containerd's own gRPC API, for what `ctr` cannot say, or cannot say fast enough."""

from __future__ import annotations

import copy
import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]

from integration.harness.base.waiting import until
from integration.harness.clients import api
from integration.harness.clients.wire import Msg, Schema
from integration.harness.host.containerd import Containerd

_TASKS = "containerd.services.tasks.v1.Tasks/"
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


class Refused(Exception):
    """A call that the daemon answered with an error."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message} (code {code})")
        self.code, self.message = code, message


class Api:
    """A connection to one daemon, bound to the node's namespace.  Close it."""

    def __init__(self, daemon: Containerd) -> None:
        self.daemon = daemon
        self._channel = grpc.insecure_channel(
            f"unix://{daemon.address}",
            options=[
                ("grpc.max_receive_message_length", 16 << 20),
                # A daemon that starts is found at once: the first events are for us, too.
                ("grpc.initial_reconnect_backoff_ms", 20),
                ("grpc.min_reconnect_backoff_ms", 20),
                ("grpc.max_reconnect_backoff_ms", 50),
            ],
        )
        self._metadata = (("containerd-namespace", daemon.namespace),)
        self._spec: dict[str, Any] | None = None

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, timeout: float = 20, **values: Any) -> Msg:
        """One call by its full name; Refused when it fails."""
        return self.call_later(method, timeout, **values)()

    def call_later(self, method: str, timeout: float = 20, **values: Any) -> Callable[[], Msg]:
        """Send one call now; the function returned waits for its reply."""
        request, reply = api.DAEMON[method]
        stub = self._channel.unary_unary(f"/{method}")
        future = stub.future(request.encode(**values), timeout=timeout, metadata=self._metadata)

        def finish() -> Msg:
            try:
                return reply.decode(future.result())
            except grpc.RpcError as err:
                code = err.code().value[0]
                raise Refused(method, code, err.details() or "") from None

        return finish

    def task(self, method: str, timeout: float = 20, **values: Any) -> Msg:
        """One call of the task service."""
        return self.call(_TASKS + method, timeout, **values)

    def task_later(self, method: str, timeout: float = 20, **values: Any) -> Callable[[], Msg]:
        return self.call_later(_TASKS + method, timeout, **values)

    def spec(self, *args: str, container: str = "") -> dict[str, Any]:
        """A fresh OCI spec with `args` as its command, as `ctr run` would make it."""
        if self._spec is None:
            command = self.daemon.ctr_command("oci", "spec")
            done = subprocess.run(command, capture_output=True, timeout=10, check=True)
            self._spec = json.loads(done.stdout)
        spec = copy.deepcopy(self._spec)
        assert spec is not None
        spec["process"]["args"] = list(args)
        spec["process"]["env"] = ["PATH=/bin"]
        spec["process"]["cwd"] = "/"
        spec["linux"]["cgroupsPath"] = f"/{self.daemon.namespace}/{container}"
        return spec

    def make(
        self, container: str, runtime: str, spec: dict[str, Any], **runtime_options: Any
    ) -> Any:
        """Snapshot and container record; returns the rootfs mounts for Create."""
        image = self.daemon.import_image()
        snapshotter = "overlayfs"
        mounts = self.call(
            "containerd.services.snapshots.v1.Snapshots/Prepare",
            snapshotter=snapshotter,
            key=container,
            parent=image.chain,
            labels={"containerd.io/gc.root": "test"},  # until a container record refers to it
        ).mounts
        record = {
            "id": container,
            "runtime": {"name": runtime, **runtime_options},
            "spec": api.packed(_SPEC_TYPE, spec),
            "snapshotter": snapshotter,
            "snapshot_key": container,
        }
        self.call("containerd.services.containers.v1.Containers/Create", container=record)
        return mounts

    def unmake(self, container: str) -> None:
        """Take back what `make` made; what is not there is no error."""
        calls: tuple[tuple[str, dict[str, Any]], ...] = (
            ("containers.v1.Containers/Delete", {"id": container}),
            ("snapshots.v1.Snapshots/Remove", {"snapshotter": "overlayfs", "key": container}),
        )
        for method, values in calls:
            try:
                self.call(f"containerd.services.{method}", **values)
            except Refused as err:
                if err.code != api.Code.NOT_FOUND:
                    raise

    def events(self) -> Events:
        return Events(self._channel, self.daemon.namespace)


class Events:
    """A recording of the task events of one namespace; a context manager.

    It may be entered before the daemon is there, and then begins with the daemon.
    """

    def __init__(self, channel: grpc.Channel, namespace: str) -> None:
        self._lock = threading.Lock()
        self._seen: list[tuple[str, Msg]] = []  # guarded by _lock
        self._end = ""  # guarded by _lock
        self._more = threading.Condition(self._lock)
        self._namespace = namespace
        stub = channel.unary_stream("/" + api.SUBSCRIBE)
        request = api.Subscribe.encode(filters=[f"namespace=={namespace}"])
        self._call = stub(request, wait_for_ready=True)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Events:
        self._thread.start()
        # The subscription stands once the daemon has sent its headers (1.7+) or, where it sends
        # none before the first event (1.6), very soon after the request.
        self._thread.join(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._thread.join(5)

    def of(self, container: str) -> list[tuple[str, Msg]]:
        """The events of one container so far, without the /tasks/ of their topics."""
        with self._lock:
            return [(t, e) for t, e in self._seen if e.container_id == container]

    def topics(self, container: str) -> list[str]:
        return [topic for topic, _ in self.of(container)]

    def wait(self, container: str, topic: str, timeout: float = 10, count: int = 1) -> Msg:
        """The `count`th event of a topic."""

        def look() -> list[Msg]:
            found = [event for name, event in self.of(container) if name == topic]
            return found[count - 1 : count]

        try:
            return until(look, timeout, f"{topic} of {container}")[0]
        except AssertionError as err:
            raise AssertionError(f"{err}; seen {self.topics(container)} {self._end}") from None

    def wait_init_exit(self, container: str, timeout: float = 10) -> None:
        """Return at the very moment the exit of a container's init is told, for measurements."""

        def seen() -> bool:
            return any(
                topic == "exit" and event.container_id == event.id == container
                for topic, event in self._seen
            )

        with self._more:
            if not self._more.wait_for(seen, timeout):
                raise AssertionError(f"no exit of {container} within {timeout:g} s")

    def _read(self) -> None:
        try:
            for data in self._call:
                topic, event = api.event_of(api.Envelope.decode(data))
                if topic.startswith("/tasks/"):
                    with self._more:
                        self._seen.append((topic.removeprefix("/tasks/"), event))
                        self._more.notify_all()
        except grpc.RpcError as err:
            with self._lock:
                self._end = str(err)


def decode_any(value: Msg, schema: Schema) -> Msg:
    """The message inside an Any."""
    return schema.decode(value.value)
