"""Standard streams that come over a connection in place of FIFOs (``io_type = "streaming"``).

containerd opens a stream by an id, before it names that id in a Create or Exec; it opens it anew
after a restart.  To a task each stream is a FIFO, whose other end is here: so terminals, logs, and
the order of ends are what they are with FIFOs, and what nobody takes waits in the FIFO.

Served as ``containerd.services.streaming.v1.Streaming``; the messages and the windows are those of
containerd's core/transfer/streaming.
"""

from __future__ import annotations

import os
import select
import threading

from protos.streaming_pb2 import StreamInit
from protos.transfer_pb2 import Data, WindowUpdate
from protos.wkt_pb2 import Any
from runtime.base.errors import Failed, InvalidRequest, NotFound, ResourceExhausted, reason
from runtime.base.log import get_logger
from shim.ttrpc.errors import CANCELLED, DEADLINE_EXCEEDED, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from runtime.host.reactor import Companion
    from runtime.task.process import IORequest
    from shim.ttrpc.call import Call, Stream

    class Loop(Protocol):
        """What is used of the reactor."""

        def call_later(self, seconds: float, fn: Callable[[], None], /) -> object: ...
        def accompany(self, part: Companion) -> None: ...
        def leave(self, part: Companion) -> None: ...


#: Bytes that may be under way, and bytes in one message, as containerd has them.
WINDOW: Final = 64 << 10
CHUNK: Final = 32 << 10
#: Seconds for a client's first message, and for a task to name a stream that was opened.
FIRST, PATIENCE = 10.0, 60.0
#: Seconds that a client has for taking the output of what has ended, before its end is told, and
#: after it was deleted.
LAST: Final = 10.0
#: Seconds from the last byte to the word of the end: containerd stops reading when it hears that.
AFTER: Final = 0.1
#: Seconds from a stream's end to that of its connection, which containerd has for it alone and
#: forgets.
HANG_UP: Final = 2.0
#: Streams that no task has named yet.
MAX_UNCLAIMED = 1024
#: Seconds for a stream's thread to end, when all is to be held still.
FREEZE: Final = 1.0
_MAX_ID = 1024
_MARK = "streaming_id="
_SCHEMES = ("ttrpc+unix", "grpc+unix")

_log = get_logger("streams")


def stream_id(uri: str) -> str:
    """The id in ``ttrpc+unix://SOCKET?streaming_id=ID``; empty for what is no such URI."""
    scheme, sep, rest = uri.partition("://")
    if not sep or scheme not in _SCHEMES:
        return ""
    query = rest.partition("?")[2]
    return next((w[len(_MARK) :] for w in query.split("&") if w.startswith(_MARK)), "")


