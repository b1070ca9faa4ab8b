"""The server: one I/O thread for accepting and all reading, handlers through ``submit``.

The I/O thread sleeps in epoll without a time-out unless something is due, so idle connections cost
neither threads nor wake-ups.  It never blocks on a peer: see ``peer`` for how answers are written.
Knows no services; the handler sees every call.
"""

from __future__ import annotations

import _socket
import os
from errno import ECONNABORTED, EINTR
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from struct import Struct
from threading import Event, Lock, Thread, get_ident
from time import monotonic

from .call import Call
from .connection import MAX_OPEN_STREAMS, DataReceived, FrameRejected, RequestReceived
from .errors import (
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNKNOWN,
    ConnectionLost,
    RemoteProtocolError,
    StatusError,
)
from .peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Handler = Callable[[Call], bytes | None]

SEND_TIMEOUT: Final = 10.0  # seconds without a byte read after which a peer is dropped
_ACCEPT_PAUSE: Final = 1.0  # seconds, when descriptors or memory have run out
_ACCEPT_BATCH: Final = 64
_LONGEST_POLL: Final = 1e6  # seconds; epoll takes no more than 2^31 ms
_STOP_MARGIN: Final = 5.0  # seconds beyond the time-out that stop() waits for the I/O thread
_CREDENTIALS = Struct("=iII")  # pid, uid, gid


