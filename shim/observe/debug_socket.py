"""A shim's debug socket: its file, and a server that is loaded when somebody calls."""

from __future__ import annotations

import _socket
import os
from select import EPOLLIN

from runtime.base.errors import RuntimeFault
from runtime.base.log import get_logger
from shim.base import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.host.reactor import Reactor, Watch
    from shim.observe.debug_server import DebugServer
    from shim.observe.debug_service import DebugService


class DebugSocket:
    """The socket beside the shim's own, at ``address``.  ``service`` makes what is served there.

    Its callbacks run in the reactor's thread, the methods in the one that owns the shim's end.
    """

    def __init__(self, address: str, reactor: Reactor, service: Callable[[], DebugService]) -> None:
        self._path = sockets.debug_path(address)
        self._reactor = reactor
        self._service = service
        self._listener: _socket.socket | None = None
        self._watch: Watch | None = None
        self._server: DebugServer | None = None

    def open(self) -> None:
        """Listen.  A shim does without as well, so this never raises.

        Nobody else binds the path while the shim's own socket is ours.
        """
        try:
            fd = sockets.listen(self._path) if self._path else None
            if fd is None:
                return
            self._listener = _socket.socket(fileno=fd)
            self._listener.setblocking(False)
            self._watch = self._reactor.watch(fd, EPOLLIN, self._called)
        except (OSError, RuntimeFault) as error:
            get_logger("debug").warning("debug.unavailable", error=str(error))

    def _called(self, _: int) -> None:
        server = self._server
        if server is None:
            from shim.observe.debug_server import DebugServer
            from shim.observe.debug_service import SERVICE

            assert self._listener is not None
            handle = self._service().handle
            server = DebugServer(self._listener, SERVICE, handle, self._reactor, os.geteuid())
            server.listen(self._watch)
            self._server = server
        server.accept()

    def remove(self) -> None:
        """Remove its file, while it listens still; idempotent."""
        if self._listener is not None:
            sockets.remove(self._path)

    def close(self) -> None:
        """End it, once the reactor has stopped."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