class Streams:
    """The streams of one shim by id.  From any thread."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._unclaimed: dict[str, Call] = {}  # guarded by _lock
        self._bridges: dict[str, Bridge] = {}  # guarded by _lock
        self._uris: dict[str, str] = {}  # guarded by _lock; FIFO -> URI
        self._count = 0  # guarded by _lock

    # -- a client's side ------------------------------------------------------------------

    def serve(self, call: Call) -> None:
        """A client opens a stream; answered when the stream is over.

        Raises InvalidRequest, ResourceExhausted.
        """
        stream = call.stream
        if stream is None:
            raise InvalidRequest("Stream", "is no streaming call")
        try:
            first = stream.recv(FIRST)
        except TimeoutError:
            raise InvalidRequest("Stream", f"no first message within {FIRST:g} s") from None
        ident = StreamInit.FromString(_unpack(first or b"", "StreamInit")).id
        if not 0 < len(ident) <= _MAX_ID:
            raise InvalidRequest("Stream", "has an id that is empty or too long")
        with self._lock:
            bridge = self._bridges.get(ident)
            if bridge is None and len(self._unclaimed) >= MAX_UNCLAIMED:
                raise ResourceExhausted(f"{MAX_UNCLAIMED} streams wait for tasks that name them")
            before = None
            if bridge is None:
                before = self._unclaimed.pop(ident, None)
                self._unclaimed[ident] = call
        if bridge is not None and not bridge.expect():
            raise NotFound("stream", ident[:200], "the task is gone")
        try:
            stream.send(Any().SerializeToString())  # it is there
        except BaseException:
            if bridge is not None:
                bridge.expect_no_more()
            raise
        if before is not None:
            before.fail_if_unanswered(CANCELLED, "the stream was opened again")
        if bridge is not None:
            bridge.attach(call)
            return
        call.on_cancel(lambda: self._expire(ident, call))
        self._loop.call_later(PATIENCE, lambda: self._expire(ident, call))

    def _forget(self, ident: str, call: Call) -> bool:
        with self._lock:
            found = self._unclaimed.get(ident) is call
            if found:
                del self._unclaimed[ident]
        return found

    def _expire(self, ident: str, call: Call) -> None:
        if self._forget(ident, call):
            _log.info("stream.unclaimed", stream=ident[:200])
            call.fail_if_unanswered(DEADLINE_EXCEEDED, "no task has named the stream")
            self._loop.call_later(HANG_UP, call.hang_up)

    # -- a task's side --------------------------------------------------------------------

    def fifos(self, io: IORequest, folder: str) -> IORequest:
        """``io`` with a FIFO in ``folder`` for each stream.  Raises Failed, InvalidRequest.

        To be given to ``release`` in the end.
        """
        made: dict[str, str] = {}
        try:
            for name in ("stdin", "stdout", "stderr"):
                uri = getattr(io, name)
                if ident := stream_id(uri):
                    made[name] = self._fifo(ident, uri, folder, name == "stdin")
        except BaseException:
            self.release(*made.values())
            raise
        return io.replace(**made) if made else io

    def _fifo(self, ident: str, uri: str, folder: str, inward: bool) -> str:
        with self._lock:
            if ident in self._bridges:
                raise InvalidRequest("stdio", f"stream {ident[:200]!r} is another process's")
            self._count += 1
            path = os.path.join(folder, str(self._count))
        try:
            os.makedirs(folder, 0o711, exist_ok=True)
            os.mkfifo(path, 0o600)
            make = Inward if inward else Outward
            bridge = make(path, self._loop)
        except OSError as error:
            raise Failed(f"stream {ident[:200]!r}: {reason(error)}") from None
        with self._lock:
            self._bridges[ident] = bridge
            self._uris[path] = uri
            call = self._unclaimed.pop(ident, None)
        if call is not None:
            bridge.expect()
            bridge.attach(call)
        bridge.start()
        return path

    def named(self, io: IORequest) -> IORequest:
        """``io`` as its client knows it: with URIs in place of FIFOs."""
        with self._lock:
            found = {
                name: self._uris[getattr(io, name)]
                for name in ("stdin", "stdout", "stderr")
                if getattr(io, name) in self._uris
            }
        return io.replace(**found) if found else io

    def when_delivered(self, io: IORequest, callback: Callable[[], None]) -> None:
        """Call back once a client has been sent all output, or doesn't take it in time.

        At once where ``io`` has no streams; never blocks.
        """
        with self._lock:
            idents = [stream_id(self._uris.get(path, "")) for path in (io.stdout, io.stderr)]
            bridges = [self._bridges[ident] for ident in idents if ident in self._bridges]
        if not bridges:
            callback()
            return
        lock, left = threading.Lock(), [len(bridges)]

        def ended() -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                self._loop.call_later(AFTER, callback)

        def late() -> None:
            with lock:
                missed = left[0] > 0
                left[0] = 0
            if missed:
                callback()

        for bridge in bridges:
            bridge.on_end(ended)
        self._loop.call_later(LAST, late)

    def close_input(self, path: str) -> None:
        """The end of an input whose client has gone; one that is there ends it by itself."""
        with self._lock:
            bridge = self._bridges.get(stream_id(self._uris.get(path, "")))
        if bridge is not None and not bridge.attended:
            bridge.close()

    def release(self, *paths: str) -> None:
        """End the streams of FIFOs, once all that was written has been taken.  Idempotent."""
        for path in paths:
            with self._lock:
                uri = self._uris.pop(path, "")
                bridge = self._bridges.pop(stream_id(uri), None) if uri else None
            if bridge is not None:
                bridge.close()
                self._loop.call_later(LAST, bridge.abandon)


class _Held(Exception):
    """The thread is to end, and another one goes on where it was."""


class Bridge:
    """One end of a FIFO, and whoever has the stream at the moment.  A thread of its own."""

    def __init__(self, path: str, flags: int, loop: Loop) -> None:
        self._path, self._loop = path, loop
        self._fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changed = threading.Condition(threading.Lock())
        self._call: Call | None = None  # guarded by _changed
        self._coming = 0  # guarded by _changed; clients that are about to be attached
        self._closing = False  # guarded by _changed; the task is gone
        self._ended = False  # guarded by _changed; so is the FIFO
        self._callbacks: list[Callable[[], None]] = []  # guarded by _changed
        self._cut = False  # guarded by _changed; the end is to be without waiting for the FIFO
        self._frozen = False  # changed under _changed
        self._thread: threading.Thread | None = None  # guarded by _changed
        #: The thread's: whom it serves, as is kept while all is held still.
        self._served: Stream | None = None

    def start(self) -> None:
        """Begin; raises RuntimeError if there is no thread to be had."""
        self._loop.accompany(self)
        try:
            with self._changed:
                self._start_locked()
        except BaseException:
            self._loop.leave(self)
            raise

    def _start_locked(self) -> None:
        thread = threading.Thread(target=self._run, name="stream", daemon=True)
        thread.start()
        self._thread = thread

    def freeze(self) -> str:
        """End the thread between two messages, and keep all for :meth:`thaw`.

        Returns why that can't be, or nothing.
        """
        with self._changed:
            if self._ended:
                return ""
            self._frozen = True
            thread, call = self._thread, self._call
            os.eventfd_write(self._wake, 1)
            self._changed.notify_all()
        if call is not None and call.stream is not None:
            call.stream.hold(True)
        if thread is not None:
            thread.join(FREEZE)
            if thread.is_alive():
                return "the client of a task's stream doesn't take what it is sent"
        with self._changed:
            self._thread = None
        return ""

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process; idempotent."""
        with self._changed:
            if self._ended or not self._frozen:
                return
            if self._thread is not None and self._thread.is_alive():
                self._loop.call_later(FREEZE, self.thaw)  # it is to end first
                return
            self._frozen = False
            os.eventfd_read(self._wake)
            if self._cut:
                os.eventfd_write(self._wake, 1)
            call = self._call
            if call is not None and call.stream is not None:
                call.stream.hold(False)
            try:
                self._start_locked()
            except (RuntimeError, MemoryError):
                self._frozen = True
                os.eventfd_write(self._wake, 1)
                self._loop.call_later(FREEZE, self.thaw)

    def expect(self) -> bool:
        """Keep what there is for a client that is about to be attached; False if it is over."""
        with self._changed:
            if not self._closing:
                self._coming += 1
            return not self._closing

    def expect_no_more(self) -> None:
        """One that was expected has gone."""
        with self._changed:
            self._coming -= 1
            self._changed.notify_all()

    def attach(self, call: Call) -> None:
        """Go on with this client, which was expected."""
        with self._changed:
            self._coming -= 1
            over = self._ended or (self._closing and self._dies_with_task)
            before = self._call
            if not over:
                self._call = call
                if self._frozen and call.stream is not None:
                    call.stream.hold(True)  # who holds all still hasn't seen it
            self._changed.notify_all()
        if over:
            call.fail_if_unanswered(CANCELLED, "the task is gone")
            return
        if before is not None:
            before.fail_if_unanswered(CANCELLED, "the stream was opened again")
            if before.stream is not None:
                before.stream.abort("the stream was opened again")
        call.on_cancel(lambda: self._detach(call))

    #: Whether what is under way is worth nothing once the task is gone.
    _dies_with_task = False

    def close(self) -> None:
        """The task is gone.  Output that a client takes still goes to it: the FIFO has an end."""
        with self._changed:
            if self._ended:
                return
            self._closing = True
            call = self._call
            self._changed.notify_all()
            if (call is None and not self._coming) or self._dies_with_task:
                self._cut_locked()
        if call is not None and call.stream is not None and self._dies_with_task:
            call.stream.abort("the task is gone")

    def abandon(self) -> None:
        """The task is gone since long: whoever has the stream doesn't take what is in it."""
        with self._changed:
            if self._ended:
                return
            self._closing = self._dies_with_task = True
            call = self._call
            self._changed.notify_all()
            self._cut_locked()
        if call is not None and call.stream is not None:
            call.stream.abort("the task is gone")

    def _cut_locked(self) -> None:
        self._cut = True
        os.eventfd_write(self._wake, 1)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once when it has ended, or at once."""
        with self._changed:
            if not self._ended:
                self._callbacks.append(callback)
                return
        callback()

    @property
    def attended(self) -> bool:
        """Whether somebody has the stream."""
        with self._changed:
            return self._call is not None

    def _detach(self, call: Call) -> None:
        with self._changed:
            if self._call is call:
                self._call = None
            self._changed.notify_all()

    def _client(self) -> Call | None:
        """Whoever has the stream, once there is somebody; None when it is over."""
        with self._changed:
            while self._call is None and not (self._closing and not self._coming):
                if self._frozen:
                    raise _Held
                self._changed.wait()
            return self._call

    def _ready(self, events: int) -> bool:
        """Wait for the FIFO; False when the stream is over."""
        poller = select.poll()
        poller.register(self._fd, events)
        poller.register(self._wake, select.POLLIN)
        found = any(fd == self._fd for fd, _ in poller.poll())
        if self._frozen:
            raise _Held
        return found

    def _received(self, stream: Stream) -> bytes | None:
        """The client's next message; None at the end."""
        while True:
            try:
                return stream.recv()
            except TimeoutError:
                if self._frozen:
                    raise _Held from None

    def _run(self) -> None:
        try:
            while (call := self._client()) is not None and call.stream is not None:
                try:
                    if self._served is not call.stream:
                        self._served = call.stream
                        self._begin(call.stream)
                    over = self._serve(call.stream)
                except (TtrpcError, InvalidRequest) as error:
                    # It is gone, or makes no sense.  Another one goes on where it stopped.
                    call.fail_if_unanswered(CANCELLED, str(error))
                    self._detach(call)
                    continue
                if over:
                    break
        except _Held:
            return
        except OSError as error:
            _log.warning("stream.failed", path=self._path, error=reason(error))
        except BaseException:
            self._end()
            raise
        self._end()

    def _begin(self, stream: Stream) -> None:
        """A client that is new.  Raises TtrpcError."""

    def _serve(self, stream: Stream) -> bool:
        """Copy until the client goes (then raises) or all is over (then True)."""
        raise NotImplementedError

    def _end(self) -> None:
        with self._changed:
            call, self._call, self._closing, self._ended = self._call, None, True, True
            os.close(self._fd)
            os.close(self._wake)
            callbacks, self._callbacks = self._callbacks, []
            self._thread = self._served = None
        self._loop.leave(self)
        if call is not None and call.stream is not None:
            try:
                call.stream.close_send()
            except TtrpcError:
                pass  # it was answered already
            self._loop.call_later(HANG_UP, call.hang_up)
        for callback in callbacks:
            callback()
        try:
            os.unlink(self._path)
        except OSError:
            return  # its bundle is gone


