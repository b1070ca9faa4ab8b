"""Publishes events to containerd, in order, without ever holding the runtime up.

Owns the queue and the one thread that sends.  The head of the queue is retried until containerd
takes it, so a restart of containerd neither loses nor reorders anything.  When the queue is full,
the oldest event that is neither an exit nor an OOM is dropped and counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from protos import events_pb2 as pb
from protos.wkt_pb2 import Any
from runtime.base.errors import RuntimeFault, reason
from runtime.base.log import get_logger
from runtime.task import events
from shim.base import status
from shim.base.convert import timestamp
from shim.ttrpc.client import Client
from shim.ttrpc.errors import ConnectionLost, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, Protocol

    from protos._types import Message

    class Transport(Protocol):
        """Hands one event over; raises Undelivered to have it sent again."""

        def __call__(self, item: Item) -> None: ...
        def close(self) -> None: ...


#: containerd's Go publisher queues as many.
QUEUE_LIMIT: Final = 2048
#: Seconds that one Forward may take, as in containerd's publisher.
FORWARD_TIMEOUT: Final = 5.0
#: First and longest pause between two tries, in seconds.
FIRST_BACKOFF, LAST_BACKOFF = 0.05, 2.0
#: How often an event is tried that containerd answers with an error of its own.
MAX_REFUSALS: Final = 5

_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_KEPT: Final = ("/tasks/exit", "/tasks/oom")


class Undelivered(Exception):
    """The event was not taken.  ``refused`` tells that the peer answered, and said no."""

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class Item:
    """An event on its way: everything that is sent is fixed when it is queued."""

    __slots__ = ("at", "body", "context", "topic", "type_url")

    def __init__(self, topic: str, type_url: str, body: bytes, at: float) -> None:
        #: Metadata that makes the sending a part of a trace.
        self.context: Mapping[str, tuple[str, ...]] = {}
        self.topic = topic
        self.type_url = type_url
        self.body = body
        self.at = at


def encode(event: events.Event) -> Item:
    """The topic and message of an event, as ``api/events/task.proto`` has them."""
    cid = event.container_id
    message: Message
    if isinstance(event, events.TaskCreated):
        topic, message = (
            "create",
            pb.TaskCreate(
                container_id=cid,
                bundle=event.bundle,
                rootfs=[
                    pb.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
                    for m in event.rootfs
                ],
                io=pb.TaskIO(
                    stdin=event.stdin,
                    stdout=event.stdout,
                    stderr=event.stderr,
                    terminal=event.terminal,
                ),
                checkpoint=event.checkpoint,
                pid=event.pid,
            ),
        )
    elif isinstance(event, events.TaskStarted):
        topic, message = "start", pb.TaskStart(container_id=cid, pid=event.pid)
    elif isinstance(event, events.TaskExecAdded):
        topic, message = "exec-added", pb.TaskExecAdded(container_id=cid, exec_id=event.exec_id)
    elif isinstance(event, events.TaskExecStarted):
        topic, message = (
            "exec-started",
            pb.TaskExecStarted(container_id=cid, exec_id=event.exec_id, pid=event.pid),
        )
    elif isinstance(event, events.TaskExited):
        topic, message = (
            "exit",
            pb.TaskExit(
                container_id=cid,
                id=event.id,
                pid=event.pid,
                exit_status=event.exit_status,
                exited_at=timestamp(event.exited_at),
            ),
        )
    elif isinstance(event, events.TaskOOM):
        topic, message = "oom", pb.TaskOOM(container_id=cid)
    elif isinstance(event, events.TaskPaused):
        topic, message = "paused", pb.TaskPaused(container_id=cid)
    elif isinstance(event, events.TaskResumed):
        topic, message = "resumed", pb.TaskResumed(container_id=cid)
    elif isinstance(event, events.TaskCheckpointed):
        topic, message = (
            "checkpointed",
            pb.TaskCheckpointed(container_id=cid, checkpoint=event.path),
        )
    elif isinstance(event, events.TaskDeleted):
        topic, message = (
            "delete",
            pb.TaskDelete(
                container_id=cid,
                pid=event.pid,
                exit_status=event.exit_status,
                exited_at=timestamp(event.exited_at),
                id=event.id,
            ),
        )
    else:
        raise TypeError(f"no topic for {type(event).__name__}")
    name: str = message.DESCRIPTOR.full_name
    return Item(f"/tasks/{topic}", name, message.SerializeToString(), time.time())


class ForwardTransport:
    """containerd's ttrpc event service.  Used by the publisher's thread only."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._client: Client | None = None

    def __call__(self, item: Item) -> None:
        request = pb.ForwardRequest(
            envelope=pb.Envelope(
                timestamp=timestamp(item.at),
                namespace=self._namespace,
                topic=item.topic,
                event=Any(type_url=item.type_url, value=item.body),
            )
        ).SerializeToString()
        try:
            if self._client is None:
                self._client = Client(self._address, FORWARD_TIMEOUT)
            self._client.call(
                _SERVICE,
                "Forward",
                request,
                timeout=FORWARD_TIMEOUT,
                metadata={**item.context, "containerd-namespace-ttrpc": (self._namespace,)},
            )
        except StatusError as error:
            refused = error.code not in (status.UNAVAILABLE, status.DEADLINE_EXCEEDED)
            raise Undelivered(str(error), refused=refused) from None
        except (OSError, ConnectionLost) as error:
            self.close()
            raise Undelivered(str(error) or type(error).__name__) from None

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class BinaryTransport:
    """``containerd publish``, for a daemon that gave no ttrpc address."""

    def __init__(self, binary: str, address: str, namespace: str) -> None:
        self._argv = (binary, "--address", address, "publish", "--namespace", namespace, "--topic")

    def __call__(self, item: Item) -> None:
        from runtime.host.spawn import spawn
        from runtime.host.spawn_spec import SpawnSpec

        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise Undelivered(f"pipe: {reason(error)}") from None
        try:
            try:
                child = spawn(
                    SpawnSpec(path=self._argv[0], argv=(*self._argv, item.topic), fds={0: reader})
                )
            except RuntimeFault as fault:
                raise Undelivered(str(fault)) from None
            finally:
                os.close(reader)
            body = Any(type_url=item.type_url, value=item.body).SerializeToString()
            # An event fits in a pipe, so this never blocks on the child.
            os.write(writer, body)
        finally:
            os.close(writer)
        try:
            result = child.wait(FORWARD_TIMEOUT)
        except RuntimeFault as fault:
            child.kill(9)
            child.wait(FORWARD_TIMEOUT)
            raise Undelivered(str(fault)) from None
        finally:
            child.close()
        if result != 0:
            raise Undelivered(f"{self._argv[0]} publish: status {result}")

    def close(self) -> None:
        """Holds nothing between two events."""


def transport_for(
    ttrpc_address: str, grpc_address: str, publish_binary: str, namespace: str
) -> Transport | None:
    """The best way to publish that the environment offers; None where there is none (CRI-O)."""
    if ttrpc_address:
        return ForwardTransport(ttrpc_address, namespace)
    if publish_binary and grpc_address:
        return BinaryTransport(publish_binary, grpc_address, namespace)
    return None


class Publisher:
    """The queue and its thread.  ``publish`` never blocks and never raises for the peer's sake."""

    def __init__(
        self,
        transport: Transport | None,
        *,
        limit: int = QUEUE_LIMIT,
        sleep: Callable[[threading.Condition, float], object] | None = None,
    ) -> None:
        self._transport = transport
        self._limit = limit
        # Tests replace the pause between two tries; it must give up the lock while it lasts.
        self._sleep = sleep or (lambda changed, seconds: changed.wait(seconds))
        self._log = get_logger("events")
        #: Set before the first event: the trace that the calling thread is in, as metadata.
        self.context: Callable[[], Mapping[str, tuple[str, ...]]] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Item] = deque()  # guarded by _lock
        self._dropped = 0  # guarded by _lock
        self._sent = 0  # guarded by _lock
        self._refused = 0  # guarded by _lock; given up, as containerd would not have them
        self._closing = False  # guarded by _lock
        self._frozen = False  # guarded by _lock
        # The thread's alone: the next pause, and how often the head was refused.
        self._pause, self._refusals = FIRST_BACKOFF, 0
        self._thread: threading.Thread | None = None  # guarded by _lock

    @property
    def dropped(self) -> int:
        with self._lock:
            return self._dropped

    def counts(self) -> tuple[int, int, int]:
        """How many events wait, were lost, and were sent."""
        with self._lock:
            return len(self._queue), self._dropped + self._refused, self._sent

    def publish(self, event: events.Event) -> None:
        """Queue an event.  A leaf: takes only its own lock, so callers may hold theirs."""
        if self._transport is None:
            return
        item = encode(event)
        if self.context is not None:
            item.context = self.context()
        with self._lock:
            if len(self._queue) >= self._limit:
                self._make_room_locked()
            self._queue.append(item)
            self._start_locked()
            self._changed.notify_all()

    def start(self) -> None:
        """Make the thread now, and not with the first event."""
        with self._lock:
            self._start_locked()

    def _start_locked(self) -> None:
        if self._thread is not None or self._transport is None or self._frozen:
            return
        thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            # The event stays in the queue, and whoever publishes must not fail.
            self._log.warning("events.wait", error=str(error))
            return
        self._thread = thread

    def _make_room_locked(self) -> None:
        self._dropped += 1
        # The head may be under way; it is left alone unless there is nothing else.
        for index in range(1, len(self._queue)):
            if self._queue[index].topic not in _KEPT:
                del self._queue[index]
                return
        del self._queue[1 if len(self._queue) > 1 else 0]

    def flush(self, timeout: float) -> bool:
        """Wait until everything is sent; False if it was not in time (seconds)."""
        limit = time.monotonic() + timeout
        with self._changed:
            while self._queue:
                left = limit - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def freeze(self) -> bool:
        """End the thread and the connection, and keep the queue for :meth:`thaw`; is it so?

        The event that is under way is waited for: whether it was taken has to be known.
        """
        with self._changed:
            self._frozen = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(FORWARD_TIMEOUT + 1)
            if thread.is_alive():
                return False
        if self._transport is not None:
            self._transport.close()
        return True

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process."""
        with self._lock:
            self._frozen = False
            self._start_locked()

    def close(self) -> None:
        """Stop the thread; what is still queued is lost and counted in the log."""
        with self._changed:
            self._closing = True
            lost = len(self._queue)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(FORWARD_TIMEOUT + 1)
        if self._transport is not None:
            self._transport.close()
        if lost:
            self._log.warning("events.lost", count=lost)

    def _run(self) -> None:
        assert self._transport is not None
        while True:
            with self._changed:
                while not (self._queue or self._closing or self._frozen):
                    self._changed.wait()
                if self._frozen:
                    self._thread = None
                    return
                if self._closing:
                    return
                item = self._queue[0]
            lost = True
            try:
                self._transport(item)
                lost = False
            except Undelivered as error:
                self._refusals += error.refused
                if self._refusals < MAX_REFUSALS:
                    self._log.debug("event.retried", topic=item.topic, error=str(error))
                    with self._changed:
                        if not (self._closing or self._frozen):
                            self._sleep(self._changed, self._pause)
                    self._pause = min(self._pause * 2, LAST_BACKOFF)
                    continue
                self._log.error("event.refused", topic=item.topic, error=str(error))
            except Exception:
                # A bug in the transport must cost one event, never the pod's event stream.
                self._log.exception("event.failed", topic=item.topic)
            self._pause, self._refusals = FIRST_BACKOFF, 0
            with self._changed:
                if self._queue and self._queue[0] is item:
                    self._queue.popleft()
                if lost:
                    self._refused += 1
                else:
                    self._sent += 1
                self._changed.notify_all()