class Server:
    """Serves a listening stream socket, which it owns from here on.

    ``handler(call)`` runs in a thread of ``submit``'s making (by default a new one per call) and
    returns the reply, or None to have ``call.reply`` called later.  A StatusError becomes that
    status; any other exception goes to ``on_error(call, exc)`` and becomes UNKNOWN with its text.

    Clients must have this ``uid`` and ``gid`` (default: our effective ones), else they are
    dropped; a socket without credentials has none that match.  ``on_idle()`` is called by the I/O
    thread each time that the last connection has gone.  ``log(event, **fields)`` may be called by
    any thread.  Neither may block.
    """

    def __init__(
        self,
        listener: _socket.socket,
        handler: Handler,
        *,
        submit: Callable[[Callable[[], None]], None] | None = None,
        uid: int | None = None,
        gid: int | None = None,
        on_error: Callable[[Call, BaseException], None] | None = None,
        on_idle: Callable[[], None] | None = None,
        log: Callable[..., None] | None = None,
        max_in_flight: int = MAX_OPEN_STREAMS,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        self._listener: _socket.socket | None = listener  # I/O thread's, once that runs
        self._handler = handler
        self._submit = submit or _in_new_thread
        self._uid = os.geteuid() if uid is None else uid
        self._gid = os.getegid() if gid is None else gid
        self._on_error, self._on_idle, self._log_hook = on_error, on_idle, log
        self._max_in_flight, self._send_timeout = max_in_flight, send_timeout
        self._refused = Event()
        self._lock = Lock()  # leaf: taken under a peer's lock
        self._closing = False  # guarded by _lock
        self._frozen = False  # guarded by _lock
        self._stop_at: float | None = None  # guarded by _lock
        self._attention: set[Peer] = set()  # guarded by _lock
        self._handled: list[str] = []  # guarded by _lock; methods whose handlers run
        self._thread: Thread | None = None  # guarded by _lock
        self._waker = -1  # guarded by _lock; an eventfd while the I/O thread runs
        # The rest is the I/O thread's alone, once that runs.
        self._poller: epoll
        self._peers: dict[int, Peer] = {}
        self._unsent: set[Peer] = set()
        self._accept_at: float | None = None
        self._draining = False

    @property
    def closing(self) -> bool:
        """Whether new connections are refused."""
        return self._closing

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._peers)

    def handled(self) -> list[str]:
        """The methods whose handlers run now; one that answers later doesn't."""
        with self._lock:
            return sorted(set(self._handled))

    def start(self) -> None:
        """Begin to serve.  May be called once."""
        with self._lock:
            if self._thread is not None or self._closing or self._listener is None:
                raise RuntimeError("a ttrpc server starts once")
            self._listener.setblocking(False)
            self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poller = epoll()
            self._poller.register(self._waker, EPOLLIN)
            self._poller.register(self._listener, EPOLLIN)
            self._thread = Thread(target=self._run, name="ttrpc", daemon=True)
            self._thread.start()

    def freeze(self) -> None:
        """End the I/O thread between two rounds; nothing is accepted or read until :meth:`thaw`.

        Connections and open calls stay, and calls may be answered.  Not for the I/O thread.
        """
        with self._lock:
            self._frozen = True
            thread, self._thread = self._thread, None
            self._wake_locked()
        if thread is not None:
            thread.join()

    def thaw(self) -> None:
        """Go on after :meth:`freeze`, maybe in another process with the descriptors; idempotent."""
        with self._lock:
            if not self._frozen:
                return
            self._frozen = False
            self._thread = Thread(target=self._run, name="ttrpc", daemon=True)
            self._thread.start()

    def refuse(self) -> None:
        """Close the listening socket and go on serving the connections there are.  Idempotent.

        When it returns, a connection attempt fails.
        """
        with self._lock:
            self._closing = True
            thread = self._thread
            self._wake_locked()
        if thread is None:
            self._close_listener()
        elif thread.ident == get_ident():
            return  # from a hook: the loop that called it goes on to do it
        else:
            self._refused.wait(_STOP_MARGIN)

    def stop(self, timeout: float) -> None:
        """Refuse new connections and calls, let open calls be answered, then close everything.

        Waits at most ``timeout`` seconds for the answers, deferred ones too; calls that are
        still open are cancelled.  Idempotent.  From one of the server's own hooks it does not
        wait; from within a handler it waits for that handler in vain.
        """
        with self._lock:
            until = monotonic() + timeout
            self._stop_at = until if self._stop_at is None else min(self._stop_at, until)
        self.refuse()
        thread = self._thread
        if thread is not None and thread.ident != get_ident():
            thread.join(timeout + _STOP_MARGIN)

    # The I/O thread

    def _run(self) -> None:
        frozen = False
        try:
            while not self._finished():
                if self._frozen:
                    frozen = True
                    return
                for fd, mask in self._poller.poll(self._poll_timeout()):
                    if fd == self._waker:
                        os.eventfd_read(fd)
                    elif fd in self._peers:
                        self._serve(self._peers[fd], mask)
                    elif self._listener is not None and fd == self._listener.fileno():
                        self._accept()
                self._look_around()
        finally:
            if not frozen:
                self._end()

    def _end(self) -> None:
        self._close_listener()
        for peer in tuple(self._peers.values()):
            self._close(peer, "server stopped")
        self._poller.close()
        with self._lock:
            os.close(self._waker)
            self._waker = -1

    def _finished(self) -> bool:
        stop_at = self._stop_at
        if stop_at is None:
            return False
        if not self._draining:
            self._draining = True
            for peer in self._peers.values():
                peer.drain()
        return monotonic() >= stop_at or all(peer.idle for peer in self._peers.values())

    def _poll_timeout(self) -> float | None:
        """Seconds until something is due, None for nothing."""
        due = [at for at in (self._stop_at, self._accept_at) if at is not None]
        due += [at for at in (peer.stuck_at() for peer in self._unsent) if at is not None]
        return min(max(0.0, min(due) - monotonic()), _LONGEST_POLL) if due else None

    def _look_around(self) -> None:
        """What other threads asked for, and what is due."""
        with self._lock:
            asked, self._attention = self._attention, set()
            closing = self._closing
        if closing:
            self._close_listener()
        now = monotonic()
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            if self._listener is not None:
                self._poller.modify(self._listener, EPOLLIN)
        for peer in asked | self._unsent:
            if peer.socket.fileno() in self._peers:
                stuck_at = peer.stuck_at()
                if stuck_at is not None and now >= stuck_at:
                    self._close(peer, f"nothing was read for {self._send_timeout:g} s")
                else:
                    self._rearm(peer)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            if self._listener is None or self._closing:
                return
            try:
                fd, _address = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in (EINTR, ECONNABORTED):
                    continue
                # Out of descriptors or memory: the connection stays in the backlog and the
                # listener readable, so look away for a while.
                self._log("accept.paused", error=exc.strerror, seconds=_ACCEPT_PAUSE)
                self._poller.modify(self._listener, 0)
                self._accept_at = monotonic() + _ACCEPT_PAUSE
                return
            self._admit(_socket.socket(fileno=fd))

    def _admit(self, sock: _socket.socket) -> None:
        try:
            raw = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(raw)
            if (uid, gid) != (self._uid, self._gid):
                self._log("peer.refused", pid=pid, uid=uid, gid=gid)
                sock.close()
                return
            sock.setblocking(False)
            peer = Peer(sock, self._max_in_flight, self._send_timeout, self._ask)
            self._poller.register(sock, EPOLLIN)
        except OSError as exc:
            self._log("peer.refused", error=exc.strerror)
            sock.close()
            return
        peer.mask = EPOLLIN
        self._peers[sock.fileno()] = peer

    def _serve(self, peer: Peer, mask: int) -> None:
        try:
            if mask & EPOLLOUT:
                peer.flush()
            if mask & EPOLLIN:
                events = peer.read()
                if events is None:
                    self._close(peer, "")
                    return
                for event in events:
                    self._handle(peer, event)
            elif mask & (EPOLLHUP | EPOLLERR):
                self._close(peer, "peer closed without reading")
                return
            self._rearm(peer)
        except (OSError, RemoteProtocolError) as exc:
            self._close(peer, str(exc))
        except Exception as exc:  # a bug of ours must not take the other connections along
            self._log("connection.failed", error=repr(exc))
            self._close(peer, repr(exc))

    def _rearm(self, peer: Peer) -> None:
        """Watch the connection for what it waits for, or close it if it is broken."""
        if peer.broken:
            self._close(peer, peer.broken)
            return
        read, write = peer.wants()
        mask = (EPOLLIN if read else 0) | (EPOLLOUT if write else 0)
        if mask != peer.mask:
            self._poller.modify(peer.socket, mask)
            peer.mask = mask
        if write:
            self._unsent.add(peer)
        else:
            self._unsent.discard(peer)

    def _close(self, peer: Peer, why: str) -> None:
        if why:
            self._log("connection.dropped", reason=why)
        number = peer.socket.fileno()
        self._poller.unregister(peer.socket)  # a fork in another thread may keep the socket open
        self._unsent.discard(peer)
        for call in peer.close():
            self._cancel(call, why or "the client closed the connection")
        del self._peers[number]  # last: who counts no connections finds its calls cancelled
        if not self._peers and self._on_idle is not None and not self._draining:
            self._guard(self._on_idle)

    def _handle(self, peer: Peer, event: RequestReceived | DataReceived | FrameRejected) -> None:
        if isinstance(event, RequestReceived):
            self._begin(peer, event)
        elif isinstance(event, DataReceived):
            call = peer.call(event.stream_id)
            if call is not None and call.stream is not None:
                call.stream.deliver(event.payload, event.closed)
        else:
            self._log("frame.rejected", stream=event.stream_id, reason=event.message)
            call = peer.reject(event)
            if call is not None:
                self._cancel(call, event.message)

    def _begin(self, peer: Peer, event: RequestReceived) -> None:
        call = Call(peer, event.stream_id, event.request, event.streaming, event.remote_closed)
        peer.begin(event.stream_id, call)
        if self._stop_at is not None:
            call.fail(UNAVAILABLE, "server is shutting down")
            return
        try:
            self._submit(lambda: self._call(call))
        except Exception as exc:
            self._log("call.refused", method=call.method, error=repr(exc))
            call.fail_if_unanswered(RESOURCE_EXHAUSTED, f"cannot run the request: {exc}")

    # Any thread

    def _call(self, call: Call) -> None:
        with self._lock:
            self._handled.append(call.method)
        try:
            self._answer(call)
        finally:
            with self._lock:
                self._handled.remove(call.method)

    def _answer(self, call: Call) -> None:
        try:
            answer = self._handler(call)
            if answer is not None:
                call.reply(answer)
        except StatusError as exc:
            call.fail_if_unanswered(exc.code or UNKNOWN, exc.message, exc.details)
        except BaseException as exc:
            self._report(call, exc)
            call.fail_if_unanswered(UNKNOWN, str(exc) or type(exc).__name__)
            if not isinstance(exc, Exception):
                raise

    def _report(self, call: Call, exc: BaseException) -> None:
        hook = self._on_error
        if hook is None or (isinstance(exc, ConnectionLost) and call.cancelled):
            return  # a stream's client may leave; nothing is wrong with the handler
        self._guard(lambda: hook(call, exc))

    def _cancel(self, call: Call, why: str) -> None:
        for hook in call.cancel(why):
            self._guard(hook)

    def _guard(self, hook: Callable[[], None]) -> None:
        """Call the owner's code: what it raises is its own matter, not the server's."""
        try:
            hook()
        except Exception as exc:
            self._log("hook.failed", error=repr(exc))

    def _log(self, event: str, **fields: object) -> None:
        if self._log_hook is not None:
            self._log_hook(event, **fields)

    def _ask(self, peer: Peer) -> None:
        with self._lock:
            self._attention.add(peer)
            self._wake_locked()

    def _wake_locked(self) -> None:
        if self._waker >= 0:
            os.eventfd_write(self._waker, 1)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        with self._lock:
            self._closing = True
        self._refused.set()


def _in_new_thread(job: Callable[[], None]) -> None:
    Thread(target=job, name="ttrpc-call", daemon=True).start()
