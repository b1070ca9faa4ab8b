"""Copies bytes between connected sockets and pairs of pipes, for many connections in one thread.

Knows nothing of what it copies.  The thread exists only while there is a connection.
"""

from __future__ import annotations

import _socket
import os
import select
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 16
#: Chunks of one way in one turn, before others have theirs.
_TURN = 8
#: Seconds between two looks at connections that are answered and not closed.
_LOOK = 1.0
#: Seconds for which such a one may be silent.
SILENCE = 30.0


class _Pumped:
    """A socket, and the pipes to whoever answers.  The end of each way is handed on."""

    def __init__(
        self, socket: _socket.socket, into: int, out: int, finished: Callable[[], None]
    ) -> None:
        self.socket = socket
        self.finished = finished
        #: Whether it is over; whoever serves it closes all.
        self.closed = False
        self._into = into  # -1 once that way has ended, or nobody reads any more
        self._out = out  # -1 once that way has ended
        self._inward = self._outward = memoryview(b"")  # read, and not yet written
        self._asked = False  # the socket has ended
        self._last = time.monotonic()

    def serve(self) -> None:
        """Copy what can be copied now."""
        try:
            self._answer()
            self._ask()
        except OSError:
            self.closed = True  # the client is gone

    def _ask(self) -> None:
        for _ in range(_TURN):
            if not self._inward:
                if self._asked:
                    break
                try:
                    data = self.socket.recv(_CHUNK)
                except BlockingIOError:
                    return
                self._last = time.monotonic()
                if not data:
                    self._asked = True
                    break
                # What nobody takes is read all the same: closing with something unread would be
                # a reset, which could overtake the answer.
                self._inward = memoryview(b"" if self._into < 0 else data)
            try:
                if self._inward:
                    self._inward = self._inward[os.write(self._into, self._inward) :]
            except BlockingIOError:
                return
            except OSError:
                self._close_into()
        if self._asked and not self._inward:
            self._close_into()
            self.closed = self._out < 0

    def _answer(self) -> None:
        for _ in range(_TURN):
            if not self._outward:
                if self._out < 0:
                    return
                try:
                    data = os.read(self._out, _CHUNK)
                except BlockingIOError:
                    return
                if not data:
                    os.close(self._out)
                    self._out = -1
                    self._close_into()
                    self.socket.shutdown(_socket.SHUT_WR)
                    return
                self._outward = memoryview(data)
                self._last = time.monotonic()
            try:
                self._outward = self._outward[self.socket.send(self._outward) :]
            except BlockingIOError:
                return

    def _close_into(self) -> None:
        self._inward = memoryview(b"")
        if self._into >= 0:
            os.close(self._into)
            self._into = -1

    @property
    def answered(self) -> bool:
        """Whether nothing is to come any more, but the client's end."""
        return self._out < 0

    def look(self) -> None:
        """Close it if the client doesn't, who has got its answer."""
        self.closed = self.closed or (self.answered and time.monotonic() - self._last > SILENCE)

    def interests(self) -> dict[int, int]:
        """Which events of which descriptor are worth a turn."""
        found = {self.socket.fileno(): 0}
        if self._inward:
            found[self._into] = select.EPOLLOUT
        elif not self._asked:
            found[self.socket.fileno()] |= select.EPOLLIN
        if self._outward:
            found[self.socket.fileno()] |= select.EPOLLOUT
        elif self._out >= 0:
            found[self._out] = select.EPOLLIN
        return found

    def close(self) -> None:
        self.socket.close()
        self._close_into()
        if self._out >= 0:
            os.close(self._out)
            self._out = -1
        self.finished()


