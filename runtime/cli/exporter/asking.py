"""Many processes asked at once, by one thread, none waited for longer than the others.

A conversation is a generator: it yields an open connection on which it has sent its request, and
gets the reply, or has raised in it what became of it.
"""

from __future__ import annotations

import select
import time

from runtime.base.errors import DeadlineExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable
    from typing import Any, Protocol

    class Exchange(Protocol):
        """A connection with a request under way; ``feed`` takes what has come, without waiting."""

        def fileno(self) -> int: ...
        def feed(self) -> Any: ...

    Conversation = Generator[Exchange, Any, None]
    Key = tuple[str, str]

#: Seconds for which a sentry is not asked that didn't answer: at first, and at most.
FIRST_REST, LONGEST_REST = 10.0, 300.0


class Rests:
    """Which sentries are left alone, by root and sandbox, as they didn't answer.

    A sentry's queue of connections has room for sixteen, and a connection that was given up stays
    in it: who asks a sentry that hangs again and again would leave its shim none.  For one thread.
    """

    def __init__(self) -> None:
        self._rests: dict[Key, tuple[float, float]] = {}  # until when, and how long that is

    def is_resting(self, key: Key) -> bool:
        """Whether it isn't to be asked now."""
        return key in self._rests and time.monotonic() < self._rests[key][0]

    def answered(self, key: Key) -> None:
        """It has answered, or has ended."""
        self._rests.pop(key, None)

    def missed(self, key: Key) -> None:
        """It has not, and is left alone for twice as long as the last time."""
        _, last = self._rests.get(key, (0.0, FIRST_REST / 2))
        seconds = min(2 * last, LONGEST_REST)
        self._rests[key] = time.monotonic() + seconds, seconds

    def keep(self, keys: Collection[Key]) -> None:
        """Forget the others, which are gone."""
        self._rests = {key: rest for key, rest in self._rests.items() if key in keys}


def converse(conversations: Iterable[Conversation], deadline: float) -> None:
    """Let all of them come to their end; at ``deadline`` (``time.monotonic()``) they are told.

    What a conversation raises is raised, and the others are closed: it has to handle what may
    happen to it.
    """
    # Not poll(2): answers come one by one, and it would go through all that wait for each.
    poll = select.epoll()
    waiting: dict[int, tuple[Conversation, Exchange]] = {}

    def go_on(conversation: Conversation, reply: Any, fault: Exception | None, fd: int) -> None:
        """``fd`` is what it waited for, or -1."""
        try:
            going = conversation.send(reply) if fault is None else conversation.throw(fault)
        except StopIteration:
            going = None
        if going is not None and going.fileno() == fd and waiting[fd][1] is going:
            return  # the next answer is to come the same way
        if waiting.pop(fd, None) is not None:
            try:
                poll.unregister(fd)
            except OSError:
                pass  # it was closed
        if going is not None:
            waiting[going.fileno()] = conversation, going
            poll.register(going.fileno(), select.EPOLLIN)

    try:
        for each in conversations:
            go_on(each, None, None, -1)
        while waiting:
            left = deadline - time.monotonic()
            ready = poll.poll(max(left, 0.0), len(waiting))
            if not ready and left <= 0:
                for fd, (conversation, _) in tuple(waiting.items()):
                    go_on(conversation, None, DeadlineExceeded("answer", 0.0), fd)
                continue
            for fd, _ in ready:
                conversation, exchange = waiting[fd]
                fault = reply = None
                try:
                    reply = exchange.feed()
                except Exception as error:
                    fault = error
                if reply is not None or fault is not None:
                    go_on(conversation, reply, fault, fd)
    finally:
        poll.close()
        for conversation, _ in waiting.values():
            conversation.close()