class Outward(Bridge):
    """A process's output: what is in the FIFO is sent as far as the client's window allows."""

    def __init__(self, path: str, loop: Loop) -> None:
        super().__init__(path, os.O_RDONLY, loop)
        self._kept = b""  # read, and not yet sent
        self._window = 0  # what may be sent to the client that is served

    def _begin(self, stream: Stream) -> None:
        self._window = 0

    def _serve(self, stream: Stream) -> bool:
        while True:
            while self._window <= 0:
                self._window += _update(self._received(stream))
            if not self._kept:
                if not self._ready(select.POLLIN):
                    return True
                self._kept = os.read(self._fd, CHUNK)
                if not self._kept:
                    return True
            self._window += _updates(stream)
            size = min(self._window, len(self._kept))
            stream.send(_pack("containerd.types.transfer.Data", Data(data=self._kept[:size])))
            self._kept = self._kept[size:]
            self._window -= size


class Inward(Bridge):
    """A process's input: the client may send as much as the FIFO has taken."""

    _dies_with_task = True

    def __init__(self, path: str, loop: Loop) -> None:
        super().__init__(path, os.O_RDWR, loop)  # which waits for nobody to read
        self._left = b""  # of a message, what the FIFO hasn't taken
        self._taken = 0  # bytes that the client isn't told of yet

    def _begin(self, stream: Stream) -> None:
        self._left, self._taken = b"", 0
        _allow(stream, WINDOW)

    def _serve(self, stream: Stream) -> bool:
        while True:
            left = memoryview(self._left)
            while left:
                if not self._ready(select.POLLOUT):
                    return True
                try:
                    left = left[os.write(self._fd, left) :]
                    self._left = bytes(left)
                except BlockingIOError:
                    continue
            size, self._taken = self._taken, 0
            _allow(stream, size)
            message = self._received(stream)
            if message is None:
                return True
            data = Data.FromString(_unpack(message, "Data")).data
            if len(data) > WINDOW:
                raise InvalidRequest("stdin", f"{len(data)} bytes are more than the window")
            self._left, self._taken = data, len(data)


