"""One call as a handler sees it: what is asked, and the means to answer now or later.

Knows nothing of sockets; answers go to a :class:`Port`, the connection that the call came on.
"""

from __future__ import annotations

from threading import Condition, Lock
from time import monotonic

from .errors import OK, RESOURCE_EXHAUSTED, ConnectionLost, LocalProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, Protocol

    from .envelope import Request

    class Port(Protocol):
        """Where answers go.  Each method passes over a stream that is no longer open.

        All but ``data`` return at once; ``data`` waits while too much is unsent, and raises
        ConnectionLost if nothing can be sent any more.  ``respond`` tells whether the answer was
        taken: False if the connection is known to be gone.
        """

        def respond(self, stream_id: int, payload: bytes) -> bool: ...
        def fail(
            self, stream_id: int, code: int, message: str, details: tuple[bytes, ...]
        ) -> None: ...
        def data(self, stream_id: int, payload: bytes) -> None: ...
        def end(self, stream_id: int) -> None: ...
        def drop(self, stream_id: int) -> None: ...
        def hang_up(self) -> None: ...


MAX_BUFFERED_BYTES: Final = 4 << 20  # received and not yet taken, on one stream
MAX_BUFFERED_MESSAGES: Final = 4096


class Inbox:
    """Messages of a stream that nobody has taken yet; bounded, thread-safe."""

    def __init__(self) -> None:
        self._changed = Condition(Lock())
        self._messages: list[bytes] = []  # guarded by _changed
        self._size = 0  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._held = False  # guarded by _changed; nobody waits
        self._error: Exception | None = None  # guarded by _changed

    def put(self, payload: bytes | None, closed: bool) -> bool:
        """Add a message, an end or both; False if there is no room for the message.

        An inbox that is empty takes a message of any size.
        """
        with self._changed:
            if payload is not None:
                full = self._size + len(payload) > MAX_BUFFERED_BYTES
                if self._messages and (full or len(self._messages) >= MAX_BUFFERED_MESSAGES):
                    return False
                self._messages.append(payload)
                self._size += len(payload)
            self._closed = self._closed or closed
            self._changed.notify_all()
            return True

    def hold(self, held: bool) -> None:
        """Have ``take`` not wait, until it is told otherwise."""
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def abort(self, error: Exception) -> None:
        """What ``take`` raises once the messages that are here are taken."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    @property
    def ready(self) -> bool:
        """Whether ``take`` would answer at once."""
        with self._changed:
            return self._ready_locked()

    def _ready_locked(self) -> bool:
        return bool(self._messages) or self._closed or self._error is not None

    def take(self, timeout: float | None) -> bytes | None:
        """The next message, or None at the end.  ``timeout`` in seconds, None for no limit.

        Raises TimeoutError, also while it is held, or the error that the inbox was aborted with.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._ready_locked(), timeout)
            if not self._ready_locked():
                raise TimeoutError("no message yet, or not in time")
            if self._messages:
                message = self._messages.pop(0)
                self._size -= len(message)
                return message
            if self._closed:
                return None
            assert self._error is not None
            raise self._error


class Stream:
    """The two directions of a streaming call, for its handler.

    The call ends with ``close_send``, or with the call's ``reply`` or ``fail``.
    """

    def __init__(self, call: Call, port: Port, stream_id: int, remote_closed: bool) -> None:
        self._call, self._port, self._stream_id = call, port, stream_id
        self._inbox = Inbox()
        if remote_closed:
            self._inbox.put(None, True)

    def recv(self, timeout: float | None = None) -> bytes | None:
        """The client's next message, or None when it has sent its last.

        Blocks.  Raises TimeoutError, also while it is held, and ConnectionLost once the client is
        gone.
        """
        return self._inbox.take(timeout)

    def hold(self, held: bool) -> None:
        """Have ``recv`` not wait for messages, until it is told otherwise."""
        self._inbox.hold(held)

    def send(self, payload: bytes) -> None:
        """Send a message.  Blocks while the client is slow to read.

        Raises ConnectionLost if the client is gone, LocalProtocolError after the call's end.
        """
        self._call.check_unanswered()
        self._port.data(self._stream_id, payload)

    def close_send(self) -> None:
        """End the call with success.  Raises LocalProtocolError if it has ended already."""
        if self._call.answer_once():
            self._port.end(self._stream_id)

    def deliver(self, payload: bytes | None, closed: bool) -> None:
        """For the connection: what the client sent.  Ends the call if there is no room for it."""
        if not self._inbox.put(payload, closed):
            self._call.fail_if_unanswered(RESOURCE_EXHAUSTED, "receive buffer of stream is full")
            self.abort("receive buffer of stream is full")

    def abort(self, why: str) -> None:
        """For the connection: nothing more will come."""
        self._inbox.abort(ConnectionLost(why))


