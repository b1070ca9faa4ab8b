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
    from collections.abc import Generator, Iterable
    from typing import Any, Protocol

    class Exchange(Protocol):
        """A connection with a request under way; ``feed`` takes what has come, without waiting."""

        def fileno(self) -> int: ...
        def feed(self) -> Any: ...

    Conversation = Generator[Exchange, Any, None]


def converse(conversations: Iterable[Conversation], deadline: float) -> None:
    """Let all of them come to their end; at ``deadline`` (``time.monotonic()``) they are told.

    What a conversation raises is raised, and the others are closed: it has to handle what may
    happen to it.
    """
    poll = select.poll()
    waiting: dict[int, tuple[Conversation, Exchange]] = {}

    def go_on(conversation: Conversation, reply: Any, fault: Exception | None) -> None:
        try:
            going = conversation.send(reply) if fault is None else conversation.throw(fault)
        except StopIteration:
            return
        fd = going.fileno()
        waiting[fd] = conversation, going
        poll.register(fd, select.POLLIN)

    try:
        for each in conversations:
            go_on(each, None, None)
        while waiting:
            left = deadline - time.monotonic()
            ready = poll.poll(max(left, 0.0) * 1000)
            if not ready and left <= 0:
                for fd in tuple(waiting):
                    conversation, _ = waiting.pop(fd)
                    poll.unregister(fd)
                    go_on(conversation, None, DeadlineExceeded("answer", 0.0))
                continue
            for fd, _ in ready:
                conversation, exchange = waiting[fd]
                fault = reply = None
                try:
                    reply = exchange.feed()
                except Exception as error:
                    fault = error
                if reply is None and fault is None:
                    continue
                del waiting[fd]
                poll.unregister(fd)
                go_on(conversation, reply, fault)
    finally:
        for conversation, _ in waiting.values():
            conversation.close()