def _allow(stream: Stream, size: int) -> None:
    if size:
        update = WindowUpdate(update=size)
        stream.send(_pack("containerd.types.transfer.WindowUpdate", update))


def _update(message: bytes | None) -> int:
    """How much more a client takes.  Raises TtrpcError once it takes nothing any more."""
    if message is None:
        raise TtrpcError("the client has closed the stream")
    update = WindowUpdate.FromString(_unpack(message, "WindowUpdate")).update
    if update < 0:
        raise InvalidRequest("window", f"{update} is negative")
    return int(update)


def _updates(stream: Stream) -> int:
    """What has come meanwhile."""
    found = 0
    try:
        while True:
            found += _update(stream.recv(0))
    except TimeoutError:
        return found


def _pack(name: str, message: Data | WindowUpdate) -> bytes:
    return Any(type_url=name, value=message.SerializeToString()).SerializeToString()


def _unpack(message: bytes, name: str) -> bytes:
    """The value of an Any of that type.  Raises InvalidRequest."""
    try:
        found = Any.FromString(message)
    except Exception:
        raise InvalidRequest("stream", "a message is malformed") from None
    if found.type_url.rpartition("/")[2].rpartition(".")[2] != name:
        raise InvalidRequest("stream", f"{found.type_url[:100]!r} in place of {name}")
    return found.value