class Call:
    """A request and its one answer.

    ``deadline`` is in terms of ``time.monotonic``; ``stream`` is None for a unary call.  ``reply``
    and ``fail`` may come from any thread, once, and never block; after the client's connection
    has gone or the deadline has passed they do nothing.
    """

    __slots__ = (
        "_answered",
        "_code",
        "_gone",
        "_hooks",
        "_lock",
        "_on_answer",
        "_port",
        "_stream_id",
        "deadline",
        "metadata",
        "method",
        "payload",
        "service",
        "stream",
    )

    def __init__(
        self,
        port: Port,
        stream_id: int,
        request: Request,
        streaming: bool = False,
        remote_closed: bool = True,
    ) -> None:
        self.service: Final[str] = request.service
        self.method: Final[str] = request.method
        self.payload: Final[bytes] = request.payload
        self.metadata: Final[Mapping[str, tuple[str, ...]]] = request.metadata
        nanoseconds = request.timeout_nano
        self.deadline: Final[float | None] = (
            monotonic() + nanoseconds / 1e9 if nanoseconds else None
        )
        self._port, self._stream_id = port, stream_id
        self._lock = Lock()
        self._answered = False  # guarded by _lock
        self._gone = False  # guarded by _lock
        self._hooks: list[Callable[[], None]] = []  # guarded by _lock
        self._on_answer: Callable[[int], None] | None = None  # guarded by _lock
        self._code = 0  # guarded by _lock; of the answer
        self.stream: Stream | None = None
        if streaming:
            self.stream = Stream(self, port, stream_id, remote_closed)

    def reply(self, payload: bytes) -> bool:
        """Answer with success; False if nobody waits for it any more.

        One look at ``cancelled`` before the answer is not enough for who has to undo what nobody
        wants: the client may go between the two.  Raises LocalProtocolError if it is not the first
        answer.
        """
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise LocalProtocolError(
                f"reply to {self.method} is {type(payload).__name__}, not bytes"
            )
        taken = self.answer_once() and self._port.respond(self._stream_id, payload)
        self._tell(OK)
        return taken

    def fail(self, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        """Answer with an error.  Raises LocalProtocolError if it is not the first answer."""
        if code == 0:
            raise LocalProtocolError(f"failure of {self.method} has the code of success")
        details = tuple(map(bytes, details))
        if self.answer_once():
            self._port.fail(self._stream_id, code, str(message), details)
        self._tell(code)

    def fail_if_unanswered(self, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        """Answer with an error, unless there was an answer."""
        if self.answer_once(strict=False):
            self._port.fail(self._stream_id, code, message, details)
            self._tell(code)

    def hang_up(self) -> None:
        """Close the call's connection, unless something else is under way on it."""
        self._port.hang_up()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer: the connection is gone, or the deadline passed."""
        return self._gone or self._late()

    def on_cancel(self, hook: Callable[[], None]) -> None:
        """Have ``hook`` called once when the connection goes before the call was answered.

        It is called at once if the connection is gone already, otherwise by the server's I/O
        thread, so it must not block.  A passed deadline calls nothing.
        """
        with self._lock:
            if not self._gone:
                if not self._answered:
                    self._hooks.append(hook)
                return
            if self._answered:
                return
        hook()

    def on_answer(self, hook: Callable[[int], None]) -> None:
        """Have ``hook`` called once with the code of the answer, by whoever gives it, or at once.

        For who measures: it must not block.  There is one such hook.
        """
        with self._lock:
            if not self._answered:
                self._on_answer = hook
                return
            code = self._code
        hook(code)

    def _tell(self, code: int) -> None:
        with self._lock:
            self._code = code
            hook, self._on_answer = self._on_answer, None
        if hook is not None:
            hook(code)

    def answer_once(self, strict: bool = True) -> bool:
        """For this package: claim the one answer; False if there is nobody to send it to.

        Raises LocalProtocolError if it was claimed before, or returns False if not ``strict``.
        """
        with self._lock:
            if self._answered:
                if strict:
                    raise LocalProtocolError(f"call of {self.method} was answered already")
                return False
            self._answered = True
            self._hooks = []
            gone = self._gone
        if gone:
            return False
        if self._late():
            self._port.drop(self._stream_id)
            return False
        return True

    def check_unanswered(self) -> None:
        """For this package.  Raises LocalProtocolError after the answer."""
        with self._lock:
            if self._answered:
                raise LocalProtocolError(f"call of {self.method} was answered already")

    def cancel(self, why: str) -> list[Callable[[], None]]:
        """For the connection: nobody waits any more.  Returns the hooks, for it to call."""
        with self._lock:
            self._gone = True
            hooks, self._hooks = self._hooks, []
        if self.stream is not None:
            self.stream.abort(why)
        return hooks

    def _late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline
