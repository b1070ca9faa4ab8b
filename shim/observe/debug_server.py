"""The server at a shim's debug socket: ttrpc, in the reactor's thread, nothing while nobody calls.

Apart from the task API's server, so that a look is never a client in the sense of the shim's life,
and answers when that one's thread doesn't.  Handlers answer from memory and never block.
"""

from __future__ import annotations

import _socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from struct import Struct

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from shim.base import status
from shim.ttrpc.call import Call
from shim.ttrpc.connection import FrameRejected, RequestReceived
from shim.ttrpc.errors import RemoteProtocolError, StatusError
from shim.ttrpc.peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from runtime.host.reactor import Reactor, Timer, Watch

#: Connections at a time; one more is closed at once.
MAX_CONNECTIONS: Final = 8
#: Calls at a time on each; they are answered at once, so more than one is only unread answers.
MAX_CALLS: Final = 16
#: Bytes of a request.
MAX_REQUEST: Final = 64 << 10
#: Seconds for which a connection is kept on which nothing happens.
IDLE_TIMEOUT: Final = 10.0
#: Seconds for which nothing is accepted where the host has run out of descriptors.
_PAUSE: Final = 1.0
_BATCH: Final = 16
_CREDENTIALS = Struct("=iII")  # pid, uid, gid

_log = get_logger("debug")


class DebugServer:
    """Owns the listener and the connections.  ``accept`` and callbacks: the reactor's thread.

    ``handle(method, payload)`` returns the reply or raises StatusError.
    """

    def __init__(
        self,
        listener: _socket.socket,
        service: str,
        handle: Callable[[str, bytes], bytes],
        reactor: Reactor,
        uid: int,
    ) -> None:
        self._listener = listener
        self._service, self._handle = service, handle
        self._reactor = reactor
        self._uid = uid
        self._watch: Watch | None = None
        self._guests: set[_Guest] = set()

    def listen(self, watch: Watch | None) -> None:
        """Serve; ``watch`` is the listener's, which calls :meth:`accept`."""
        self._watch = watch

    def accept(self, _: int = 0) -> None:
        """Take in who waits at the listener."""
        for _each in range(_BATCH):
            try:
                fd, _address = self._listener._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("debug.accept_paused", error=str(error))
                self._pause()
                return
            self._admit(_socket.socket(fileno=fd))

    def close(self) -> None:
        """End all connections; once the reactor has stopped, or in its thread."""
        for guest in tuple(self._guests):
            guest.close()

    def _pause(self) -> None:
        if self._watch is not None:
            self._watch.modify(0)
            watch = self._watch
            self._reactor.call_later(_PAUSE, lambda: watch.modify(EPOLLIN))

    def _admit(self, sock: _socket.socket) -> None:
        try:
            raw = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _gid = _CREDENTIALS.unpack(raw)
            if uid != self._uid or len(self._guests) >= MAX_CONNECTIONS:
                _log.warning("debug.refused", pid=pid, uid=uid, connections=len(self._guests))
                sock.close()
                return
            sock.setblocking(False)
            guest = _Guest(self, sock, self._reactor)
        except (OSError, RuntimeFault) as error:
            _log.warning("debug.refused", error=str(error))
            sock.close()
            return
        self._guests.add(guest)

    def forget(self, guest: _Guest) -> None:
        self._guests.discard(guest)

    def call(self, call: Call) -> None:
        """Answer one call."""
        try:
            if call.service != self._service:
                raise StatusError(status.UNIMPLEMENTED, f"service {call.service[:100]}")
            if len(call.payload) > MAX_REQUEST:
                why = f"request of more than {MAX_REQUEST} bytes"
                raise StatusError(status.INVALID_ARGUMENT, why)
            call.reply(self._handle(call.method, call.payload))
        except StatusError as error:
            call.fail_if_unanswered(error.code, error.message)
        except Exception as error:
            _log.exception("debug.failed", method=call.method[:100])
            call.fail_if_unanswered(status.UNKNOWN, f"{type(error).__name__}: {error}"[:1000])


class _Guest:
    """One connection, with its time."""

    def __init__(self, server: DebugServer, sock: _socket.socket, reactor: Reactor) -> None:
        self._server, self._reactor = server, reactor
        self._peer = Peer(sock, MAX_CALLS, IDLE_TIMEOUT, lambda _: None)
        self._watch = reactor.watch(sock.fileno(), EPOLLIN, self._ready)
        self._timer: Timer = reactor.call_later(IDLE_TIMEOUT, self.close)

    def _ready(self, mask: int) -> None:
        try:
            if mask & EPOLLOUT:
                self._peer.flush()
            if mask & EPOLLIN:
                events = self._peer.read()
                if events is None:
                    self.close()
                    return
                for event in events:
                    self._take(event)
            elif mask & (EPOLLHUP | EPOLLERR):
                self.close()
                return
        except (OSError, RemoteProtocolError):
            self.close()
            return
        if self._peer.broken:
            self.close()
            return
        read, write = self._peer.wants()
        self._watch.modify((EPOLLIN if read else 0) | (EPOLLOUT if write else 0))
        self._timer.cancel()
        self._timer = self._reactor.call_later(IDLE_TIMEOUT, self.close)

    def _take(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            # Nothing is streamed: of such a call what comes first is the request.
            call = Call(self._peer, event.stream_id, event.request)
            self._peer.begin(event.stream_id, call)
            self._server.call(call)
        elif isinstance(event, FrameRejected):
            self._peer.reject(event)

    def close(self) -> None:
        self._timer.cancel()
        self._watch.cancel()
        self._peer.close()
        self._server.forget(self)
