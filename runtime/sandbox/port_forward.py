"""Connects clients on the loopback of a pod's network namespace to the sandbox's own loopback.

Owns the order of a connection's steps: the reactor accepts it, a worker brings it into the sandbox,
the pump copies.  It knows neither where connections come from nor how they are copied, so a client
that brings its streams itself can use the same ``dial`` and pump.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import threading
import time
from collections import deque
from functools import partial

from runtime.base.errors import Failed, RuntimeFault
from runtime.base.log import get_logger
from runtime.bundle.process_spec import ProcessSpec
from runtime.host.pump import Pump
from runtime.network.loopback import LoopbackListener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from runtime.host.reactor import Reactor, Watch
    from runtime.host.workers import Workers
    from runtime.sandbox.exits import ExitInfo
    from runtime.sandbox.sandbox import Sandbox

    class Inside(Protocol):
        """What can run the program: a sandbox, live or known from its files."""

        @property
        def id(self) -> str:
            """The first container's."""

        def execute(
            self,
            cid: str,
            process: ProcessSpec,
            fds: tuple[int, int, int],
            tty: bool,
            deadline: float,
        ) -> int:
            """Run a process; its pid."""

        def wait_pid(self, cid: str, pid: int, callback: Callable[[ExitInfo], None]) -> object:
            """Have the process reaped once it ends, without waiting."""


#: Connections at a time, each of which is a process in the sandbox; further ones wait in the
#: listener's backlog.
MAX_CONNECTIONS = 256
#: Seconds for the program to be started and to reach its port.
DIAL_TIMEOUT = 20.0
#: Connections that are brought in at the same time.
_DIALLERS = 4
#: Seconds to wait where the host has no descriptor left.
_RETRY = 0.5
_BATCH = 16
# A close with this is a reset.
_NO_LINGER = struct.pack("ii", 1, 0)

_log = get_logger("port_forward")


def dial(sandbox: Inside, program: str, port: int) -> tuple[int, int]:
    """Connect to a port on the sandbox's loopback, of IPv4 or else IPv6, by the program there.

    Returns two pipes, to write to it and to read from it, which are the caller's to close; the end
    of each is the end of that way.  Blocks.  Raises Failed if nobody listens there, and whatever
    an exec raises.
    """
    fds: list[int] = []
    try:
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        fds.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        theirs_in, into, out, theirs_out, null = fds
        process = ProcessSpec(args=(program, str(port)), no_new_privileges=True)
        deadline = time.monotonic() + DIAL_TIMEOUT
        stdio = (theirs_in, theirs_out, null)
        pid = sandbox.execute(sandbox.id, process, stdio, False, deadline)
        sandbox.wait_pid(sandbox.id, pid, lambda _: None)  # so that it is reaped
        for fd in stdio:
            fds.remove(fd)
            os.close(fd)
        poller = select.poll()
        poller.register(out, select.POLLIN)
        ready = poller.poll(max(deadline - time.monotonic(), 0) * 1000)
        if not (ready and os.read(out, 1)):
            raise Failed(f"port {port}: " + ("connection refused" if ready else "no answer"))
        os.set_blocking(into, False)
        os.set_blocking(out, False)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return into, out


class PortForward:
    """The forwarding of one sandbox.  ``close`` it, from any thread."""

    def __init__(
        self,
        sandbox_id: str,
        listener: LoopbackListener,
        dial: Callable[[int], tuple[int, int]],
        reactor: Reactor,
        workers: Workers,
    ) -> None:
        """``dial`` is :func:`dial`, for one sandbox.  ``listener`` is ours from now on."""
        self._id = sandbox_id
        self._listener = listener
        self._dial = dial
        self._reactor = reactor
        self._workers = workers
        self._pump = Pump()
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock
        self._count = 0  # guarded by _lock; connections that are not over
        self._accepted: deque[_socket.socket] = deque()  # guarded by _lock; to be dialled
        self._diallers = 0  # guarded by _lock
        with self._lock:
            self._watch: Watch = reactor.watch(listener.fileno(), select.EPOLLIN, self._ready)
        reactor.accompany(self._pump)

    @classmethod
    def open(
        cls, sandbox: Sandbox, program: str, namespace: str, reactor: Reactor, workers: Workers
    ) -> PortForward:
        """Listen in the network namespace at that path; ``program`` is the one in the sandbox.

        Raises Unsupported, Failed.
        """
        listener = LoopbackListener.open(namespace)
        try:
            return cls(sandbox.id, listener, partial(dial, sandbox, program), reactor, workers)
        except BaseException:
            listener.close()
            raise

    def close(self) -> None:
        """Refuse further connections, and cut off those that are there.  Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._watch.cancel()
            self._listener.close()
            accepted = list(self._accepted)
            self._accepted.clear()
        for connection in accepted:
            refuse(connection)
        self._pump.close()
        self._reactor.leave(self._pump)

    # -- accepting, in the reactor ---------------------------------------------------------

    def _ready(self, _: int) -> None:
        with self._lock:
            for _turn in range(_BATCH):
                if self._closed or self._count >= MAX_CONNECTIONS:
                    break
                try:
                    connection = self._listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        continue  # it was given up before we came
                    _log.warning("connection.waits", sandbox=self._id, error=str(error))
                    self._listen_locked(False)
                    self._reactor.call_later(_RETRY, self._go_on)
                    break
                self._count += 1
                self._accepted.append(connection)
            if self._count >= MAX_CONNECTIONS:
                self._listen_locked(False)
            wanted = min(len(self._accepted), _DIALLERS) - self._diallers
            self._diallers += max(wanted, 0)
        for _turn in range(wanted):
            self._workers.submit(self._dial_all)

    def _listen_locked(self, wanted: bool) -> None:
        if not self._closed:
            self._watch.modify(select.EPOLLIN if wanted else 0)

    def _go_on(self) -> None:
        with self._lock:
            self._listen_locked(self._count < MAX_CONNECTIONS)

    def _finished(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == MAX_CONNECTIONS - 1:
                self._listen_locked(True)

    # -- dialling, in a worker -------------------------------------------------------------

    def _dial_all(self) -> None:
        while True:
            with self._lock:
                if not self._accepted:
                    self._diallers -= 1
                    return
                connection = self._accepted.popleft()
            try:
                into, out = self._dial(connection.getsockname()[1])
            except (RuntimeFault, OSError) as fault:
                _log.debug("connection.refused", sandbox=self._id, error=str(fault))
                refuse(connection)
                self._finished()
                continue
            try:
                self._pump.add(connection, into, out, self._finished)
            except RuntimeError as error:
                _log.warning("connection.lost", sandbox=self._id, error=str(error))


def refuse(connection: _socket.socket) -> None:
    """End it as the kernel does where nobody listens: by a reset."""
    try:
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _NO_LINGER)
    except OSError:
        pass  # it was reset, or closed, already
    connection.close()