class Pump:
    """Connections that are being copied.  From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: list[_Pumped] = []  # guarded by _lock
        self._wake = -1  # guarded by _lock; of the thread that runs
        self._thread: threading.Thread | None = None  # guarded by _lock
        self._frozen = False  # guarded by _lock
        self._closed = False  # guarded by _lock

    def add(
        self,
        socket: _socket.socket,
        into: int,
        out: int,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy between a socket and two pipes, all non-blocking and the pump's from now on.

        What the socket says is written to ``into``, what is read from ``out`` is its answer.
        ``finished`` is called once all are closed, by the pump's thread.  Raises RuntimeError if
        there is no thread to be had; then they are closed as well.
        """
        connection = _Pumped(socket, into, out, finished)
        with self._lock:
            if not self._closed:
                self._new.append(connection)
                try:
                    self._start_locked()
                    return
                except BaseException:
                    self._new.remove(connection)
                    connection.close()
                    raise
        connection.close()

    def _start_locked(self) -> None:
        """Have a thread look at what is new."""
        if self._frozen:
            return
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
            return
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        thread = threading.Thread(target=self._run, args=(self._wake,), name="pump", daemon=True)
        try:
            thread.start()
        except BaseException:
            os.close(self._wake)
            self._wake = -1
            raise
        self._thread = thread

    def freeze(self) -> str:
        """End the thread between two turns, and keep all connections for :meth:`thaw`.

        Returns an empty string: nothing hinders it.  Not for the thread's own callbacks.
        """
        with self._lock:
            self._frozen = True
            thread = self._thread
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()
        with self._lock:
            self._thread = None
        return ""

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process with the descriptors; idempotent.

        Connections that no thread is to be had for are closed.
        """
        with self._lock:
            self._frozen = False
            if not self._new:
                return
            try:
                self._start_locked()
                return
            except (RuntimeError, MemoryError, OSError):
                lost, self._new = self._new, []
        for connection in lost:
            connection.close()

    def close(self) -> None:
        """Cut all connections off.  Doesn't wait; idempotent."""
        abandoned: list[_Pumped] = []
        with self._lock:
            self._closed = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            elif self._frozen:
                abandoned, self._new = self._new, []
        for connection in abandoned:
            connection.close()

    def _run(self, wake: int) -> None:
        turn = _Turn(wake)
        abandoned: list[_Pumped] = []
        try:
            while True:
                with self._lock:
                    new, self._new = self._new, []
                    if self._closed or not (new or turn.connections):
                        self._wake, self._thread = -1, None
                        abandoned = new
                        return
                    if self._frozen:
                        self._wake = -1
                        self._new = [*turn.connections, *new]
                        turn.connections.clear()
                        return
                for connection in new:
                    turn.serve(connection)
                if turn.connections:
                    turn.wait()
        finally:
            for connection in [*turn.connections, *abandoned]:
                connection.close()
            turn.close()


class _Turn:
    """The thread's own: what it waits for."""

    def __init__(self, wake: int) -> None:
        self.connections: dict[_Pumped, dict[int, int]] = {}
        self._wake = wake
        self._epoll = select.epoll()
        self._epoll.register(wake, select.EPOLLIN)
        self._owners: dict[int, _Pumped] = {}

    def wait(self) -> None:
        answered = [each for each in self.connections if each.answered]
        for fd, _ in self._epoll.poll(_LOOK if answered else None):
            if fd == self._wake:
                os.eventfd_read(fd)
            elif fd in self._owners:
                self.serve(self._owners[fd])
        for connection in answered:
            if connection in self.connections:
                connection.look()
                if connection.closed:
                    self._drop(connection)

    def serve(self, connection: _Pumped) -> None:
        # What it closes leaves the epoll set by itself, and its number may be another's at once:
        # so it is watched anew each time that something changes.
        before = self.connections.get(connection, {})
        connection.serve()
        after = {} if connection.closed else connection.interests()
        if connection.closed:
            self._drop(connection)
            return
        # One that nothing is wanted of isn't watched at all: its hang-up would be told for ever.
        after = {fd: events for fd, events in after.items() if events}
        for fd in before.keys() - after.keys():
            self._forget(fd)
        for fd, events in after.items():
            if fd not in before:
                self._epoll.register(fd, events)
            elif before[fd] != events:
                self._epoll.modify(fd, events)
            self._owners[fd] = connection
        self.connections[connection] = after

    def _drop(self, connection: _Pumped) -> None:
        for fd in self.connections.pop(connection, {}):
            self._forget(fd)
        connection.close()

    def _forget(self, fd: int) -> None:
        self._owners.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:
            return  # it is closed already

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake)
